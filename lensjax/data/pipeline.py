"""Feeds cutouts in batches, read ahead by threads, in the order given."""

import contextlib
import itertools
import math
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from absl import flags

from lensjax import trace
from lensjax.data.brightness import LEVEL, NOISE, measure
from lensjax.data.on_device import Canvas, Inputs, Layout, View
from lensjax.data.planes import Unreadable, perhaps_blank, perhaps_masked, without_blank
from lensjax.data.preprocess import (
    Geometry,
    OtherField,
    Preprocessing,
    fill_masked,
    fit,
    geometry,
)
from lensjax.data.source import MOST_THREADS, Source, Stack
from lensjax.errors import LensjaxError, UsageError, one_line

# Batches held ready beyond the one in use.
BATCHES_AHEAD = 2

# Cutouts travel unfitted where they take at most this many times the bytes of fitted ones. Beyond
# that most of what travels, and of what the step would multiply, is sky that no member looks at.
MOST_UNFITTED = 4

# How many readable files are asked whether their field of view is right.
ASKED = 16


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Cutouts on their way to the members; always full, the last one padded with empty rows.

    `rows`: (batch,) int64 row of the source's table, -1 for padding. `count`: how many are not
    padding; they come first. `inputs`: what the step takes. `readable`: (batch,) bool; where it is
    False the image is zero and `reasons` says why ("" elsewhere). `flags` says in which bands that
    a member sees there are no data ("" mostly); these are zero. `ra`, `dec`: (batch,) float64
    degrees, from the table or else from the file, NaN where neither says. `masked`: (batch,)
    int64, values that were masked in the cutout and have been filled. `actions`: for each
    preprocessing what is done to fit each cutout (`as is`, `cropped`, `padded`, `resampled`,
    `resized`; "" where unreadable). `field`: (batch,) the cutout's field of view over a member's,
    of the member for which it is furthest from one, NaN where not known.
    """

    rows: np.ndarray
    count: int
    inputs: Inputs
    readable: np.ndarray
    reasons: list[str]
    flags: list[str]
    ra: np.ndarray
    dec: np.ndarray
    masked: np.ndarray
    actions: tuple[list[str], ...]
    field: np.ndarray


class _Fitted(NamedTuple):
    """A cutout on one grid, what was done to bring it there, and its brightness (band, 4) there
    by how it is measured."""

    image: np.ndarray
    geometry: Geometry
    brightness: dict[str, np.ndarray]


class _Row(NamedTuple):
    """One row of a batch; `fitted` holds one per canvas, none where there is a `reason`."""

    row: int
    fitted: tuple[_Fitted, ...] = ()
    reason: str = ""
    flag: str = ""
    ra: float = float("nan")
    dec: float = float("nan")
    masked: int = 0


def batches(
    source: Source,
    preprocessings: Sequence[Preprocessing],
    *,
    how: str,
    batch_size: int,
    rows: range | None = None,
    threads: int | None = None,
    processes: int = 0,
) -> Iterator[Batch]:
    """The cutouts of `rows`, all by default, in order, for each of the given preprocessings.

    `how` is one of `preprocess.WAYS_TO_FIT`. `threads` read and prepare ahead, by default those
    of the source; 0: the calling one does it all. Cutouts that are not of one form are read by so
    many `processes` instead, where there are any. What comes out does not depend on either number.
    Raises `UsageError` where a preprocessing asks for bands that the source does not give,
    `LensjaxError` where a process dies.
    """
    if threads is None:
        threads = source.threads
    if rows is None:
        rows = range(len(source))
    unfitted = _unfitted(source, preprocessings, how)
    if unfitted is not None and source.stack is not None:
        return _of_stack(source, source.stack, unfitted, batch_size, rows, threads)
    return _of_cutouts(source, preprocessings, how, batch_size, rows, threads, processes)


def layout(source: Source, preprocessings: Sequence[Preprocessing], how: str) -> Layout:
    """The form of the batches of `batches`, without reading any."""
    return _unfitted(source, preprocessings, how) or _fitted(source, preprocessings)


def check_fields(source: Source, preprocessings: Sequence[Preprocessing], how: str) -> None:
    """Raises `UsageError` where all cutouts, or all of the first that can be read, show far more or
    less sky than a member sees and `how` does not insist on it. Of others each is for itself."""
    stack = source.stack
    forms = _forms(source) if stack is None else iter([(stack.shape[:2], stack.pixel_scale)])
    refused = ""
    for shape, scale in itertools.islice(forms, ASKED):
        try:
            for preprocessing in preprocessings:
                geometry(shape, scale, preprocessing, how)
        except OtherField as error:
            refused = refused or str(error)
        except Unreadable:
            continue
        else:
            return
    if refused:
        raise UsageError(f"{source.description}: the cutouts have {refused}")


def _forms(source: Source) -> Iterator[tuple[tuple[int, int], float | None]]:
    """Yields size and pixel scale of the first cutouts that can be read."""
    for row in range(min(ASKED, len(source))):
        with contextlib.suppress(Unreadable):
            cutout = source[row]
            height, width = cutout.image.shape[:2]
            yield (height, width), cutout.pixel_scale


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


# --- cutouts of one form, fitted by the step ---


def _unfitted(source: Source, preprocessings: Sequence[Preprocessing], how: str) -> Layout | None:
    """One canvas for all preprocessings; None where the host had better fit the cutouts."""
    channels = [_channels(source, preprocessing) for preprocessing in preprocessings]
    stack = source.stack
    if stack is None:
        return None
    # Wider types hold nothing that float32 does not, as far as pixels go.
    narrow = stack.dtype.itemsize <= 2
    canvas = Canvas(stack.shape, stack.dtype.name if narrow else "float32")
    fitted_bytes = sum(fitted.nbytes for fitted in _fitted(source, preprocessings).canvases)
    if canvas.nbytes > MOST_UNFITTED * fitted_bytes:
        return None
    try:
        views = [
            View(p, 0, bands, geometry(stack.shape[:2], stack.pixel_scale, p, how))
            for p, bands in zip(preprocessings, channels, strict=True)
        ]
    except Unreadable:
        # Each of the cutouts is to be rejected for this reason.
        return None
    return Layout((canvas,), tuple(views))


def _of_stack(
    source: Source, stack: Stack, layout: Layout, batch_size: int, rows: range, threads: int
) -> Iterator[Batch]:
    ra, dec = source.places
    used = _used(view.channels for view in layout.views)
    field = _furthest(view.geometry for view in layout.views)

    @trace.is_stage("read")
    def read(first: int) -> Batch:
        count = min(batch_size, rows.stop - first)
        batch = _blank(layout, batch_size, count)
        those = slice(first, first + count)
        batch.rows[:count] = range(first, first + count)
        batch.ra[:count], batch.dec[:count] = ra[those], dec[those]
        batch.readable[:count] = True
        images = batch.inputs.images[0]
        for place in _copied(stack, those, images[:count], used):
            try:
                cutout, blank = without_blank(source[first + place], used)
            except Unreadable as error:
                images[place], batch.readable[place] = 0, False
                batch.reasons[place] = str(error)
                continue
            batch.masked[place], batch.flags[place] = cutout.masked, _flag(source.bands, blank)
            images[place] = fill_masked(cutout.image)
        measured: dict[Any, np.ndarray] = {}
        for brightness, view in zip(batch.inputs.brightness, layout.views, strict=True):
            if view.measured not in measured:
                measured[view.measured] = measure(images[:count], *view.measured)
            brightness[:count] = measured[view.measured]
        for actions, view in zip(batch.actions, layout.views, strict=True):
            actions[:] = np.where(batch.readable, view.geometry.action, "").tolist()
        batch.field[batch.readable] = field
        return batch

    firsts = grain.MapDataset.range(rows.start, rows.stop, batch_size).map(read)
    ahead = BATCHES_AHEAD if threads else 0
    return iter(firsts.to_iter_dataset(grain.ReadOptions(threads, ahead)))


def _copied(stack: Stack, rows: slice, images: np.ndarray, used: Sequence[int]) -> Sequence[int]:
    """Copies cutouts of a stack into `images`; the places of those to be read one by one, which may
    have masked pixels or blank ones of the bands `used`, or be the ones that are damaged."""
    try:
        with np.errstate(over="ignore"):
            for place, image in enumerate(stack.read(rows)):
                images[place] = image
    except Unreadable:
        return range(len(images))
    whole = len(used) == images.shape[3]
    suspect = perhaps_blank(images if whole else images[..., used])
    if not stack.whole:
        suspect |= perhaps_masked(images)
    return np.flatnonzero(suspect).tolist()


# --- any cutouts, fitted by the host ---


def _fitted(source: Source, preprocessings: Sequence[Preprocessing]) -> Layout:
    """A canvas for each grid of the members."""
    grids = _grids(preprocessings)
    canvases = [Canvas((g.input_size, g.input_size, len(g.bands)), "float32") for g in grids]
    views = []
    for preprocessing in preprocessings:
        size, bands = preprocessing.input_size, range(len(preprocessing.bands))
        same = Geometry((size, size), size, 1.0, "as is")
        views.append(View(preprocessing, grids.index(_grid(preprocessing)), tuple(bands), same))
    return Layout(tuple(canvases), tuple(views))


def _grids(preprocessings: Sequence[Preprocessing]) -> list[Preprocessing]:
    """The preprocessings that differ in more than brightness."""
    return list(dict.fromkeys(map(_grid, preprocessings)))


def _grid(preprocessing: Preprocessing) -> Preprocessing:
    p = preprocessing
    return Preprocessing.unnormalised(p.bands, p.input_size, p.pixel_scale, "none", 1.0)


def _of_cutouts(
    source: Source,
    preprocessings: Sequence[Preprocessing],
    how: str,
    batch_size: int,
    rows: range,
    threads: int,
    processes: int,
) -> Iterator[Batch]:
    grids, layout = _grids(preprocessings), _fitted(source, preprocessings)
    channels = [_channels(source, grid) for grid in grids]
    used = _used(channels)
    (ra, dec), names, read_cutout = source.places, source.bands, source.read
    stretches = {view.measured[2] for view in layout.views}

    def prepare(row: int) -> _Row:
        try:
            cutout, blank = without_blank(read_cutout(row), used)
            image, scale = fill_masked(cutout.image), cutout.pixel_scale
            fitted = []
            for grid, bands in zip(grids, channels, strict=True):
                made = geometry(image.shape[:2], scale, grid, how)
                whole = bands == tuple(range(image.shape[2]))
                own = image if whole else image[..., bands]
                every = tuple(range(len(bands)))
                of = {s: measure(own[None], made, every, s)[0] for s in stretches}
                level = next(iter(of.values()))[:, LEVEL]
                for brightness in of.values():
                    brightness[:, NOISE] *= made.noise
                fitted.append(_Fitted(fit(own, made, level), made, of))
        except Unreadable as error:
            return _Row(row, reason=str(error), ra=ra[row], dec=dec[row])
        return _Row(
            row,
            tuple(fitted),
            flag=_flag(names, blank),
            ra=ra[row] if np.isfinite(ra[row]) else cutout.ra,
            dec=dec[row] if np.isfinite(dec[row]) else cutout.dec,
            masked=cutout.masked,
        )

    def parts(size: int) -> grain.MapDataset[list[_Row]]:
        @trace.is_stage("read")
        def read(first: int) -> list[_Row]:
            return [prepare(row) for row in rows[first - rows.start :][:size]]

        return grain.MapDataset.range(rows.start, rows.stop, size).map(read)

    if processes and source.stack is None:
        whole = parts(batch_size).map(lambda part: _assemble(part, layout, batch_size))
        return _by_processes(whole, processes)
    # Threads take whole batches from the end of the chain, parts from its start: only the latter
    # spread the first batch over all of them.
    size = math.gcd(batch_size, max(1, batch_size // MOST_THREADS))
    ahead = max(threads, BATCHES_AHEAD * batch_size // size) if threads else 0
    dataset = parts(size).to_iter_dataset(grain.ReadOptions(threads, ahead))

    def assemble(some: Sequence[list[_Row]]) -> Batch:
        return _assemble([row for part in some for row in part], layout, batch_size)

    return iter(dataset.batch(batch_size // size, batch_fn=assemble))


def _by_processes(of_batches: grain.MapDataset[Batch], processes: int) -> Iterator[Batch]:
    """The batches, in order, each read by one of so many processes."""
    # Grain asks for flags of absl's, which programs of absl's alone have parsed.
    flags.FLAGS.mark_as_parsed()
    alone = of_batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(processes, per_worker_buffer_size=BATCHES_AHEAD)
    iterator = iter(alone.mp_prefetch(options, _leave_ctrl_c))
    try:
        for batch in iterator:
            # Out of the memory that is shared with the process, which is free again then.
            yield jax.tree.map(_own, batch)
    except RuntimeError as error:
        raise LensjaxError(
            f"a process that reads cutouts has died ({one_line(error, 120)}); the same command "
            "goes on there, --workers 0 reads without others"
        ) from error
    finally:
        iterator.close()


def _leave_ctrl_c(worker: int, workers: int) -> None:
    """Has a process that reads leave Ctrl-C, which all of them get, to the one it reads for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _own(leaf: Any) -> Any:
    return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf


def _assemble(rows: Sequence[_Row], layout: Layout, batch_size: int) -> Batch:
    batch = _blank(layout, batch_size, len(rows))
    for place, row in enumerate(rows):
        batch.rows[place], batch.masked[place] = row.row, row.masked
        batch.ra[place], batch.dec[place] = row.ra, row.dec
        batch.readable[place], batch.reasons[place] = bool(row.fitted), row.reason
        batch.flags[place] = row.flag
        for canvas, fitted in enumerate(row.fitted):
            batch.inputs.images[canvas][place] = fitted.image
        for brightness, view in zip(batch.inputs.brightness, layout.views, strict=True):
            if row.fitted:
                brightness[place] = row.fitted[view.canvas].brightness[view.measured[2]]
        batch.field[place] = _furthest(fitted.geometry for fitted in row.fitted)
        for actions, view in zip(batch.actions, layout.views, strict=True):
            actions[place] = row.fitted[view.canvas].geometry.action if row.fitted else ""
    return batch


# --- what both have in common ---


def _blank(layout: Layout, batch_size: int, count: int) -> Batch:
    """A batch in which nothing is readable yet."""
    return Batch(
        rows=np.full(batch_size, -1, np.int64),
        count=count,
        inputs=layout.blank(batch_size),
        readable=np.zeros(batch_size, bool),
        reasons=[""] * batch_size,
        flags=[""] * batch_size,
        ra=np.full(batch_size, np.nan),
        dec=np.full(batch_size, np.nan),
        masked=np.zeros(batch_size, np.int64),
        actions=tuple([""] * batch_size for _ in layout.views),
        field=np.full(batch_size, np.nan),
    )


def _channels(source: Source, preprocessing: Preprocessing) -> tuple[int, ...]:
    missing = [band for band in preprocessing.bands if band not in source.bands]
    if missing:
        raise UsageError(
            f"a member needs bands {', '.join(preprocessing.bands)}, but the data were opened with "
            f"{', '.join(source.bands) or 'none'}"
        )
    return tuple(source.bands.index(band) for band in preprocessing.bands)


def _used(channels: Iterable[Sequence[int]]) -> list[int]:
    """The channels that some preprocessing takes, in order."""
    return sorted({channel for some in channels for channel in some})


def _furthest(geometries: Iterable[Geometry]) -> float:
    """The field of view over a member's that is furthest from one, NaN where none is known."""
    known = (made.field for made in geometries if made.field is not None)
    return max(known, key=lambda field: abs(math.log(field)), default=math.nan)


def _flag(bands: Sequence[str], blank: Sequence[int]) -> str:
    """What is to be said of a cutout of these bands in which some, by number, are blank."""
    return f"no data in {', '.join(bands[band] for band in blank)}" if blank else ""
