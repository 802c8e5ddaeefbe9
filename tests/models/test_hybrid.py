"""The hybrids: against their parts written out, at any size, and with blocks that are skipped."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lensjax.models.hybrid import SIDE, HybridTransformer, sine_positions
from lensjax.models.vit import run_blocks
from tests.models.built import flops, logits, random, stacked_logits

DEPTH = 3


def small(seed: int = 0, **more) -> HybridTransformer:
    make = partial(HybridTransformer, width=32, depth=DEPTH, heads=2, bands=2, input_size=32)
    rates = {"dropout": 0.0, "block_dropout": 0.0} | more
    return random(lambda rngs: make(**rates, rngs=rngs), seed)


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(2), (3, 32, 32, 2))


def test_the_logit_is_that_of_its_parts_one_after_the_other(images):
    model = small()
    features = model.stem(images, train=False)
    assert features.shape == (3, 4, 4, 32)
    tokens = jnp.stack([features[:, i, j] for i in range(4) for j in range(4)], axis=1)
    tokens += jnp.asarray(sine_positions(4, 32)[None], jnp.float32)
    graph, state = nnx.split(model.blocks)
    for row in range(DEPTH):
        block = nnx.merge(graph, jax.tree.map(lambda leaf, row=row: leaf[row], state))
        tokens = block(tokens, rngs=None)
    expected = model.head.linear(model.norm(tokens).mean(1))[:, 0]
    np.testing.assert_allclose(logits(model, images), expected, rtol=1e-4, atol=1e-5)


def test_positions_equal_their_formula_and_places_keep_their_code_at_all_sizes():
    found = sine_positions(3, 16)
    for row, column in np.ndindex(3, 3):
        expected = []
        for place in (row, column):
            for wave in (np.sin, np.cos):
                expected += [wave((place + 0.5) * SIDE / 3 * 10000.0 ** (-k / 3)) for k in range(4)]
        np.testing.assert_allclose(found[3 * row + column], expected, rtol=1e-12)
    np.testing.assert_allclose(sine_positions(9, 16)[9 * 4 + 4], found[4], rtol=1e-12)


@pytest.mark.parametrize("size", [8, 33, 50])
def test_any_image_size_is_taken(size):
    found = logits(small(), jnp.ones((2, size, size, 2)))
    assert found.shape == (2,) and np.isfinite(found).all()


def test_stacked_equals_looped(images):
    models = [small(seed) for seed in range(3)]
    expected = [logits(model, images) for model in models]
    np.testing.assert_allclose(stacked_logits(models, images), expected, rtol=1e-4, atol=1e-5)


def test_dropout_in_the_head_repeats_the_head_only(images):
    model = small(dropout=0.5)
    assert flops(model, images, 10) < 1.05 * flops(model, images, 1)


def test_blocks_are_skipped_in_training_alone(images):
    plain, skipping = small(), small(stochastic_depth=0.9)
    np.testing.assert_array_equal(logits(plain, images, 0), logits(skipping, images, 0))

    @jax.jit
    def trained(images):
        return run_blocks(
            skipping.blocks,
            images,
            rngs=nnx.Rngs(dropout=1),
            skipped=skipping.skipped,
        )[0]

    tokens = jax.random.normal(jax.random.key(0), (64, 4, 32))
    assert len(np.unique(np.asarray(trained(tokens) != tokens).any((1, 2)))) == 2


def test_the_share_of_skipped_images_and_the_weight_of_the_others_are_as_stated():
    model = small()
    only_last = (0.0, 0.0, 0.25)
    tokens = jax.random.normal(jax.random.key(0), (4000, 1, 32))

    @partial(jax.jit, static_argnums=0)
    def run(skipped):
        return run_blocks(model.blocks, tokens, rngs=nnx.Rngs(dropout=3), skipped=skipped)[0]

    graph, state = nnx.split(model.blocks)
    before = tokens
    for row in range(2):
        before = nnx.merge(graph, jax.tree.map(lambda leaf, row=row: leaf[row], state))(
            before, rngs=None
        )
    block = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[2], state))
    step = block(before, rngs=None) - before
    found = run(only_last) - before
    skipped = np.abs(found).max((1, 2)) < 1e-6
    assert abs(skipped.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    np.testing.assert_allclose(found[~skipped], step[~skipped] / 0.75, rtol=1e-3, atol=1e-4)
