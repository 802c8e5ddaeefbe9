"""Where tiles lie on the sky, which tile holds an object best, and how the pixels of grids lie to
each other around a place."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from astropy.coordinates import ICRS, SkyCoord, angular_separation
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import wcs_to_celestial_frame
from scipy.spatial import cKDTree

from lensjax.data.formats.reader_warnings import silenced
from lensjax.data.planes import Unreadable, is_pixel_scale, located, short

# Places are found where the way back leads to within so many pixels: distortions have more than
# one solution, and far from the tile none.
_WAY_BACK = 0.01


class Footprint(NamedTuple):
    """Where the pixels of a plane lie: its world coordinates and their frame (None: ICRS), its
    `shape` (height, width), and the side of a pixel in arcsec, as the header's matrix has it: it is
    the same for all cutouts from a tile, be they files of their own or not."""

    wcs: WCS
    frame: Any
    shape: tuple[int, int]
    pixel_scale: float

    def sky(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ICRS right ascension and declination (degrees) of pixels, from zero."""
        lon, lat = self.wcs.all_pix2world(x, y, 0)
        if self.wcs.wcs.lng > self.wcs.wcs.lat:
            lon, lat = lat, lon
        if self.frame is None:
            return lon, lat
        found = SkyCoord(lon, lat, unit="deg", frame=self.frame).icrs
        return found.ra.deg, found.dec.deg

    def pixels(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns where ICRS positions (degrees) lie, in pixels from zero, x and y; NaN where the
        projection or its distortion has no such place."""
        lon, lat = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
        if self.frame is not None:
            there = SkyCoord(lon, lat, unit="deg", frame=ICRS).transform_to(self.frame)
            lon, lat = there.spherical.lon.deg, there.spherical.lat.deg
        world = (lat, lon) if self.wcs.wcs.lng > self.wcs.wcs.lat else (lon, lat)
        # Quietly: of positions far from the tile the distortion has no inverse.
        x, y = self.wcs.all_world2pix(*world, 0, tolerance=1e-6, maxiter=50, quiet=True)
        with np.errstate(invalid="ignore"):
            there = self.sky(x, y)
        apart = np.degrees(angular_separation(*np.radians([ra, dec, *there])))
        apart *= 3600 / self.pixel_scale
        lost = ~(apart <= _WAY_BACK)
        return np.where(lost, np.nan, x), np.where(lost, np.nan, y)

    def is_grid_of(self, other: "Footprint") -> bool:
        """Returns whether the pixels of two planes lie on each other, to a fiftieth of a pixel at
        centre and corners."""
        if self.shape != other.shape:
            return False
        x, y = _outline(self.shape)
        back = other.pixels(*self.sky(x, y))
        return bool(np.nanmax(np.abs(np.subtract(back, (x, y))), initial=0) < 0.02) and bool(
            np.isfinite(back).all()
        )


@silenced()
def footprint(header: fits.Header, shape: tuple[int, int]) -> Footprint:
    """Returns the Footprint of a plane by its header. Raises `Unreadable` where it has none."""
    try:
        wcs = WCS(header).celestial
        if wcs.naxis != 2 or not wcs.has_celestial:
            raise Unreadable("its header says nothing about the sky")
        frame = wcs_to_celestial_frame(wcs)
        scale = 3600 * math.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix)))
        made = Footprint(wcs, None if isinstance(frame, ICRS) else frame, shape, scale)
        if not np.isfinite(made.sky(*(np.array([(n - 1) / 2]) for n in shape[::-1]))).all():
            raise Unreadable("the centre of the tile lies nowhere on the sky")
    except Unreadable:
        raise
    except Exception as error:  # wcslib about arbitrary headers
        raise Unreadable(f"its world coordinates cannot be used: {short(error)}") from error
    if not is_pixel_scale(scale):
        raise Unreadable(f"its header has pixels of {scale:.3g} arcsec")
    return made


class Matched(NamedTuple):
    """For each object the tile in which it lies deepest, -1 for none, where in it (pixels from
    zero, in the tile's first grid), and its distance to the edge (arcsec, NaN in no tile)."""

    tile: np.ndarray
    x: np.ndarray
    y: np.ndarray
    depth: np.ndarray


@silenced()
def matched(footprints: Sequence[Footprint | None], ra: np.ndarray, dec: np.ndarray) -> Matched:
    """Returns the tiles of objects at ICRS positions (n,) in degrees. Tiles without a footprint
    hold none."""
    count = len(ra)
    found = Matched(np.full(count, -1, np.int32), *np.full((3, count), np.nan))
    known = np.flatnonzero(located(ra, dec))
    tree = cKDTree(_vectors(ra[known], dec[known]))
    for number, tile in enumerate(footprints):
        if tile is None or not known.size:
            continue
        centre, chord = _circle(tile)
        near = known[np.sort(np.array(tree.query_ball_point(centre, chord), np.int64))]
        if not near.size:
            continue
        x, y = tile.pixels(ra[near], dec[near])
        height, width = tile.shape
        depth = np.minimum(np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y)) + 0.5
        depth *= tile.pixel_scale
        # The first of equals.
        better = (depth >= 0) & ~(depth <= found.depth[near])
        chosen = near[better]
        found.tile[chosen] = number
        for kept, values in zip(found[1:], (x, y, depth), strict=True):
            kept[chosen] = values[better]
    return found


def once(
    footprints: Sequence[Footprint | None],
    tile: np.ndarray,
    ra: np.ndarray,
    dec: np.ndarray,
    within: float,
) -> np.ndarray:
    """Returns which sources (n,) bool to keep so that each is there once, where each was found in a
    `tile` and neighbours share sky: those that lie deepest in the tile that they were found in.

    Two tiles do not agree about a place to better than `within` arcsec, and so not always about
    which of them has a source that lies as deep in both: of two so near to each other, the one that
    lies deeper in its own tile is kept.
    """
    own = np.full(len(tile), np.nan)
    for number in np.unique(tile):
        of = np.flatnonzero(tile == number)
        own[of] = matched([footprints[number]], ra[of], dec[of]).depth
    kept = own >= matched(footprints, ra, dec).depth - within
    near = np.flatnonzero(kept)
    tree = cKDTree(_vectors(ra[near], dec[near]))
    chord = 2 * math.sin(math.radians(within / 3600) / 2)
    one, other = near[tree.query_pairs(chord, output_type="ndarray")].T
    apart = tile[one] != tile[other]
    one, other = one[apart], other[apart]
    # Of equals the one in the first tile.
    is_first = (own[one] > own[other]) | ((own[one] == own[other]) & (tile[one] < tile[other]))
    kept[np.where(is_first, other, one)] = False
    return kept


def _circle(tile: Footprint) -> tuple[np.ndarray, float]:
    """Returns the unit vector of a tile's centre, and the chord to its furthest pixel."""
    x, y = _outline(tile.shape, 5)
    corners = _vectors(*tile.sky(x, y))
    centre = _vectors(*tile.sky(*np.array([[(n - 1) / 2] for n in tile.shape[::-1]])))[0]
    reach = np.linalg.norm(corners - centre, axis=1).max()
    # Beyond the horizon of a projection there are no corners.
    return centre, float(1.01 * reach) if np.isfinite(reach) else 2.0


def _outline(shape: tuple[int, int], number: int = 3) -> np.ndarray:
    """Returns x and y (2, n) of pixels' edges in a lattice over a plane."""
    height, width = shape
    across, down = (np.linspace(-0.5, n - 0.5, number) for n in (width, height))
    return np.stack(np.meshgrid(across, down)).reshape(2, -1)


def around(
    own: Footprint, other: Footprint, x: np.ndarray, y: np.ndarray, reach: float, north_up: bool
) -> np.ndarray:
    """Returns the linear maps (n, 2, 3) float64 by which pixels around places of one grid lie in
    another.

    `x`, `y` (n,) are places in `own`; a map takes (rows, columns, 1), offsets from the place in
    pixels of `own`, to (row, column) in `other`. Offsets are along the axes of `own`, or `north_up`
    along declination and against right ascension, in pixels of the same side. The derivatives are
    differences over `reach` pixels to either side.
    """
    places = [own.sky(x + right * reach, y + up * reach) for up, right in _STEPS]
    if north_up:
        size = math.radians(own.pixel_scale / 3600) * reach
        places = list(_offset(*places[0], size))
    at = np.array([other.pixels(*each)[::-1] for each in places])
    along_rows, along_columns = (at[1] - at[2]) / (2 * reach), (at[3] - at[4]) / (2 * reach)
    return np.stack([along_rows, along_columns, at[0]], axis=-1).swapaxes(0, 1)


_STEPS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


def _offset(
    ra: np.ndarray, dec: np.ndarray, size: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the places that lie `size` radians from others by _STEPS: north, and west."""
    lon, lat, centre = np.radians(ra), np.radians(dec), _vectors(ra, dec)
    west = np.stack([np.sin(lon), -np.cos(lon), np.zeros_like(lon)], -1)
    north = np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)], -1)
    for up, right in _STEPS:
        at = centre + math.tan(size) * (up * north + right * west)
        yield (
            np.degrees(np.arctan2(at[:, 1], at[:, 0])) % 360,
            np.degrees(np.arctan2(at[:, 2], np.hypot(at[:, 0], at[:, 1]))),
        )


def _vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Returns the unit vectors (n, 3) of positions in degrees."""
    lon, lat = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1)
