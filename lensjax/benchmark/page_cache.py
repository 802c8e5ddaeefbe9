"""Brings files into the system's page cache before they are read: a reader is timed, not the disk.

Else whoever reads what another has just read would be the faster for it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

CHUNK = 2**23
# Readers are so many batches ahead of what they have given, and more.
BATCHES_AHEAD = 16


class Piece(NamedTuple):
    """Bytes of the file of this number."""

    file: int
    start: int
    stop: int


def ahead(folder: str, items: int, batch: int) -> Callable[[int], None]:
    """Returns what brings so many more batches into the page cache, each time it is called.

    The `items` lie in the files of the folder, in the order of their names, and take as many bytes
    each. They are read again and again.
    """
    paths = sorted(Path(folder).iterdir())
    sizes = [path.stat().st_size for path in paths]
    step, room = batch * sum(sizes) / items, bytearray(CHUNK)
    done = 0.0

    def bring(count: int) -> None:
        nonlocal done
        start, done = done, done + count * step
        for piece in pieces(sizes, int(start), int(done + BATCHES_AHEAD * step)):
            _read(paths[piece.file], piece, room)

    return bring


def pieces(sizes: Sequence[int], start: int, stop: int) -> Iterator[Piece]:
    """Yields where the bytes from `start` to `stop` are, at most all of them once, in files of
    these `sizes` that follow each other again and again."""
    whole = sum(sizes)
    begin = start // whole * whole
    stop = min(stop, start + whole)
    while begin < stop:
        for file, size in enumerate(sizes):
            piece = Piece(file, max(start - begin, 0), min(stop - begin, size))
            if piece.start < piece.stop:
                yield piece
            begin += size


def _read(path: Path, piece: Piece, room: bytearray) -> None:
    with path.open("rb", buffering=0) as file:
        file.seek(piece.start)
        while file.tell() < piece.stop and file.readinto(room):
            pass
