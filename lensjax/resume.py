"""Rows scored so far, kept on disk, so that a run killed at any point continues where it was, and
several processes can share the rows."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from lensjax.errors import UsageError
from lensjax.files import make_folder, replacing

SAVE_INTERVAL_SECONDS = 20.0

SETTINGS, LOCK = "settings.json", "lock"
# A byte of the lock file stands for a row. The one at this place is for those that read or change
# what is there.
BEYOND_ALL_ROWS = 2**62

Columns = dict[str, np.ndarray]


class PartialRows:
    """The columns of those of `rows` that are done, saved in parts in a folder.

    A part is named by its rows, written to a temporary name and renamed, so a part that is there is
    whole. Processes with the same `settings` (members, data and options) share their parts as long
    as they are at other rows, which each of them locks; the locks end with the process. Without
    `resume` what is there of these rows, or of other settings, is discarded.

    Raises UsageError, and changes nothing, where another process is at these rows or at work with
    other settings, and where with `resume` there are rows of other settings.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], rows: range, *, resume: bool = True
    ) -> None:
        self.rows = rows
        self._folder = folder
        self._unsaved: list[Columns] = []
        self._unsaved_from = rows.start
        self._saved_at = time.monotonic()
        self._lock = _open_lock(folder / LOCK)
        try:
            self._take(settings, resume)
        except BaseException:
            self._lock.close()
            raise
        _unlock(self._lock, BEYOND_ALL_ROWS, 1)

    def _take(self, settings: Mapping[str, Any], resume: bool) -> None:
        """Makes the folder one of these settings, and the rows those of this process."""
        others = ", ".join(differences(self._folder / SETTINGS, settings))
        if others:
            count = sum(map(len, self._saved()))
            if not self._is_alone():
                raise UsageError(
                    f"a run with {others} is at work in {self._folder}: give another output folder"
                )
            if count and resume:
                raise UsageError(
                    f"{self._folder} holds {count} rows that were done with {others}: give another "
                    "output folder, or --no-resume to discard them"
                )
            self._discard(range(BEYOND_ALL_ROWS))
            write_settings(self._folder / SETTINGS, settings)
        if self.rows and not _locked(self._lock, self.rows.start, len(self.rows)):
            raise UsageError(
                f"another process is at some of the rows {self.rows.start} to {self.rows.stop} in "
                f"{self._folder}: wait until it has ended, or give another output folder"
            )
        if not resume:
            self._discard(self.rows)

    def missing(self) -> list[range]:
        """Returns the rows that are still to be done, in order."""
        done = [rows for rows, _ in self._first_of_each()]
        starts = [self.rows.start, *(rows.stop for rows in done)]
        stops = [*(rows.start for rows in done), self.rows.stop]
        return [range(*gap) for gap in zip(starts, stops, strict=True) if gap[0] < gap[1]]

    def add(self, start: int, columns: Columns) -> None:
        """Takes the rows from `start` on; saves when the last save is long enough ago."""
        if start != self._unsaved_from + sum(map(_count, self._unsaved)):
            self.save()
            self._unsaved_from = start
        self._unsaved.append(columns)
        if time.monotonic() - self._saved_at > SAVE_INTERVAL_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the rows that are not on disk yet as one part."""
        if self._unsaved:
            columns = _joined(self._unsaved)
            rows = range(self._unsaved_from, self._unsaved_from + _count(columns))
            with replacing(self._file(rows)) as file:
                np.savez(file, allow_pickle=False, **columns)  # type: ignore[arg-type]
            self._unsaved, self._unsaved_from = [], rows.stop
        self._saved_at = time.monotonic()

    def columns(self) -> Columns:
        """Returns one array per column, of all rows. None of them may be missing."""
        parts = []
        for rows, part in self._first_of_each():
            chosen = slice(rows.start - part.start, rows.stop - part.start)
            with np.load(self._file(part), allow_pickle=False) as arrays:
                parts.append({name: values[..., chosen] for name, values in arrays.items()})
        return _joined(parts)

    def remove(self) -> None:
        """Deletes the parts, also those of other rows: the results are written."""
        _locked(self._lock, BEYOND_ALL_ROWS, 1, wait=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()

    def close(self) -> None:
        """Lets others have the rows. A folder in which nothing was done is deleted."""
        if self._lock.closed:
            return
        _locked(self._lock, BEYOND_ALL_ROWS, 1, wait=True)
        if self.rows and not self._saved() and self._is_alone():
            shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()

    def _is_alone(self) -> bool:
        """Returns whether no other process is at any rows."""
        alone = _locked(self._lock, 0, BEYOND_ALL_ROWS)
        if alone:
            _unlock(self._lock, 0, BEYOND_ALL_ROWS)
        return alone

    def _discard(self, rows: range) -> None:
        """Deletes the parts that have some of these rows."""
        for part in self._saved():
            if _overlap(part, rows):
                self._file(part).unlink()

    def _file(self, rows: range) -> Path:
        return self._folder / f"{rows.start:012d}-{rows.stop:012d}.npz"

    def _first_of_each(self) -> Iterator[tuple[range, range]]:
        """Yields those of `rows` that a part has and no part before it, and the rows of the part;
        all in order, and on disk."""
        if self._unsaved:
            self.save()
        reached = self.rows.start
        for part in self._saved():
            new = _overlap(part, range(reached, self.rows.stop))
            if new:
                yield new, part
                reached = new.stop

    def _saved(self) -> list[range]:
        """Returns the rows of each part on disk, in order."""
        return [
            range(*map(int, path.stem.split("-"))) for path in sorted(self._folder.glob("*.npz"))
        ]


def differences(path: Path, settings: Mapping[str, Any]) -> list[str]:
    """Returns words for each setting that is not what a file has: `seed 0 (now 5)`."""
    old, new = _flat(read_settings(path)), _flat(json.loads(json.dumps(settings)))
    return [
        f"{name} {_short(old.get(name))} (now {_short(new.get(name))})"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the settings in a file, none where it is not there or is not whole."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes settings to a file that people can read."""
    with replacing(path) as file:
        file.write(json.dumps(settings, indent=1).encode())


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings in settings by names such as `members.resnet18`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, Mapping) else {}
        flat |= {f"{name}.{key}": item for key, item in inner.items()} or {name: value}
    return flat


def _short(value: Any) -> str:
    """Returns a setting as a message shows it: of a hash the first digits are enough."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1", str(value))


def _open_lock(path: Path) -> IO[bytes]:
    """Returns the lock file, its last byte locked by this process alone."""
    while True:
        make_folder(path.parent)
        with contextlib.suppress(FileNotFoundError):
            file = path.open("ab")
            _locked(file, BEYOND_ALL_ROWS, 1, wait=True)
            # Another process may have deleted the folder meanwhile, as a run does that has ended.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
            file.close()


def _locked(file: IO[bytes], start: int, count: int, *, wait: bool = False) -> bool:
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


def _unlock(file: IO[bytes], start: int, count: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.lockf(file, fcntl.LOCK_UN, count, start)


def _overlap(rows: range, others: range) -> range:
    return range(max(rows.start, others.start), min(rows.stop, others.stop))


def _count(columns: Columns) -> int:
    return next(iter(columns.values())).shape[-1]


def _joined(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts], -1) for name in parts[0]}
