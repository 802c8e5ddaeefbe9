"""Sources in a plane of pixels, found and measured as SExtractor does, by sep."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import binary_opening

from lensjax.data.planes import Unreadable, masked, short
from lensjax.errors import UsageError

try:
    import sep
except ImportError as error:
    raise UsageError("--detect needs sep: pip install '.[detect]'") from error

MESH = 128
"""Pixels along a side of the cells in which background and noise are measured."""
APERTURE = 1.5
"""Radius, arcsec, of the circle for colours, and for sources without a Kron radius."""
# As SExtractor's MAG_AUTO: the ellipse of so many Kron radii, at least so many of its own.
KRON_FACTOR, LEAST_RADII, KRON_REACH = 2.5, 3.5, 6.0
# A thousandth of the light of a blend is a source, as in the Dark Energy Survey: with sep's own
# value galaxies are lost in the wings of stars.
DEBLEND_CONTRAST = 0.001
# What sep refuses to exceed: pixels above the threshold at once, and parts of one of the sources.
# Its own limits are too low for a bright star or a nearby galaxy.
MOST_PIXELS, MOST_PARTS = 3_000_000, 8192
# Stars are told by the half-light radii of sources with such a S/N, if there are so many.
BRIGHT, LEAST_BRIGHT, STAR_PERCENTILE = 50.0, 20, 10


class Subtracted(NamedTuple):
    """A plane without its `background`: `pixels` (height, width) float32, and which of them are
    `bad`, that is, cannot be used."""

    pixels: np.ndarray
    bad: np.ndarray
    background: Any

    @property
    def noise(self) -> np.ndarray:
        """Returns the noise of each pixel (height, width) float32, made anew: it takes as much
        memory as the pixels."""
        return self.background.rms()


class Sources(NamedTuple):
    """Sources in a plane: `found`, as sep has them, and `segments` (height, width) int32, which of
    them, counted from 1, each pixel belongs to, 0 for none."""

    found: np.ndarray
    segments: np.ndarray

    @property
    def own(self) -> dict[str, Any]:
        """Returns the arguments by which sep leaves the pixels of other sources out."""
        return {"segmap": self.segments, "seg_id": np.arange(1, len(self.found) + 1)}


def subtracted(flux: np.ndarray) -> Subtracted:
    """Returns a plane (height, width), in which what cannot be used is NaN or as `masked` knows it,
    without its background. Blocks of pixels that are all zero hold no data either."""
    pixels = np.ascontiguousarray(masked(flux))
    bad = np.isnan(pixels)
    zero = pixels == 0
    if zero.any():
        bad |= binary_opening(zero, np.ones((3, 3)))
    pixels[bad] = 0
    background = sep.Background(pixels, mask=bad, bw=MESH, bh=MESH)
    background.subfrom(pixels)
    pixels[bad] = 0
    return Subtracted(pixels, bad, background)


def sources(plane: Subtracted, sigma: float) -> Sources:
    """Returns the sources in a plane: at least five connected pixels that are `sigma` above the
    noise once smoothed, blends taken apart. Raises `Unreadable` where sep gives up."""
    sep.set_extract_pixstack(MOST_PIXELS)
    sep.set_sub_object_limit(MOST_PARTS)
    try:
        return Sources(
            *sep.extract(
                plane.pixels,
                sigma,
                err=plane.noise,
                mask=plane.bad,
                deblend_cont=DEBLEND_CONTRAST,
                clean=False,  # it takes faint galaxies for wings of others tens of pixels away
                segmentation_map=True,
            )
        )
    except Exception as error:  # sep raises nothing more special
        raise Unreadable(f"sources cannot be told apart: {short(error)}") from error


def measured(plane: Subtracted, them: Sources, pixel_scale: float) -> Mapping[str, np.ndarray]:
    """Returns columns (n,) of the sources in a plane: `x` and `y`, pixels from zero; `flux` in the
    Kron ellipse, or the APERTURE where there is none; `snr`, by the noise of the sky there;
    `half_light_radius`, arcsec; `size_ratio` as `size_ratios` has it; `sep_flag`; `masked`, whether
    all pixels at the centre are bad."""
    found, pixels, bad = them.found, plane.pixels, plane.bad
    x, y, major, minor = (np.asarray(found[name], np.float64) for name in ("x", "y", "a", "b"))
    angle = np.clip(found["theta"], -np.pi / 2, np.pi / 2)  # of float32 it may be beyond
    kron, kron_flag = sep.kron_radius(
        pixels, x, y, major, minor, angle, KRON_REACH, mask=bad, **them.own
    )
    fails = ~(kron > 0) | (kron_flag & (sep.APER_ALLMASKED | sep.APER_NONPOSITIVE) != 0)
    major, minor = (np.where(fails, APERTURE / pixel_scale, axis) for axis in (major, minor))
    radii = np.where(fails, 1, np.maximum(KRON_FACTOR * kron, LEAST_RADII))
    flux, error, flag = sep.sum_ellipse(
        pixels, x, y, major, minor, angle, radii,
        err=plane.noise, mask=bad, subpix=5, **them.own,
    )  # fmt: skip
    radius, _ = sep.flux_radius(
        pixels, x, y, radii * major, 0.5, normflux=flux, mask=bad, subpix=5, **them.own
    )
    snr = flux / error
    clean = found["flag"] == 0
    return {
        "x": x,
        "y": y,
        "flux": flux,
        "snr": snr,
        "half_light_radius": radius * pixel_scale,
        "size_ratio": size_ratios(radius, snr, clean),
        "sep_flag": (found["flag"] | flag).astype(np.int16),
        "masked": _without_centre(bad, x, y),
    }


def _without_centre(bad: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns at which places (n,) the nearest pixel of a plane and all eight around it are `bad`:
    of a star, as a rule, whose saturated pixels are masked, and less often for a cosmic ray."""
    steps = np.mgrid[-1:2, -1:2].reshape(2, -1, 1)
    rows, columns = np.rint([y, x])[:, None].astype(np.int64) + steps
    height, width = bad.shape
    return bad[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)].all(axis=0)


def touched(them: Sources, pixels: np.ndarray) -> np.ndarray:
    """Returns which sources (n,) bool have one of these `pixels` (height, width) bool."""
    return np.isin(them.own["seg_id"], them.segments[pixels])


def size_ratios(radius: np.ndarray, snr: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Returns the half-light radii (n,) in units of that of stars, NaN where that is not known.

    Among bright sources that are no blends (`clean`), stars are many, and the smallest: theirs is
    a low percentile of all.
    """
    bright = radius[clean & (snr >= BRIGHT)]
    if len(bright) < LEAST_BRIGHT:
        return np.full(len(radius), np.nan)
    return radius / np.percentile(bright, STAR_PERCENTILE)


def within_aperture(
    plane: Subtracted, them: Sources, bad: np.ndarray, pixel_scale: float
) -> np.ndarray:
    """Returns the flux (n,) of sources in a circle of the radius APERTURE, in a plane on the grid
    on which they were found, without the pixels that are `bad`."""
    x, y = them.found["x"], them.found["y"]
    flux, _, _ = sep.sum_circle(
        plane.pixels, x, y, APERTURE / pixel_scale, mask=bad, subpix=5, **them.own
    )
    return flux
