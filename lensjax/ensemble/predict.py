"""The compiled ensemble step: prepared cutouts in, fused scores out, one dispatch a batch."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lensjax.data import on_device
from lensjax.data.on_device import Inputs
from lensjax.ensemble.fuse import Fusion, Knowledge, Scores, fuse
from lensjax.ensemble.stack import Ensemble, Group, member_keys

Precision = Literal["float32", "bfloat16"]


class Weights(NamedTuple):
    """Everything that stays on the device for the run."""

    states: tuple[Any, ...]
    keys: Array
    knowledge: Knowledge


Step = Callable[[Weights, Inputs], Scores]


def place_weights(ensemble: Ensemble, *, seed: int, samples: int, precision: Precision) -> Weights:
    """Returns the weights of `ensemble` on the device, in the precision of the computation."""

    def cast(leaf: Any) -> Array:
        return jnp.asarray(leaf, precision)

    keys = member_keys(ensemble.identities, seed, samples)
    return Weights(jax.tree.map(cast, ensemble.states), keys, ensemble.knowledge)


def ensemble_step(
    ensemble: Ensemble, *, samples: int, fusion: Fusion, precision: Precision
) -> Step:
    """Returns the jitted step in which all members and samples see a batch together.

    Members are a vmapped axis, dropout keys a second one inside it; what does not depend on the
    key is computed once. With one sample dropout is off.
    """

    @jax.jit
    def step(weights: Weights, inputs: Inputs) -> Scores:
        prepared = _prepare(inputs, precision)
        logits, start = [], 0
        for group, state in zip(ensemble.groups, weights.states, strict=True):
            keys = weights.keys[start : start + group.members]
            start += group.members
            with jax.named_scope(f"member/{group.architecture}"):
                images = prepared[group.preparation]
                of_member = functools.partial(_member_logits, group, images, samples)
                logits.append(jax.vmap(of_member)(state, keys))
        with jax.named_scope("fuse"):
            return fuse(jnp.concatenate(logits), weights.knowledge, fusion)

    return step


def one_by_one_step(
    ensemble: Ensemble, *, samples: int, fusion: Fusion, precision: Precision
) -> Step:
    """Returns a step that walks the members one by one, each sample a full pass of its own.

    The way of older systems, kept to compare with: the scores are those of `ensemble_step`.
    """

    @functools.partial(jax.jit, static_argnums=0)
    def one_pass(index: int, state: Any, inputs: Inputs, key: Array) -> Array:
        group = ensemble.groups[index]
        images = _prepare(inputs, precision)[group.preparation]
        return _member_logits(group, images, samples, state, key[None])[0]

    fuse_all = jax.jit(fuse, static_argnums=2)

    def step(weights: Weights, inputs: Inputs) -> Scores:
        logits, member = [], 0
        for index, group in enumerate(ensemble.groups):
            for place in range(group.members):
                state = jax.tree.map(lambda leaf, place=place: leaf[place], weights.states[index])
                passes = [one_pass(index, state, inputs, key) for key in weights.keys[member]]
                logits.append(jnp.stack(passes))
                member += 1
        return fuse_all(jnp.stack(logits), weights.knowledge, fusion)

    return step


def _prepare(inputs: Inputs, precision: Precision) -> list[Array]:
    """Returns, per preparation, the stretched and normalised images (batch, S, S, band)."""
    with jax.named_scope("preprocess"):
        return [images.astype(precision) for images in on_device.prepare(inputs)]


def _member_logits(group: Group, images: Array, samples: int, state: Any, keys: Array) -> Array:
    """Returns the logits (sample, batch) float32 of one member; one sample has no dropout."""
    model = nnx.merge(group.graph, state)

    def sample_logits(key: Array) -> Array:
        return model(images, rngs=nnx.Rngs(dropout=key) if samples > 1 else None)

    return jax.vmap(sample_logits)(keys).astype(jnp.float32)
