"""Survey tiles and a catalogue of objects as a source of cutouts.

A row an object, in the order of the tiles and in each from its first row to its last, so that what
is scored together lies together; those that no tile holds come last. Only headers are read here.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from astropy.io import fits
from astropy.table import Table
from scipy.ndimage import map_coordinates

from lensjax.data.bands import Wanted
from lensjax.data.footprints import Footprint, Matched, around, footprint, matched
from lensjax.data.formats import tile_files
from lensjax.data.formats.tables import read_table, standardise
from lensjax.data.formats.tile_files import Stored, TileFiles, in_flux
from lensjax.data.on_tile import Sheet, SheetSpec
from lensjax.data.planes import Cutout, Unreadable, masked, without_blank
from lensjax.data.source import Source, source_of
from lensjax.errors import UsageError, one_line
from lensjax.memory import memory_limit_bytes
from lensjax.places import place

# A tile, as the device holds it, takes at most this share of the memory: two are there while a
# third is read.
SHARE_OF_MEMORY = 1 / 16
# Pixel scales that differ by less change a logit by less than 1e-4.
SAME_SCALE = 5e-6
HEADERS_AT_ONCE = 8
# Bytes that the memory of an array on a CPU is to begin at a multiple of.
_ALIGNED = 64


@dataclass(frozen=True)
class Form:
    """What the cutouts of some tiles share: their `size` and that of their pixels (arcsec), the
    form of the `sheets` that they are cut from. One program is compiled for each."""

    size: int
    pixel_scale: float
    sheets: SheetSpec


class SheetRows(NamedTuple):
    """A tile, or a part of it, that the memory has room for: which `tile`, the source's `rows` that
    are cut from it, and the rows of pixels of each plane."""

    tile: int
    rows: range
    pixels: tuple[range, ...]


class HostSheet(NamedTuple):
    """A sheet, and the first row of each of its planes in the tile."""

    sheet: Sheet
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Tiles:
    """Where the cutouts of a source lie in its tiles.

    `names` and `forms` of the tiles. `tile` (row,) int32, -1 for an object that none holds,
    `reason` (row,) says why. `corner` (row, band, 2) int32 and `maps` (row, band, 2, 3) float32 are
    as `on_tile.Places` has them, in the tile's planes. `sheets`: in order, those that hold a row.
    """

    names: tuple[str, ...]
    forms: tuple[Form | None, ...]
    planes: tuple["Planes | None", ...]
    tile: np.ndarray
    reason: np.ndarray
    corner: np.ndarray
    maps: np.ndarray
    bits: int

    @functools.cached_property
    def sheets(self) -> tuple[SheetRows, ...]:
        return tuple(self._sheets())

    def rows(self, rows: slice) -> "Tiles":
        """Returns those of some rows."""
        names = ("tile", "reason", "corner", "maps")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def form(self, row: int) -> Form | None:
        """Returns the form of a cutout, None where no tile holds it."""
        return self.forms[self.tile[row]] if self.tile[row] >= 0 else None

    def _sheets(self) -> Iterator[SheetRows]:
        """Yields rows as long as their pixels fit in one sheet."""
        held = int(np.count_nonzero(self.tile >= 0))
        ends = [*(np.flatnonzero(np.diff(self.tile[:held])) + 1).tolist(), held]
        start = 0
        for end in ends:
            while start < end:
                tile = int(self.tile[start])
                form, planes = self.forms[tile], self.planes[tile]
                assert form is not None and planes is not None
                sides = np.array([side or form.size for side in form.sheets.regions])
                heights = np.array([plane.shape[0] for plane in planes.stored])
                corner = self.corner[start:end, :, 0]
                low = np.minimum.accumulate(np.clip(corner, 0, heights))
                high = np.maximum.accumulate(np.clip(corner + sides, 0, heights))
                room = np.array([shape[0] for shape in form.sheets.shapes])
                fits = np.all(high - low <= room, axis=1)
                count = end - start if fits.all() else int(np.argmin(fits))
                pixels = zip(low[count - 1].tolist(), high[count - 1].tolist(), strict=True)
                yield SheetRows(tile, range(start, start + count), tuple(range(*p) for p in pixels))
                start += count

    def read(self, sheet: SheetRows) -> HostSheet:
        """Returns the pixels of a sheet, as they are stored, those that cannot be used as NaN.
        Raises `Unreadable`, with the name of the tile."""
        form, planes = self.forms[sheet.tile], self.planes[sheet.tile]
        assert form is not None and planes is not None
        made, units = [], np.empty((len(planes.stored), 2), np.float32)
        for band, rows in enumerate(sheet.pixels):
            pixels = self._pixels(sheet.tile, band, slice(rows.start, rows.stop), slice(None))
            said = planes.stored[band]
            units[band] = said.scale, said.zero
            dtype, shape = np.dtype(form.sheets.dtypes[band]), form.sheets.shapes[band]
            if pixels.dtype != dtype:
                pixels = in_flux(pixels, said.scale, said.zero).astype(dtype)
                units[band] = 1, 0
            made.append(_room(shape, dtype))
            made[-1][: pixels.shape[0], : pixels.shape[1]] = pixels
        return HostSheet(Sheet(tuple(made), units), tuple(rows.start for rows in sheet.pixels))

    def _pixels(self, tile: int, band: int, rows: slice, columns: slice) -> np.ndarray:
        planes = self.planes[tile]
        assert planes is not None
        try:
            found = tile_files.section(planes.files.planes[band], rows, columns)
            if found.stored.shape != planes.stored[band].shape:
                raise Unreadable("the file has changed")
            beside = planes.files.companions[band]
            bad = tile_files.unusable(beside, rows, columns, found.stored.shape, self.bits)
        except Unreadable as error:
            raise Unreadable(f"tile {self.names[tile]}: {error}") from error
        if bad is None or not bad.any():
            return found.pixels
        return np.where(bad, np.float32(np.nan), found.flux.astype(np.float32))

    def region(self, row: int, band: int) -> tuple[slice, slice]:
        """Returns the rows and columns of a plane that a cutout needs, some perhaps beyond it."""
        form = self.form(row)
        assert form is not None
        top, left = self.corner[row, band].tolist()
        side = form.sheets.regions[band] or form.size
        return slice(top, top + side), slice(left, left + side)

    def read_one(self, row: int) -> Cutout:
        """Returns the cutout of a row, read from the files by itself. Raises `Unreadable`."""
        if self.tile[row] < 0:
            raise Unreadable(self.reason[row])
        tile, regions = int(self.tile[row]), []
        planes = self.planes[tile]
        assert planes is not None
        for band, said in enumerate(planes.stored):
            wanted = self.region(row, band)
            inside = [
                slice(max(s.start, 0), min(s.stop, n))
                for s, n in zip(wanted, said.shape, strict=True)
            ]
            if all(s.start < s.stop for s in inside):
                pixels = self._pixels(tile, band, *inside)
                pixels = in_flux(pixels, said.scale, said.zero)
            else:
                inside, pixels = [slice(s.start, s.start) for s in wanted], np.empty((0, 0))
            regions.append(_beyond(pixels, wanted, inside))
        return self.joined(row, regions)

    def cut(self, row: int, held: HostSheet) -> Cutout:
        """Returns the cutout of a row, from a sheet that holds it. Raises `Unreadable`."""
        regions = []
        for band, plane in enumerate(held.sheet.planes):
            down, across = self.region(row, band)
            height, width = self.planes[self.tile[row]].stored[band].shape  # type: ignore[union-attr]
            start = held.starts[band]
            below = slice(max(down.start, start), min(down.stop, height, start + len(plane)))
            beside = slice(max(across.start, 0), min(across.stop, width))
            pixels = plane[max(below.start - start, 0) : max(below.stop - start, 0), beside]
            pixels = in_flux(pixels, *map(float, held.sheet.units[band]))
            if not pixels.size:
                below = beside = slice(0, 0)
                pixels = np.empty((0, 0))
            regions.append(_beyond(pixels, (down, across), (below, beside)))
        return self.joined(row, regions)

    def joined(self, row: int, regions: Sequence[np.ndarray]) -> Cutout:
        """Returns the cutout of a row whose bands' regions are these, in flux. Raises
        `Unreadable`."""
        form = self.form(row)
        assert form is not None
        grid = np.mgrid[: form.size, : form.size]
        bands = []
        for band, region in enumerate(regions):
            pixels = masked(region)
            if form.sheets.regions[band]:
                a = self.maps[row, band].astype(np.float64)
                at = np.einsum("kc,chw->khw", a[:, :2], grid) + a[:, 2, None, None]
                pixels = map_coordinates(
                    pixels, at, np.float32, order=1, mode="constant", cval=np.nan
                )
            bands.append(pixels)
        found = Cutout(np.stack(bands, axis=-1), form.pixel_scale)
        without_blank(found, range(len(bands)))
        return found


class Planes(NamedTuple):
    """The planes of a tile: its files, how each is stored and where it lies; `own` is the number of
    the one with the finest pixels, on whose grid cutouts are. `wrong`: what is amiss, "" where
    nothing is; then there may be fewer planes than files, or none."""

    files: TileFiles
    stored: tuple[Stored, ...]
    footprints: tuple[Footprint, ...]
    own: int
    wrong: str

    @property
    def footprint(self) -> Footprint:
        return self.footprints[self.own]


def _room(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """Returns zeros that begin where JAX takes memory for its own on a CPU: it copies others."""
    size = shape[0] * shape[1] * dtype.itemsize
    room = np.zeros(size + _ALIGNED, np.uint8)
    start = -room.ctypes.data % _ALIGNED
    return room[start : start + size].view(dtype).reshape(shape)


def _beyond(pixels: np.ndarray, wanted: Sequence[slice], inside: Sequence[slice]) -> np.ndarray:
    """Returns pixels of a plane in a region of which a part may lie beyond it: NaN there."""
    if all(w == i for w, i in zip(wanted, inside, strict=True)):
        return pixels
    room = np.full([s.stop - s.start for s in wanted], np.nan, np.float32)
    if pixels.size:
        down, across = (
            slice(i.start - w.start, i.stop - w.start) for w, i in zip(wanted, inside, strict=True)
        )
        room[down, across] = pixels
    return room


def open_tiles(
    data: str,
    catalogue: str,
    wanted: Wanted,
    field: float | None,
    *,
    north_up: bool = False,
    bits: int = -1,
    most_bytes: int | None = None,
) -> Source:
    """Returns the cutouts of the objects of a `catalogue` in the tiles of `data`, as
    `formats.tile_files` has them.

    `field`: the side of a cutout in arcsec. Each is cut as `astropy.nddata.Cutout2D` cuts, along
    the pixels of the band with the finest ones; bands on other grids, and all where cutouts are to
    have the `north_up`, are interpolated. A mask counts where it has one of the `bits`. A sheet
    takes at most `most_bytes` (None: a sixteenth of the memory).

    Raises `UsageError` where there are no tiles, objects or positions, or not the wanted bands.
    """
    if field is None or not field > 0:
        raise UsageError("cutouts from tiles need their side in arcsec: give --field")
    bands, files = tile_files.tile_files(data, wanted)
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as threads:
        found = list(threads.map(_planes, files))
    planes = tuple(None if each.wrong else each for each in found)
    table = _objects(place(catalogue))
    ra, dec = (np.asarray(table[name], np.float64) for name in ("ra", "dec"))
    match = _matched(found, ra, dec)
    scales = _scales(planes)
    sizes = [None if scale is None else max(2, round(field / scale)) for scale in scales]
    tile, reason = _kept(match, found, sizes, ra, dec)
    corner, maps, regions = _placed(match, tile, planes, sizes, north_up)
    order = np.lexsort((corner[:, 0, 1], corner[:, 0, 0], np.where(tile < 0, len(files), tile)))
    if most_bytes is None:
        most_bytes = int(SHARE_OF_MEMORY * memory_limit_bytes(jax.local_devices()[0]))
    forms = _forms(planes, scales, sizes, regions, most_bytes)
    tiles = Tiles(
        tuple(one.name for one in files), forms, planes, tile, reason, corner, maps, bits
    ).rows(order)  # type: ignore[arg-type]
    table = _described(table[order], tiles, match, order)
    one = next(filter(None, forms), None)
    words = [f"{len(table)} objects in {len(files)} tiles", f"bands {', '.join(bands)}"]
    if one is not None:
        words.append(f"cutouts of {one.size}x{one.size} pixels, {one.pixel_scale:.4g} arcsec/pixel")
    damaged = [each.wrong for each in found if each.wrong]
    words += [f"{len(damaged)} tiles cannot be read ({damaged[0]})"] if damaged else []

    def all_files() -> Iterable[str]:
        yield str(place(catalogue))
        for one in files:
            yield from dict.fromkeys(one.files())

    return source_of(
        table,
        bands=bands,
        description=f"tiles {data} at the positions of {catalogue}: {', '.join(words)}",
        read=tiles.read_one,
        tiles=tiles,
        files=all_files,
        listed_in=str(data) if place(data).is_file() else str(catalogue),
        bands_from=tuple(Path(file).name for file in files[0].planes),
    )


def _planes(files: TileFiles) -> Planes:
    """Returns what the headers of a tile say."""
    stored, lie, wrong = [], [], ""
    for file in files.planes:
        name = Path(tile_files.split(file)[0]).name
        try:
            said = tile_files.stored(file)
            wrong = wrong or ("" if said.is_whole else f"{name}: {tile_files.TRUNCATED}")
            try:
                lie.append(footprint(said.header, said.shape))
            except Unreadable as error:
                raise Unreadable(f"{name}: {error}") from error
            # Headers, of thousands of tiles, have been of use.
            stored.append(said._replace(header=fits.Header()))
        except Unreadable as error:
            wrong = wrong or one_line(error, 160)
    # The first of those with the finest pixels.
    own = min(range(len(lie)), key=lambda band: (round(lie[band].pixel_scale, 4), band), default=-1)
    return Planes(files, tuple(stored), tuple(lie), own, wrong and f"tile {files.name}: {wrong}")


def _objects(path: Path) -> Table:
    table = standardise(read_table(path), str(path))
    missing = [name for name in ("ra", "dec") if name not in table.colnames]
    if missing or not len(table):
        lacks = f"no column {' and '.join(missing)}" if missing else "no rows"
        raise UsageError(f"--catalogue {path} has {lacks}")
    if "id" not in table.colnames:
        table["id"] = np.arange(len(table))
    return table


def _scales(planes: Sequence[Planes | None]) -> list[float | None]:
    """Returns the pixel scale of each tile: that of the first tile whose pixels are about as
    large, so that few programs are compiled."""
    known: list[float] = []
    scales: list[float | None] = []
    for each in planes:
        scale = each and each.footprint.pixel_scale
        like = next((k for k in known if scale and abs(scale / k - 1) < SAME_SCALE), None)
        if scale and like is None:
            known.append(scale)
        scales.append(like or scale)
    return scales


def _corners(match: Matched, size: int, of: np.ndarray) -> np.ndarray:
    """Returns the first row and column (n, 2) int64 of cutouts of a size, as Cutout2D has them."""
    at = np.stack([match.y[of], match.x[of]], axis=-1)
    return np.ceil(at - size / 2).astype(np.int64)


def _matched(planes: Sequence[Planes], ra: np.ndarray, dec: np.ndarray) -> Matched:
    """Returns the tiles of objects; a damaged one only for those that no other holds."""
    sound, damaged = (
        [
            each.footprint if each.footprints and bool(each.wrong) == is_damaged else None
            for each in planes
        ]
        for is_damaged in (False, True)
    )
    found = matched(sound, ra, dec)
    if any(damaged):
        lost = np.flatnonzero(found.tile < 0)
        for kept, values in zip(found, matched(damaged, ra[lost], dec[lost]), strict=True):
            kept[lost] = values
    return found


def _kept(
    match: Matched,
    planes: Sequence[Planes],
    sizes: Sequence[int | None],
    ra: np.ndarray,
    dec: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tile of each object, -1 where none holds its cutout, and the reasons for that."""
    tile, reason = match.tile.copy(), np.full(len(ra), "", object)
    nowhere = f"in none of the {len(planes)} tiles"
    unknown = [each.wrong for each in planes if not each.footprints]
    if unknown:
        nowhere += f" (of {len(unknown)} it is not known where they lie: {unknown[0]})"
    reason[tile < 0] = nowhere
    reason[~(np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90))] = "no position"
    for number, (each, size) in enumerate(zip(planes, sizes, strict=True)):
        of = np.flatnonzero(match.tile == number)
        if size is None:
            tile[of], reason[of] = -1, each.wrong
            continue
        corner = _corners(match, size, of)
        out = of[((corner < 0) | (corner + size > each.footprint.shape)).any(axis=1)]
        tile[out] = -1
        needed = size * each.footprint.pixel_scale / 2
        reason[out] = [
            f"{depth:.1f} arcsec from the edge of tile {each.files.name}: the cutout needs "
            f"{needed:.1f}"
            for depth in match.depth[out]
        ]
    return tile, reason


def _placed(
    match: Matched,
    tile: np.ndarray,
    planes: Sequence[Planes | None],
    sizes: Sequence[int | None],
    north_up: bool,
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    """Returns the corners (n, band, 2) and maps (n, band, 2, 3) of the regions that cutouts need,
    and for each tile the sides of the regions, 0 for a band that is cut along its pixels."""
    bands = next((len(each.stored) for each in planes if each), 1)
    corner = np.zeros((len(tile), bands, 2), np.int32)
    maps = np.zeros((len(tile), bands, 2, 3), np.float32)
    regions = [(0,) * bands] * len(planes)
    for number, (each, size) in enumerate(zip(planes, sizes, strict=True)):
        of = np.flatnonzero(tile == number)
        if each is None or size is None:
            continue
        along = [one.is_grid_of(each.footprint) and not north_up for one in each.footprints]
        first = _corners(match, size, of)
        # The middle of the cutout, which is the object itself where it need not be along pixels.
        middle = np.stack([match.y[of], match.x[of]], -1) if north_up else first + (size - 1) / 2
        sides = []
        for band, other in enumerate(each.footprints):
            if along[band]:
                corner[of, band] = first
                sides.append(0)
                continue
            y, x = middle.T
            a = around(each.footprint, other, x, y, size / 4, north_up)
            a[..., 2] -= a[..., :2].sum(-1) * (size - 1) / 2
            ends = np.array([[i, j, 1] for i in (0, size - 1) for j in (0, size - 1)], float)
            reached = np.einsum("nkc,ec->nek", a, ends)
            # Where a band does not reach, none of its pixels is in a region far below it.
            reached = np.where(np.isfinite(reached).all((1, 2))[:, None, None], reached, -1e6)
            start = np.floor(reached.min(1)).astype(np.int64)
            span = (reached.max(1) - start).max(initial=0)
            sides.append(int(np.floor(span)) + 2)
            a[..., 2] -= start
            corner[of, band], maps[of, band] = start, np.nan_to_num(a)
        regions[number] = tuple(sides)
    return corner, maps, regions


def _forms(
    planes: Sequence[Planes | None],
    scales: Sequence[float | None],
    sizes: Sequence[int | None],
    regions: Sequence[tuple[int, ...]],
    most_bytes: int,
) -> tuple[Form | None, ...]:
    """Returns the form of each tile: tiles with cutouts of one size share one, of the largest."""
    alike: dict[Any, list[int]] = {}
    for number, sides in enumerate(regions):
        if planes[number] is not None:
            key = sizes[number], scales[number], tuple(map(bool, sides))
            alike.setdefault(key, []).append(number)
    forms: list[Form | None] = [None] * len(planes)
    for (size, scale, _), numbers in alike.items():
        them = [planes[number] for number in numbers]
        # The sides of two bands may vary with the place in the sky.
        sides = tuple(map(max, *(regions[n] for n in numbers), regions[numbers[0]]))
        shapes, dtypes = [], []
        for band, side in enumerate(sides):
            stored = [each.stored[band] for each in them if each]
            height, width = (max(n, side or size) for n in np.max([s.shape for s in stored], 0))
            kinds = {said.dtype.name for said in stored}
            has_masks = any(each.files.companions[band] for each in them if each)
            dtypes.append(kinds.pop() if len(kinds) == 1 and not has_masks else "float32")
            shapes.append((int(height), int(width)))
        a_row = sum(w * np.dtype(d).itemsize for (_, w), d in zip(shapes, dtypes, strict=True))
        most = max(most_bytes // a_row, 1)
        shapes = [
            (min(height, max(most, side or size)), width)
            for (height, width), side in zip(shapes, sides, strict=True)
        ]
        form = Form(size, scale, SheetSpec(tuple(shapes), tuple(dtypes), sides))
        for number in numbers:
            forms[number] = form
    return tuple(forms)


def _described(table: Table, tiles: Tiles, match: Matched, order: np.ndarray) -> Table:
    """Returns the objects with the tile that each is cut from, and where: `path` is a section of
    the file as cfitsio and DS9 have it, `edge_distance` in arcsec."""
    for name in ("path", "tile", "edge_distance"):
        if name in table.colnames:
            table.rename_column(name, f"{name}_input")
    of, names = match.tile[order], np.array([*tiles.names, ""], object)
    paths = np.full(len(table), "", object)
    for row in np.flatnonzero(tiles.tile >= 0).tolist():
        planes = tiles.planes[tiles.tile[row]]
        assert planes is not None
        down, across = tiles.region(row, planes.own)
        section = f"[{across.start + 1}:{across.stop},{down.start + 1}:{down.stop}]"
        paths[row] = planes.files.planes[planes.own] + section
    table["path"] = paths
    table["tile"] = names[of].astype(str)
    table["edge_distance"] = match.depth[order]
    return table
