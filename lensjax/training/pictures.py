"""Cutouts as colour pictures show them, so that a member learns to read pictures too.

Sky servers hand out PNG and JPEG, not flux: stretched, clipped and cut to 256 levels. A member that
has seen flux alone takes the stretch for structure.
"""

import dataclasses

import jax
import numpy as np

from lensjax.data.on_device import level_and_noise
from lensjax.training.dataset import Labelled


def with_pictures(data: Labelled, seed: int) -> Labelled:
    """Returns `data` followed by a colour picture of each of its cutouts, its settings drawn."""
    rng = np.random.default_rng(seed)
    measure, arrays = jax.jit(level_and_noise), data.arrays

    def picture(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
        level, noise = measure(image[np.newaxis], inside[np.newaxis])
        return as_picture(image, np.asarray(level[0]), np.asarray(noise[0]), rng)

    pictures = np.stack(list(map(picture, arrays["images"], arrays["inside"])))
    added = arrays | {"images": pictures}
    return dataclasses.replace(
        data,
        arrays={name: np.concatenate([values, added[name]]) for name, values in arrays.items()},
        id=np.concatenate([data.id, data.id]),
        group=np.concatenate([data.group, data.group]),
    )


def as_picture(
    image: np.ndarray, level: np.ndarray, scale: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Returns a picture (S, S, band) float32 of whole numbers in 0..255 of `image` (S, S, band).

    The scheme of Lupton et al. (2004, PASP 116, 133): all bands of a pixel are scaled by the
    arcsinh of their mean, which keeps the colour. `level` and `scale` (band,) are sky and noise.
    Drawn from `rng`, in ranges chosen to hold what surveys publish: how much bands are balanced
    (by equal flux or by equal noise), the sky's grey, the linear range and the white level.
    """
    balance = (scale / scale.mean()) ** rng.uniform(0.0, 1.0)
    sky, linear = rng.uniform(0.0, 2.0), np.exp(rng.uniform(np.log(1.0), np.log(8.0)))
    white = np.exp(rng.uniform(np.log(20.0), np.log(400.0)))
    light = (image - level) / scale * balance + sky
    mean = np.maximum(light.mean(axis=-1, keepdims=True), 1e-3)
    shown = light / mean * np.arcsinh(mean / linear) / np.arcsinh(white / linear)
    return np.round(255.0 * np.clip(shown, 0.0, 1.0)).astype(np.float32)
