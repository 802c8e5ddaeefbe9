"""A few numbers that say how the pixels of a cutout were made: noise, gaps, artefacts.

They do not depend on the unit of flux in any band, and little on what is in the middle. They are
measured in the compiled step, of what a member sees before it is stretched.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lensjax.data.brightness import LEVEL, noise_unit
from lensjax.data.on_device import Inputs, completed, on_grid

STATISTICS = {
    "picture": "whether it is an 8-bit picture",
    "roughness": "noise of neighbouring pixels, 1 where it is independent",
    "roughness_ratio": "noise of neighbouring pixels in the roughest band over the smoothest",
    "equal": "share of neighbouring pixels that are equal",
    "signal": "share of pixels above five times the noise",
    "dark": "share of pixels below minus five times the noise",
    "plateau": "share of pixels as bright as the brightest",
    "middle": "how far the middle stands out of the noise, from 0 to 1",
    "one_band": "share of pixels that are bright in one band only",
    "column": "height of a line of pixels along an edge, over the noise",
}

# Beyond these, in units of the noise, a pixel is no sky, and is bright.
SKY, BRIGHT, FAINT = 3.0, 5.0, 2.0
# Neighbours that differ by less of the noise are equal: resampling rounds.
EQUAL = 1e-5
# Of what the brightest pixel rises above the sky: what is as bright. Resampling rounds here, too.
AS_BRIGHT = 0.02
# Of the side: the width of the middle.
MIDDLE = 8
# Of the side: how far a line reaches from the edge, and how far from it its surroundings are.
LENGTH, APART = 6, 16
# Smoother than any noise that is resampled.
SMOOTHEST = 1e-3
MOST = 1e4


def pixel_statistics(inputs: Inputs) -> Array:
    """Returns STATISTICS, (statistic, batch) float32, of a batch as the first of its preprocessings
    has it."""
    inputs = completed(inputs)
    transform, brightness = inputs.transforms[0], jnp.asarray(inputs.brightness[0])
    images = on_grid(transform, inputs.images[transform.image], brightness)
    return statistics_of(images, brightness, transform.geometry.noise)


def statistics_of(images: ArrayLike, brightness: ArrayLike, resampling: float = 1.0) -> Array:
    """Returns STATISTICS, (statistic, batch) float32, of images (batch, S, S, band) and their
    brightness (batch, band, 4), after a resampling that changes the noise by that factor.

    With pixels in units of the noise above the level of the sky:

    - `picture`: 1 where each band lies between 0 and 255 and its level is a whole number, or half
      of one, else 0. Of fluxes with more zeros than data some of these are negative.
    - `roughness`: mean squared difference of neighbours of which both are sky, over twice the
      noise's variance (von Neumann 1941, Ann. Math. Stat. 12, 367); the mean over bands.
    - `equal`: of the band with the largest share.
    - `signal`, `dark`, `plateau`: the mean over bands.
    - `middle`: b / (1 + b) for the mean b of the middle, of the band with the largest.
    - `one_band`: bright in a band, and not even faint in any other; of the band with the largest
      share. Zero where there is but one.
    - `column`: the most by which a row or column of pixels that reaches the edge of the cutout
      exceeds, all along, the pixels to either side of it.
    """
    brightness = jnp.moveaxis(jnp.asarray(brightness), 0, -1)
    # The batch comes last: a CPU sums many cutouts at once, but one cutout number by number. Every
    # second row, column and pixel says as much of noise and artefacts in half the time.
    images = jnp.moveaxis(jnp.asarray(images), 0, -1)
    unit = jnp.moveaxis(noise_unit(jnp.moveaxis(brightness, -1, 0), resampling), 0, -1)
    pixels = jnp.clip((images - brightness[None, None, :, LEVEL]) / unit[None, None], -MOST, MOST)
    rows, columns = pixels[::2], pixels[:, ::2]
    neighbours = [(rows[:, 1:], rows[:, :-1]), (columns[1:], columns[:-1])]
    some, brightest = rows[:, ::2], pixels.max((0, 1))
    plateau = brightest - AS_BRIGHT * jnp.maximum(brightest, 1)
    roughness = jnp.stack([_roughness(*pair) for pair in neighbours]).mean(0)
    roughness = jnp.maximum(roughness, SMOOTHEST)
    equal = jnp.stack([_share(jnp.abs(a - b) < EQUAL) for a, b in neighbours]).mean(0)
    lines = jnp.stack([_along_edge(each) for each in (pixels, pixels.swapaxes(0, 1))])
    return jnp.stack(
        [
            _is_picture(brightness),
            roughness.mean(0),
            roughness.max(0) / roughness.min(0),
            equal.max(0),
            _share(some > BRIGHT).mean(0),
            _share(some < -BRIGHT).mean(0),
            _share(some >= plateau[None, None]).mean(0),
            _middle(pixels).max(0),
            _in_one_band(some).max(0),
            lines.max((0, 1)),
        ]
    )


def _share(chosen: Array) -> Array:
    """Returns the share (band, batch) of pixels (S, S, band, batch)."""
    return chosen.mean((0, 1), dtype=jnp.float32)


def _is_picture(brightness: Array) -> Array:
    """Returns 1 for pictures, and 0 for others, (batch,) float32, by a brightness (band, 4,
    batch)."""
    level, _, low, high = jnp.moveaxis(brightness, 1, 0)
    is_whole = 2 * level == jnp.round(2 * level)
    return (is_whole & (low >= 0) & (high <= 255)).all(0).astype(jnp.float32)


def _middle(pixels: Array) -> Array:
    """Returns the share (band, batch) of the brightness of the middle in its sum with the noise."""
    side = max(1, pixels.shape[0] // MIDDLE)
    start = (pixels.shape[0] - side) // 2
    inner = slice(start, start + side)
    brightness = jnp.maximum(pixels[inner, inner].mean((0, 1)), 0.0)
    return brightness / (1 + brightness)


def _roughness(pixels: Array, following: Array) -> Array:
    is_sky = (jnp.abs(pixels) < SKY) & (jnp.abs(following) < SKY)
    squares = jnp.where(is_sky, (pixels - following) ** 2, 0.0).sum((0, 1))
    return squares / jnp.maximum(is_sky.sum((0, 1), dtype=jnp.float32), 1) / 2


def _in_one_band(pixels: Array) -> Array:
    """Returns the share (band, batch) of pixels that are bright in a band alone."""
    bands = pixels.shape[2]
    if bands == 1:
        return jnp.zeros(pixels.shape[2:])
    faint = pixels < FAINT
    others = [jnp.delete(faint, band, axis=2).all(2) for band in range(bands)]
    return _share((pixels > BRIGHT) & jnp.stack(others, 2))


def _along_edge(pixels: Array) -> Array:
    """Returns the height (band, batch) of the highest line, along the first axis, from either end
    of it; zero where there is none."""
    length, apart = (max(1, pixels.shape[0] // part) for part in (LENGTH, APART))
    heights = []
    for end in (pixels[:length], pixels[-length:]):
        beside = jnp.maximum(end[:, : -2 * apart], end[:, 2 * apart :])
        heights.append((end[:, apart:-apart] - beside).min(0).max(0))
    return jnp.maximum(jnp.maximum(*heights), 0.0)
