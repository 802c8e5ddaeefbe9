"""The residual networks against torchvision's numbers, and what inference and training rely on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lensjax.models import registry
from lensjax.models.resnet import ResNet, max_pool
from lensjax.torch_weights import load_torch_weights
from tests.models import drawn_weights


@pytest.fixture(scope="module")
def resnet18(reference: str) -> nnx.Module:
    model = registry.create("resnet18", bands=3, input_size=64, rngs=nnx.Rngs(0))
    assert load_torch_weights(model, drawn_weights.state_dict(reference, "resnet18")) == ()
    return model


@pytest.fixture
def small() -> ResNet:
    """A network with four blocks whose every weight counts."""
    model = ResNet((1, 1, 1, 1), bands=2, dropout=0.5, rngs=nnx.Rngs(0))
    for stage in model.stages:
        stage.blocks[0].second.norm.scale[...] = jnp.ones(stage.blocks[0].second.norm.scale.shape)
    kernel = model.head.linear.kernel
    kernel[...] = jax.random.normal(jax.random.key(1), kernel.shape)
    return model


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(2), (3, 32, 32, 2))


@pytest.mark.parametrize("size", drawn_weights.SIZES["resnet18"])
def test_every_stage_agrees_with_torchvision(resnet18, reference, size):
    expected = np.load(f"{reference}/reference_outputs.npz")

    @jax.jit
    def outputs(images):
        # The reference takes the stem after its pooling.
        features = resnet18.stem(images, train=False)
        means = {"stem_mean": features.mean((1, 2))}
        for number, stage in enumerate(resnet18.stages, start=1):
            features = stage(features, train=False)
            means[f"layer{number}_mean"] = features.mean((1, 2))
        return means | {"logit": resnet18(images)[:, None]}

    for name, ours in outputs(drawn_weights.images("resnet18", size)).items():
        theirs = expected[f"resnet18_{size}_{name}"]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_training_updates_the_running_statistics_and_inference_does_not(small, images):
    before = small.stem.entry.norm.mean[...]
    small(images)
    np.testing.assert_array_equal(small.stem.entry.norm.mean[...], before)
    small(images, train=True)
    batch_mean = small.stem.entry.conv(images).mean((0, 1, 2))
    np.testing.assert_allclose(small.stem.entry.norm.mean[...], 0.1 * batch_mean, atol=1e-6)


def test_a_score_does_not_depend_on_its_neighbours(small, images):
    """Neither with dropout off, nor with one mask a sample."""
    small.set_attributes(broadcast_dims=(0,))
    for rngs in (lambda: None, lambda: nnx.Rngs(dropout=3)):
        together = small(images, rngs=rngs())
        alone = [small(images[i : i + 1], rngs=rngs())[0] for i in range(3)]
        np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-4)


def test_dropout_is_off_without_rngs_and_differs_between_keys(small, images):
    off, again = small(images), small(images)
    one, other = (small(images, rngs=nnx.Rngs(dropout=seed)) for seed in (0, 1))
    np.testing.assert_array_equal(off, again)
    assert not np.allclose(one, other) and not np.allclose(one, off)


def test_stacked_members_equal_each_alone(images):
    def member(seed: int) -> ResNet:
        model = ResNet((1, 1, 1, 1), bands=2, dropout=0.0, rngs=nnx.Rngs(seed))
        model.head.linear.kernel[...] = jnp.ones((512, 1))
        return model

    members = [member(seed) for seed in (0, 1)]
    graphdef = nnx.graphdef(members[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(nnx.state, members))
    logits = jax.jit(jax.vmap(lambda state: nnx.merge(graphdef, state)(images)))(stacked)
    np.testing.assert_allclose(logits, jnp.stack([m(images) for m in members]), rtol=2e-4)


def test_samples_share_everything_before_the_head(small, images):
    graphdef, state = nnx.split(small)

    def flops(samples: int) -> float:
        keys = jax.random.split(jax.random.key(0), samples)
        run = jax.vmap(lambda k: nnx.merge(graphdef, state)(images, rngs=nnx.Rngs(dropout=k)))
        return jax.jit(run).lower(keys).compile().cost_analysis()["flops"]

    assert flops(10) < 1.05 * flops(1)


@pytest.mark.parametrize("size", [1, 17, 50])
def test_any_size_in_bfloat16_gives_a_float32_logit(small, size):
    images = jax.random.normal(jax.random.key(0), (2, size, size, 2))
    graphdef, state = nnx.split(small)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state)
    logits = nnx.merge(graphdef, rounded)(images)
    assert logits.shape == (2,) and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, small(images), atol=0.1 * np.abs(small(images)).max() + 0.1)


def test_new_blocks_pass_their_input_on():
    model = ResNet((2, 1, 1, 1), bands=1, dropout=0.0, rngs=nnx.Rngs(0))
    features = jnp.abs(jax.random.normal(jax.random.key(0), (1, 4, 4, 64)))
    np.testing.assert_allclose(model.stages[0](features, train=False), features, rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (8, 6)])
def test_max_pool_and_its_gradient_equal_those_of_flax(size):
    def flax_pool(x):
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=[(1, 1), (1, 1)])

    values = np.random.default_rng(0).permutation(2 * size[0] * size[1] * 3)  # no ties
    images = jnp.asarray(values.reshape(2, *size, 3), jnp.float32)
    np.testing.assert_array_equal(max_pool(images), flax_pool(images))
    ours, theirs = (jax.grad(lambda x, f=f: (f(x) ** 2).sum())(images) for f in (max_pool, flax_pool))
    np.testing.assert_array_equal(ours, theirs)
