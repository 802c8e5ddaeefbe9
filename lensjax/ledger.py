"""The ledger of a run: which rows are done, kept on disk, so that a run killed at any point goes on
where it was, and processes on any number of machines can share the rows."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from lensjax.errors import LensjaxError, UsageError
from lensjax.files import make_folder, remove, replacing, standing_folders
from lensjax.places import is_local
from lensjax.settings import differences, write_settings

SAVE_INTERVAL_SECONDS = 20.0

SETTINGS, LOCK, DEVICE = "settings.json", "lock", "device"
# A byte of the lock file stands for a row. The one at this place is for those that read or change
# what is there.
BEYOND_ALL_ROWS = 2**62

Columns = dict[str, np.ndarray]


class Ledger:
    """The columns of those of `rows` that are done: Parquet files, each of consecutive rows.

    A part is named by its rows, written to a temporary name, synced and renamed: one that is there
    is whole. Parts lie in a folder named by the fingerprint of the `settings` (members, data and
    options), so that those of different runs never mix. `device` is what computes the rows that are
    added here, noted with each part. A ledger locks nothing: see `claimed`.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], rows: range) -> None:
        self.rows = rows
        self.device = ""
        self.folder = folder / fingerprint(settings)
        self.is_finished = False
        self._unsaved: list[Columns] = []
        self._unsaved_from = rows.start
        self._saved_at = time.monotonic()

    def missing(self) -> list[range]:
        """Returns the rows that are still to be done, in order."""
        done = [rows for rows, _ in self._first_of_each()]
        starts = [self.rows.start, *(rows.stop for rows in done)]
        stops = [*(rows.start for rows in done), self.rows.stop]
        return [range(*gap) for gap in zip(starts, stops, strict=True) if gap[0] < gap[1]]

    def add(self, start: int, columns: Columns) -> None:
        """Takes the rows from `start` on, arrays (..., row); saves when the last save was a while
        ago."""
        if start != self._unsaved_from + sum(map(_count, self._unsaved)):
            self.save()
            self._unsaved_from = start
        self._unsaved.append(columns)
        if time.monotonic() - self._saved_at > SAVE_INTERVAL_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the rows that are not on disk yet as one part."""
        if self._unsaved:
            from lensjax import stored

            columns = joined(self._unsaved)
            rows = range(self._unsaved_from, self._unsaved_from + _count(columns))
            with replacing(self._file(rows)) as file:
                stored.write_columns(file, columns, {DEVICE: self.device})
            self._unsaved, self._unsaved_from = [], rows.stop
        self._saved_at = time.monotonic()

    def columns(self) -> Columns:
        """Returns one array per column, of all rows, texts as Python's.

        Raises LensjaxError where some are missing: object storage has no locks, and a process that
        was at the same rows may have ended and deleted the parts.
        """
        from lensjax import stored

        if gaps := self.missing():
            raise LensjaxError(
                f"{sum(map(len, gaps))} of {len(self.rows)} rows are no longer in {self.folder}: "
                "another process has deleted them; look there for its results, or run it again"
            )
        found: Columns = {}
        for rows, part in self._first_of_each():
            chosen = slice(rows.start - part.start, rows.stop - part.start)
            for name, values in stored.read_columns(self._file(part)).items():
                shape = (*values.shape[:-1], len(self.rows))
                found.setdefault(name, np.empty(shape, values.dtype))
                place = slice(rows.start - self.rows.start, rows.stop - self.rows.start)
                found[name][..., place] = values[..., chosen]
        return found

    def devices(self) -> dict[str, int]:
        """Returns how many of the rows each kind of device has computed."""
        from lensjax import stored

        counts: Counter[str] = Counter()
        for rows, part in self._first_of_each():
            counts[stored.parquet_metadata(self._file(part)).get(DEVICE, "")] += len(rows)
        return {device: count for device, count in counts.items() if device}

    def finish(self) -> None:
        """Says that the results are written: who claimed the rows deletes the parts."""
        self.is_finished = True

    def discard(self) -> None:
        """Deletes the parts that have some of these rows."""
        for part in _parts(self.folder):
            if overlap(part, self.rows):
                self._file(part).unlink()

    def _file(self, rows: range) -> Path:
        return self.folder / f"{rows.start:012d}-{rows.stop:012d}.parquet"

    def _first_of_each(self) -> Iterator[tuple[range, range]]:
        """Yields those of `rows` that a part has and no part before it, and the rows of the part;
        all in order, and on disk."""
        if self._unsaved:
            self.save()
        reached = self.rows.start
        for part in _parts(self.folder):
            new = overlap(part, range(reached, self.rows.stop))
            if new:
                yield new, part
                reached = new.stop


@contextlib.contextmanager
def claimed(
    folder: Path, settings: Mapping[str, Any], rows: range, *, resume: bool = True
) -> Iterator[Ledger]:
    """The ledger of these rows, which no other process takes meanwhile; others may be at others.

    The claim ends with the process. Without `resume` what is there of these rows, or of other
    settings, is discarded. What is finished, or was not begun, leaves nothing behind.

    Raises UsageError, and changes nothing, where another process is at these rows or at work with
    other settings, and where with `resume` there are rows of other settings.
    """
    ledger = Ledger(folder, settings, rows)
    with open_lock(folder / LOCK) as lock:
        _claim(folder, lock, settings, ledger, resume)
        unlock(lock, BEYOND_ALL_ROWS, 1)
        try:
            yield ledger
        finally:
            locked(lock, BEYOND_ALL_ROWS, 1, wait=True)
            if ledger.is_finished or (rows and not _parts(ledger.folder) and _is_alone(lock)):
                remove(folder)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Returns the name of what was done with these settings."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _claim(
    folder: Path, lock: IO[bytes], settings: Mapping[str, Any], ledger: Ledger, resume: bool
) -> None:
    """Makes the folder one of these settings, and the rows those of this process."""
    others = [path for path in standing_folders(folder).values() if path != ledger.folder]
    if others and not _is_alone(lock):
        raise UsageError(
            f"a run with {_differences(others, settings)} is at work in {folder}: give another "
            "output folder"
        )
    # Without settings there are only parts that a process of a run since discarded still wrote.
    count = sum(len(part) for path in others if (path / SETTINGS).exists() for part in _parts(path))
    if count and resume:
        raise UsageError(
            f"{folder} holds {count} rows that were done with {_differences(others, settings)}: "
            "give another output folder, or --no-resume to discard them"
        )
    if ledger.rows and not locked(lock, ledger.rows.start, len(ledger.rows)):
        raise UsageError(
            f"another process is at some of the rows {ledger.rows.start} to {ledger.rows.stop} in "
            f"{folder}: wait until it has ended, or give another output folder"
        )
    for path in others:
        remove(path)
    if not resume:
        ledger.discard()
    if not (ledger.folder / SETTINGS).exists():
        write_settings(ledger.folder / SETTINGS, settings)


def _parts(folder: Path) -> list[range]:
    """Returns the rows of each part in a folder, in order."""
    paths = sorted(folder.glob("[0-9]*.parquet"))
    return [range(*map(int, path.stem.split("-"))) for path in paths]


def _differences(folders: list[Path], settings: Mapping[str, Any]) -> str:
    """Returns in words how what is in the first of these folders was done otherwise."""
    return ", ".join(differences(folders[0] / SETTINGS, settings))


def open_lock(path: Path) -> IO[bytes]:
    """Returns the lock file, its last byte locked by this process alone. Object storage has no
    locks: there it is a file of this process's own."""
    if not is_local(path):
        return tempfile.TemporaryFile()
    while True:
        make_folder(path.parent)
        with contextlib.suppress(FileNotFoundError):
            file = path.open("ab")
            locked(file, BEYOND_ALL_ROWS, 1, wait=True)
            # Another process may have deleted the folder meanwhile, as a run does that has ended.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
            file.close()


def _is_alone(lock: IO[bytes]) -> bool:
    """Returns whether no other process is at any rows."""
    alone = locked(lock, 0, BEYOND_ALL_ROWS)
    if alone:
        unlock(lock, 0, BEYOND_ALL_ROWS)
    return alone


def locked(file: IO[bytes], start: int, count: int, *, wait: bool = False) -> bool:
    """Locks bytes of a file for this process, and returns False where another one has them.

    A file system that knows no locks has everyone go on.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), count, start)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def unlock(file: IO[bytes], start: int, count: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.lockf(file, fcntl.LOCK_UN, count, start)


def overlap(rows: range, others: range) -> range:
    """Returns the rows that are among both, an empty range where there are none."""
    return range(max(rows.start, others.start), min(rows.stop, others.stop))


def _count(columns: Columns) -> int:
    return next(iter(columns.values())).shape[-1]


def joined(parts: list[Columns]) -> Columns:
    """Returns the columns (..., row) of all parts, one after the other."""
    return {name: np.concatenate([part[name] for part in parts], -1) for name in parts[0]}
