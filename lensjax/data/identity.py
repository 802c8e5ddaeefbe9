"""Tells by their content whether data are the same as before: only then can a run continue what
another has begun."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice

import numpy as np

from lensjax.data.planes import Unreadable
from lensjax.data.source import Source

# Content is read of so many files at most: to open each of a million would take minutes.
MOST_READ_FILES = 1000
# What is not larger is read whole, of what is larger a sample.
MOST_READ_BYTES = 2**30
SAMPLE_BYTES, PIECE_BYTES = 2**26, 2**20


def content_sha256(source: Source) -> str:
    """Returns a hash of the files of `source`, the same for each part of the data.

    A catalogue is its content. Other files that can be read whole in a second or two count by their
    content and their names below the folder that holds all, wherever it lies and whenever they were
    written. Of more or larger ones the size and the time of the last change count, of a few large
    ones also a sample of the content: times can lie. A missing file is missing. What is in memory
    alone is its pixels.
    """
    digest = hashlib.sha256()
    for piece in _pieces(source.listed_in, None) if source.listed_in else ():
        digest.update(piece)
    files = iter(source.files())
    first = list(dict.fromkeys(islice(files, MOST_READ_FILES + 1)))
    are_few, common = len(first) <= MOST_READ_FILES, os.path.commonpath(first) if first else ""
    total = sum(stat.st_size for stat in map(_stat, first) if stat is not None)
    whole = are_few and total <= MOST_READ_BYTES
    for file in chain(first, files):
        digest.update(file.removeprefix(common).encode(errors="surrogateescape"))
        stat = _stat(file)
        if stat is None:
            digest.update(b" is missing")
            continue
        digest.update(b" has %d" % stat.st_size)
        if not whole:
            digest.update(b" of %d" % stat.st_mtime_ns)
        if are_few:
            share = None if whole else SAMPLE_BYTES * stat.st_size // total
            for piece in _pieces(file, share):
                digest.update(piece)
    if not first:
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


def _pieces(file: str, share: int | None) -> Iterator[bytes]:
    """Yields pieces of a file, evenly apart, of about `share` bytes together, or all of it."""
    try:
        with open(file, "rb") as content:
            size = os.fstat(content.fileno()).st_size
            count = -(-(size if share is None else share) // PIECE_BYTES)
            apart = PIECE_BYTES if share is None else size // max(count, 1)
            for number in range(count):
                content.seek(number * apart)
                yield content.read(PIECE_BYTES)
    except (OSError, ValueError):
        yield b"cannot be read"
