"""Initial weights, drawn by NumPy.

JAX compiles its generator for every shape that it draws, which takes seconds a network. NumPy
compiles nothing, and draws the same numbers from a seed on every device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike
from scipy import special

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(deviation: float) -> Initializer:
    """Returns an initialiser that draws from a normal distribution about 0."""
    return _initialiser(lambda rng, shape: rng.standard_normal(shape, np.float32) * deviation)


def truncated_normal(deviation: float) -> Initializer:
    """Returns an initialiser that draws from a normal distribution cut at two of its own
    deviations; what is left has this `deviation`."""
    below, above = special.ndtr([-2.0, 2.0])
    # Variance of the standard normal between -2 and 2: 1 - 2 x 2 phi(2) / (above - below).
    density = np.exp(-2.0) / np.sqrt(2 * np.pi)
    unit = deviation / np.sqrt(1 - 4 * density / (above - below))
    return _initialiser(lambda rng, shape: special.ndtri(rng.uniform(below, above, shape)) * unit)


def uniform(deviation: float) -> Initializer:
    """Returns an initialiser that draws evenly from an interval about 0."""
    width = deviation * 12**0.5
    return _initialiser(lambda rng, shape: (rng.random(shape, np.float32) - 0.5) * width)


def _initialiser(draw: Draw) -> Initializer:
    """Returns an initialiser whose numbers depend on its key alone, traced or not."""

    def initial(
        key: Array, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        del out_sharding  # part of the signature that Flax calls

        def drawn(seeds: ArrayLike) -> np.ndarray:
            seeds = np.asarray(seeds)
            found = np.empty((*seeds.shape[:-1], *shape), dtype)
            for index in np.ndindex(seeds.shape[:-1]):
                found[index] = draw(np.random.default_rng(seeds[index]), tuple(shape))
            return found

        seed = jax.random.key_data(key)
        if not isinstance(seed, jax.core.Tracer):
            return jnp.asarray(drawn(seed))
        result = jax.ShapeDtypeStruct(tuple(shape), dtype)
        return jax.pure_callback(drawn, result, seed, vmap_method="expand_dims")

    return initial
