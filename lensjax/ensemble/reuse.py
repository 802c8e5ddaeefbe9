"""Logits that are kept: a member that has seen a cutout of the same content before, with the same
settings, does not compute it again."""

import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lensjax import runtime, trace
from lensjax.data.on_device import Inputs, Transform
from lensjax.data.pipeline import Batch
from lensjax.data.source import MOST_THREADS
from lensjax.ensemble.staged import FIRST, FUSED, REST
from lensjax.errors import UsageError, one_line
from lensjax.files import make_folder, replacing
from lensjax.ledger import SAVE_INTERVAL_SECONDS, Columns, fingerprint, joined

KEY, KEY_BYTES, LOGITS = "key", 16, "logits"


class LogitStore:
    """The logits (sample,), before calibration, that a folder holds by member and by key: a hash of
    all that the member sees of a cutout.

    Those of another member, with other settings or of other kinds of devices lie in folders of
    their own. Each file is written once, whole, under a name of its own, so that any number of
    processes may keep logits in one folder. A file that is damaged is removed, and its logits are
    computed again.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Mapping[str, Any]], seen: Mapping[str, int]
    ) -> None:
        """`settings`: all that the logits of each member depend on, by name. `seen`: the number of
        what it sees among the preprocessings of a batch."""
        try:
            from blake3 import blake3
        except ImportError as error:
            raise UsageError("--reuse needs blake3: pip install '.[reuse]'") from error
        self._hash = blake3
        self._seen = seen
        self._threads = ThreadPoolExecutor(MOST_THREADS)
        device = {"device": runtime.device()}
        self._kept = {
            name: _Kept(folder / fingerprint({**of_member, **device}))
            for name, of_member in settings.items()
        }
        self._saved_at = time.monotonic()

    def held(self) -> tuple[str, ...]:
        """Returns the members of which the most cutouts are kept; the others are new, at least to
        some cutouts."""
        counts = {name: kept.count for name, kept in self._kept.items()}
        most = max(counts.values())
        return tuple(name for name, count in counts.items() if most and count == most)

    @trace.is_stage("hash")
    def keys(self, batch: Batch) -> np.ndarray:
        """Returns the key of each cutout for each preprocessing: (preprocessing, 2, batch)
        uint64."""
        return np.stack([self._keys(batch.inputs, n) for n in range(len(batch.actions))])

    def _keys(self, inputs: Inputs, number: int) -> np.ndarray:
        transform, brightness = inputs.transforms[number], inputs.brightness[number]
        images = inputs.images[transform.image]
        alone, channels = _alone(transform), list(transform.channels)
        is_all = channels == list(range(images.shape[-1]))
        form = repr((alone, images.shape[1:-1], str(images.dtype))).encode()

        def key(row: int) -> bytes:
            image = images[row] if is_all else images[row][..., channels]
            digest = self._hash(form)
            digest.update(np.ascontiguousarray(image).data.cast("B"))
            digest.update(np.ascontiguousarray(brightness[row]).data.cast("B"))
            return digest.digest(KEY_BYTES)

        keys = b"".join(self._threads.map(key, range(len(images))))
        return np.frombuffer(keys, np.uint64).reshape(-1, 2).T

    def find(self, name: str, keys: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns which of the keys (preprocessing, 2, n) have logits of a member, (n,) bool, and
        the logits (sample, n), NaN where there are none."""
        return self._kept[name].find(keys[self._seen[name]], samples)

    def add(self, name: str, keys: np.ndarray, logits: np.ndarray) -> None:
        """Takes the logits (sample, n) of a member for keys (preprocessing, 2, n); saves when the
        last save was a while ago."""
        self._kept[name].add(keys[self._seen[name]], logits)
        if time.monotonic() - self._saved_at > SAVE_INTERVAL_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the logits that are not on disk yet as one file a member."""
        for kept in self._kept.values():
            kept.save()
        self._saved_at = time.monotonic()


class Reused:
    """What a store knows of cutouts: the members `before` are computed first where some are not
    known, then the `others`; all at once where either is empty."""

    def __init__(self, store: LogitStore, names: Sequence[str], samples: int) -> None:
        self._store = store
        held = store.held()
        self.before = tuple(name for name in names if name in held)
        self.others = tuple(name for name in names if name not in held)
        if not self.before or not self.others:
            self.before, self.others = (), tuple(names)
        self._fused = self._in_part = 0
        self._names, self._samples = tuple(names), samples
        self._keys: dict[int, np.ndarray] = {}

    def route(self, batch: Batch) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Yields stages, places and known logits, as `Knows` says."""
        keys = self._store.keys(batch)
        of_members = [self._store.find(name, keys, self._samples) for name in self._names]
        known = np.stack([found for found, _ in of_members])
        logits = np.stack([values for _, values in of_members])
        first = [self._names.index(name) for name in self.before]
        is_fused = known.all(axis=0)
        is_rest = known[first].all(axis=0) & ~is_fused
        self._fused += int((batch.readable & is_fused).sum())
        self._in_part += int((batch.readable & is_rest).sum()) if first else 0
        for stage, where, members in (
            (FUSED, is_fused, list(range(len(known)))),
            (REST, is_rest, first),
            (FIRST, ~is_fused & ~is_rest, []),
        ):
            places = np.flatnonzero(where & batch.readable)
            if places.size:
                self._keys |= {int(batch.rows[place]): keys[..., place] for place in places}
                yield stage, places, logits[members][..., places] if members else None

    def learn(self, stage: int, rows: list[int], logits: np.ndarray) -> np.ndarray:
        """Keeps what is new, as `Knows` says: all that the first stage has seen goes on."""
        computed = {FIRST: self.before, REST: self.others, FUSED: ()}[stage]
        fused = self.before if stage == FIRST else self._names
        if rows:
            keys = np.stack([self._keys[row] for row in rows], axis=-1)
            for name in computed:
                self._store.add(name, keys, logits[fused.index(name)])
        if stage != FIRST:
            for row in rows:
                del self._keys[row]
        return np.full(len(rows), stage != FIRST)

    def end(self) -> None:
        """Writes what is new."""
        self._store.save()

    def counts(self) -> dict[str, int]:
        """Returns of how many cutouts all logits were known, and of how many some were used."""
        return {"reused": self._fused, "reused_in_part": self._in_part}


class _Kept:
    """The logits of a member, in a folder: those that were there, by key, and new ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_folder(folder)
        self._there = _by_key(_read(folder))
        self._new: list[Columns] = []

    @property
    def count(self) -> int:
        return self._there[KEY].shape[1] if self._there else 0

    def find(self, keys: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray]:
        count = keys.shape[1]
        known, logits = np.zeros(count, bool), np.full((samples, count), np.nan, np.float32)
        if self._there:
            there = self._there[KEY]
            place = np.minimum(np.searchsorted(there[0], keys[0]), there.shape[1] - 1)
            known = (there[:, place] == keys).all(axis=0)
            logits[:, known] = self._there[LOGITS][:, place[known]]
        return known, logits

    def add(self, keys: np.ndarray, logits: np.ndarray) -> None:
        finite = np.isfinite(logits).all(axis=0)
        self._new.append({KEY: keys[:, finite], LOGITS: logits[:, finite]})

    def save(self) -> None:
        if self._new:
            from lensjax import stored

            with replacing(self._folder / f"{uuid.uuid4().hex}.parquet") as file:
                stored.write_columns(file, joined(self._new), {})
        self._new = []


def _alone(transform: Transform) -> Transform:
    """Returns what a member sees as it would be without the others: they decide which of the arrays
    of images, and which of its channels, are its own."""
    return replace(transform, image=0, channels=tuple(range(len(transform.channels))))


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
    """Returns the columns of all parts, each key once and ascending; none without any."""
    if not parts:
        return {}
    columns = joined(parts)
    _, first = np.unique(columns[KEY][0], return_index=True)
    return {name: values[..., first] for name, values in columns.items()}
