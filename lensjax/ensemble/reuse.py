"""Scores that are kept: a cutout whose content was scored before, by the same members with the same
settings, is not scored again."""

import sys
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lensjax import runtime, trace
from lensjax.data.pipeline import Batch
from lensjax.data.source import MOST_THREADS
from lensjax.errors import UsageError, one_line
from lensjax.files import make_folder, replacing
from lensjax.ledger import SAVE_INTERVAL_SECONDS, Columns, fingerprint, joined
from lensjax.predictions import Scores

KEY, KEY_BYTES = "key", 16


class ScoreStore:
    """The scores that a folder holds by key: a hash of all that the step sees of a cutout.

    Scores by other members, with other settings or of other kinds of devices lie in folders of
    their own. Each file is written once, whole, under a name of its own, so that any number of
    processes may keep scores in one folder. A file that is damaged is removed, and its scores are
    computed again.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], members: int) -> None:
        try:
            from blake3 import blake3
        except ImportError as error:
            raise UsageError("--reuse needs blake3: pip install '.[reuse]'") from error
        self._hash = blake3
        self._folder = folder / fingerprint({**settings, "device": runtime.device()})
        make_folder(self._folder)
        self._members = members
        self._threads = ThreadPoolExecutor(MOST_THREADS)
        self._kept = _by_key(_read(self._folder))
        self._new: list[Columns] = []
        self._saved_at = time.monotonic()

    @trace.is_stage("hash")
    def keys(self, batch: Batch) -> np.ndarray:
        """Returns the key of each cutout: (2, batch) uint64."""
        leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(batch.inputs)]
        forms = [(leaf.shape[1:], str(leaf.dtype)) for leaf in leaves]
        form = repr((batch.inputs.transforms, forms)).encode()

        def key(row: int) -> bytes:
            digest = self._hash(form)
            for leaf in leaves:
                digest.update(leaf[row].data.cast("B"))
            return digest.digest(KEY_BYTES)

        keys = b"".join(self._threads.map(key, range(len(batch.rows))))
        return np.frombuffer(keys, np.uint64).reshape(-1, 2).T

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, Scores]:
        """Returns which of the keys (2, n) have scores, (n,) bool, and the scores, NaN where there
        are none."""
        count = keys.shape[1]
        known = np.zeros(count, bool)
        scores = Scores(
            *np.full((6, count), np.nan, np.float32),
            *np.full((2, self._members, count), np.nan, np.float32),
        )
        if self._kept:
            kept = self._kept[KEY]
            place = np.minimum(np.searchsorted(kept[0], keys[0]), kept.shape[1] - 1)
            known = (kept[:, place] == keys).all(axis=0)
            for name, values in scores._asdict().items():
                values[..., known] = self._kept[name][..., place[known]]
        return known, scores

    def add(self, keys: np.ndarray, scores: Scores) -> None:
        """Takes the scores of so many keys (2, n); saves when the last save was a while ago."""
        finite = np.isfinite(np.vstack(scores)).all(axis=0)
        columns = {KEY: keys} | scores._asdict()
        self._new.append({name: values[..., finite] for name, values in columns.items()})
        if time.monotonic() - self._saved_at > SAVE_INTERVAL_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the scores that are not on disk yet as one file."""
        if self._new:
            from lensjax import stored

            with replacing(self._folder / f"{uuid.uuid4().hex}.parquet") as file:
                stored.write_columns(file, joined(self._new), {})
        self._new, self._saved_at = [], time.monotonic()


class Incomplete:
    """Batches of which some scores are in a store; what they lack is put together into full ones.

    They come in by `lacking`, and are complete, in order, by `completed`.
    """

    def __init__(self, store: ScoreStore) -> None:
        self.reused = 0
        self._store = store
        self._waiting: deque[_Waiting] = deque()
        self._place: dict[int, tuple[_Waiting, int]] = {}

    def lacking(self, batches: Iterable[Batch]) -> Iterator[Batch | None]:
        """Yields batches of what has no score, their rows from anywhere, and None each time that a
        batch has come in and none is full: what is complete need not wait."""
        rest: list[Batch] = []
        for batch in batches:
            rest.append(_rows(batch, self._take(batch)))
            size, count = len(batch.rows), sum(len(part.rows) for part in rest)
            if count < size:
                yield None
                continue
            together = _together(rest)
            yield _rows(together, np.arange(size))
            rest = [_rows(together, np.arange(size, count))]
        if any(len(part.rows) for part in rest):
            yield _padded(_together(rest), size)

    def _take(self, batch: Batch) -> np.ndarray:
        """Returns the places in a batch, now waiting, of the cutouts that are to be scored."""
        keys = self._store.keys(batch)
        known, scores = self._store.find(keys)
        lacking = np.flatnonzero(batch.readable & ~known)
        self.reused += int((batch.readable & known).sum())
        waiting = _Waiting(_without_images(batch), keys, scores, len(lacking))
        self._waiting.append(waiting)
        self._place |= {int(batch.rows[place]): (waiting, int(place)) for place in lacking}
        return lacking

    def completed(
        self, batch: Batch | None, scores: Scores | None
    ) -> Iterator[tuple[Batch, Scores]]:
        """Takes the scores of a batch of `lacking`, and yields the batches, without images, that
        have all of theirs."""
        if batch is not None and scores is not None:
            there = [self._place.pop(row) for row in batch.rows[: batch.count].tolist()]
            keys = np.empty((2, batch.count), np.uint64)
            for _, same in groupby(enumerate(there), key=lambda each: id(each[1][0])):
                numbers, found = zip(*same, strict=True)
                waiting, places = found[0][0], [place for _, place in found]
                keys[:, numbers] = waiting.keys[:, places]
                for whole, part in zip(waiting.scores, scores, strict=True):
                    whole[..., places] = part[..., numbers]
                waiting.lacking -= len(places)
            self._store.add(keys, Scores(*(values[..., : batch.count] for values in scores)))
        while self._waiting and not self._waiting[0].lacking:
            done = self._waiting.popleft()
            yield done.batch, done.scores


@dataclass
class _Waiting:
    """A batch, without its images, and so many of its scores are still to come."""

    batch: Batch
    keys: np.ndarray
    scores: Scores
    lacking: int


def _rows(batch: Batch, places: np.ndarray) -> Batch:
    return jax.tree.map(lambda leaf: leaf[places], batch)


def _together(parts: list[Batch]) -> Batch:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _padded(batch: Batch, size: int) -> Batch:
    """Returns a batch of that size, filled up with its last cutout."""
    count = len(batch.rows)
    padded = _rows(batch, np.minimum(np.arange(size), count - 1))
    return replace(padded, rows=np.where(np.arange(size) < count, padded.rows, -1))


def _without_images(batch: Batch) -> Batch:
    return replace(batch, inputs=replace(batch.inputs, images=(), brightness=()))


def _read(folder: Path) -> list[Columns]:
    """Returns the columns of each file in a folder that is whole, and removes the others."""
    from lensjax import stored

    found = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            found.append(stored.read_columns(path))
        # Arbitrary bytes: the libraries have errors of their own.
        except Exception as error:
            said = f"{path} is damaged and removed: its cutouts are scored again"
            print(f"warning: {said} ({one_line(error, 100)})", file=sys.stderr)
            path.unlink(missing_ok=True)
    return found


def _by_key(parts: list[Columns]) -> Columns:
    """Returns the columns of all parts, their keys ascending; none without any."""
    if not parts:
        return {}
    columns = joined(parts)
    order = np.argsort(columns[KEY][0])
    return {name: values[..., order] for name, values in columns.items()}
