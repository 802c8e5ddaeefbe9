"""Files that are there whole or not at all, and one clear line where they cannot be written."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lensjax.errors import Interrupted, LensjaxError, UsageError, one_line


@contextmanager
def replacing(path: Path, size: int) -> Iterator[IO[bytes]]:
    """A file opened for writing that takes the place of `path` once it is safely on disk.

    `size` is about how many bytes it will need, for the message when there is no room.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LensjaxError(
                f"no room left in {path.parent}: {path.name} needs about "
                f"{max(size / 2**20, 0.1):.1f} MiB; free some, or choose another folder"
            ) from error
        raise LensjaxError(
            f"cannot write {path}: {error.strerror or error}; choose another folder"
        ) from error


def make_folder(path: Path) -> None:
    """Makes the folder at `path` and those above it.

    Raises UsageError where a file is in the way or the place cannot be written to.
    """
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
