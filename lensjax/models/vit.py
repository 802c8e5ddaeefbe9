"""Vision transformer (Dosovitskiy et al. 2021, "An image is worth 16x16 words").

The layers are torchvision's, with any number of bands and one logit. All blocks but the last are
one block with stacked parameters, run by `lax.scan`: they compile once, whatever the depth. The
last block computes what the logit depends on, the class token, and nothing else.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from lensjax.errors import UsageError
from lensjax.models import initial
from lensjax.models.network import Head, Layers, Network
from lensjax.models.product import Linear

PATCH_SIZE = 16


class Embedding(nnx.Module):
    """Images (batch, S, S, band) -> tokens (batch, 1 + (S/16)^2, width), the class token first."""

    def __init__(self, bands: int, input_size: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.grid = patch_grid(input_size)
        inputs = PATCH_SIZE**2 * bands
        lecun = initial.truncated_normal(inputs**-0.5)
        self.patches = Linear(inputs, width, kernel_init=lecun, rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros(width))
        self.positions = nnx.Param(initial.normal(0.02)(rngs.params(), (1 + self.grid**2, width)))

    def __call__(self, images: Array) -> Array:
        batch, size, _, bands = images.shape
        grid = patch_grid(size)
        patches = images.reshape(batch, grid, PATCH_SIZE, grid, PATCH_SIZE, bands)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid**2, -1)
        tokens = self.patches(patches.astype(self.patches.kernel.dtype))
        class_token = jnp.broadcast_to(self.class_token[...], (batch, 1, tokens.shape[-1]))
        positions = interpolate_position_embedding(self.positions[...], self.grid, grid)
        return jnp.concatenate([class_token, tokens], axis=1) + positions[None]


class Attention(nnx.Module):
    """Multi-head attention of queries (batch, query, width) to tokens (batch, token, width)."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.heads = heads
        # Xavier limits for query, key and value taken as one matrix, as torchvision draws them.
        xavier = initial.uniform((0.5 / width) ** 0.5)
        self.query = Linear(width, width, kernel_init=xavier, rngs=rngs)
        self.key_value = Linear(width, 2 * width, kernel_init=xavier, rngs=rngs)
        narrower = initial.uniform((1 / (3 * width)) ** 0.5)
        self.projection = Linear(width, width, kernel_init=narrower, rngs=rngs)

    def __call__(self, queries: Array, tokens: Array) -> Array:
        query = self._split_heads(self.query(queries))
        key, value = map(self._split_heads, jnp.split(self.key_value(tokens), 2, axis=-1))
        return self.projection(_attend(query, key, value).reshape(queries.shape))

    def _split_heads(self, tokens: Array) -> Array:
        batch, count, width = tokens.shape
        return tokens.reshape(batch, count, self.heads, width // self.heads)


class Block(nnx.Module):
    """Attention and a two-layer perceptron, each normalised first and added to its input."""

    def __init__(
        self, width: int, heads: int, perceptron_width: int, dropout: float, *, rngs: nnx.Rngs
    ) -> None:
        linear = partial(
            Linear,
            kernel_init=initial.uniform((2 / (width + perceptron_width)) ** 0.5),
            bias_init=initial.normal(1e-6),
            rngs=rngs,
        )
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.attention = Attention(width, heads, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.expand = linear(width, perceptron_width)
        self.contract = linear(perceptron_width, width)
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self, tokens: Array, *, rngs: nnx.Rngs | None, outputs: int | None = None
    ) -> Array:
        """Returns the first `outputs` tokens (all for None) after the block.

        Tokens (batch, token, width) -> (batch, outputs, width). Each is computed as it would be
        among all the others.
        """
        drop = partial(self.dropout, deterministic=rngs is None, rngs=rngs)
        normed = self.norm1(tokens)
        kept = tokens[:, :outputs] + drop(self.attention(normed[:, :outputs], normed))
        hidden = drop(_gelu(self.expand(self.norm2(kept))))
        return kept + drop(self.contract(hidden))


class VisionTransformer(Network):
    """A vision transformer on patches of 16x16 pixels."""

    DEPTHS = {"embedding": 0, "blocks": 1, "last": 2, "norm": 3, "head": 3}

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        bands: int,
        input_size: int,
        dropout: float,
        block_dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.block_dropout = block_dropout
        block = partial(Block, width, heads, 4 * width, block_dropout)
        self.embedding = Embedding(bands, input_size, width, rngs=rngs)
        self.blocks = stacked(block, depth - 1, rngs)
        self.last = block(rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.head = Head(width, dropout, rngs=rngs)

    def layers(self, images: Array, *, rngs: nnx.Rngs | None = None, train: bool = False) -> Layers:
        """Returns the features (batch, width) of images (batch, S, S, band), the class token, and
        the maps of the other tokens, each normalised, of S/16.

        Raises UsageError where 16 does not divide S. At another S than the model's input size the
        position embedding is interpolated.
        """
        del train  # no layer keeps statistics
        tokens, after = run_blocks(self.blocks, self.embedding(images), rngs=rngs)
        features = self.norm(self.last(tokens, rngs=rngs, outputs=1))[:, 0]
        return Layers(features, maps_of(after[:, :, 1:]))


def run_blocks(
    blocks: Block, tokens: Array, *, rngs: nnx.Rngs | None, skipped: Sequence[float] = ()
) -> tuple[Array, Array]:
    """Returns tokens (batch, token, width) after blocks with stacked parameters (block, ...), and
    what they were after each of these (block, batch, token, width).

    `skipped`: the share of images that skip each block, where `rngs` are given; the others take so
    much more of it that the mean is the same. Empty for none.
    """
    graphdef, parameters = nnx.split(blocks)
    depth = blocks.attention.query.kernel.shape[0]
    rates = jnp.asarray(skipped, jnp.float32) if any(skipped) else None
    is_random = rngs is not None and (blocks.dropout.rate or rates is not None)
    keys = jax.random.split(rngs.dropout(), depth) if rngs is not None and is_random else None

    def run(
        tokens: Array, block: tuple[nnx.State, Array | None, Array | None]
    ) -> tuple[Array, Array]:
        parameters, key, rate = block
        block_rngs = None if key is None else nnx.Rngs(dropout=key)
        after = nnx.merge(graphdef, parameters)(tokens, rngs=block_rngs)
        if block_rngs is not None and rate is not None:
            # Drawn after the masks, from the same stream: no key is used twice.
            taken = jax.random.bernoulli(block_rngs.dropout(), 1 - rate, (len(tokens), 1, 1))
            after = tokens + (after - tokens) * (taken / (1 - rate)).astype(tokens.dtype)
        after = checkpoint_name(after, "block")
        return after, after

    return lax.scan(run, tokens, (parameters, keys, rates))


def maps_of(after: Array) -> tuple[Array, ...]:
    """Returns maps (batch, y, x, width) of the tokens of a square grid after a third and two thirds
    of the blocks (block, batch, token, width), each token normalised over its channels."""
    blocks, batch, count, width = after.shape
    grid = math.isqrt(count)
    chosen = after[np.array([blocks // 3, 2 * blocks // 3])].astype(jnp.float32)
    normalised = jax.nn.standardize(chosen, epsilon=1e-6)
    return tuple(normalised.reshape(2, batch, grid, grid, width))


def patch_grid(size: int) -> int:
    """Returns the patches along a side of `size` pixels. Raises UsageError unless 16 divides it."""
    grid, rest = divmod(size, PATCH_SIZE)
    if rest or not grid:
        below, above = max(grid, 1) * PATCH_SIZE, (grid + 1) * PATCH_SIZE
        nearest = str(above) if not grid else f"{below} or {above}"
        raise UsageError(
            f"a vision transformer cannot take images of {size} pixels: its patches are "
            f"{PATCH_SIZE} pixels wide, so choose an input size of {nearest}"
        )
    return grid


def interpolate_position_embedding(embedding: ArrayLike, old_grid: int, new_grid: int) -> Array:
    """Returns a position embedding (1 + new_grid^2, width) made from (1 + old_grid^2, width).

    The first row belongs to the class token and stays; the others are the grid, row by row, and
    are resampled as torchvision does: bicubic, the corner patches kept in the corners.
    """
    embedding = jnp.asarray(embedding)
    if new_grid == old_grid:
        return embedding
    matrix = jnp.asarray(_bicubic(old_grid, new_grid), embedding.dtype)
    grid = embedding[1:].reshape(old_grid, old_grid, -1)
    resampled = jnp.einsum("yi,xj,ijw->yxw", matrix, matrix, grid)
    return jnp.concatenate([embedding[:1], resampled.reshape(new_grid**2, -1)])


def _bicubic(old: int, new: int) -> np.ndarray:
    """Returns the matrix (new, old) of cubic convolution with a = -3/4, edges repeated.

    Formula 4 of Keys (1981), "Cubic convolution interpolation for digital image processing".
    """
    a = -0.75
    position = np.linspace(0, old - 1, new)[:, None]
    taps = np.floor(position).astype(int) + np.arange(-1, 3)[None]
    distance = np.abs(position - taps)
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    matrix = np.zeros((new, old))
    rows = np.arange(new)[:, None]
    np.add.at(matrix, (rows, taps.clip(0, old - 1)), np.where(distance <= 1, near, far))
    return matrix


def _attend(query: Array, key: Array, value: Array) -> Array:
    """Returns (batch, query, head, size): the values' means, weighted by softmax of
    query . key / sqrt(size).

    A CUDA device has one kernel for it that never writes out the pairs of tokens, in half
    precision. JAX asks the device at hand for it: a plan made without one counts the pairs, which
    take more.
    """
    if query.dtype == jnp.bfloat16 and query.shape[1] > 1 and _has_fused_attention():
        return lax.platform_dependent(
            query, key, value, cuda=_attend_fused, default=_attend_by_pairs
        )
    return _attend_by_pairs(query, key, value)


@jax.custom_vjp
def _attend_fused(query: Array, key: Array, value: Array) -> Array:
    """Returns what `_attend` does, by cuDNN; where gradients are needed, by pairs.

    JAX refuses cuDNN's gradient for odd numbers of tokens, and a square of patches with the class
    token mostly is one.
    """
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _attend_by_pairs(query: Array, key: Array, value: Array) -> Array:
    query, key, value = (each.transpose(0, 2, 1, 3) for each in (query, key, value))
    query *= query.shape[-1] ** -0.5
    scores = jnp.matmul(query, key.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    # Dividing the sum, not the weights, by their total saves a pass over all pairs.
    mixed = weights.astype(value.dtype) @ value
    mixed /= weights.sum(axis=-1, keepdims=True).astype(value.dtype)
    return mixed.transpose(0, 2, 1, 3)


_attend_fused.defvjp(
    lambda *operands: jax.vjp(_attend_by_pairs, *operands), lambda pull, cotangent: pull(cotangent)
)


def _has_fused_attention() -> bool:
    """Returns whether this machine has a CUDA device that cuDNN computes attention on."""
    capability = getattr(jax.devices()[0], "compute_capability", "")  # AMD's begin with a letter
    return capability[:1].isdigit() and float(capability) >= 8.0


def _gelu(x: Array) -> Array:
    """Returns x times the normal distribution function, by `erf`: a third of the time of `erfc`."""
    return 0.5 * x * (1 + lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def stacked(make: partial[Block], count: int, rngs: nnx.Rngs) -> Block:
    """Returns one block whose parameters are those of `count` blocks, on a leading axis."""
    keys = jax.random.split(rngs.params(), count)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    parameters = jax.vmap(lambda key: nnx.state(make(rngs=nnx.Rngs(key))))(keys)
    return nnx.merge(graphdef, parameters)
