"""The noise that noise-free cutouts are to get: what a table says of it, and adding it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from astropy.table import Table

from lensjax.errors import UsageError
from lensjax.sky.render import add_noise

NOISE_FREE = "noise_free"
COLUMNS = ("sky_sigma", "noise_width", "gain")
AT_ONCE = 64


def noise_of(table: Table, bands: tuple[str, ...]) -> np.ndarray | None:
    """Returns sky sigma, noise width and gain (n, band, 3) float32, as `survey.Observation` has
    them, of the cutouts of a table; None where they have noise.

    Raises UsageError where some have noise and others do not, or it is not said what is missing.
    """
    if NOISE_FREE not in table.colnames:
        return None
    is_bare = np.asarray(table[NOISE_FREE]).astype(np.float64) == 1
    if not is_bare.any():
        return None
    if not is_bare.all():
        raise UsageError(
            f"{int(is_bare.sum())} of {len(table)} cutouts are noise-free by the column "
            f"{NOISE_FREE}: give those with noise and those without apart"
        )
    names = [f"{name}_{band}" for band in bands for name in COLUMNS]
    missing = [name for name in names if name not in table.colnames]
    if missing:
        raise UsageError(f"noise-free cutouts lack the column {', '.join(missing)}")
    columns = [np.asarray(table[name], np.float32) for name in names]
    return np.stack(columns, axis=-1).reshape(len(table), len(bands), len(COLUMNS))


def refuse_noise_free(table: Table) -> None:
    """Raises UsageError where cutouts are noise-free: no network has seen such."""
    if NOISE_FREE in table.colnames and np.asarray(table[NOISE_FREE]).astype(float).any():
        raise UsageError(
            f"cutouts without noise (by the column {NOISE_FREE}) are for training alone, which "
            "adds it: score test.npz of the same sky, which has noise"
        )


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
