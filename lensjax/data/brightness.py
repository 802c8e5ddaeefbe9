"""How bright the sky of a cutout is, measured on the host when it is read, and the stretches that
the compiled step makes of it.

The sky of a band is described by four numbers: its background level, its noise, and the two limits
between which a linear stretch shows it. They travel with the images as one array (batch, band, 4).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lensjax.data.preprocess import Geometry, Preprocessing

LEVEL, NOISE, LOW, HIGH = range(4)

# Enough to know the noise to 3 %, and the level to 3 % of it.
MOST_PIXELS = 2048

# The noise cannot be told from less than one grey level of an eight-bit picture.
NOISE_FLOOR = 1.0 / 256.0

# A standard deviation from a median absolute deviation, for normal noise.
SIGMA_PER_MAD = 1.4826

Quantile = Callable[[Array, float], Array]

# What a percentile stretch leaves out at either end.
CLIPPED = 0.005


def measure(
    images: np.ndarray, geometry: Geometry, channels: tuple[int, ...], stretch: str
) -> np.ndarray:
    """Returns the brightness (batch, band, 4) float32 of the `channels` of images (batch, height,
    width, channel) without NaN.

    Level and noise are the median and 1.4826 times the median absolute deviation of the pixels that
    the geometry shows, or of every k-th of them, in order, where they are more than MOST_PIXELS.
    The limits are those of IRAF's `zscale` where that is the stretch, else the 0.5th and the 99.5th
    percentile, or the maximum where the latter is not above the level. All are of the cutout's own
    pixels: after resampling the noise is `geometry.noise` times as large.
    """
    pixels = _sampled(images, geometry)[..., list(channels)]
    # Sorting whole lines is faster in NumPy than finding the few values that are wanted.
    ordered = np.sort(np.ascontiguousarray(pixels.swapaxes(1, 2), np.float32), axis=-1)
    level = quantile_of_ordered(ordered, 0.5)
    deviations = np.sort(np.abs(ordered - level[..., None]), axis=-1)
    noise = SIGMA_PER_MAD * quantile_of_ordered(deviations, 0.5)
    low, high = quantile_of_ordered(ordered, CLIPPED), quantile_of_ordered(ordered, 1 - CLIPPED)
    high = np.where(high > level, high, ordered[..., -1])
    if stretch == "zscale":
        low, high = _zscale_limits(images[:, *geometry.shown][..., list(channels)])
    return np.stack([level, noise, low, high], axis=-1, dtype=np.float32)


def _sampled(images: Any, geometry: Geometry) -> Any:
    """Returns the pixels (batch, n, channel) of images, NumPy's or JAX's, that the geometry shows,
    or every k-th of them."""
    shown = images[:, *geometry.shown]
    batch, height, width, channels = shown.shape
    stride = -(-height * width // MOST_PIXELS)
    return shown.reshape(batch, height * width, channels)[:, ::stride]


def quantile_of_ordered(ordered: Any, share: float) -> Any:
    """Returns the quantile (...) of ordered values (..., n), NumPy's or JAX's, between two values
    as NumPy has it."""
    place = share * (ordered.shape[-1] - 1)
    below = math.floor(place)
    value, following = ordered[..., below], ordered[..., math.ceil(place)]
    return value + np.float32(place - below) * (following - value)


def _zscale_limits(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the limits, each (batch, band), of images (batch, height, width, band)."""
    from astropy.visualization import ZScaleInterval  # slow to import, and rarely wanted

    batch, bands = images.shape[0], images.shape[-1]
    found = [
        ZScaleInterval().get_limits(images[row, ..., band].astype(np.float64))
        for row, band in np.ndindex(batch, bands)
    ]
    low, high = np.array(found, np.float32).reshape(batch, bands, 2).transpose(2, 0, 1)
    return low, high


def measure_in_step(images: Array, geometry: Geometry, quantile: Quantile) -> Array:
    """Returns what `measure` does of all channels of images (batch, height, width, channel) that a
    compiled step has made, for every stretch but zscale. `quantile` is `sorted_quantile`, or
    `bisected` where speed counts."""
    pixels = _sampled(images, geometry).swapaxes(1, 2)
    level = quantile(pixels, 0.5)
    noise = SIGMA_PER_MAD * quantile(jnp.abs(pixels - level[..., None]), 0.5)
    low, high = quantile(pixels, CLIPPED), quantile(pixels, 1 - CLIPPED)
    high = jnp.where(high > level, high, pixels.max(-1))
    return jnp.stack([level, noise, low, high], axis=-1)


def sorted_quantile(values: Array, share: float) -> Array:
    """Returns what `quantile_of_ordered` does of values (..., n) in any order."""
    return quantile_of_ordered(jnp.sort(values), share)


def bisected(values: Array, share: float) -> Array:
    """Returns what `sorted_quantile` does, to 2^-24 of the values' range, by bisection: a compiled
    program sorts far more slowly on a CPU."""
    place = share * (values.shape[-1] - 1)
    below = math.floor(place)

    def halved(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        is_above = (values <= middle[..., None]).sum(-1, dtype=jnp.int32) > below
        return jnp.where(is_above, low, middle), jnp.where(is_above, middle, high)

    _, value = jax.lax.fori_loop(0, 24, halved, (values.min(-1), values.max(-1)))
    if place == below:
        return value
    is_beyond = values > value[..., None]
    following = jnp.where(is_beyond, values, jnp.inf).min(-1)
    is_single = (~is_beyond).sum(-1, dtype=jnp.int32) == below + 1
    return value + (place - below) * jnp.where(is_single, following - value, 0.0)


def noise_unit(brightness: Array, resampling: float = 1.0) -> Array:
    """Returns the unit (batch, band) in which a signal is counted: the noise after a resampling
    that changes it by that factor, and no less than a 256th of what the brightest pixels rise above
    the level. The sky of an eight-bit picture is clipped to black and has no deviation at all."""
    rise = brightness[..., HIGH] - brightness[..., LEVEL]
    unit = jnp.maximum(brightness[..., NOISE] * resampling, NOISE_FLOOR * rise)
    return jnp.where(unit > 0, unit, 1.0)


def stretched(
    preprocessing: Preprocessing, images: Array, brightness: ArrayLike, resampling: float = 1.0
) -> Array:
    """Returns images (batch, S, S, band) float32 with their brightness on another scale.

    With the signal (image - level) / (softening * `noise_unit`): `asinh` is arcsinh(signal), linear
    in the noise and logarithmic in the bright cores (Lupton et al. 2004, PASP 116, 133); `log`
    log(1 + signal), what lies below the level as the level; `linear` the signal itself.
    `percentile` and `zscale` are linear from 0 at the lower limit to 1 at the higher, and clipped
    there. `none` leaves the images as they are. None of the others depends on the unit of flux.
    """
    brightness = jnp.asarray(brightness)
    level, _, low, high = (value[:, None, None] for value in jnp.moveaxis(brightness, -1, 0))
    match preprocessing.stretch:
        case "none":
            return images
        case "percentile" | "zscale":
            return jnp.clip((images - low) / jnp.where(high > low, high - low, 1.0), 0.0, 1.0)
    unit = noise_unit(brightness, resampling)[:, None, None]
    signal = (images - level) / unit / preprocessing.softening
    match preprocessing.stretch:
        case "asinh":
            return _arcsinh(signal)
        case "log":
            return jnp.log1p(jnp.maximum(signal, 0.0))
    return signal


def _arcsinh(x: Array) -> Array:
    """Returns the inverse hyperbolic sine, by its definition: in half the time of XLA's, which
    keeps more digits of what is close to zero than any noise has."""
    size = jnp.abs(x)
    # Beyond, the square may be infinite and the one added to it is lost long since.
    is_large = size > 1e9
    argument = jnp.where(is_large, size, size + jnp.sqrt(size * size + 1.0))
    return jnp.copysign(jnp.log(argument) + jnp.where(is_large, math.log(2.0), 0.0), x)
