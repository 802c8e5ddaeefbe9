"""Cutouts from tiles as FITS files with world coordinates, for other programs to measure."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np
from astropy.io import fits

from lensjax.data.formats.reader_warnings import silenced
from lensjax.data.planes import Unreadable
from lensjax.data.source import Source
from lensjax.files import gathering, replacing

if TYPE_CHECKING:
    from lensjax.data.tiles import Tiles

FOLDER = "cutouts"


def write(folder: Path, source: Source, rows: Sequence[int]) -> None:
    """Writes the cutouts of some rows, best first, to `cutouts/RANK_ID.fits` in a folder.

    A file has an extension a band (EXTNAME), in the tile's unit of flux, NaN where a pixel is
    masked, and says of which tile and object it is, and what magnitude (MAGZERO) one unit has where
    that is known. Bands that lie on one grid are as the tile has them, to the bit. A cutout that
    can no longer be read is left out.
    """
    assert source.tiles is not None
    with gathering() as attempt:
        for rank, row in enumerate(map(int, rows), start=1):
            name = f"{rank:05d}_{re.sub(r'[^A-Za-z0-9.+-]+', '_', str(source.table['id'][row]))}"
            attempt(name, _write_one, folder / FOLDER / f"{name}.fits", source, row, rank)


def clear(folder: Path) -> None:
    """Deletes what `write` has left in a folder."""
    for path in (folder / FOLDER).glob("[0-9]*_*.fits"):
        path.unlink()


def _write_one(path: Path, source: Source, row: int, rank: int) -> None:
    assert source.tiles is not None
    try:
        cutout = source[row]
    except Unreadable:
        return
    one, primary = source.table[row], fits.PrimaryHDU()
    primary.header["RANK"] = rank
    for key, value in (("OBJECT", one["id"]), ("TILE", one["tile"])):
        primary.header[key] = value.item() if isinstance(value, np.generic) else str(value)
    primary.header["RA_OBJ"], primary.header["DEC_OBJ"] = float(one["ra"]), float(one["dec"])
    header = header_of(source.tiles, row, float(one["ra"]), float(one["dec"]))
    planes = source.tiles.planes[source.tiles.tile[row]]
    assert planes is not None
    images = []
    for number, (band, stored) in enumerate(zip(source.bands, planes.stored, strict=True)):
        pixels = np.ascontiguousarray(cutout.image[..., number])
        images.append(fits.ImageHDU(pixels, header, name=band))
        if stored.zero_point is not None:
            images[-1].header["MAGZERO"] = stored.zero_point, "magnitude of one unit"
    with replacing(path) as file:
        fits.HDUList([primary, *images]).writeto(cast(IO[bytes], file))


@silenced()
def header_of(tiles: "Tiles", row: int, ra: float, dec: float) -> fits.Header:
    """Returns the world coordinates of the cutout of a row: the tile's, moved; of one that is
    turned, tangential at the object (degrees), where north is up."""
    form, planes = tiles.form(row), tiles.planes[tiles.tile[row]]
    assert form is not None and planes is not None
    if form.sheets.regions[planes.own] == 0:
        top, left = tiles.corner[row, planes.own].tolist()
        return planes.footprint.wcs[top:, left:].to_header(relax=True)
    from astropy.wcs import WCS  # slow to import, and most runs write no cutouts

    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [ra, dec]
    wcs.wcs.crpix = [(form.size + 1) / 2] * 2
    side = planes.footprint.pixel_scale / 3600
    wcs.wcs.cdelt = [-side, side]
    return wcs.to_header()
