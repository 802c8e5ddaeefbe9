"""Feeds the places of cutouts in batches, and the tiles that the step cuts them from.

A tile is read once, by a thread, while the one before it is used; there are no more than these two.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from operator import itemgetter
from threading import Semaphore
from typing import NamedTuple

import grain
import jax
import numpy as np

from lensjax.data import pipeline
from lensjax.data.formats.tile_files import in_flux
from lensjax.data.on_device import ImageSpec, Inputs, InputSpec, Transform
from lensjax.data.on_tile import SHEETS, Places
from lensjax.data.pipeline import BATCHES_AHEAD, Batch
from lensjax.data.planes import Cutout, Unreadable, perhaps_blank, perhaps_masked
from lensjax.data.preprocess import Preprocessing, fill_masked, geometry
from lensjax.data.source import Source
from lensjax.data.tiles import Form, HostSheet, SheetRows, Tiles, cut_here
from lensjax.errors import UsageError

Put = Callable[[Inputs], Inputs]


class Held(NamedTuple):
    """A sheet as the host has it, and as the devices have it."""

    host: HostSheet
    placed: Inputs


class Chunk(NamedTuple):
    """The rows of a batch, and the numbers of the sheets that they are cut from."""

    rows: range
    sheets: tuple[int, ...]


def takes(source: Source, preprocessings: Sequence[Preprocessing]) -> bool:
    """Returns whether a step can cut the cutouts of a source for these members: not where one
    wants them as `zscale` has it, which the host alone finds."""
    has_tiles = source.tiles is not None and any(source.tiles.forms)
    return has_tiles and all(each.stretch != "zscale" for each in preprocessings)


def input_spec(
    source: Source, preprocessings: Sequence[Preprocessing], how: str, form: Form | None = None
) -> InputSpec:
    """Returns the form of the batches of cutouts that are `form`ed so, by default of those that
    take the most memory. Raises `UsageError` where members cannot see such."""
    assert source.tiles is not None
    form = form or max(filter(None, source.tiles.forms), key=_pixels)
    shape = form.size, form.size
    try:
        transforms = tuple(
            Transform(p, 0, pipeline.channels(source, p), geometry(shape, form.pixel_scale, p, how))
            for p in preprocessings
        )
    except Unreadable as error:
        raise UsageError(f"{source.description}: the cutouts have {error}") from error
    images = ImageSpec((*shape, len(source.bands)), "float32")
    on_cpu = jax.default_backend() == "cpu"
    return InputSpec((images,), transforms, None, form.sheets, measured=on_cpu)


def _pixels(form: Form) -> int:
    return sum(height * width for height, width in form.sheets.shapes)


def batches(
    source: Source,
    preprocessings: Sequence[Preprocessing],
    *,
    how: str,
    batch_size: int,
    rows: range,
    put: Put = lambda inputs: inputs,
    threads: int | None = None,
    as_images: bool = False,
) -> Iterator[Batch]:
    """Yields batches of `rows`, in order, with the sheets that they are cut from as `put` leaves
    them on the devices; or, `as_images`, without, cut and measured here. As `pipeline.batches`, but
    that a batch may be padded anywhere.

    Batches that are under way hold on to the sheets that they need, which are let go here once the
    next batch needs them no longer.
    """
    assert source.tiles is not None
    tiles = source.tiles
    threads = source.threads if threads is None else threads
    forms = set(filter(None, tiles.forms))
    specs = {form: input_spec(source, preprocessings, how, form) for form in forms}
    if as_images:
        specs = {form: replace(spec, measured=True) for form, spec in specs.items()}
    # On the devices once: images are only sent along where some are filled.
    blank = {
        form: put(replace(spec, sheets=None).blank(batch_size)).images
        for form, spec in specs.items()
    }
    chunks = list(_chunks(tiles, rows, batch_size))
    wanted = sorted({number for chunk in chunks for number in chunk.sheets})
    with _Shelf(partial(_held, tiles, put), tiles.sheets, wanted) as shelf:

        def build(chunk: Chunk) -> Batch:
            form = tiles.form(chunk.rows[0]) or next(iter(forms))
            batch, places, sheets = _batch(source, chunk, shelf, specs[form], batch_size)
            return batch if as_images else _in_tiles(batch, places, sheets, blank[form])

        dataset = grain.MapDataset.source(chunks).map(build)
        options = grain.ReadOptions(threads, BATCHES_AHEAD if threads else 0)
        for following, batch in zip(
            [*chunks[1:], None], dataset.to_iter_dataset(options), strict=True
        ):
            yield batch
            if following and following.sheets:
                shelf.drop_before(following.sheets[0])


def _chunks(tiles: Tiles, rows: range, size: int) -> Iterator[Chunk]:
    """Yields the rows of full batches, and of others where the next row is of another form, of a
    third sheet, or of none."""
    start, form = rows.start, None
    numbers: list[int] = []
    stop = start
    for number, sheet in enumerate(tiles.sheets):
        own = range(max(sheet.rows.start, rows.start), min(sheet.rows.stop, rows.stop))
        if not own:
            continue
        here = tiles.form(own[0])
        if start < stop and (len(numbers) == SHEETS or here != form):
            yield Chunk(range(start, stop), tuple(numbers))
            start, numbers = own.start, []
        numbers, form, stop = [*numbers, number], here, own.stop
        while stop - start >= size:
            end = start + size
            yield Chunk(range(start, end), tuple(n for n in numbers if _has(tiles, n, start, end)))
            start = end
        numbers = [n for n in numbers if _has(tiles, n, start, stop)]
    if start < stop:
        yield Chunk(range(start, stop), tuple(numbers))
    for first in range(stop, rows.stop, size):
        yield Chunk(range(first, min(first + size, rows.stop)), ())


def _has(tiles: Tiles, number: int, start: int, stop: int) -> bool:
    """Returns whether a sheet holds some of the rows."""
    rows = tiles.sheets[number].rows
    return max(rows.start, start) < min(rows.stop, stop)


def _held(tiles: Tiles, put: Put, sheet: SheetRows) -> Held:
    """Returns a sheet on the host and on the devices: on a CPU these are the same memory."""
    read = tiles.read(sheet)
    placed = put(Inputs((), (), (), sheets=(read.sheet,)))
    if jax.default_backend() == "cpu":
        read = read._replace(sheet=jax.tree.map(np.asarray, placed.sheets[0]))
    return Held(read, placed)


class _Shelf:
    """Sheets, each read once, in order, by a thread: the one that is used and the next one."""

    def __init__(
        self,
        read: Callable[[SheetRows], Held],
        sheets: Sequence[SheetRows],
        wanted: Sequence[int],
    ) -> None:
        self._room, self._is_closed = Semaphore(SHEETS), False
        self._thread = ThreadPoolExecutor(1)

        def when_there_is_room(sheet: SheetRows) -> Held | Unreadable | None:
            self._room.acquire()
            try:
                return None if self._is_closed else read(sheet)
            except Unreadable as error:
                return error

        self._found: dict[int, Future[Held | Unreadable | None]] = {
            number: self._thread.submit(when_there_is_room, sheets[number]) for number in wanted
        }

    def __enter__(self) -> "_Shelf":
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._found.clear()
        self._room.release(SHEETS)

    def __getitem__(self, number: int) -> Held | Unreadable | None:
        """Returns a sheet, or why it cannot be read, when it is there."""
        return self._found[number].result()

    def drop_before(self, number: int) -> None:
        """Makes room of the sheets before one."""
        for old in [other for other in self._found if other < number]:
            del self._found[old]
            self._room.release()


def _batch(
    source: Source,
    chunk: Chunk,
    shelf: _Shelf,
    spec: InputSpec,
    size: int,
) -> tuple[Batch, Places, list[Held]]:
    """Returns a batch of the rows of a chunk, where its cutouts lie, and in which sheets: in none
    where none can be read. It has the images that are `given`; all where they are measured here."""
    tiles, count, first = source.tiles, len(chunk.rows), chunk.rows.start
    assert tiles is not None and spec.sheets is not None
    batch = Batch.empty(replace(spec, sheets=None), size)
    those = slice(first, chunk.rows.stop)
    batch.rows[:count] = chunk.rows
    batch.ra[:count], batch.dec[:count] = (of[those] for of in source.places)
    batch.reasons[:count] = tiles.reason[those]
    places, sheets = spec.sheets.places(size), list[Held]()
    used = sorted({channel for each in spec.transforms for channel in each.channels})

    def fill(batch: Batch, place: int, cutout: Cutout) -> None:
        batch.inputs.images[0][place] = fill_masked(cutout.image)
        places.given[place] = True

    for name in chunk.sheets:
        within, held = tiles.sheets[name].rows, shelf[name]
        rows = range(max(within.start, first), min(within.stop, those.stop))
        at = slice(rows.start - first, rows.stop - first)
        if held is None or isinstance(held, Unreadable):
            batch.reasons[at] = str(held)
            continue
        starts = np.array([[start, 0] for start in held.host.starts], np.int32)
        places.sheet[at] = len(sheets)
        sheets.append(held)
        places.corner[at] = tiles.corner[rows.start : rows.stop] - starts
        places.maps[at] = tiles.maps[rows.start : rows.stop]
        batch.readable[at] = True
        for row in _looked(tiles, rows, held.host, spec, batch.inputs.images[0][at]):
            cut = partial(tiles.cut, row, held.host)
            pipeline.noted(batch, row - first, cut, used, source.bands, fill)
    pipeline.measured(batch, batch.inputs.images[0][:count])
    return batch, places, sheets


def _in_tiles(
    batch: Batch, places: Places, sheets: Sequence[Held], blank: tuple[np.ndarray, ...]
) -> Batch:
    """Returns a batch whose cutouts the step is to cut."""
    given, on_host = batch.inputs, tuple(held.host.sheet for held in sheets)
    placed = [sheet for held in sheets for sheet in held.placed.sheets]
    images = given.images if places.given.any() else blank
    both = tuple([*placed, *placed][:SHEETS])
    inputs = replace(given, images=images, places=places, sheets=both)

    def cut(at: np.ndarray | slice) -> Inputs:
        some, of_some = given.mapped(itemgetter(at)), jax.tree.map(itemgetter(at), places)
        return replace(some, images=(cut_here(on_host, of_some, some.images[0]),))

    return replace(batch, inputs=inputs, cut=cut)


def _looked(
    tiles: Tiles, rows: range, held: HostSheet, spec: InputSpec, images: np.ndarray
) -> list[int]:
    """Returns the rows that are to be read one by one, which may have masked pixels or blank bands,
    or lie in part beyond a plane. The others are put into `images` where the host measures them; it
    interpolates none to do so, but has those read one by one."""
    assert spec.sheets is not None
    if spec.measured and any(spec.sheets.regions):
        return list(rows)
    suspect = np.zeros(len(rows), bool)
    corners = tiles.corner[rows.start : rows.stop]
    planes = tiles.planes[tiles.tile[rows.start]]
    assert planes is not None
    for band, plane in enumerate(held.sheet.planes):
        side, corner = spec.sheets.regions[band] or images.shape[1], corners[:, band]
        beyond = ((corner < 0) | (corner + side > planes.stored[band].shape)).any(axis=1)
        suspect |= beyond
        pixels = np.empty((len(rows), side, side, 1), plane.dtype)
        for place in np.flatnonzero(~beyond).tolist():
            top, left = (corner[place] - [held.starts[band], 0]).tolist()
            pixels[place, ..., 0] = plane[top : top + side, left : left + side]
        pixels = in_flux(pixels, *map(float, held.sheet.units[band]))
        suspect[~beyond] |= (perhaps_masked(pixels) | perhaps_blank(pixels))[~beyond]
        if spec.measured:
            images[..., band] = pixels[..., 0]
    return (np.flatnonzero(suspect) + rows.start).tolist()
