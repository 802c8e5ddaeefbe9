"""Survey tiles, and what is cut out of them on the host: a cutout from the files, or a sheet of
pixels from which the step cuts many."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.ndimage import map_coordinates

from lensjax.data.footprints import Footprint
from lensjax.data.formats import tile_files
from lensjax.data.formats.tile_files import Stored, TileFiles, in_flux
from lensjax.data.on_tile import Places, Sheet, SheetSpec
from lensjax.data.planes import Cutout, Unreadable, masked, without_blank
from lensjax.memory import aligned_zeros


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

    def pixels(
        self, band: int, bits: int, rows: slice = slice(None), columns: slice = slice(None)
    ) -> np.ndarray:
        """Returns pixels of a plane as they are stored, those that cannot be used as NaN in flux; a
        mask counts where it has one of the `bits`. Raises `Unreadable`, with the name of the
        tile."""
        try:
            found = tile_files.section(self.files.planes[band], rows, columns)
            if found.stored.shape != self.stored[band].shape:
                raise Unreadable("the file has changed")
            beside = self.files.companions[band]
            bad = tile_files.unusable(beside, rows, columns, found.stored.shape, bits)
        except Unreadable as error:
            raise Unreadable(f"tile {self.files.name}: {error}") from error
        if bad is None or not bad.any():
            return found.pixels
        return np.where(bad, np.float32(np.nan), found.flux.astype(np.float32))


@dataclass(frozen=True)
class Tiles:
    """Where the cutouts of a source lie in its tiles.

    `names` and `forms` of the tiles. `tile` (row,) int32, -1 for an object that none holds,
    `reason` (row,) says why. `corner` (row, band, 2) int32 and `maps` (row, band, 2, 3) float32 are
    as `on_tile.Places` has them, in the tile's planes. `sheets`: in order, those that hold a row.
    """

    names: tuple[str, ...]
    forms: tuple[Form | None, ...]
    planes: tuple[Planes | None, ...]
    tile: np.ndarray
    reason: np.ndarray
    corner: np.ndarray
    maps: np.ndarray
    bits: int

    @functools.cached_property
    def sheets(self) -> tuple[SheetRows, ...]:
        return tuple(self._sheets())

    def rows(self, rows: slice | np.ndarray) -> "Tiles":
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
            pixels = planes.pixels(band, self.bits, slice(rows.start, rows.stop))
            said = planes.stored[band]
            units[band] = said.scale, said.zero
            dtype, shape = np.dtype(form.sheets.dtypes[band]), form.sheets.shapes[band]
            if pixels.dtype != dtype:
                pixels = in_flux(pixels, said.scale, said.zero).astype(dtype)
                units[band] = 1, 0
            made.append(aligned_zeros(shape, dtype))
            made[-1][: pixels.shape[0], : pixels.shape[1]] = pixels
        return HostSheet(Sheet(tuple(made), units), tuple(rows.start for rows in sheet.pixels))

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
                pixels = planes.pixels(band, self.bits, *inside)
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
        bands = []
        for band, region in enumerate(regions):
            pixels = masked(region)
            if form.sheets.regions[band]:
                pixels = _interpolated(pixels, self.maps[row, band], form.size)
            bands.append(pixels)
        found = Cutout(np.stack(bands, axis=-1), form.pixel_scale)
        without_blank(found, range(len(bands)))
        return found


def cut_here(sheets: Sequence[Sheet], places: Places, given: np.ndarray) -> np.ndarray:
    """Returns what `on_tile.cut` does, from sheets on the host: for the few cutouts that are to be
    images."""
    images, size = given.copy(), given.shape[1]
    for number in np.flatnonzero(~places.given):
        sheet, corners = sheets[places.sheet[number]], places.corner[number].tolist()
        for band, (region, (top, left)) in enumerate(zip(places.regions, corners, strict=True)):
            side = region or size
            pixels = sheet.planes[band][top : top + side, left : left + side]
            pixels = in_flux(pixels, *map(float, sheet.units[band]))
            if region:
                pixels = _interpolated(pixels, places.maps[number, band], size)
            images[number, ..., band] = pixels
    return images


def _interpolated(region: np.ndarray, of_grid: np.ndarray, size: int) -> np.ndarray:
    """Returns a region on the grid of its cutout, (size, size) float32, NaN beyond it. `of_grid`:
    (2, 3), one of the maps of `on_tile.Places`."""
    a = of_grid.astype(np.float64)
    at = np.einsum("kc,chw->khw", a[:, :2], np.mgrid[:size, :size]) + a[:, 2, None, None]
    return map_coordinates(region, at, np.float32, order=1, mode="constant", cval=np.nan)


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
