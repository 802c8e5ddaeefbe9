"""The sky that survey tiles cover, and the part of it in which an object would be scored, as
MOCs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from astropy.coordinates import Angle
from mocpy import MOC

from lensjax.data.footprints import Footprint
from lensjax.data.formats.reader_warnings import silenced
from lensjax.data.tiles import Tiles

CELLS_A_SIDE = 512
"""A cell is at least so much smaller than the side of a tile, unless that takes more cells than
MOST_CELLS."""
MOST_CELLS = 5_000_000
# Enough for a side that a distortion bends: between the points it is part of a great circle.
_POINTS_A_SIDE = 16
_STEPS = np.linspace(0, 1, _POINTS_A_SIDE, endpoint=False)
_AROUND = np.array(
    [
        [*_STEPS, *np.ones_like(_STEPS), *1 - _STEPS, *np.zeros_like(_STEPS)],
        [*np.zeros_like(_STEPS), *_STEPS, *np.ones_like(_STEPS), *1 - _STEPS],
    ]
)


class _Part(NamedTuple):
    """A rectangle of a tile's pixels: from `low` to `high`, x and y each, counted from zero."""

    tile: Footprint
    low: np.ndarray
    high: np.ndarray

    @property
    def sides(self) -> np.ndarray:
        """Returns the sides (2,) in arcsec."""
        return self.tile.pixel_scale * (self.high - self.low)

    def outline(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns right ascension and declination (n,) in degrees of points around it."""
        x, y = self.low[:, None] + (self.high - self.low)[:, None] * _AROUND
        ra, dec = self.tile.sky(x, y)
        return ra % 360, dec


def covered(tiles: Sequence[Footprint]) -> MOC:
    """Returns the MOC of the cells that tiles touch, of a 32nd of a tile or smaller; of the whole
    sky where a tile reaches beyond its projection."""
    parts = [_part(tile, -0.5) for tile in tiles]
    if not np.isfinite(_outlines(parts)).all():
        return MOC.from_str("0/0-11")
    return _union(parts, 32)


def searched(tiles: Tiles, scored: np.ndarray) -> MOC:
    """Returns the MOC of the sky in which an object would have been scored: where a tile holds all
    of the cutout around it. It is larger than that by about a cell at each edge.

    `scored` (row,) bool says which objects were. Tiles that cannot be read count for nothing, nor
    do those that hold objects of which none was scored. Masked pixels are not left out.
    """
    held, good = (np.unique(tiles.tile[rows & (tiles.tile >= 0)]) for rows in (True, scored))
    is_lost = np.isin(np.arange(len(tiles.planes)), np.setdiff1d(held, good))
    parts = [
        _part(planes.footprint, form.size / 2 - 1)
        for planes, form, lost in zip(tiles.planes, tiles.forms, is_lost, strict=True)
        if planes and form and not lost and min(planes.footprint.shape) >= form.size
    ]
    return _union(parts, CELLS_A_SIDE)


def _part(tile: Footprint, low: float) -> _Part:
    """Returns the pixels of a tile between `low` and as far from its end; places are from zero, so
    that all of the tile begins at -0.5."""
    size = np.array(tile.shape[::-1], np.float64)
    return _Part(tile, np.full(2, low), size - 1 - low)


@silenced()
def _outlines(parts: Sequence[_Part]) -> np.ndarray:
    """Returns the outlines (part, 2, n) of parts, NaN beyond a projection."""
    return np.array([part.outline() for part in parts]).reshape(-1, 2, _AROUND.shape[1])


def _union(parts: Sequence[_Part], cells_a_side: int) -> MOC:
    """Returns the MOC of the cells that parts touch, without those beyond their projection."""
    outlines = _outlines(parts)
    known = np.isfinite(outlines).all(axis=(1, 2))
    if not known.any():
        return MOC.new_empty(0)
    sides = np.array([part.sides for part in parts])[known]
    # A row of cells along each edge, with the larger ones behind it.
    side = np.sqrt(sides.prod(axis=1)).min()
    cell = Angle(max(side / cells_a_side, 4 * sides.sum() / MOST_CELLS), "arcsec")
    order = min(int(MOC.spatial_resolution_to_order(cell)), MOC.MAX_ORDER)
    found = MOC.from_polygons(outlines[known].reshape(-1, outlines.shape[2]), max_depth=order)
    return MOC.new_empty(order).union(*found)
