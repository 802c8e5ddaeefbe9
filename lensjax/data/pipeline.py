"""Feeds cutouts in batches, read ahead by threads or processes, in the order given."""

import dataclasses
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter

import grain
import jax
import numpy as np
from absl import flags

from lensjax import trace
from lensjax.data.brightness import LEVEL, NOISE, measure
from lensjax.data.on_device import ImageSpec, Inputs, InputSpec, Transform
from lensjax.data.planes import Cutout, Unreadable, perhaps_blank, perhaps_masked, without_blank
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

    `rows`: (batch,) int64 row of the source's table, -1 for padding. `inputs`: what the step takes.
    `readable`: (batch,) bool; where it is False the image is zero and `reasons` (batch,) says why
    ("" elsewhere). `flags` (batch,) says in which bands that a member sees there are no data (""
    mostly); these are zero. `ra`, `dec`: (batch,) float64 degrees, from the table or else from the
    file, NaN where neither says. `masked`: (batch,) int64, values that were masked in the cutout
    and have been filled. `actions`: for each preprocessing what is done to fit each cutout (`as
    is`, `cropped`, `padded`, `resampled`, `resized`; "" where unreadable), (batch,). `field`:
    (batch,) the cutout's field of view over a member's, of the member for which it is furthest from
    one, NaN where not known. `cut`: where `inputs` says where the cutouts lie in tiles, what makes
    of places in the batch the inputs of these cutouts as images; None elsewhere.
    """

    rows: np.ndarray
    inputs: Inputs
    readable: np.ndarray
    reasons: np.ndarray
    flags: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    masked: np.ndarray
    actions: tuple[np.ndarray, ...]
    field: np.ndarray
    cut: Callable[[np.ndarray | slice], Inputs] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )

    @property
    def count(self) -> int:
        """Returns how many rows are no padding. They come first."""
        return int(np.count_nonzero(self.rows >= 0))

    @classmethod
    def empty(cls, input_spec: InputSpec, size: int) -> "Batch":
        """Returns a batch of padding."""
        return cls(
            rows=np.full(size, -1),
            inputs=input_spec.blank(size),
            readable=np.zeros(size, bool),
            reasons=np.full(size, "", object),
            flags=np.full(size, "", object),
            ra=np.full(size, np.nan),
            dec=np.full(size, np.nan),
            masked=np.zeros(size, np.int64),
            actions=tuple(np.full(size, "", object) for _ in input_spec.transforms),
            field=np.full(size, np.nan),
        )


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
    """Returns the cutouts of `rows`, all by default, in order, for each of the preprocessings.

    `how` is one of `preprocess.WAYS_TO_FIT`. `threads` read and prepare ahead, by default those
    of the source; 0: the calling one does it all. Cutouts that are not of one form are read by so
    many `processes` instead, where there are any. What comes out does not depend on either number.
    Raises `UsageError` where a preprocessing asks for bands that the source does not give,
    `LensjaxError` where a process dies.
    """
    threads = source.threads if threads is None else threads
    rows = range(len(source)) if rows is None else rows
    read = reader(source, preprocessings, how)

    def parts(size: int) -> grain.MapDataset[Batch]:
        @trace.is_stage("read")
        def part(first: int) -> Batch:
            return read(range(first, min(first + size, rows.stop)), size)

        # Parts of padding fill up the last batch.
        stop = rows.start + -(-len(rows) // batch_size) * batch_size
        return grain.MapDataset.range(rows.start, stop, size).map(part)

    if processes and source.stack is None:
        return _by_processes(parts(batch_size), processes)
    # Threads take parts, so that the first batch too is read by all of them.
    size = math.gcd(batch_size, max(1, batch_size // MOST_THREADS))
    ahead = max(threads, BATCHES_AHEAD * batch_size // size) if threads else 0
    dataset = parts(size).to_iter_dataset(grain.ReadOptions(threads, ahead))
    return iter(dataset.batch(batch_size // size, batch_fn=concatenated))


def reader(
    source: Source, preprocessings: Sequence[Preprocessing], how: str
) -> Callable[[range, int], Batch]:
    """Returns the function that reads some rows, as `batches` does, into a batch of a size."""
    (ra, dec), unfitted = source.places, _unfitted(source, preprocessings, how)
    used = sorted({band for each in preprocessings for band in channels(source, each)})
    stack = source.stack if unfitted is not None else None
    spec = unfitted or _fitted(preprocessings)
    put = _put_whole if unfitted else _fits(source, preprocessings, how, spec)

    def read(rows: range, size: int) -> Batch:
        batch, count, those = Batch.empty(spec, size), len(rows), slice(rows.start, rows.stop)
        if not rows:
            return batch
        batch.rows[:count], batch.readable[:count] = rows, True
        batch.ra[:count], batch.dec[:count] = ra[those], dec[those]
        images = batch.inputs.images[0][:count]
        for place in range(count) if stack is None else _copied(stack, those, images, used):
            noted(batch, place, partial(source.read, rows[place]), used, source.bands, put)
        if stack is not None:
            measured(batch, images)
        return batch

    return read


def noted(
    batch: Batch,
    place: int,
    read: Callable[[], Cutout],
    used: Sequence[int],
    bands: Sequence[str],
    put: Callable[[Batch, int, Cutout], None],
) -> None:
    """Puts the cutout that is read into a place of a batch, and notes what is amiss with it, in the
    bands that are used."""
    try:
        cutout, blank = without_blank(read(), used)
        put(batch, place, cutout)
    except Unreadable as error:
        batch.readable[place], batch.reasons[place] = False, str(error)
        batch.inputs.images[0][place] = 0
        return
    batch.masked[place] = cutout.masked
    if blank:
        batch.flags[place] = f"no data in {', '.join(bands[band] for band in blank)}"
    if not np.isfinite(batch.ra[place]):
        batch.ra[place] = cutout.ra
    if not np.isfinite(batch.dec[place]):
        batch.dec[place] = cutout.dec


def concatenated(parts: Sequence[Batch]) -> Batch:
    """Returns the batches one after another as one."""
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *of: np.concatenate(of), *parts)


def taken(batch: Batch, places: np.ndarray | slice) -> Batch:
    """Returns the cutouts at some places of a batch, as images, also where it has them in tiles."""
    inputs = batch.cut(places) if batch.cut else batch.inputs.mapped(itemgetter(places))
    return replace(jax.tree.map(itemgetter(places), without_inputs(batch)), inputs=inputs)


def without_inputs(batch: Batch) -> Batch:
    """Returns a batch without its images, and without what they would be cut from."""
    return replace(batch, inputs=Inputs((), (), ()), cut=None)


def _by_processes(of_batches: grain.MapDataset[Batch], processes: int) -> Iterator[Batch]:
    """Yields the batches, in order, each read by one of so many processes."""
    # Grain asks for flags of absl's, which programs of absl's alone have parsed.
    flags.FLAGS.mark_as_parsed()
    alone = of_batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(processes, per_worker_buffer_size=BATCHES_AHEAD)
    iterator = iter(alone.mp_prefetch(options, _leave_ctrl_c))
    try:
        for batch in iterator:
            # Out of the memory that is shared with the process, which is free again then.
            yield jax.tree.map(np.array, batch)
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


def input_spec(source: Source, preprocessings: Sequence[Preprocessing], how: str) -> InputSpec:
    """Returns the form of the batches of `batches`, without reading any."""
    return _unfitted(source, preprocessings, how) or _fitted(preprocessings)


def check_fields(source: Source, preprocessings: Sequence[Preprocessing], how: str) -> None:
    """Raises `UsageError` where all cutouts, or all of the first that can be read, show far more or
    less sky than a member sees and `how` does not insist on it. Of others each is for itself."""
    refused, stack = "", source.stack
    for row in range(min(ASKED, len(source))):
        try:
            if stack is not None:
                shape, scale = stack.shape, stack.pixel_scale
            else:
                cutout = source[row]
                shape, scale = cutout.image.shape, cutout.pixel_scale
            for preprocessing in preprocessings:
                geometry(shape[:2], scale, preprocessing, how)
        except OtherField as error:
            refused = refused or str(error)
        except Unreadable:
            continue
        else:
            return
    if refused:
        raise UsageError(f"{source.description}: the cutouts have {refused}")


# --- stacks, fitted by the step ---


def _unfitted(
    source: Source, preprocessings: Sequence[Preprocessing], how: str
) -> InputSpec | None:
    """Returns one array of images for all preprocessings; None where the host had better fit the
    cutouts."""
    of_each = [channels(source, preprocessing) for preprocessing in preprocessings]
    stack = source.stack
    if stack is None:
        return None
    # Wider types hold nothing that float32 does not, as far as pixels go.
    image_spec = ImageSpec(
        stack.shape, stack.dtype.name if stack.dtype.itemsize <= 2 else "float32"
    )
    fitted_bytes = sum(fitted.nbytes for fitted in _fitted(preprocessings).image_specs)
    if image_spec.nbytes > MOST_UNFITTED * fitted_bytes:
        return None
    try:
        transforms = [
            Transform(p, 0, bands, geometry(stack.shape[:2], stack.pixel_scale, p, how))
            for p, bands in zip(preprocessings, of_each, strict=True)
        ]
    except Unreadable:
        # Each of the cutouts is to be rejected for this reason.
        return None
    return InputSpec((image_spec,), tuple(transforms))


def _copied(stack: Stack, rows: slice, images: np.ndarray, used: Sequence[int]) -> Sequence[int]:
    """Copies cutouts of a stack into `images`; returns the places of those to be read one by one,
    which may have masked pixels or blank ones of the bands `used`, or be the ones that are
    damaged."""
    try:
        with np.errstate(over="ignore"):
            for place, image in enumerate(stack.read(rows)):
                images[place] = image
    except Unreadable:
        return range(len(images))
    suspect = perhaps_blank(images[..., used]) | perhaps_masked(images)
    return np.flatnonzero(suspect).tolist()


def _put_whole(batch: Batch, place: int, cutout: Cutout) -> None:
    batch.inputs.images[0][place] = fill_masked(cutout.image)


def measured(batch: Batch, images: np.ndarray) -> None:
    """Notes in a batch what will be done to its images of one form, and their brightness where the
    step does not measure it."""
    transforms = batch.inputs.transforms
    if batch.inputs.brightness:
        found = {t.measured: measure(images, *t.measured) for t in transforms}
        for number, transform in enumerate(transforms):
            batch.inputs.brightness[number][: len(images)] = found[transform.measured]
    for number, transform in enumerate(transforms):
        batch.actions[number][batch.readable] = transform.geometry.action
    batch.field[batch.readable] = _furthest([transform.geometry for transform in transforms])


# --- any cutouts, fitted by the host ---


def _fitted(preprocessings: Sequence[Preprocessing]) -> InputSpec:
    """Returns an array of images for each grid of the members."""
    grids, transforms = _grids(preprocessings), []
    for preprocessing in preprocessings:
        size, bands = preprocessing.input_size, tuple(range(len(preprocessing.bands)))
        image = grids.index(_grid(preprocessing))
        same = Geometry((size, size), size, 1.0, "as is")
        transforms.append(Transform(preprocessing, image, bands, same))
    specs = [ImageSpec((g.input_size, g.input_size, len(g.bands)), "float32") for g in grids]
    return InputSpec(tuple(specs), tuple(transforms))


def _grids(preprocessings: Sequence[Preprocessing]) -> list[Preprocessing]:
    """Returns the preprocessings that differ in more than brightness."""
    return list(dict.fromkeys(map(_grid, preprocessings)))


def _grid(preprocessing: Preprocessing) -> Preprocessing:
    p = preprocessing
    return Preprocessing.unnormalised(p.bands, p.input_size, p.pixel_scale, "none", 1.0)


def _fits(
    source: Source, preprocessings: Sequence[Preprocessing], how: str, spec: InputSpec
) -> Callable[[Batch, int, Cutout], None]:
    """Returns the function that puts a cutout into a place of a batch, on the members' grids."""
    grids = _grids(preprocessings)
    of_grids = [channels(source, grid) for grid in grids]

    def put(batch: Batch, place: int, cutout: Cutout) -> None:
        shape, scale = cutout.image.shape[:2], cutout.pixel_scale
        made = [geometry(shape, scale, grid, how) for grid in grids]
        image, levels = fill_masked(cutout.image), {}
        for number, transform in enumerate(spec.transforms):
            grid = transform.image
            own, bands, (_, _, stretch) = made[grid], of_grids[grid], transform.measured
            brightness = measure(image[np.newaxis], own, bands, stretch)[0]
            levels[grid] = brightness[:, LEVEL]
            brightness[:, NOISE] *= own.noise
            batch.inputs.brightness[number][place] = brightness
            batch.actions[number][place] = own.action
        for grid, images in enumerate(batch.inputs.images):
            images[place] = fit(image[..., of_grids[grid]], made[grid], levels[grid])
        batch.field[place] = _furthest(made)

    return put


# --- what both have in common ---


def channels(source: Source, preprocessing: Preprocessing) -> tuple[int, ...]:
    missing = [band for band in preprocessing.bands if band not in source.bands]
    if missing:
        raise UsageError(
            f"a member needs bands {', '.join(preprocessing.bands)}, but the data were opened with "
            f"{', '.join(source.bands) or 'none'}"
        )
    return tuple(source.bands.index(band) for band in preprocessing.bands)


def _furthest(geometries: Sequence[Geometry]) -> float:
    """Returns the field of view over a member's that is furthest from one, NaN where none is
    known."""
    known = (made.field for made in geometries if made.field is not None)
    return max(known, key=lambda field: abs(math.log(field)), default=math.nan)
