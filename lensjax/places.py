"""Where data and results lie: paths of this machine, and addresses such as `s3://bucket/folder` of
whatever fsspec reaches.

An address is a `UPath`, which has the methods of a `Path`: what reads or lists need not know which
of the two it was given. What only takes a file of this machine asks `lensjax.data.copies` for one.
"""

import errno
import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from lensjax.errors import LensjaxError, UsageError, one_line

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SECRET = re.compile(
    r"//[^/@]*:[^/@]*@|[?&][^=&]*(signature|sig|token|key|password|secret)=", re.IGNORECASE
)
# What these libraries raise is about the connection, not about a file.
_OF_NETWORKS = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google")
# Beyond what is asked for. The 50 MiB of s3fs are whole files, fetched for their headers.
_READ_AHEAD_BYTES = 2**20


def is_address(text: str) -> bool:
    """Returns whether a text names a place by a protocol, as `s3://bucket` does."""
    return _ADDRESS.match(text) is not None


def place(where: str | Path) -> Path:
    """Returns the path that a user names: for an address a `UPath`.

    Raises UsageError where its protocol is not known or lacks its library, and for one that holds a
    password or a signature: it would end up in messages and results.
    """
    if not isinstance(where, str) or not is_address(where):
        return Path(where) if isinstance(where, str) else where
    if _SECRET.search(where):
        raise UsageError(
            f"an address at {where.partition(':')[0]}:// holds a password or a signature: leave it "
            "out, and put it where fsspec looks for it (environment, ~/.config/fsspec)"
        )
    if where.lower().startswith("file://"):
        return Path(where[len("file://") :])
    from upath import UPath  # with fsspec a quarter of a second

    try:
        # Others write there too: a listing that is kept would be an old one.
        path = UPath(where.rstrip("/"), use_listings_cache=False)
        _ = path.fs  # its library is imported here
    except ImportError as error:
        raise UsageError(f"{where}: {one_line(error)} (pip install '.[cloud]')") from error
    except Exception as error:
        raise UsageError(f"{where} cannot be reached: {one_line(error, 160)}") from error
    return cast(Path, path)


def is_local(path: Path) -> bool:
    """Returns whether this machine's file system has the path."""
    return isinstance(path, Path)


@contextmanager
def reached(path: Path) -> Iterator[None]:
    """Raises LensjaxError in the place of an error about the connection to an address. Then no file
    is at fault, and none is to be rejected: the same command can go on later."""
    try:
        yield
    except Exception as error:
        if is_local(path) or not _is_of_network(error):
            raise
        raise LensjaxError(
            f"{path} cannot be reached: {one_line(error, 160)}; the same command goes on there"
        ) from error


def _is_of_network(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    is_busy = isinstance(error, OSError) and error.errno in (errno.EIO, errno.EBUSY)
    library = type(error).__module__.partition(".")[0]
    return is_busy or isinstance(error, ConnectionError | TimeoutError) or library in _OF_NETWORKS


def status(path: Path) -> os.stat_result:
    """Returns type and size of a file or folder. Raises OSError where it is not there or forbidden,
    LensjaxError where an address cannot be reached."""
    with reached(path):
        return path.stat()


class State(NamedTuple):
    """What tells whether a file is the same as before: its size in bytes, and its version, which is
    the tag that object storage gives to its content, or else the time of the last change."""

    size: int
    version: str


def state(path: Path) -> State:
    """Returns the state of a file; of a folder at an address that of all that is in it. Raises as
    `status` does."""
    if is_local(path):
        found = path.stat()
        return State(found.st_size, str(found.st_mtime_ns))
    fs, name = cast(Any, path).fs, cast(Any, path).path
    with reached(path):
        about = fs.info(name)
        if about["type"] != "directory":
            return _state_by(about)
        # In one listing: a Zarr store has a folder a chunk.
        each = {file: _state_by(said) for file, said in fs.find(name, detail=True).items()}
    digest = hashlib.sha256()
    for file in sorted(each):
        digest.update(f"{file.removeprefix(name)} {each[file]}".encode())
    return State(sum(found.size for found in each.values()), digest.hexdigest())


def _state_by(about: Mapping[str, Any]) -> State:
    """Returns the state of a file by what fsspec says about it."""
    known = ("ETag", "etag", "md5Hash", "LastModified", "updated", "mtime", "created")
    version = next((about[key] for key in known if about.get(key)), "")
    return State(int(about.get("size") or 0), str(version))


def states_in(folder: Path) -> dict[str, State]:
    """Returns the states of all files in the folder at an address, by name."""
    fs, name = cast(Any, folder).fs, cast(Any, folder).path
    with reached(folder):
        found = fs.ls(name, detail=True)
    return {about["name"].rpartition("/")[2]: _state_by(about) for about in found}


def exists(where: str) -> bool:
    """Returns whether there is a file or a folder, False for a name that no file can have."""
    if not is_address(where):
        return os.path.exists(where)
    with suppress(OSError, UsageError):
        path = place(where)
        with reached(path):
            return path.exists()
    return False


def readable(path: Path) -> Path | IO[bytes]:
    """Returns what a library that takes paths and open files is to read: a path of this machine as
    it is, an address opened, of which it reads the ranges that it needs."""
    if is_local(path):
        return path
    return cast(Any, path).open("rb", block_size=_READ_AHEAD_BYTES)


def entries(folder: Path) -> list[tuple[str, bool]]:
    """Returns the names in a folder, sorted, and whether each is a folder."""
    if is_local(folder):
        with os.scandir(folder) as found:
            return sorted((entry.name, _is_folder(entry)) for entry in found)
    fs, name = cast(Any, folder).fs, cast(Any, folder).path
    with reached(folder):
        found = fs.ls(name, detail=True)
    names = ((each["name"].rstrip("/").rpartition("/")[2], each["type"]) for each in found)
    return sorted((name, kind == "directory") for name, kind in names if name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a link that leads back to itself is no folder
        return entry.is_dir()
    return False


def files_below(path: Path) -> Iterator[str]:
    """Yields the path of a file, or those of all files in a folder and in the folders below it. A
    folder at an address is one: it has a `state`."""
    if not is_local(path) or not path.is_dir():
        yield str(path)
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (os.path.join(folder, name) for name in sorted(names))


def matching(before: str, *after: str) -> Iterator[str]:
    """Yields the paths of all files that have these texts in this order, anything between them."""
    pattern = "*".join(glob.escape(part) for part in (before, *after))
    if not is_address(before):
        return glob.iglob(pattern)
    start = place(before)
    with reached(start):
        fs = cast(Any, start).fs
        return (fs.unstrip_protocol(name) for name in fs.glob(pattern))


def template_matches(template: str, band: str = "") -> list[tuple[str, str]]:
    """Returns the pairs of id and band of all files of the template's form, sorted.

    `band`: a regular expression for the bands, any text without one.
    """
    # The id takes all it can: in `{id}_{band}` the band has no underscore unless it is said.
    form = re.escape(template).replace(re.escape("{band}"), f"(?P<band>{band or '[^/]+'})")
    form = form.replace(re.escape("{id}"), "(?P<id>[^/]+)")
    parts = re.split(r"\{band\}|\{id\}", template)
    found = (re.fullmatch(form, file) for file in matching(*parts))
    return sorted((match.groupdict().get("id", ""), match["band"]) for match in found if match)


def paths_below(folder: Path, files: Iterable[str]) -> Iterable[str]:
    """Returns relative paths as paths in the folder; absolute ones, addresses and empty ones as
    they are."""
    start = str(folder.absolute())
    return (file if not file or is_address(file) else os.path.join(start, file) for file in files)
