"""Adding noise to noise-free cutouts, once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lensjax.sky.render import add_noise

AT_ONCE = 64


def with_noise(images: np.ndarray, sky: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """Returns noise-free images (n, size, size, band) with the noise `sky` (n, band, 3) describes:
    a realisation that depends on the seed and on what each is called in `rows` (n,)."""
    found = np.empty(images.shape, np.float32)
    for start in range(0, len(images), AT_ONCE):
        # The last ones are filled up, so that there is one program.
        part = np.resize(np.arange(start, min(start + AT_ONCE, len(images))), AT_ONCE)
        drawn = _with_noise(seed, rows[part].astype(np.uint32), images[part], sky[part])
        found[start : start + AT_ONCE] = np.asarray(drawn)[: len(images) - start]
    return found


@partial(jax.jit, static_argnums=0)
def _with_noise(seed: int, rows: jax.Array, images: jax.Array, sky: jax.Array) -> jax.Array:
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(rows)
    return jax.vmap(add_noise)(keys, images, *jnp.moveaxis(sky, -1, 0))
