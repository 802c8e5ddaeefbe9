"""The vision transformer against torchvision's numbers, and what inference and training rely on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lensjax.errors import UsageError
from lensjax.models import registry
from lensjax.models.vit import (
    Block,
    VisionTransformer,
    interpolate_position_embedding,
    patch_grid,
    run_blocks,
)
from lensjax.torch_weights import load_torch_weights
from tests.models import drawn_weights


def small(dropout: float = 0.0, block_dropout: float = 0.0, seed: int = 0) -> VisionTransformer:
    """Four blocks, 32 wide, for images of 32 pixels in 2 bands, with a head that is not zero."""
    model = VisionTransformer(
        width=32,
        depth=4,
        heads=2,
        bands=2,
        input_size=32,
        dropout=dropout,
        block_dropout=block_dropout,
        rngs=nnx.Rngs(seed),
    )
    model.head.linear.kernel[...] = jax.random.normal(jax.random.key(1), (32, 1))
    return model


def one_block(blocks: Block, index: int) -> Block:
    graphdef, state = nnx.split(blocks)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[index], state))


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(2), (3, 32, 32, 2))


def test_blocks_and_logit_agree_with_torchvision(reference):
    expected = np.load(f"{reference}/reference_outputs.npz")
    architecture = registry.resolve("vit_b16")
    shapes = nnx.eval_shape(
        lambda: architecture.build(
            bands=3, input_size=224, dropout=0.2, block_dropout=0.0, rngs=nnx.Rngs(0)
        )
    )
    graphdef, state = nnx.split(shapes)
    model = nnx.merge(graphdef, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), state))
    assert load_torch_weights(model, drawn_weights.state_dict(reference, "vit_b_16")) == ()

    @jax.jit
    def outputs(images):
        tokens = model.embedding(images)
        positions = model.embedding.positions[...]
        results = {"patch_tokens_first8": (tokens - positions[None])[:, 1:9, :16]}
        for index in range(11):
            tokens = one_block(model.blocks, index)(tokens, rngs=None)
            results[f"block{index}_cls"] = tokens[:, 0]
        results["block11_cls"] = model.last(tokens, rngs=None, outputs=1)[:, 0]
        return results | {"logit": model(images)[:, None]}

    ours = outputs(drawn_weights.images("vit_b_16", 224))
    for name in ("patch_tokens_first8", "block0_cls", "block5_cls", "block11_cls", "logit"):
        theirs = expected[f"vit_b_16_224_{name}"]
        np.testing.assert_allclose(ours[name], theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_scanned_blocks_equal_a_loop(images):
    model = small()
    tokens = expected = model.embedding(images)
    for index in range(3):
        expected = one_block(model.blocks, index)(expected, rngs=None)
    np.testing.assert_allclose(run_blocks(model.blocks, tokens, rngs=None), expected, atol=1e-5)


def test_the_last_block_for_the_class_token_alone_is_exact(images):
    model = small()
    tokens = model.embedding(images)
    np.testing.assert_allclose(
        model.last(tokens, rngs=None, outputs=1), model.last(tokens, rngs=None)[:, :1], atol=1e-5
    )


def test_block_dropout_draws_anew_in_every_block_and_for_every_key(images):
    model = small(block_dropout=0.5)
    off = model(images)
    one, again, other = (model(images, rngs=nnx.Rngs(dropout=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other) and not np.allclose(one, off)

    # Blocks with equal weights would do the same to each other's input if they shared a mask.
    first = one_block(model.blocks, 0)
    graphdef, state = nnx.split(first)
    twins = nnx.merge(graphdef, jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state))
    tokens = model.embedding(images)
    both = run_blocks(twins, tokens, rngs=nnx.Rngs(dropout=0))
    keys = jax.random.split(nnx.Rngs(dropout=0).dropout(), 2)
    separate = tokens
    for key in keys:
        separate = first(separate, rngs=nnx.Rngs(dropout=key))
    np.testing.assert_allclose(both, separate, atol=1e-5)
    assert (keys[0] != keys[1]).any()


def test_a_score_does_not_depend_on_its_neighbours(images):
    model = small(dropout=0.5, block_dropout=0.5)
    model.set_attributes(broadcast_dims=(0,))
    for rngs in (lambda: None, lambda: nnx.Rngs(dropout=3)):
        together = model(images, rngs=rngs())
        alone = [model(images[i : i + 1], rngs=rngs())[0] for i in range(3)]
        np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-4)


def test_stacked_members_equal_each_alone(images):
    members = [small(seed=seed) for seed in (0, 1)]
    graphdef = nnx.graphdef(members[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(nnx.state, members))
    logits = jax.jit(jax.vmap(lambda state: nnx.merge(graphdef, state)(images)))(stacked)
    np.testing.assert_allclose(logits, jnp.stack([m(images) for m in members]), rtol=1e-4)


def test_samples_share_everything_before_the_head(images):
    graphdef, state = nnx.split(small(dropout=0.5))

    def flops(samples: int) -> float:
        keys = jax.random.split(jax.random.key(0), samples)
        run = jax.vmap(lambda k: nnx.merge(graphdef, state)(images, rngs=nnx.Rngs(dropout=k)))
        return jax.jit(run).lower(keys).compile().cost_analysis()["flops"]

    assert flops(10) < 1.05 * flops(1)


def test_gradients_reach_every_weight(images):
    graphdef, state = nnx.split(small())
    gradients = jax.grad(lambda state: nnx.merge(graphdef, state)(images).sum())(state)
    for path, gradient in nnx.to_flat_state(gradients):
        # A bias added to all keys alike cancels in the softmax: only its half for values has one.
        assert np.abs(gradient[...]).max() > 0, path


def test_bfloat16_gives_a_float32_logit(images):
    model = small()
    graphdef, state = nnx.split(model)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state)
    logits = nnx.merge(graphdef, rounded)(images)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, model(images), atol=0.2)


def test_another_size_takes_interpolated_positions(images):
    model = small()
    smaller = small()
    positions = interpolate_position_embedding(model.embedding.positions[...], 2, 1)
    smaller.embedding.positions = nnx.Param(positions)
    smaller.embedding.grid = 1
    cropped = images[:, :16, :16]
    np.testing.assert_allclose(model(cropped), smaller(cropped), rtol=1e-5)


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
