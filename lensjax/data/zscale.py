"""The limits of brightness that IRAF's `zscale` chooses: a line through the sorted pixels.

As astropy's `ZScaleInterval` has it with its defaults, of which the constants below are, but for
many images at once in the compiled step.
"""

import jax
import jax.numpy as jnp
from jax import Array

SAMPLES = 1000
CONTRAST = 0.25
LEAST_KEPT = 5
LARGEST_DEVIATION = 2.5  # of a kept sample, in standard deviations from the line
FITS = 5


def zscale_limits(images: Array, bounds: Array) -> tuple[Array, Array]:
    """The limits, each (batch, band) float32, of what is `bounds` (batch, 4) of images
    (batch, height, width, band) without NaN."""
    of_bands = jax.vmap(_limits, in_axes=(-1, None))
    return jax.vmap(of_bands)(images, bounds)


def _limits(plane: Array, edges: Array) -> tuple[Array, Array]:
    """The limits, scalars, of a plane (height, width) between its edges (4,)."""
    samples, count = _sampled(plane, edges)
    slope, kept = _fitted(samples, count)
    median = (samples[(count - 1) // 2] + samples[count // 2]) / 2
    centre = (count - 1) // 2
    low, high = samples[0], samples[count - 1]
    fits = kept >= _least(count)
    step = slope / CONTRAST
    return (
        jnp.where(fits, jnp.maximum(low, median - (centre - 1) * step), low),
        jnp.where(fits, jnp.minimum(high, median + (count - centre) * step), high),
    )


def _sampled(plane: Array, edges: Array) -> tuple[Array, Array]:
    """Every so many pixels, sorted, infinite beyond those that there are, and their number."""
    top, bottom, left, right = edges
    pixels = (bottom - top) * (right - left)
    stride = jnp.maximum(1, pixels // SAMPLES)
    places = stride * jnp.arange(min(SAMPLES, plane.size))
    row, column = jnp.divmod(places, right - left)
    values = plane[top + row, left + column]
    is_pixel = places < pixels
    return jnp.sort(jnp.where(is_pixel, values, jnp.inf)), is_pixel.sum()


def _fitted(samples: Array, count: Array) -> tuple[Array, Array]:
    """The slope of a line through the sorted samples, outliers left out, and how many are kept."""
    x = jnp.arange(samples.size)
    is_sample = x < count
    # From the middle one: a bright sky would take the digits of what differs.
    y = jnp.where(is_sample, samples - samples[count // 2], 0.0)
    # An outlier takes its neighbours with it.
    grown = jnp.maximum(1, count // 100)
    before, after = grown // 2, grown - grown // 2 - 1

    def fit(_: int, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        kept, number, last, slope = carry
        goes_on = (number < last) & (number >= _least(count))
        share = kept / jnp.maximum(number, 1)
        from_mean_x, from_mean_y = (value - (share * value).sum() for value in (x, y))
        new = (share * from_mean_x * from_mean_y).sum() / (share * from_mean_x**2).sum()
        deviation = from_mean_y - new * from_mean_x
        limit = LARGEST_DEVIATION * jnp.sqrt((share * deviation**2).sum())
        out = is_sample & (~kept | (jnp.abs(deviation) > limit))
        until = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(out)])
        first, beyond = jnp.maximum(x - before, 0), jnp.minimum(x + after + 1, samples.size)
        still = is_sample & (until[beyond] == until[first])
        found = still, still.sum(), number, new
        return jax.tree.map(lambda a, b: jnp.where(goes_on, a, b), found, carry)

    start = is_sample, count, count + 1, jnp.zeros(())
    _, kept, _, slope = jax.lax.fori_loop(0, FITS, fit, start)
    return slope, kept


def _least(count: Array) -> Array:
    """How many samples must be kept for the line to be trusted."""
    return jnp.maximum(LEAST_KEPT, count // 2)
