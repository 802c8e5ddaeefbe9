"""Augmentation: random changes of the cutouts in a training step.

Each cutout has a draw of its own. It is changed in flux, before the stretch, as it travels: all
input sizes then see the same changed cutout. Blurred or fainter light has less noise, too, which is
put back: it then looks as the survey would show it in worse seeing, or farther away.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lensjax.data.brightness import noise_unit


@dataclass(frozen=True)
class Augmentation:
    """How much cutouts are changed in training, at most; 0 leaves a change out."""

    augment_shift: float = 0.04
    """Largest shift of a cutout, as a fraction of its side."""
    augment_seeing: float = 0.8
    """Largest sigma of the blur, in pixels of the data."""
    augment_flux: float = 0.2
    """Largest dimming of a cutout, in magnitudes."""
    augment_colour: float = 0.1
    """Largest dimming of each band by itself, in magnitudes."""
    augment_noise: float = 0.5
    """Largest added noise, in units of the cutout's own."""


def augmented(
    augmentation: Augmentation, keys: Array, images: ArrayLike, brightness: ArrayLike
) -> tuple[Array, Array]:
    """Returns the images (batch, height, width, band) float32, changed, and their
    brightness (batch, band, 4).

    What is drawn for an image depends on its key, of `keys` (batch,), alone. Where nothing is to be
    changed both come back as they are.
    """
    images, brightness = jnp.asarray(images), jnp.asarray(brightness)
    if augmentation == Augmentation(0, 0, 0, 0, 0):
        return images, brightness
    change = partial(changed, augmentation)
    return jax.vmap(change)(keys, images.astype(jnp.float32), brightness)


def changed(
    augmentation: Augmentation, key: Array, image: Array, brightness: Array
) -> tuple[Array, Array]:
    """Returns an image (height, width, band), changed, and its brightness (band, 4), which follows
    from what is done: the level stays, the limits keep their distance from it in units of the noise
    (the lower) and of the light (the higher)."""
    level, noise, low, high = brightness.T
    unit = noise_unit(brightness)
    move, smear, fade, tint, add, grain = jax.random.split(jax.random.fold_in(key, 1), 6)
    left = factor = jnp.ones_like(noise)  # of the noise, and of the light
    if augmentation.augment_shift:
        most = round(augmentation.augment_shift * min(image.shape[:2]))
        by = jax.random.randint(move, (2,), -most, most + 1)
        image = shifted(image, by, level)
    if augmentation.augment_seeing:
        widest = augmentation.augment_seeing
        taps = gaussian(widest * jax.random.uniform(smear), math.ceil(3 * widest))
        image, left = blurred(image, taps), left * (taps**2).sum()
    if augmentation.augment_flux or augmentation.augment_colour:
        each = augmentation.augment_colour * jax.random.uniform(tint, noise.shape)
        factor = 10 ** (-0.4 * (augmentation.augment_flux * jax.random.uniform(fade) + each))
        image, left = scaled(image, level, factor), left * factor
    more = augmentation.augment_noise * jax.random.uniform(add)
    sigma = unit * jnp.sqrt(jnp.maximum(1 - left**2, 0) + more**2)
    new = jnp.hypot(noise * left, sigma)
    limits = level + (low - level) * new / unit, level + (high - level) * factor
    return noisier(grain, image, sigma), jnp.stack([level, new, *limits], axis=-1)


def shifted(image: Array, by: Array, level: Array) -> Array:
    """Returns an image moved down and right by whole pixels (2,). At the edges it leaves the sky's
    level (band,)."""
    height, width = image.shape[:2]
    rows, columns = jnp.arange(height) - by[0], jnp.arange(width) - by[1]
    is_row, is_column = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    old = is_row[:, None] & is_column[None]
    return jnp.where(old[:, :, None], jnp.roll(image, by, axis=(0, 1)), level[None, None])


def gaussian(sigma: Array, radius: int) -> Array:
    """Returns weights (2 radius + 1,) of sum one that fall off as a Gaussian."""
    weights = jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1) / jnp.maximum(sigma, 1e-3)) ** 2)
    return weights / weights.sum()


def blurred(image: Array, taps: Array) -> Array:
    """Returns an image convolved with taps (odd,) along both axes, mirrored at its edges: neither
    light is lost nor the sky changed."""
    radius = len(taps) // 2
    for axis, length in enumerate(image.shape[:2]):
        widths = [(radius, radius) if axis == own else (0, 0) for own in range(image.ndim)]
        padded = jnp.pad(image, widths, mode="symmetric")
        starts = range(len(taps))
        parts = [jax.lax.slice_in_dim(padded, at, at + length, axis=axis) for at in starts]
        image = sum((tap * part for tap, part in zip(taps, parts, strict=True)), jnp.zeros(()))
    return image


def scaled(image: Array, level: Array, factor: Array) -> Array:
    """Returns an image whose light above the level (band,) is multiplied by the factor (band,)."""
    return level[None, None] + (image - level[None, None]) * factor[None, None]


def noisier(key: Array, image: Array, sigma: Array) -> Array:
    """Returns an image with normal noise of standard deviation sigma (band,) added to it."""
    return image + sigma[None, None] * jax.random.normal(key, image.shape, image.dtype)


def flip_bits(keys: Array) -> Array:
    """Returns for each image (batch, 3) which of the eight symmetries of the square it shows."""
    return jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 0), shape=(3,)))(keys)


def flipped(images: Array, flips: Array) -> Array:
    """Returns images (batch, S, S, band), each mirrored and transposed as its `flips` say.

    Each pixel is fetched from where it was. To choose between images that are mirrored whole would
    have the compiler compute what they show, noise and stretch, once for every choice.
    """

    def of_one(image: Array, flip: Array) -> Array:
        forward = jnp.arange(len(image))
        row, column = (jnp.where(mirrored, forward[::-1], forward) for mirrored in flip[:2])
        rows = jnp.where(flip[2], row[None, :], row[:, None])
        columns = jnp.where(flip[2], column[:, None], column[None, :])
        return image[rows, columns]

    return jax.vmap(of_one)(images, flips)
