"""Whether data are the same as before, by their content: a run goes on from what another has done
only where they are."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from lensjax.data.planes import Unreadable
from lensjax.data.source import Source

# Content is read of so many files at most: to open each of a million would take minutes.
MOST_READ_FILES = 1000
# What is not larger is read whole, of what is larger a sample.
MOST_READ_BYTES = 2**30
SAMPLE_BYTES, PIECE_BYTES = 2**26, 2**20


def content_sha256(source: Source) -> str:
    """Returns a hash of the identifiers and of the files of `source`.

    Files that can be read whole in a second or two are their content, wherever they lie and
    whenever they were written. Of others the size and the time of the last change count, of a few
    large ones also a sample of the content: times can lie. A missing file is missing. What is in
    memory alone is its pixels.
    """
    digest = hashlib.sha256("\n".join(map(str, source.table["id"])).encode())
    files = list(dict.fromkeys(source.files()))
    stats = [_stat(file) for file in files]
    total = sum(stat.st_size for stat in stats if stat is not None)
    are_few = len(files) <= MOST_READ_FILES
    whole = are_few and total <= MOST_READ_BYTES
    for file, stat in zip(files, stats, strict=True):
        if stat is None:
            digest.update(b"missing")
            continue
        digest.update(b"%d of " % stat.st_size)
        if not whole:
            digest.update(b"%d" % stat.st_mtime_ns)
        if are_few:
            share = stat.st_size if whole else SAMPLE_BYTES * stat.st_size // total
            for piece in _pieces(file, stat.st_size, share):
                digest.update(piece)
    if not files:
        for row in range(len(source)):
            with suppress(Unreadable):
                digest.update(np.ascontiguousarray(source[row].image).data)
    return digest.hexdigest()


def _stat(file: str) -> os.stat_result | None:
    """Returns what the file system says of a file, None where there is none."""
    try:
        return os.stat(file)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None


def _pieces(file: str, size: int, share: int) -> Iterator[bytes]:
    """Yields pieces of a file, evenly apart, of about `share` bytes together: all where that is
    its size."""
    count = -(-share // PIECE_BYTES)
    apart = PIECE_BYTES if share == size else size // max(count, 1)
    try:
        with open(file, "rb") as content:
            for number in range(count):
                content.seek(number * apart)
                yield content.read(PIECE_BYTES)
    except OSError:
        yield b"cannot be read"
