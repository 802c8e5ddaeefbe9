"""Whether a person would see that a galaxy is a lens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lensjax.sky.survey import Observation, Survey

# Light of the lens galaxy hides arcs fainter than this share of it, however little noise there is.
CONTRAST = 0.3
PEAK_SNR = 9.0
COUNTER_IMAGE_SNR = 6.0
RESOLVED = 2.2
LONG_ARC = 4.0


class Visibility(NamedTuple):
    """How well the images of a source are seen in the band that shows them best; scalars, or (n,).

    arc_snr:     S/N of all images, summed over pixels, above sky, photons and the light in front
    peak_snr:    the same within the area of a PSF, FWHM squared, where it is largest
    counter_snr: the same as arc_snr of those on the other side of the lens than the brighter ones
    arc_extent:  length of the brighter ones along the circle about the lens, in units of the PSF
    """

    arc_snr: jax.Array
    peak_snr: jax.Array
    counter_snr: jax.Array
    arc_extent: jax.Array


def smooth_noise(observation: Observation) -> jax.Array:
    """Returns the sky sigma (band,) of pixels that would hide as much as these correlated ones.

    Noise that was smoothed by a Gaussian has less power in single pixels than on larger scales.
    """
    distance = jnp.arange(-5.0, 6.0)[None]
    kernel = jnp.exp(-0.5 * (distance / observation.noise_width[:, None]) ** 2)
    return observation.sky_sigma * jnp.sum(kernel, axis=1) ** 2 / jnp.sum(kernel**2, axis=1)


def visibility(
    arcs: jax.Array,
    front: jax.Array,
    sky_sigma: jax.Array,
    gains: jax.Array,
    fwhm: jax.Array,
    x: jax.Array,
    y: jax.Array,
) -> Visibility:
    """Returns how well `arcs` are seen upon the light in `front` of them, both (band, y, x) flux.

    sky_sigma, gains (electrons per flux) and fwhm (arcsec) are (band,); x and y (y, x) arcsec from
    the lens.
    """
    front = jnp.maximum(front, 0.0)
    sky_variance, gains = (sky_sigma**2)[:, None, None], gains[:, None, None]
    squared = arcs**2 / (sky_variance + (front + arcs) / gains + (CONTRAST * front) ** 2)
    total = jnp.sum(squared, axis=(1, 2))
    best = jnp.argmax(total)
    weight, total = squared[best], total[best] + 1e-12
    radius = jnp.sqrt(x**2 + y**2 + 1e-6)
    cosine, sine = x / radius, y / radius
    ahead = jnp.sum(weight * cosine) * cosine + jnp.sum(weight * sine) * sine > 0
    weight = jnp.where(ahead, weight, 0.0)
    main = jnp.sum(weight) + 1e-12
    # Directions that scatter by sigma (radians) have a mean vector of length exp(-sigma^2 / 2).
    length = jnp.hypot(jnp.sum(weight * cosine), jnp.sum(weight * sine)) / main
    scatter = jnp.sqrt(-2 * jnp.log(jnp.clip(length, 1e-3, 1 - 1e-6)))
    # The weight is a square, so that an image of the PSF's size is narrower by sqrt(2).
    extent = jnp.sqrt(2.0) * scatter * jnp.sum(weight * radius) / main / (fwhm[best] / 2.3548)
    peak = jnp.sqrt(jnp.max(squared[best])) * fwhm[best] / (x[0, 1] - x[0, 0])
    return Visibility(jnp.sqrt(total), peak, jnp.sqrt(jnp.maximum(total - main, 0.0)), extent)


def margin(seen: Visibility, survey: Survey) -> np.ndarray:
    """Returns by which factor (n,) a lens is plainer than the survey's strictness asks.

    The brightest spot must stand out, the arc must be longer than the PSF, and there must be a
    counter-image, or else a long arc.
    """
    if survey.strictness == 0:
        return np.ones_like(seen.arc_snr)
    is_resolved = seen.arc_extent / (1 + (RESOLVED - 1) * survey.strictness)
    has_counter_image = seen.counter_snr / (COUNTER_IMAGE_SNR * survey.strictness)
    is_whole = np.maximum(has_counter_image, seen.arc_extent / LONG_ARC)
    stands_out = seen.peak_snr / (PEAK_SNR * survey.strictness)
    return np.minimum(stands_out, np.minimum(is_resolved, is_whole))
