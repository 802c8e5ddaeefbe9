"""The vision transformer against torchvision's numbers, and what inference and training rely on."""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo

from lensjax.errors import UsageError
from lensjax.models import vit
from lensjax.models.torch_import import load_torch_weights
from lensjax.models.vit import (
    Block,
    VisionTransformer,
    interpolate_position_embedding,
    patch_grid,
    run_blocks,
)
from tests.models import drawn_weights
from tests.models.built import blank, flops, logits, random, stacked_logits


def small(dropout: float = 0.0, block_dropout: float = 0.0, seed: int = 0) -> VisionTransformer:
    """Four blocks, 32 wide, for images of 32 pixels in 2 bands."""
    make = partial(
        VisionTransformer,
        width=32,
        depth=4,
        heads=2,
        bands=2,
        input_size=32,
        dropout=dropout,
        block_dropout=block_dropout,
    )
    return random(lambda rngs: make(rngs=rngs), seed)


@jax.jit
def after_block(blocks: Block, index: int, tokens: jax.Array) -> jax.Array:
    """Returns the tokens after one of the stacked blocks."""
    graphdef, state = nnx.split(blocks)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[index], state))(tokens, rngs=None)


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(2), (3, 32, 32, 2))


@pytest.mark.slow
@pytest.mark.optimised
def test_blocks_and_logit_agree_with_torchvision(reference):
    expected = np.load(f"{reference}/reference_outputs.npz")
    model = blank("vit_b16", bands=3, input_size=224)
    assert load_torch_weights(model, drawn_weights.state_dict(reference, "vit_b_16")) == ()

    images = jnp.asarray(drawn_weights.images("vit_b_16", 224))
    tokens = model.embedding(images)
    ours = {"patch_tokens_first8": (tokens - model.embedding.positions[...][None])[:, 1:9, :16]}
    for index in range(11):
        tokens = after_block(model.blocks, index, tokens)
        ours[f"block{index}_cls"] = tokens[:, 0]
    ours["block11_cls"] = model.last(tokens, rngs=None, outputs=1)[:, 0]
    ours["logit"] = logits(model, images)[:, None]
    for name in ("patch_tokens_first8", "block0_cls", "block5_cls", "block11_cls", "logit"):
        theirs = expected[f"vit_b_16_224_{name}"]
        np.testing.assert_allclose(ours[name], theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_scanned_blocks_equal_a_loop(images):
    model = small()
    tokens = expected = model.embedding(images)
    for index in range(3):
        expected = after_block(model.blocks, index, expected)
    scanned = jax.jit(lambda tokens: run_blocks(model.blocks, tokens, rngs=None)[0])(tokens)
    np.testing.assert_allclose(scanned, expected, atol=1e-5)


def test_the_last_block_for_the_class_token_alone_is_exact(images):
    model = small()
    last = jax.jit(partial(model.last, rngs=None), static_argnames="outputs")
    tokens = model.embedding(images)
    np.testing.assert_allclose(last(tokens, outputs=1), last(tokens)[:, :1], atol=1e-5)


def test_block_dropout_draws_anew_in_every_block_and_for_every_key(images):
    model = small(block_dropout=0.5)
    off = logits(model, images)
    one, again, other = (logits(model, images, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other) and not np.allclose(one, off)

    # With all weights zero but the last bias, a block adds its mask and nothing else.
    graphdef, state = nnx.split(model.blocks)
    blocks = nnx.merge(graphdef, jax.tree.map(jnp.zeros_like, state))

    @nnx.jit
    def mask(blocks, bias):
        blocks.contract.bias[...] = bias
        return run_blocks(blocks, jnp.zeros((1, 5, 32)), rngs=nnx.Rngs(dropout=0))[0]

    first, second = (mask(blocks, jnp.eye(3)[:, [i] * 32]) for i in (0, 1))
    assert set(np.unique(first)) == set(np.unique(second)) == {0, 2}
    assert 0.3 < np.mean(first == second) < 0.7


def test_a_score_does_not_depend_on_its_neighbours(images):
    model = small(dropout=0.5, block_dropout=0.5)
    model.set_attributes(broadcast_dims=(0,))
    for seed in (None, 3):
        together = logits(model, images, seed)
        alone = [logits(model, images[i : i + 1], seed)[0] for i in range(3)]
        np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-4)


def test_stacked_members_equal_each_alone(images):
    members = [small(seed=seed) for seed in (0, 1)]
    expected = jnp.stack([logits(member, images) for member in members])
    np.testing.assert_allclose(stacked_logits(members, images), expected, rtol=1e-4)


def test_samples_share_everything_before_the_head(images):
    model = small(dropout=0.5)
    assert flops(model, images, 10) < 1.2 * flops(model, images, 1)


def test_training_draws_the_same_masks(images):
    model = small(block_dropout=0.5)

    @partial(jax.jit, static_argnums=1)
    def run(images, train):
        return model(images, rngs=nnx.Rngs(dropout=1), train=train)

    scored, trained = run(images, False), run(images, True)
    np.testing.assert_allclose(trained, scored, rtol=1e-5)


def test_new_blocks_have_the_spread_of_torchvision():
    block = Block(64, 2, 256, 0.0, rngs=nnx.Rngs(0))
    limits = {
        "query": (6 / (4 * 64)) ** 0.5,
        "key_value": (6 / (4 * 64)) ** 0.5,
        "projection": 64**-0.5,
    }
    for name, limit in limits.items():
        kernel = getattr(block.attention, name).kernel[...]
        assert 0.98 * limit < np.abs(kernel).max() <= limit
    assert 0.98 * (6 / 320) ** 0.5 < np.abs(block.expand.kernel[...]).max() <= (6 / 320) ** 0.5


def test_gradients_reach_every_weight(images):
    graphdef, state = nnx.split(small())
    gradients = jax.jit(jax.grad(lambda state: nnx.merge(graphdef, state)(images).sum()))(state)
    for path, gradient in nnx.to_flat_state(gradients):
        assert np.abs(gradient[...]).max() > 0, path


def test_bfloat16_gives_a_float32_logit(images):
    model = small()
    graphdef, state = nnx.split(model)
    rounded = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state))
    ours = logits(rounded, images)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, logits(model, images), atol=0.2)


def test_another_size_takes_interpolated_positions(images):
    model = small()
    smaller = small()
    positions = interpolate_position_embedding(model.embedding.positions[...], 2, 1)
    smaller.embedding.positions = nnx.Param(positions)
    smaller.embedding.grid = 1
    cropped = images[:, :16, :16]
    np.testing.assert_allclose(logits(model, cropped), logits(smaller, cropped), rtol=1e-5)


@pytest.mark.parametrize(("size", "advice"), [(101, "96 or 112"), (5, "16"), (0, "16")])
def test_sizes_that_make_no_whole_patches_are_refused(size, advice):
    with pytest.raises(UsageError, match=rf"{size} pixels.*input size of {advice}$"):
        patch_grid(size)


def test_interpolation_equals_pytorch():
    """Numbers of torch.nn.functional.interpolate(mode="bicubic", align_corners=True)."""
    grid = np.array([[1, 5, 2], [0, 3, -4], [7, 1, 6]], np.float32)
    expected = [
        [1.0, 4.0740738, 4.499999, 2.0],
        [-0.462963, 3.2794931, 2.104254, -3.2222221],
        [2.092591, 2.538066, 1.0, -1.51852],
        [7.0, 2.3333349, 1.907406, 6.0],
    ]
    embedding = np.concatenate([[9.0], grid.ravel()])[:, None].astype(np.float32)
    ours = np.asarray(interpolate_position_embedding(embedding, 3, 4))[:, 0]
    assert ours[0] == 9
    np.testing.assert_allclose(ours[1:].reshape(4, 4), expected, atol=5e-6)
    np.testing.assert_array_equal(interpolate_position_embedding(embedding, 3, 3), embedding)
    assert interpolate_position_embedding(embedding, 3, 1)[:, 0].tolist() == [9, 1]
    np.testing.assert_allclose(
        interpolate_position_embedding(embedding, 3, 2)[1:, 0], [1, 2, 7, 6], atol=1e-6
    )


def test_attention_is_that_of_jax_which_has_a_kernel_for_it_on_gpus():
    query, key, value = np.random.default_rng(0).normal(size=(3, 2, 5, 3, 8)).astype(np.float32)
    expected = jax.nn.dot_product_attention(query, key, value)
    found = vit._attend(*map(jnp.asarray, (query, key, value)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("about", "fused"),
    [
        ({"compute_capability": "9.0"}, True),
        ({"compute_capability": "10.0"}, True),
        ({"compute_capability": "7.5"}, False),
        ({"compute_capability": "gfx90a"}, False),
        ({}, False),
    ],
)
def test_the_kernel_is_for_devices_that_have_it(monkeypatch, about, fused):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(**about)])
    assert vit._has_fused_attention() == fused


@pytest.mark.parametrize("size", [32, 48])
def test_a_gpu_trains_the_program_that_is_planned_without_one(monkeypatch, size):
    """It scores by cuDNN's kernel, which has no gradient for the five tokens of 32 pixels."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    graph, state = nnx.split(small())
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state)
    images = jnp.zeros((2, size, size, 2), jnp.bfloat16)

    def on_cuda(function: Callable, has_kernel: bool, **options: bool) -> str:
        def total(state, images):
            return nnx.merge(graph, state)(images, **options).sum()

        monkeypatch.setattr(vit, "_has_fused_attention", lambda: has_kernel)
        traced = jax.jit(function(total)).trace(state, images)
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    def computed(text: str) -> Counter:
        """Returns how often each operation stands there, without the choice of the platform."""
        chooses = {"stablehlo.case", "stablehlo.return", "stablehlo.constant"}
        return Counter(name for name in re.findall(r"\w+hlo\.\w+", text) if name not in chooses)

    assert "__cudnn$fmhaSoftmax" in on_cuda(lambda total: total, True)
    found, planned = (on_cuda(jax.grad, has_kernel, train=True) for has_kernel in (True, False))
    assert "cudnn" not in found and computed(found) == computed(planned)
    assert computed(planned)["stablehlo.dot_general"] > 20
