"""Files and folders that are there whole or not at all, and one clear line where they cannot be
written."""

import errno
import glob
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import psutil

from lensjax.errors import Interrupted, LensjaxError, UsageError, one_line
from lensjax.places import is_local

# How the name of a folder ends that is to be replaced.
ASIDE = ".old"


def draft_of(path: Path, process: int | str) -> Path:
    """Returns where a process of this machine writes what is to take the place of `path`."""
    return path.with_name(f".{path.name}.{platform.node()}.{process}")


def remove_drafts(folder: Path) -> None:
    """Deletes the drafts in a folder that processes of this machine have left which are no more."""
    for draft in folder.glob(f".*.{glob.escape(platform.node())}.*"):
        process = draft.suffix.removeprefix(".")
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            remove(draft)


def remove(path: Path) -> None:
    """Deletes a file or a folder, where there is one."""
    if not is_local(path):
        with suppress(FileNotFoundError):
            cast(Any, path).fs.rm(cast(Any, path).path, recursive=True)
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file opened for writing that takes the place of `path` once it is safely on disk, or, at an
    address, sent there as a whole."""
    if not is_local(path):
        with tempfile.NamedTemporaryFile() as file:
            yield cast(IO[bytes], file)
            file.flush()
            _send(file.name, path)
        return
    draft = draft_of(path, os.getpid())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(path.parent)
        with draft.open("wb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                draft.unlink()
                raise
        os.replace(draft, path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _send(file: str, path: Path) -> None:
    """Puts a file at an address, where object storage shows it whole or not at all."""
    try:
        cast(Any, path).fs.put_file(file, cast(Any, path).path)
    except Exception as error:  # each library has its own
        raise LensjaxError(
            f"cannot write {path}: {one_line(error, 160)}; choose another folder"
        ) from error


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder`, where there is one, once it is filled.

    Until it does, the old one is there or set aside where `standing_folders` finds it: the process
    may be killed at any time. What killed processes have left is cleared away.
    """
    aside = folder.with_name(f".{folder.name}{ASIDE}")
    draft = draft_of(folder, os.getpid())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(folder.parent)
        remove(draft)  # numbers return: a process that is no more may have had this one's
        if folder.exists() and aside.exists():
            os.replace(aside, draft)
            remove(draft)
        elif aside.exists():
            os.replace(aside, folder)
        draft.mkdir()
        yield draft
        if folder.exists():
            os.replace(folder, aside)
        os.replace(draft, folder)
        if aside.exists():
            os.replace(aside, draft)  # What is set aside is always whole; what is deleted is not.
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        remove(draft)


def standing_folders(parent: Path) -> dict[str, Path]:
    """Returns the folders in `parent`, if there are any, by name. Hidden ones are drafts; but one
    that a killed process was about to replace is still where it was set aside."""
    folders = [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    set_aside = {
        path.name.removeprefix(".").removesuffix(ASIDE): path
        for path in folders
        if path.name.startswith(".") and path.name.endswith(ASIDE)
    }
    return set_aside | {path.name: path for path in folders if not path.name.startswith(".")}


def _unwritable(path: Path, error: OSError) -> LensjaxError:
    """Returns in one line why something could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LensjaxError(
            f"no room left in {path.parent} for {path.name}: free some, or choose another folder"
        )
    return LensjaxError(f"cannot write {path}: {error.strerror or error}; choose another folder")


def make_folder(path: Path) -> None:
    """Makes the folder at `path` and those above it.

    Raises UsageError where a file is in the way or the place cannot be written to.
    """
    if not is_local(path):  # what is put there makes it
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the folder {path}: {error.strerror or error}; choose another --output"
        ) from error
    if not os.access(path, os.W_OK):
        raise UsageError(f"the folder {path} cannot be written to; choose another --output")


@contextmanager
def gathering() -> Iterator[Callable[..., None]]:
    """A function that writes what it is told the name of, by another function and its arguments,
    and keeps an error until the end, so that what follows is written all the same.

    One error is raised as it is, several as one LensjaxError.
    """
    failed: dict[str, Exception] = {}

    def attempt(name: str, write: Callable[..., object], *given: object, **more: object) -> None:
        try:
            write(*given, **more)
        except Interrupted:
            raise
        except Exception as error:
            failed[name] = error

    yield attempt
    if failed:
        first, *others = failed.values()
        if not others:
            raise first
        names = ", ".join(list(failed)[1:])
        raise LensjaxError(f"{one_line(first)}; not written either: {names}") from first
