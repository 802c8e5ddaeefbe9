"""The sources in one survey tile: where they are on the sky, how bright, how large and how red."""

import math
from typing import NamedTuple

import numpy as np

from lensjax.data import photometry
from lensjax.data.formats.reader_warnings import silenced
from lensjax.data.formats.tile_files import in_flux
from lensjax.data.photometry import Subtracted
from lensjax.data.tiles import Planes

SATURATED = 0.95
"""Share of a header's SATURATE from which a pixel counts as saturated: compression and the
subtraction of the sky move such pixels below it (chosen)."""


class Search(NamedTuple):
    """How tiles are searched: the numbers of the plane in which sources are found and of the two
    that give a colour (None: none), in `sigma` of the noise, `bits` of masks that count, and the
    magnitude of one unit of flux in each plane (None: as the headers say)."""

    band: int
    colour: tuple[int, int] | None
    sigma: float
    bits: int
    zero_points: tuple[float, ...] | None

    @property
    def planes(self) -> tuple[int, ...]:
        """Returns the numbers of the planes that are read."""
        return tuple(dict.fromkeys((self.band, *(self.colour or ()))))

    def zero_point(self, tile: Planes, band: int) -> float | None:
        """Returns the magnitude of one unit of flux in a plane of a tile, None where not known."""
        return self.zero_points[band] if self.zero_points else tile.stored[band].zero_point


def search(tile: Planes, how: Search) -> dict[str, np.ndarray]:
    """Returns columns (n,) of the sources in a tile: `ra` and `dec`, degrees; `mag` (Kron), `snr`,
    `half_light_radius` (arcsec), `size_ratio`, `sep_flag` and `masked` as `photometry.measured` has
    them; `colour`, within photometry.APERTURE; `saturated`, by the header. NaN where not known.
    Raises `Unreadable`."""
    flux, scale = _flux(tile, how.band, how), tile.footprints[how.band].pixel_scale
    is_saturated = flux >= SATURATED * (tile.stored[how.band].saturation or math.inf)
    plane = photometry.subtracted(flux)
    them = photometry.sources(plane, how.sigma)
    found = dict(photometry.measured(plane, them, scale))
    nothing = np.full(len(them.found), np.nan)
    found["mag"] = _magnitudes(found.pop("flux"), how.zero_point(tile, how.band))
    found["saturated"] = photometry.touched(them, is_saturated)
    found["colour"] = nothing if how.colour is None else _colours(tile, plane, them, how)
    with silenced():
        found["ra"], found["dec"] = tile.footprints[how.band].sky(found.pop("x"), found.pop("y"))
    return found


def _flux(tile: Planes, band: int, how: Search) -> np.ndarray:
    """Returns the pixels (height, width) float32 of a plane, NaN where they cannot be used."""
    stored = tile.stored[band]
    pixels = in_flux(tile.pixels(band, how.bits), stored.scale, stored.zero)
    return pixels.astype(np.float32, copy=False)


def _colours(tile: Planes, plane: Subtracted, them: photometry.Sources, how: Search) -> np.ndarray:
    """Returns the colours (n,) of sources that were found in a plane, NaN where a band is on
    another grid: both bands without the pixels that either lacks."""
    assert how.colour is not None
    own = tile.footprints[how.band]
    if not all(tile.footprints[band].is_grid_of(own) for band in how.colour):
        return np.full(len(them.found), np.nan)
    both = [
        plane if band == how.band else photometry.subtracted(_flux(tile, band, how))
        for band in how.colour
    ]
    bad = both[0].bad | both[1].bad
    blue, red = (
        _magnitudes(
            photometry.within_aperture(each, them, bad, own.pixel_scale), how.zero_point(tile, band)
        )
        for each, band in zip(both, how.colour, strict=True)
    )
    return blue - red


def _magnitudes(flux: np.ndarray, zero_point: float | None) -> np.ndarray:
    """Returns magnitudes (n,), NaN where the flux is not above zero or one unit is not known."""
    if zero_point is None:
        return np.full(len(flux), np.nan)
    return zero_point - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))
