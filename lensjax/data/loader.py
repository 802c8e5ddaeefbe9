"""Feeds prepared cutouts in batches, read ahead by threads, in the order given."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import grain
import numpy as np

from lensjax.data.catalog import Source
from lensjax.data.preprocess import Preparation, fit, level_and_scale
from lensjax.data.readers import Cutout, Unreadable
from lensjax.errors import UsageError

# More threads than these wait for the interpreter rather than for the disk.
MOST_THREADS = 8

# Batches held ready beyond the one in use.
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """Cutouts prepared for the members; always full, the last one padded with empty rows.

    `rows`: (batch,) int64 row of the source's table, -1 for padding. `count`: how many are not
    padding; they come first. `images`, `level`, `scale`: one array per preparation, (batch, S, S,
    band), (batch, band) and (batch, band) float32. `readable`: (batch,) bool; where it is False
    the image is zero and `reasons` says why ("" elsewhere). `ra`, `dec`: (batch,) float64
    degrees, from the table or else from the file, NaN where neither says. `masked`: (batch,)
    int64, values that were masked in the cutout and have been filled. `actions`: for each
    preparation what was done to fit each cutout (`as is`, `cropped`, `padded`, `resampled`,
    `resized`; "" where unreadable).
    """

    rows: np.ndarray
    count: int
    images: tuple[np.ndarray, ...]
    level: tuple[np.ndarray, ...]
    scale: tuple[np.ndarray, ...]
    readable: np.ndarray
    reasons: list[str]
    ra: np.ndarray
    dec: np.ndarray
    masked: np.ndarray
    actions: tuple[list[str], ...]


class _Prepared(NamedTuple):
    """One preparation of one cutout."""

    image: np.ndarray
    level: np.ndarray
    scale: np.ndarray
    action: str


class _Row(NamedTuple):
    """One row of a batch: an empty `prepared` where there is a `reason`."""

    row: int
    prepared: tuple[_Prepared, ...] = ()
    reason: str = ""
    ra: float = float("nan")
    dec: float = float("nan")
    masked: int = 0


def batches(
    source: Source,
    preparations: Sequence[Preparation],
    *,
    how: str,
    batch_size: int,
    start: int = 0,
    threads: int | None = None,
) -> Iterator[Batch]:
    """The cutouts from row `start` on, in order, prepared in each of the given ways.

    `how` is one of `preprocess.WAYS_TO_FIT`. `threads` read and prepare ahead; 0: the calling
    one does it all. By default one a core, eight at most, and 0 for arrays in memory. What comes
    out does not depend on their number. Raises `UsageError` where a preparation asks for
    bands that the source does not give.
    """
    if threads is None:
        threads = 0 if source.in_memory else min(MOST_THREADS, os.cpu_count() or 1)
    channels = [_channels(source, preparation) for preparation in preparations]
    ra, dec = (np.asarray(source.table[name], np.float64) for name in ("ra", "dec"))

    def prepare(row: int) -> _Row:
        try:
            cutout = source[row]
            prepared = tuple(
                _prepare(cutout, preparation, bands, how)
                for preparation, bands in zip(preparations, channels, strict=True)
            )
        except Unreadable as error:
            return _Row(row, reason=str(error), ra=ra[row], dec=dec[row])
        return _Row(
            row,
            prepared,
            ra=ra[row] if np.isfinite(ra[row]) else cutout.ra,
            dec=dec[row] if np.isfinite(dec[row]) else cutout.dec,
            masked=int(np.isnan(cutout.image).sum()),
        )

    def assemble(rows: Sequence[_Row]) -> Batch:
        return _assemble(rows, preparations, batch_size)

    # Threads take whole batches from the end of the chain, single cutouts from its start: only
    # the latter spreads the first batch over all of them.
    cutouts = grain.MapDataset.range(start, len(source)).map(prepare)
    options = grain.ReadOptions(
        num_threads=threads,
        prefetch_buffer_size=max(threads, BATCHES_AHEAD * batch_size) if threads else 0,
    )
    dataset = cutouts.to_iter_dataset(options).batch(batch_size, batch_fn=assemble)
    return iter(dataset)


def shuffled(
    arrays: dict[str, np.ndarray], batch_size: int, seed: int
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Batches of rows of the arrays, without end, each epoch in another order drawn by the seed.

    An epoch's remainder that fills no batch is left out. The iterator's `get_state` and
    `set_state` save and restore its place. Raises `UsageError` where the arrays differ in length
    or have fewer rows than a batch.
    """
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise UsageError(f"arrays to train on differ in length: {lengths}")
    rows = next(iter(lengths.values()))
    if rows < batch_size:
        raise UsageError(f"{rows} cutouts do not fill a batch of {batch_size}: take a smaller one")

    def gather(chosen: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[chosen] for name, values in arrays.items()}

    order = grain.MapDataset.range(rows).seed(seed).shuffle()
    epochs = order.batch(batch_size, drop_remainder=True).repeat().map(gather)
    return iter(epochs.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def _channels(source: Source, preparation: Preparation) -> list[int]:
    missing = [band for band in preparation.bands if band not in source.bands]
    if missing:
        raise UsageError(
            f"a member needs bands {', '.join(preparation.bands)}, but the data were opened with "
            f"{', '.join(source.bands) or 'none'}"
        )
    return [source.bands.index(band) for band in preparation.bands]


def _prepare(cutout: Cutout, preparation: Preparation, bands: list[int], how: str) -> _Prepared:
    if bands != list(range(cutout.image.shape[2])):
        cutout = replace(cutout, image=cutout.image[..., bands])
    fitted = fit(cutout, preparation, how)
    # Padding is no sky: it would hide the noise.
    level, scale = level_and_scale(fitted.image[fitted.inside], preparation)
    return _Prepared(fitted.image, level, scale, fitted.action)


def _assemble(rows: Sequence[_Row], preparations: Sequence[Preparation], batch_size: int) -> Batch:
    count = len(rows)
    rows = [*rows, *[_Row(-1)] * (batch_size - count)]
    sizes = [(p.input_size, len(p.bands)) for p in preparations]
    batch = Batch(
        rows=np.array([row.row for row in rows], np.int64),
        count=count,
        images=tuple(np.zeros((batch_size, size, size, b), np.float32) for size, b in sizes),
        level=tuple(np.zeros((batch_size, b), np.float32) for _, b in sizes),
        scale=tuple(np.ones((batch_size, b), np.float32) for _, b in sizes),
        readable=np.array([bool(row.prepared) for row in rows]),
        reasons=[row.reason for row in rows],
        ra=np.array([row.ra for row in rows], np.float64),
        dec=np.array([row.dec for row in rows], np.float64),
        masked=np.array([row.masked for row in rows], np.int64),
        actions=tuple([""] * batch_size for _ in preparations),
    )
    for place, row in enumerate(rows):
        for index, prepared in enumerate(row.prepared):
            batch.images[index][place] = prepared.image
            batch.level[index][place] = prepared.level
            batch.scale[index][place] = prepared.scale
            batch.actions[index][place] = prepared.action
    return batch
