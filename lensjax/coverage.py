"""Where on the sky the cutouts lie: their HEALPix cells, and the area that they cover."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lensjax.data.planes import located
from lensjax.data.preprocess import Preprocessing
from lensjax.files import replacing

if TYPE_CHECKING:
    from mocpy import MOC

ORDER = 29  # the finest whose cells 64 bits can number
MOST_POINTS = 5_000_000
"""So many points on the sky are tried at most to find the cells that cutouts cover."""
_PIECE = 2_000_000

Array = NDArray[Any]


def healpix(ra: Array, dec: Array, order: int = ORDER) -> Array:
    """Returns the HEALPix cell (n,) int64 of each position in degrees, nested, masked where there
    is none (Gorski et al. 2005, ApJ 622, 759)."""
    from astropy import units
    from astropy_healpix import lonlat_to_healpix

    known = located(ra, dec)
    cells = np.ma.masked_all(known.shape, np.int64)
    lon, lat = (np.asarray(each, np.float64)[known] * units.deg for each in (ra, dec))
    cells[known] = lonlat_to_healpix(lon, lat, 2**order, order="nested")
    return cells


def widths(field: Array, preprocessings: Sequence[Preprocessing]) -> Array:
    """Returns the width (n,) of cutouts in arcsec, NaN where it is not known.

    `field` (n,) is their field of view over that of the member for which it is furthest from one:
    the smallest where it is larger, and else the largest. Where it is NaN they are taken to show
    what the smallest shows.
    """
    sides = [p.field for p in preprocessings if p.field is not None]
    if not sides:
        return np.full(np.shape(field), np.nan)
    ratio = np.where(np.isnan(field), 1.0, field)
    return ratio * np.where(ratio >= 1, min(sides), max(sides))


def searched(ra: Array, dec: Array, width: Array, order: int | None = None) -> "MOC | None":
    """Returns the MOC of the cells that squares on the sky touch, north up, None of no square.

    `ra` and `dec` (n,) in degrees are their centres, `width` (n,) in arcsec their sides; those that
    are not known are left out. By default the cells are from a 32nd to a 64th of the widest square,
    or larger where these would take more than MOST_POINTS: the MOC says its order. It is larger
    than the squares by about a cell at each edge.
    """
    squares = np.array([ra, dec, width], np.float64)[:, located(ra, dec) & (width > 0)]
    count = squares.shape[1]
    if not count:
        return None
    from mocpy import MOC  # with matplotlib a second

    widest = math.radians(squares[2].max() / 3600)
    if order is None:
        across = min(64.0, max(1.0, math.sqrt(MOST_POINTS / count) / 2))
        order = min(ORDER, math.floor(math.log2(math.sqrt(math.pi / 3) * across / widest)))
    # Points half a cell apart, the edges with them, miss no cell but corners.
    cell = math.sqrt(math.pi / 3) / 2**order
    points = max(2, math.ceil(2 * widest / cell) + 1)
    piece = max(1, _PIECE // points**2)
    cells = [
        np.unique(_cells(squares[:, first : first + piece], points, order))
        for first in range(0, count, piece)
    ]
    found = np.unique(np.concatenate(cells)).astype(np.uint64)
    return MOC.from_healpix_cells(found, np.full(found.size, order, np.uint8), order)


def _cells(squares: Array, points: int, order: int) -> Array:
    """Returns the cells of points x points places in each of the squares (3, n), all in one
    array."""
    ra, dec, width = squares
    lon, lat = np.radians(ra)[:, None, None], np.radians(dec)[:, None, None]
    # On the plane that touches the sphere at the centre: right at the poles too.
    steps = np.linspace(-0.5, 0.5, points) * np.radians(width / 3600)[:, None]
    east, north = steps[:, None, :], steps[:, :, None]
    outwards = np.cos(lat) - north * np.sin(lat)
    x = outwards * np.cos(lon) - east * np.sin(lon)
    y = outwards * np.sin(lon) + east * np.cos(lon)
    z = np.sin(lat) + north * np.cos(lat) + 0 * east
    around, up = np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, np.hypot(x, y)))
    return np.asarray(healpix(around.ravel(), up.ravel(), order))


def write_searched(folder: Path, moc: "MOC | None") -> None:
    """Writes the sky that was searched as searched.moc.fits and searched.moc.json; nothing where
    none is known."""
    if moc is None or moc.empty():
        return
    with replacing(folder / "searched.moc.fits") as file:
        moc.serialize("fits").writeto(file)
    with replacing(folder / "searched.moc.json") as file:
        file.write(json.dumps(moc.serialize("json")).encode())
