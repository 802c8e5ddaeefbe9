"""Rows done so far, kept on disk, so that runs killed anywhere start again where they were, and
several can share the rows."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lensjax.files import make_folder, replacing

SAVE_INTERVAL_SECONDS = 20.0

Columns = dict[str, np.ndarray]


class _Part(NamedTuple):
    """Columns of some rows in a row: in a file, or not saved yet."""

    rows: range
    content: Path | Columns


class PartialRows:
    """The columns of those of `rows` that are done, saved in parts below a folder.

    A part is named by its rows, written to a temporary name and renamed, so a part that is there is
    whole. Processes whose `fingerprint` (members, data and settings) is the same share their parts;
    those of other fingerprints are discarded, and without `resume` those of these rows.
    """

    def __init__(
        self, folder: Path, fingerprint: dict[str, Any], rows: range, *, resume: bool = True
    ) -> None:
        text = json.dumps(fingerprint, sort_keys=True)
        self.rows = rows
        self._shared, self._own = folder, folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._unsaved: list[_Part] = []
        self._saved_at = time.monotonic()
        make_folder(self._own)
        for other in set(folder.iterdir()) - {self._own}:
            shutil.rmtree(other, ignore_errors=True)
        if not resume:
            for saved, path in self._saved():
                if saved.start < rows.stop and rows.start < saved.stop:
                    path.unlink(missing_ok=True)

    def missing(self) -> list[range]:
        """Returns the rows that are still to be done, in order."""
        gaps, reached = [], self.rows.start
        for rows, _ in self._first_of_each():
            gaps.append(range(reached, rows.start))
            reached = rows.stop
        gaps.append(range(reached, self.rows.stop))
        return [gap for gap in gaps if gap]

    def add(self, start: int, columns: Columns) -> None:
        """Takes the rows from `start` on; saves when the last save is long enough ago."""
        rows = range(start, start + len(next(iter(columns.values()))))
        if self._unsaved and self._unsaved[-1].rows.stop != start:
            self.save()
        self._unsaved.append(_Part(rows, columns))
        if time.monotonic() - self._saved_at > SAVE_INTERVAL_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the rows that are not on disk yet as one part."""
        if not self._unsaved:
            return
        columns = _concatenate([_columns(part) for part in self._unsaved])
        start, stop = self._unsaved[0].rows.start, self._unsaved[-1].rows.stop
        path = self._own / f"{start:012d}-{stop:012d}.npz"
        with replacing(path, sum(values.nbytes for values in columns.values())) as file:
            np.savez(file, allow_pickle=False, **columns)  # type: ignore[arg-type]
        self._unsaved, self._saved_at = [], time.monotonic()

    def columns(self) -> Columns:
        """Returns one array per column, of all rows. None of them may be missing."""
        return _concatenate(
            [
                {
                    name: values[rows.start - part.rows.start : rows.stop - part.rows.start]
                    for name, values in _columns(part).items()
                }
                for rows, part in self._first_of_each()
            ]
        )

    def remove(self) -> None:
        """Deletes the parts, also those of other rows: the results are written."""
        shutil.rmtree(self._shared, ignore_errors=True)

    def _first_of_each(self) -> Iterator[tuple[range, _Part]]:
        """Yields parts, in order, each with those of `rows` that no part before it has."""
        reached = self.rows.start
        parts = [_Part(*saved) for saved in self._saved()] + self._unsaved
        for part in sorted(parts, key=lambda part: part.rows.start):
            new = range(max(reached, part.rows.start), min(part.rows.stop, self.rows.stop))
            if new:
                yield new, part
                reached = new.stop

    def _saved(self) -> Iterator[tuple[range, Path]]:
        """Yields the rows of each part on disk, and where it is."""
        for path in self._own.glob("*.npz"):
            start, stop = (int(number) for number in path.stem.split("-"))
            yield range(start, stop), path


def _columns(part: _Part) -> Columns:
    if isinstance(part.content, dict):
        return part.content
    with np.load(part.content, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _concatenate(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
