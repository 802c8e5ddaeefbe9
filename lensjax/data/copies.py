"""Files at addresses as readers want them: in memory, or as copies on this machine's disk."""

import hashlib
import io
import os
import shutil
from pathlib import Path
from threading import Lock
from typing import IO, Any, cast

from lensjax.errors import LensjaxError
from lensjax.files import replacing
from lensjax.places import is_local, place, reached, state
from lensjax.runtime import cache_folder

# A file that is not larger is read in one request.
IN_MEMORY_BYTES = 2**26
# Copies leave so much of the disk free.
FREE_BYTES = 2**30

# One thread copies, others find the copy.
_COPYING = Lock()


def reading(where: str | Path) -> IO[bytes]:
    """Returns an open file of this machine or at an address. Raises as `places.status` does."""
    path = place(where)
    if is_local(path):
        return path.open("rb")
    fs, name = cast(Any, path).fs, cast(Any, path).path
    with reached(path):
        content = fs.cat_file(name, start=0, end=IN_MEMORY_BYTES + 1)
    return io.BytesIO(content) if len(content) <= IN_MEMORY_BYTES else local(path).open("rb")


def local(where: str | Path) -> Path:
    """Returns the path of a file on this machine: of one at an address that of a copy, which lies
    in the cache folder until the file changes or the disk fills up.

    Raises LensjaxError where the disk has no room, and as `places.status` does.
    """
    path = place(where)
    if is_local(path):
        return path
    size, version = state(path)
    name = hashlib.sha256(f"{path} {version}".encode()).hexdigest()[:24]
    copy = cache_folder() / "copies" / name / path.name
    with _COPYING:
        if not copy.exists():
            _make_room(copy.parent, size, str(path))
            with replacing(copy) as file, reached(path), path.open("rb") as content:
                shutil.copyfileobj(content, file, 2**24)
        os.utime(copy.parent)  # the last use
    return copy


def _make_room(folder: Path, size: int, what: str) -> None:
    """Deletes the copies that were used longest ago until the disk has room for one more, and makes
    its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(folder.parent.iterdir(), key=lambda other: other.stat().st_mtime, reverse=True)
    while shutil.disk_usage(folder).free < size + FREE_BYTES:
        if not others:
            raise LensjaxError(
                f"there is no room for the {size / 1e9:.1f} GB of {what} in {folder.parent}: let "
                "LENSJAX_CACHE name a folder on a larger disk"
            )
        oldest = others.pop()
        if oldest != folder:
            shutil.rmtree(oldest, ignore_errors=True)
