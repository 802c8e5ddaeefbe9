"""Convolutions, then a transformer: few weights, and any image size.

The convolutions take the place of patches (Xiao et al. 2021, "Early convolutions help transformers
see better"), positions are sines and cosines, and the logit is that of the mean token (Beyer et al.
2022, "Better plain ViT baselines for ImageNet-1k"). Nothing learned depends on the image size.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lensjax.models.network import Head, Layers, Network
from lensjax.models.norm import ConvNorm
from lensjax.models.vit import Block, maps_of, run_blocks, stacked

# The sides of an image are as long as so many tokens of a plain grid, whatever its size: a place in
# the sky has one code at all resolutions.
SIDE = 16.0


class Stem(nnx.Module):
    """Three convolutions: (N, S, S, bands) -> (N, S/8, S/8, width), rounded up."""

    def __init__(self, bands: int, width: int, *, rngs: nnx.Rngs) -> None:
        halved = partial(ConvNorm, size=3, stride=2, rngs=rngs)
        self.entry = halved(bands, width // 4)
        self.middle = halved(width // 4, width // 2)
        self.exit = halved(width // 2, width)

    def __call__(self, images: Array, *, train: bool) -> Array:
        for layer in (self.entry, self.middle):
            images = nnx.relu(layer(images, train=train))
        return self.exit(images, train=train)


class HybridTransformer(Network):
    """A transformer on the features of a small convolutional network.

    `stochastic_depth`: the share of images that skip the last block in training; blocks before it
    are skipped less, in proportion to their place (Huang et al. 2016, "Deep networks with
    stochastic depth", section 3).
    """

    DEPTHS = {"stem": 0, "blocks": 1, "norm": 2, "head": 2}

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
        stochastic_depth: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        del input_size
        self.block_dropout = block_dropout
        self.skipped = tuple(stochastic_depth * (number + 1) / depth for number in range(depth))
        self.stem = Stem(bands, width, rngs=rngs)
        self.blocks = stacked(partial(Block, width, heads, 4 * width, block_dropout), depth, rngs)
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.head = Head(width, dropout, rngs=rngs)

    def layers(self, images: Array, *, rngs: nnx.Rngs | None = None, train: bool = False) -> Layers:
        """Returns the features (batch, width) of images (batch, S, S, band), of any size S: the
        mean token; and the maps of the tokens, each normalised, of S/8."""
        grid_of_tokens = self.stem(images, train=train)
        batch, grid, _, width = grid_of_tokens.shape
        code = jnp.asarray(sine_positions(grid, width)[None], grid_of_tokens.dtype)
        tokens = grid_of_tokens.reshape(batch, grid**2, width) + code
        skipped = self.skipped if train else ()
        tokens, after = run_blocks(self.blocks, tokens, rngs=rngs, skipped=skipped)
        return Layers(self.norm(tokens).mean(1), maps_of(after))


def sine_positions(grid: int, width: int) -> np.ndarray:
    """Returns the codes (grid^2, width) of the places of a grid, row by row.

    A quarter each of sines and cosines of the vertical and of the horizontal place, at frequencies
    from 1 to 1/10000 a token (Vaswani et al. 2017, "Attention is all you need", section 3.5).
    """
    frequencies = 10000.0 ** -np.linspace(0, 1, width // 4)
    place = (np.arange(grid) + 0.5) * (SIDE / grid)
    waves = place[:, None] * frequencies
    along = np.concatenate([np.sin(waves), np.cos(waves)], axis=1)
    return np.concatenate([np.repeat(along, grid, 0), np.tile(along, (grid, 1))], axis=1)
