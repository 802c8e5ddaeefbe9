"""Cutouts as colour pictures show them, so that a member learns to read pictures too.

Sky servers hand out PNG and JPEG, not flux: stretched, clipped and cut to 256 levels. A member that
has seen flux alone takes the stretch for structure.
"""

import jax
import jax.numpy as jnp
from jax import Array


def as_picture(key: Array, image: Array, level: Array, scale: Array) -> Array:
    """Returns a picture (S, S, band) float32 of whole numbers in 0..255 of `image` (S, S, band).

    The scheme of Lupton et al. (2004, PASP 116, 133): all bands of a pixel are scaled by the
    arcsinh of their mean, which keeps the colour. `level` and `scale` (band,) are sky and noise.
    Drawn by the key, in ranges chosen to hold what surveys publish: how much bands are balanced (by
    equal flux or by equal noise) and by how much that is missed, the sky's grey, the linear range
    and the white level.
    """
    drawn = jax.random.uniform(key, (4 + len(level),))
    balance = (scale / scale.mean()) ** drawn[0] * jnp.exp(0.2 * (2 * drawn[4:] - 1))
    sky, linear = 2 * drawn[1], 8 ** drawn[2]
    white = 20 * 20 ** drawn[3]
    light = (image - level[None, None]) * (balance / scale)[None, None] + sky
    mean = jnp.maximum(light.mean(axis=-1, keepdims=True), 1e-3)
    shown = light * (jnp.arcsinh(mean / linear) / mean / jnp.arcsinh(white / linear))
    return jnp.round(255.0 * jnp.clip(shown, 0.0, 1.0))
