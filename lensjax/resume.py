"""Rows done so far, kept on disk, so that a run killed anywhere starts again where it was."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from lensjax.files import replacing

SAVE_INTERVAL_SECONDS = 20.0

Columns = dict[str, np.ndarray]


class PartialRows:
    """The columns of the rows done so far, in input order, saved in parts in a folder.

    A part is written to a temporary name and renamed, so a part that is there is whole. Parts of a
    run with another `fingerprint` (other members, data or settings) are discarded.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], resume: bool) -> None:
        self.folder = folder
        self._unsaved: list[Columns] = []
        self._saved_at = time.monotonic()
        stamp = folder / "fingerprint.json"
        text = json.dumps(fingerprint, sort_keys=True)
        if not (resume and stamp.exists() and stamp.read_text() == text):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            with replacing(stamp, len(text)) as file:
                file.write(text.encode())
        self._parts = self._contiguous_parts()
        self.rows = self._parts[-1][1] if self._parts else 0

    def add(self, columns: Columns) -> None:
        """Appends rows; saves when the last save is long enough ago."""
        self._unsaved.append(columns)
        self.rows += len(columns["readable"])
        if time.monotonic() - self._saved_at > SAVE_INTERVAL_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the rows that are not on disk yet as one part."""
        if not self._unsaved:
            return
        columns = _concatenate(self._unsaved)
        start = self.rows - len(columns["readable"])
        path = self.folder / f"{start:012d}-{self.rows:012d}.npz"
        with replacing(path, sum(values.nbytes for values in columns.values())) as file:
            np.savez(file, allow_pickle=False, **columns)  # type: ignore[arg-type]
        self._parts.append((start, self.rows, path))
        self._unsaved, self._saved_at = [], time.monotonic()

    def columns(self) -> Columns:
        """Returns all rows, one array (rows,) per column."""
        parts = []
        for _, _, path in self._parts:
            with np.load(path, allow_pickle=False) as arrays:
                parts.append({name: arrays[name] for name in arrays.files})
        return _concatenate(parts + self._unsaved)

    def remove(self) -> None:
        """Deletes the parts: the results are written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _contiguous_parts(self) -> list[tuple[int, int, Path]]:
        """Returns (start, stop, path) of the parts that follow one another from row 0."""
        parts: list[tuple[int, int, Path]] = []
        for path in sorted(self.folder.glob("*.npz")):
            start, stop = (int(number) for number in path.stem.split("-"))
            if start == (parts[-1][1] if parts else 0):
                parts.append((start, stop, path))
        return parts


def _concatenate(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
