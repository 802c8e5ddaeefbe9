"""Where the tiles of a survey lie on the sky, and where objects stand in them.

Pixels of a tile are counted from 0, the middle of the first, x along columns.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from lensjax.errors import UsageError

# Of the places closer to the edge of the field than wanted, this share is taken all the same.
NEAR_EDGE = 0.1
# Discs that are strewn at random jam where they cover 0.547 of the plane; up to here it is quick.
FULL = 0.4
# Places are drawn so many times before it is said that there is no room.
ROUNDS = 30


@dataclass(frozen=True)
class Layout:
    """Square tiles in the rows of a nearly square field, the first at its lower left.

    count:       tiles
    size:        pixels along a side
    overlap:     pixels that neighbours share
    pixel_scale: arcsec
    centre:      right ascension and declination of the middle of the field, degrees
    """

    count: int
    size: int
    overlap: int
    pixel_scale: float
    centre: tuple[float, float]

    @property
    def columns(self) -> int:
        """Returns how many tiles stand in a row."""
        return math.ceil(math.sqrt(self.count))

    @property
    def extent(self) -> np.ndarray:
        """Returns the width and the height (2,) of the field, pixels."""
        rows = math.ceil(self.count / self.columns)
        return np.array([self.columns, rows]) * (self.size - self.overlap) + self.overlap

    def to_sky(self, plane: np.ndarray) -> np.ndarray:
        """Returns right ascension and declination (n, 2), degrees, of places (n, 2) in the plane
        that touches the sky in the middle of the field: pixels from there."""
        return tangent(self.centre, 0.0, self.pixel_scale).wcs_pix2world(plane, 0)

    @cache  # noqa: B019 (a layout lives as long as the run)
    def wcs(self, tile: int) -> WCS:
        """Returns the tangent projection of a tile about its own middle: north up, east left."""
        row, column = divmod(tile, self.columns)
        step = self.size - self.overlap
        corner = np.array([column, row]) * step - (self.extent - 1) / 2
        middle = self.to_sky(corner[None] + (self.size - 1) / 2)[0]
        return tangent(tuple(middle.tolist()), (self.size - 1) / 2, self.pixel_scale)

    def pixels(self, tile: int, sky: np.ndarray) -> np.ndarray:
        """Returns x and y (n, 2) in a tile of places on the sky (n, 2), degrees."""
        return self.wcs(tile).wcs_world2pix(sky, 0)

    def depths(self, sky: np.ndarray) -> np.ndarray:
        """Returns how far inside each tile places on the sky (n, 2) lie: pixels (count, n) from the
        outermost row or column, negative outside."""
        depths = np.empty((self.count, len(sky)))
        for tile in range(self.count):
            place = self.pixels(tile, sky)
            depths[tile] = np.minimum(place, self.size - 1 - place).min(axis=1)
        return depths


def tangent(centre: tuple[float, float], middle: float, pixel_scale: float) -> WCS:
    """Returns the tangent projection about `centre` (degrees), which is at pixel (middle, middle):
    north up, east left, `pixel_scale` in arcsec."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.cunit = "deg", "deg"
    wcs.wcs.crval = centre
    wcs.wcs.crpix = middle + 1, middle + 1
    wcs.wcs.cdelt = -pixel_scale / 3600, pixel_scale / 3600
    wcs.wcs.radesys = "ICRS"
    return wcs


def place(layout: Layout, count: int, spacing: float, margin: float, seed: int) -> np.ndarray:
    """Returns random places on the sky (count, 2), degrees, none closer to another than `spacing`.

    All lie in a tile, and few less than `margin` inside the field; both in pixels. Raises
    UsageError where there is no room for so many.
    """
    rng = np.random.default_rng((seed, 10))
    area = layout.count * (layout.size - layout.overlap) ** 2
    room = int(FULL * area / (np.pi * spacing**2 / 4))
    found = np.empty((0, 2))
    for _ in range(ROUNDS if count <= room else 0):
        drawn = (rng.random((2 * count, 2)) - 0.5) * layout.extent
        inside = layout.depths(layout.to_sky(drawn)).max(axis=0)
        wanted = inside > np.where(rng.random(2 * count) < NEAR_EDGE, 0.0, margin)
        if len(found):
            wanted &= cKDTree(found).query(drawn)[0] > spacing
        found = np.concatenate([found, _apart(drawn[wanted], spacing)])
        if len(found) >= count:
            return layout.to_sky(found[:count])
    raise UsageError(
        f"{count} objects have no room in {layout.count} tiles of {layout.size} pixels: about "
        f"{len(found) or room} can stand {spacing:.0f} pixels apart; ask for fewer or larger tiles"
    )


def _apart(places: np.ndarray, spacing: float) -> np.ndarray:
    """Returns the places (n, 2) without those that are too close to an earlier one that stays."""
    pairs = np.sort(cKDTree(places).query_pairs(spacing, output_type="ndarray"), axis=1)
    stays = np.ones(len(places), bool)
    for first, second in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]:
        if stays[first]:
            stays[second] = False
    return places[stays]
