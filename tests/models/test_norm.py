"""Batch normalisation against Flax's own in double precision, and folded away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lensjax.models.norm import BatchNorm, ConvNorm, fold_norms
from lensjax.models.resnet import ResNet
from tests.models.built import random, stacked_logits


@pytest.fixture
def images() -> np.ndarray:
    """Images whose channels have means far from zero."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal((4, 5, 6, 3)) * [0.1, 1.0, 7.0] + [2.0, -1.0, 30.0]).astype("f4")


def layer(kind: type, dtype: type) -> nnx.BatchNorm:
    made = kind(3, momentum=0.9, epsilon=1e-5, param_dtype=dtype, rngs=nnx.Rngs(0))
    made.scale[...] = jnp.asarray([0.5, -2.0, 1.5], dtype)
    made.bias[...] = jnp.asarray([0.1, 0.2, -3.0], dtype)
    return made


def outcome(made: nnx.BatchNorm, images: jax.Array, **mode: bool) -> tuple:
    """The output, the gradients of a sum that weighs pixels differently, and the statistics."""
    graph, params, statistics = nnx.split(made, nnx.Param, nnx.BatchStat)
    weights = jnp.cos(jnp.arange(images.size)).reshape(images.shape)

    def weighted(params, images):
        model = nnx.merge(graph, params, statistics, copy=True)
        output = model(images, **mode)
        return (output * weights).sum(), (output, nnx.state(model, nnx.BatchStat))

    gradients, (output, updated) = jax.jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))(
        params, images
    )
    return output, gradients, updated


@pytest.mark.parametrize("train", [True, False])
def test_equals_flax_in_double_precision(images, train):
    ours = outcome(layer(BatchNorm, jnp.float32), jnp.asarray(images), train=train)
    with jax.enable_x64(True):
        made = layer(nnx.BatchNorm, jnp.float64)
        for statistic in (made.mean, made.var):
            statistic.set_value(statistic[...].astype("f8"))
        wide = jnp.asarray(images, jnp.float64)
        theirs = outcome(made, wide, use_running_average=not train)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        other = np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4 * np.abs(other).max())


def test_stacked_layers_equal_each_alone(images):
    both = jnp.stack([images, 2 * images + 1])
    graph, state = nnx.split(layer(BatchNorm, jnp.float32))

    def train(images):
        return nnx.merge(graph, state, copy=True)(images, train=True)

    np.testing.assert_allclose(jax.vmap(train)(both), jnp.stack([*map(train, both)]), atol=1e-5)


def test_statistics_of_bfloat16_images_are_float32(images):
    made = layer(BatchNorm, jnp.float32)
    output = made(jnp.asarray(images, jnp.bfloat16), train=True)
    assert output.dtype == jnp.bfloat16 and made.var[...].dtype == jnp.float32
    np.testing.assert_allclose(made.var[...], 0.9 + 0.1 * images.var((0, 1, 2)), rtol=0.02)


def test_a_constant_channel_gives_its_bias():
    output = layer(BatchNorm, jnp.float32)(jnp.full((2, 3, 3, 3), 1e4), train=True)
    np.testing.assert_allclose(output[0, 0, 0], [0.1, 0.2, -3.0], atol=1e-3)


def test_folded_networks_give_the_same_logits(images):
    """Alone and stacked, with statistics that all count."""
    members = [
        random(lambda rngs: ResNet((1, 1, 1, 1), bands=3, dropout=0.0, rngs=rngs), seed)
        for seed in (0, 1)
    ]
    expected = stacked_logits(members, images)
    for member in members:
        fold_norms(member)
        assert not any(isinstance(m, BatchNorm) for _, m in nnx.iter_modules(member))
    np.testing.assert_allclose(stacked_logits(members, images), expected, rtol=1e-4)


def test_folding_takes_leading_axes():
    layers = [random(lambda rngs: ConvNorm(3, 4, 3, rngs=rngs), seed) for seed in (0, 1)]
    graph = nnx.graphdef(layers[0])
    stacked = nnx.merge(graph, jax.tree.map(lambda *x: np.stack(x), *map(nnx.state, layers)))
    for layer_or_stack in (*layers, stacked):
        layer_or_stack.fold()
    for index, single in enumerate(layers):
        for one, other in zip(
            jax.tree.leaves(nnx.state(single)), jax.tree.leaves(nnx.state(stacked)), strict=True
        ):
            np.testing.assert_allclose(other[index], one, rtol=1e-6)
