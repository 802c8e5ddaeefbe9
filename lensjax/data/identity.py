"""Tells by their content whether data are the same as before: only then can a run continue what
another has begun."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, groupby, islice

import numpy as np

from lensjax.data.copies import local
from lensjax.data.planes import Unreadable
from lensjax.data.source import Source
from lensjax.errors import UsageError
from lensjax.places import State, is_address, place, state, states_in

# Content is read of so many files at most: to open each of a million would take minutes.
MOST_READ_FILES = 1000
# What is not larger is read whole, of what is larger a sample.
MOST_READ_BYTES = 2**30
SAMPLE_BYTES, PIECE_BYTES = 2**26, 2**20
# Object storage is asked about so many files at once; where more in a row lie in one folder, it is
# listed.
ASKED_AT_ONCE, LISTED_FROM = 32, 100


def content_sha256(source: Source) -> str:
    """Returns a hash of the files of `source`, the same for each part of the data.

    A catalogue is its content. Other files that can be read whole in a second or two count by their
    content and their names below the folder that holds all, wherever it lies and whenever they were
    written. Of more or larger ones the size and the time of the last change count, of a few large
    ones also a sample of the content: times can lie. Of those at an address it is the `State`. A
    missing file is missing. What is in memory alone is its pixels.
    """
    digest = hashlib.sha256()
    for piece in _pieces(str(local(source.listed_in)), None) if source.listed_in else ():
        digest.update(piece)
    files = states(source.files())
    first = dict(islice(files, MOST_READ_FILES + 1))
    are_few = len(first) <= MOST_READ_FILES
    common = os.path.commonpath(map(_from_root, first)) if first else ""
    total = sum(found.size for found in first.values() if found is not None)
    whole = are_few and total <= MOST_READ_BYTES
    for file, found in chain(first.items(), files):
        name = _from_root(file).removeprefix(common)
        digest.update(name.encode(errors="surrogateescape"))
        if found is None:
            digest.update(b" is missing")
            continue
        digest.update(b" has %d" % found.size)
        if is_address(file) or not whole:
            digest.update(f" of {found.version}".encode())
        if are_few and not is_address(file):
            share = None if whole else SAMPLE_BYTES * found.size // total
            for piece in _pieces(file, share):
                digest.update(piece)
    if not first:
        for row in range(len(source)):
            with suppress(Unreadable):
                digest.update(np.ascontiguousarray(source[row].image).data)
    return digest.hexdigest()


def _from_root(file: str) -> str:
    """Returns the whole path of a file, of one at an address without its protocol: they have
    folders in common."""
    return f"/{file.partition('://')[2]}" if is_address(file) else os.path.abspath(file)


def states(files: Iterable[str]) -> Iterator[tuple[str, State | None]]:
    """Yields each of the files and its state, None where there is none."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        for folder, together in groupby(files, lambda file: file.rpartition("/")[0]):
            if not is_address(folder):
                yield from ((file, _state(file)) for file in together)
                continue
            names = list(together)
            if len(names) < LISTED_FROM:
                yield from zip(names, threads.map(_state, names), strict=True)
                continue
            found = states_in(place(folder))
            yield from ((name, found.get(name.rpartition("/")[2])) for name in names)


def _state(file: str) -> State | None:
    try:
        return state(place(file))
    except (OSError, ValueError, UsageError):  # ValueError: a name that no file can have
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
