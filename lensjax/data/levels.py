"""The light behind an 8-bit colour picture, and light as such a picture shows it.

A PNG or JPEG holds brightness that was stretched, clipped and cut to 256 levels, and does not say
how. What is assumed: the scheme of Lupton et al. (2004, PASP 116, 133), by which all channels of a
pixel are scaled by the arcsinh of their mean, so that colours are kept. The unit of light is what
is white where nothing is compressed.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Array = NDArray[np.floating]

WHITE = 255
SOFTENING = 20**0.5
"""How far the bright end is compressed: that of the viewer of the Legacy Surveys. Chosen."""
MOST_BLACK = 0.75
"""Share of black pixels beyond which nothing is known of the sky's noise. Chosen."""


class LevelsOfSky(NamedTuple):
    """Level and noise (band,) of the empty sky in a picture; both 0 where the sky is black."""

    level: Array
    sigma: Array


def are_levels(image: Array) -> bool:
    """Returns whether all values are whole numbers from 0 to 255, NaN left aside."""
    values = image[np.isfinite(image)]
    if not values.size or values.min() < 0 or values.max() > WHITE:
        return False
    return bool((values == np.round(values)).all())


def light_of(picture: Array) -> Array:
    """Returns the light (..., band) that is shown as these levels, be they whole numbers or not."""
    shown = np.asarray(picture, np.float64) / WHITE
    return shown * _ratio(np.sinh, shown)


def levels_of(light: Array) -> Array:
    """Returns the levels (..., band) that show this light, neither clipped nor rounded."""
    return WHITE * light * _ratio(np.arcsinh, light)


def _ratio(curve: Callable[[Array], Array], values: Array) -> Array:
    """Returns the `curve` of the mean over bands by that mean; both curves go through 0 at slope
    1."""
    mean = SOFTENING * values.mean(axis=-1, keepdims=True)
    return np.divide(curve(mean), mean, out=np.ones_like(mean), where=mean != 0)


def sky_of_levels(picture: Array) -> LevelsOfSky:
    """Returns the sky of a picture (y, x, band) of whole levels.

    The noise is measured between two quantiles of the darker pixels that are not black, so that
    neither clipping nor galaxies reach it. It is one level at least: an eye sees no less.
    """
    measured = [_sky_of_channel(picture[..., band]) for band in range(picture.shape[2])]
    if not all(sigma for _, sigma in measured):
        return LevelsOfSky(*np.zeros((2, picture.shape[2])))
    level, sigma = np.array(measured).T
    return LevelsOfSky(level, np.maximum(sigma, 1.0))


def _sky_of_channel(channel: Array) -> tuple[float, float]:
    values = channel[np.isfinite(channel)].astype(int)
    share = np.cumsum(np.bincount(values, minlength=WHITE + 1)) / max(values.size, 1)
    if not share[-1] or share[0] > MOST_BLACK:
        return 0.0, 0.0
    low = max(share[0], 0.16)
    high = (low + 0.84) / 2
    # A level holds what lies within half a level of it.
    at_low, at_high = np.interp((low, high), share, np.arange(WHITE + 1) + 0.5)
    sigma = (at_high - at_low) / (ndtri(high) - ndtri(low))
    return float(at_low - sigma * ndtri(low)), float(sigma)


def below_black(picture: Array, sky: LevelsOfSky, rng: np.random.Generator) -> Array:
    """Returns the picture (y, x, band) with levels below 0 for what was clipped: as far as noise
    about the sky reaches, drawn at random. They are shown as black again."""
    lit = np.array(picture, np.float64)
    for band, (level, sigma) in enumerate(zip(*sky, strict=True)):
        black = lit[..., band] == 0
        if sigma:
            drawn = (1 - rng.random(int(black.sum()))) * ndtr((0.5 - level) / sigma)
            lit[..., band][black] = np.minimum(level + sigma * ndtri(drawn), 0)
    return lit


def flux_of(picture: Array, noise: Array, rng: np.random.Generator) -> Array:
    """Returns the light of a picture (y, x, band) as flux, such that its sky has this `noise`
    (band,); where the sky is black, in any unit."""
    sky = sky_of_levels(picture)
    flux = light_of(below_black(picture, sky, rng)) * _flux_of_light(sky, noise)
    return flux.astype(np.float32)


def picture_of(flux: Array, noise: Array, before: Array) -> Array:
    """Returns the picture (y, x, band) of a flux, shown as the picture that it was `before` light
    was added; what was white stays so, since how much light that hides is not known."""
    levels = levels_of(flux / _flux_of_light(sky_of_levels(before), noise))
    picture = np.round(np.clip(levels, 0, WHITE))
    return np.where(before == WHITE, before, picture).astype(np.float32)


def _flux_of_light(sky: LevelsOfSky, noise: Array) -> Array:
    """Returns the flux (band,) of one unit of light."""
    return WHITE * np.divide(noise, sky.sigma, out=np.ones_like(noise), where=sky.sigma > 0)
