"""Objects in survey tiles as a source of cutouts.

A row an object, in the order of the tiles and in each from its first row to its last, so that what
is scored together lies together; those that no tile holds come last. Only headers are read here.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from astropy.io import fits
from astropy.table import Table

from lensjax.columns import IN_TILES, describe
from lensjax.data.bands import Wanted
from lensjax.data.designations import designations
from lensjax.data.footprints import Matched, around, footprint, matched
from lensjax.data.formats import tile_files
from lensjax.data.formats.hats_catalogue import Found, read_hats
from lensjax.data.formats.pictures import FITS_SUFFIXES, has_suffix
from lensjax.data.formats.tables import TABLE_SUFFIXES, read_table, standardise
from lensjax.data.formats.tile_files import TileFiles
from lensjax.data.on_tile import SheetSpec
from lensjax.data.planes import Unreadable, located
from lensjax.data.source import Source, source_of
from lensjax.data.tiles import Form, Planes, Tiles
from lensjax.errors import UsageError, one_line
from lensjax.memory import memory_limit_bytes
from lensjax.places import place

# A tile, as the device holds it, takes at most this share of the memory: two are there while a
# third is read.
SHARE_OF_MEMORY = 1 / 16
# Pixel scales that differ by less change a logit by less than 1e-4.
SAME_SCALE = 5e-6
HEADERS_AT_ONCE = 8


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
    `formats.tile_files` has them. Of a folder, a HATS catalogue, the objects in the tiles are read.

    `field`: the side of a cutout in arcsec. Each is cut as `astropy.nddata.Cutout2D` cuts, along
    the pixels of the band with the finest ones; bands on other grids, and all where cutouts are to
    have the `north_up`, are interpolated. A mask counts where it has one of the `bits`. A sheet
    takes at most `most_bytes` (None: a sixteenth of the memory).

    Raises `UsageError` where there are no tiles, objects or positions, or not the wanted bands.
    """
    if field is None or not field > 0:
        raise UsageError("cutouts from tiles need their side in arcsec: give --field")
    bands, found = planes_of(data, wanted)
    files = [each.files for each in found]
    planes = tuple(None if each.wrong else each for each in found)
    table, objects, part = _objects(place(catalogue), found)
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
    ).rows(order)
    table = _described(table[order], tiles, match, order)
    one = next(filter(None, forms), None)
    words = [f"{len(table)} objects in {len(files)} tiles"]
    words += [f"read from {part} (those beyond the tiles are not given)"] if part else []
    words.append(f"bands {', '.join(bands)}")
    if one is not None:
        words.append(f"cutouts of {one.size}x{one.size} pixels, {one.pixel_scale:.4g} arcsec/pixel")
    damaged = [each.wrong for each in found if each.wrong]
    words += [f"tiles that cannot be read: {len(damaged)} ({damaged[0]})"] if damaged else []

    def all_files() -> Iterable[str]:
        yield from objects
        for one in files:
            yield from dict.fromkeys(one.files())

    return source_of(
        table,
        bands=bands,
        description=f"tiles {data} at the positions of {catalogue}: {', '.join(words)}",
        read=tiles.read_one,
        tiles=tiles,
        files=all_files,
        listed_in=str(data) if place(data).is_file() else "" if part else str(catalogue),
        bands_from=tuple(Path(file).name for file in files[0].planes),
    )


def planes_of(data: str, wanted: Wanted) -> tuple[tuple[str, ...], list[Planes]]:
    """Returns the bands, and what the headers of each tile of `data` say. Raises `UsageError` as
    `tile_files.tile_files` does."""
    bands, files = tile_files.tile_files(data, wanted)
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as threads:
        return bands, list(threads.map(partial(_planes, bands), files))


def _planes(bands: tuple[str, ...], files: TileFiles) -> Planes:
    """Returns what the headers of a tile say."""
    stored, lie, wrong = [], [], ""
    for band, file in zip(bands, files.planes, strict=True):
        name = Path(tile_files.split(file)[0]).name
        try:
            if not file:
                raise Unreadable(f"it has no file for {band}")
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


def _objects(path: Path, planes: Sequence[Planes]) -> Found:
    """Returns the objects of a table, or those of a HATS catalogue that lie in the tiles."""
    if not has_suffix(path, (*TABLE_SUFFIXES, *FITS_SUFFIXES)) and path.is_dir():
        from lensjax.data import tile_areas  # with mocpy a second

        area = tile_areas.covered([each.footprint for each in planes if each.footprints])
        found = read_hats(path, area)
        if not len(found.table):
            raise UsageError(f"--catalogue {path} has no objects in the tiles{_nowhere(planes)}")
    else:
        found = Found(read_table(path), [str(path)], "")
    table = standardise(found.table, str(path))
    missing = [name for name in ("ra", "dec") if name not in table.colnames]
    if missing or not len(table):
        lacks = f"no column {' and '.join(missing)}" if missing else "no rows"
        raise UsageError(f"--catalogue {path} has {lacks}")
    if "id" not in table.colnames:
        # Which row it is says nothing of an object where not all are read.
        places = (np.asarray(table[name]) for name in ("ra", "dec"))
        table["id"] = list(designations(*places)) if found.part else np.arange(len(table))
    return found._replace(table=table)


def _nowhere(planes: Sequence[Planes]) -> str:
    """Returns words on the tiles of which it is not known where they lie, "" without such."""
    unknown = [each.wrong for each in planes if not each.footprints]
    return f" (of {len(unknown)} it is not known where they lie: {unknown[0]})" if unknown else ""


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
    """Returns the tile of each object, -1 where none holds its cutout, and the reasons for that:
    few different ones, so that they can be counted."""
    tile, reason = match.tile.copy(), np.full(len(ra), "", object)
    reason[tile < 0] = f"in none of the {len(planes)} tiles{_nowhere(planes)}"
    reason[~located(ra, dec)] = "no position"
    for of, each, size in zip(_by_tile(match.tile, len(planes)), planes, sizes, strict=True):
        if size is None:
            tile[of], reason[of] = -1, each.wrong
            continue
        corner = _corners(match, size, of)
        out = of[((corner < 0) | (corner + size > each.footprint.shape)).any(axis=1)]
        tile[out] = -1
        needed = size * each.footprint.pixel_scale / 2
        reason[out] = f"less than {needed:.1f} arcsec from the edge of tile {each.files.name}"
    return tile, reason


def _by_tile(tile: np.ndarray, count: int) -> list[np.ndarray]:
    """Returns for each of `count` tiles which objects it holds, ascending; `tile` (n,) is -1 where
    none does."""
    order = np.argsort(tile, kind="stable")
    return np.split(order, np.searchsorted(tile[order], np.arange(count + 1)))[1:-1]


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
    for number, of in enumerate(_by_tile(tile, len(planes))):
        each, size = planes[number], sizes[number]
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
    for name in ("path", *IN_TILES):
        if name in table.colnames:
            table.rename_column(name, f"{name}_input")
    of, names = match.tile[order], np.array([*tiles.names, ""], object)
    paths = np.full(len(table), "", object)
    rows_of = _by_tile(tiles.tile, len(tiles.names))
    for rows, planes, form in zip(rows_of, tiles.planes, tiles.forms, strict=True):
        if planes is None or form is None:
            continue
        side = form.sheets.regions[planes.own] or form.size
        down, across = (_ranges(each, side) for each in tiles.corner[rows, planes.own].T)
        paths[rows] = f"{planes.files.planes[planes.own]}[" + across + "," + down + "]"
    table["path"] = paths
    table["tile"] = names[of].astype(str)
    table["edge_distance"] = match.depth[order]
    for name, meaning in IN_TILES.items():
        describe(table[name], meaning)
    return table


def _ranges(starts: np.ndarray, side: int) -> np.ndarray:
    """Returns pixels (n,) as `first:last`, counted from one; each text is made once."""
    known, of = np.unique(starts, return_inverse=True)
    return np.array([f"{start + 1}:{start + side}" for start in known.tolist()], object)[of]
