"""How a training step changes cutouts, so that a network learns to overlook what has changed.

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

from lensjax.data.on_device import level_and_noise, sky_mask


@dataclass(frozen=True)
class Augmentation:
    """How much cutouts are changed in training, at most; 0 leaves a change out."""

    augment_shift: float = 0.04
    """Share of its side by which a cutout is moved, at most."""
    augment_seeing: float = 0.8
    """Sigma of the blur in the data's pixels, at most."""
    augment_flux: float = 0.2
    """Magnitudes that a cutout becomes fainter, at most."""
    augment_colour: float = 0.1
    """Magnitudes that each band does so alone, at most."""
    augment_noise: float = 0.5
    """Noise that is added, in units of its own, at most."""


def augmented(
    augmentation: Augmentation, keys: Array, images: ArrayLike, bounds: ArrayLike
) -> tuple[Array, Array]:
    """Returns the images (batch, height, width, band) float32 of a canvas, changed, and `bounds`.

    What is drawn for an image depends on its key, of `keys` (batch,), alone. Where nothing is to be
    changed both come back as they are.
    """
    images, bounds = jnp.asarray(images), jnp.asarray(bounds)
    if augmentation == Augmentation(0, 0, 0, 0, 0):
        return images, bounds
    images = images.astype(jnp.float32)
    level, noise = level_and_noise(images, bounds)
    return jax.vmap(partial(changed, augmentation))(keys, images, bounds, level, noise)


def changed(
    augmentation: Augmentation, key: Array, image: Array, bounds: Array, level: Array, noise: Array
) -> tuple[Array, Array]:
    """Returns an image (height, width, band), changed, and its `bounds`; `level` and `noise`, both
    (band,), are those of its sky."""
    move, smear, fade, tint, add, grain = jax.random.split(jax.random.fold_in(key, 1), 6)
    left = jnp.ones_like(noise)  # of the noise
    if augmentation.augment_shift:
        most = round(augmentation.augment_shift * min(image.shape[:2]))
        by = jax.random.randint(move, (2,), -most, most + 1)
        image, bounds = shifted(image, bounds, by, level)
    if augmentation.augment_seeing:
        widest = augmentation.augment_seeing
        taps = gaussian(widest * jax.random.uniform(smear), math.ceil(3 * widest))
        image, left = blurred(image, taps), left * (taps**2).sum()
    if augmentation.augment_flux or augmentation.augment_colour:
        each = augmentation.augment_colour * jax.random.uniform(tint, noise.shape)
        factor = 10 ** (-0.4 * (augmentation.augment_flux * jax.random.uniform(fade) + each))
        image, left = scaled(image, level, factor), left * factor
    more = augmentation.augment_noise * jax.random.uniform(add)
    sigma = noise * jnp.sqrt(jnp.maximum(1 - left**2, 0) + more**2)
    return noisier(grain, image, bounds, sigma), bounds


def shifted(image: Array, bounds: Array, by: Array, level: Array) -> tuple[Array, Array]:
    """Returns an image moved down and right by whole pixels (2,), and its `bounds`. At the edges
    it leaves the sky's level (band,), which is no more `bounds`."""
    height, width = image.shape[:2]
    sides, by_edge = jnp.array([height, height, width, width]), jnp.repeat(by, 2)
    old = sky_mask(jnp.clip(jnp.array([0, height, 0, width]) + by_edge, 0, sides), (height, width))
    moved = jnp.roll(image, by, axis=(0, 1))
    filled = jnp.where(old[:, :, None], moved, level[None, None])
    return filled, jnp.clip(bounds + by_edge, 0, sides).astype(bounds.dtype)


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


def noisier(key: Array, image: Array, bounds: Array, sigma: Array) -> Array:
    """Returns an image with normal noise of standard deviation sigma (band,) added to its sky."""
    noise = jax.random.normal(key, image.shape, image.dtype)
    sky = sky_mask(bounds, (image.shape[0], image.shape[1]))
    return image + jnp.where(sky[:, :, None], sigma[None, None] * noise, 0.0)


def turns(keys: Array) -> Array:
    """Returns for each image (batch, 3) which of the eight symmetries of the square it shows."""
    return jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 0), shape=(3,)))(keys)


def turned(images: Array, turns: Array) -> Array:
    """Returns images (batch, S, S, band), each mirrored and transposed as its `turns` say."""
    rows, columns, transposed = (turns[:, i, None, None, None] for i in range(3))
    images = jnp.where(rows, images[:, ::-1], images)
    images = jnp.where(columns, images[:, :, ::-1], images)
    return jnp.where(transposed, images.swapaxes(1, 2), images)
