"""Models filled without compiling initialisers, and one compiled call for all tests."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lensjax.models import registry


def blank(name: str, *, bands: int, input_size: int) -> nnx.Module:
    """Returns a model of zeros, to be filled with weights from elsewhere."""
    create = partial(registry.create, name, bands=bands, input_size=input_size)
    return _filled(lambda rngs: create(rngs=rngs), lambda path, shape: np.zeros(shape))


def random(make: Callable[[nnx.Rngs], nnx.Module], seed: int = 0) -> nnx.Module:
    """Returns the model that `make` builds with weights that all count, drawn by numpy."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, shape: tuple[int, ...]) -> np.ndarray:
        z = rng.standard_normal(shape)
        if path[-1] in ("scale", "var"):
            return 1 + 0.1 * np.abs(z)
        return z * np.prod(shape[:-1]) ** -0.5 if path[-1] == "kernel" else 0.1 * z

    return _filled(make, draw)


def _filled(make: Callable[[nnx.Rngs], nnx.Module], value: Callable) -> nnx.Module:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    for path, leaf in nnx.to_flat_state(state):
        leaf.set_value(jnp.asarray(value(path, leaf.shape), jnp.float32))
    return nnx.merge(graphdef, state)


def logits(model: nnx.Module, images: Array, dropout_seed: int | None = None) -> Array:
    """Returns the logits (batch,), with dropout where a seed is given."""
    key = None if dropout_seed is None else jax.random.key(dropout_seed)
    return _logits(*nnx.split(model), images, key)


def stacked_logits(models: list[nnx.Module], images: Array) -> Array:
    """Returns the logits (model, batch) of models alike, evaluated under one `vmap`."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(nnx.state, models))
    return jax.vmap(partial(_logits, nnx.graphdef(models[0])), (0, None, None))(
        stacked, images, None
    )


def flops(model: nnx.Module, images: Array, samples: int) -> float:
    """Returns what `samples` passes with dropout cost under one `vmap` over their keys."""
    keys = jax.random.split(jax.random.key(0), samples)
    graphdef, state = nnx.split(model)
    sampled = jax.jit(jax.vmap(partial(_logits, graphdef), (None, None, 0)))
    return sampled.lower(state, images, keys).cost_analysis()["flops"]


@partial(jax.jit, static_argnums=0)
def _logits(graphdef: nnx.GraphDef, state: nnx.State, images: Array, key: Array | None) -> Array:
    rngs = None if key is None else nnx.Rngs(dropout=key)
    return nnx.merge(graphdef, state)(images, rngs=rngs)
