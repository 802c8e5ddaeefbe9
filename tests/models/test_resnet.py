"""The residual networks against torchvision's numbers, and what inference and training rely on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lensjax.models.network import Head
from lensjax.models.resnet import ResNet, Stage, max_pool
from lensjax.models.torch_import import load_torch_weights
from tests.models import drawn_weights
from tests.models.built import blank, flops, logits, random, stacked_logits


@pytest.fixture(scope="module")
def resnet18(reference: str) -> nnx.Module:
    model = blank("resnet18", bands=3, input_size=64)
    assert load_torch_weights(model, drawn_weights.state_dict(reference, "resnet18")) == ()
    return model


@pytest.fixture
def small() -> ResNet:
    """A network with four blocks."""
    model = random(lambda rngs: ResNet((1, 1, 1, 1), bands=2, dropout=0.5, rngs=rngs))
    model.set_attributes(broadcast_dims=(0,))
    return model


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(2), (3, 32, 32, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "size", [pytest.param(64, marks=pytest.mark.optimised), *drawn_weights.SIZES["resnet18"][1:]]
)
def test_every_stage_agrees_with_torchvision(resnet18, reference, size):
    expected = np.load(f"{reference}/reference_outputs.npz")

    @nnx.jit
    def outputs(network, images):
        # The reference takes the stem after its pooling.
        features = network.stem(images, train=False)
        means = {"stem_mean": features.mean((1, 2))}
        for number, stage in enumerate(network.stages, start=1):
            features = stage(features, train=False)
            means[f"layer{number}_mean"] = features.mean((1, 2))
        return means | {"logit": network(images)[:, None]}

    for name, ours in outputs(resnet18, drawn_weights.images("resnet18", size)).items():
        theirs = expected[f"resnet18_{size}_{name}"]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_training_updates_the_running_statistics_and_inference_does_not(small, images):
    @nnx.jit
    def statistics(model, images):
        before = model.stem.entry.norm.mean[...]
        model(images)
        kept = model.stem.entry.norm.mean[...]
        model(images, train=True)
        return before, kept, model.stem.entry.norm.mean[...], model.stem.entry.conv(images)

    before, kept, updated, batch = statistics(small, images)
    np.testing.assert_array_equal(kept, before)
    expected = 0.9 * before + 0.1 * batch.mean((0, 1, 2))
    np.testing.assert_allclose(updated, expected, rtol=1e-4, atol=1e-6)


def test_a_score_does_not_depend_on_its_neighbours(small, images):
    """Neither with dropout off, nor with one mask a sample."""
    for seed in (None, 3):
        together = logits(small, images, seed)
        alone = [logits(small, images[i : i + 1], seed)[0] for i in range(3)]
        np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-4)


def test_dropout_is_off_without_rngs_and_differs_between_keys(small, images):
    off, again = logits(small, images), logits(small, images)
    one, other = (logits(small, images, seed) for seed in (0, 1))
    np.testing.assert_array_equal(off, again)
    assert not np.allclose(one, other) and not np.allclose(one, off)


def test_stacked_members_equal_each_alone(images):
    members = [
        random(lambda rngs: ResNet((1, 1, 1, 1), bands=2, dropout=0.5, rngs=rngs), seed)
        for seed in (0, 1)
    ]
    expected = jnp.stack([logits(member, images) for member in members])
    np.testing.assert_allclose(stacked_logits(members, images), expected, rtol=2e-4)


def test_samples_share_everything_before_the_head(small, images):
    assert flops(small, images, 10) < 1.05 * flops(small, images, 1)


@pytest.mark.parametrize("size", [1, 17])
def test_any_size_gives_a_logit(small, size):
    scores = logits(small, jax.random.normal(jax.random.key(0), (2, size, size, 2)))
    assert scores.shape == (2,) and jnp.isfinite(scores).all()


def test_bfloat16_gives_a_float32_logit(small, images):
    graphdef, state = nnx.split(small)
    rounded = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state))
    ours, expected = logits(rounded, images), logits(small, images)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, atol=0.05 * np.abs(expected).max())


def test_a_new_network_passes_its_input_on_and_is_undecided():
    stage = Stage(64, 64, 1, 2, rngs=nnx.Rngs(0))
    features = jnp.abs(jax.random.normal(jax.random.key(0), (1, 4, 4, 64)))
    np.testing.assert_allclose(stage(features, train=False), features, rtol=1e-6)
    head = Head(64, 0.5, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(head(features[0, 0], rngs=nnx.Rngs(dropout=0)), [0, 0, 0, 0])


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (8, 6)])
def test_max_pool_and_its_gradient_equal_those_of_flax(size):
    def flax_pool(x):
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=[(1, 1), (1, 1)])

    values = np.random.default_rng(0).permutation(2 * size[0] * size[1] * 3)  # no ties
    images = jnp.asarray(values.reshape(2, *size, 3), jnp.float32)
    np.testing.assert_array_equal(max_pool(images), flax_pool(images))
    ours, theirs = (
        jax.jit(jax.grad(lambda x, f=f: (f(x) ** 2).sum()))(images) for f in (max_pool, flax_pool)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_the_gradient_of_equal_maxima_goes_to_the_first():
    gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.ones((1, 4, 4, 1)))[0, :, :, 0]
    np.testing.assert_array_equal(gradient, np.outer([1, 1, 0, 0], [1, 1, 0, 0]))
