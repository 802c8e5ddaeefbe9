"""What every network is: layers that make features of images, and a head that makes one logit of
them."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array


class Head(nnx.Module):
    """Dropout, then one linear layer: features (batch, feature) -> logits (batch,) float32.

    The logit is float32 whatever the precision of the features. It starts from zero weights: every
    image at probability one half.
    """

    def __init__(self, features: int, dropout: float, *, rngs: nnx.Rngs) -> None:
        self.dropout = nnx.Dropout(dropout)
        self.linear = nnx.Linear(features, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, features: Array, *, rngs: nnx.Rngs | None) -> Array:
        features = features.astype(jnp.float32)
        features = self.dropout(features, deterministic=rngs is None, rngs=rngs)
        return self.linear(features)[:, 0]


class Layers(NamedTuple):
    """What a network computes of images: their features (batch, feature), and maps (batch, y, x,
    channel) of what it has after about a third and two thirds of its layers."""

    features: Array
    maps: tuple[Array, ...]


class Network(nnx.Module):
    """Base class of the architectures.

    With a `block_dropout` of 0 all dropout is in the head: Monte Carlo samples share the features.
    """

    head: Head
    block_dropout: float = 0.0

    def layers(self, images: Array, *, rngs: nnx.Rngs | None = None, train: bool = False) -> Layers:
        """Returns what the network computes of images (batch, S, S, band) before its head; what of
        it is not used costs nothing where this is compiled."""
        raise NotImplementedError

    def features(self, images: Array) -> Array:
        """Returns the features (batch, feature) of images (batch, S, S, band), without dropout."""
        return self.layers(images).features

    def __call__(
        self, images: Array, *, rngs: nnx.Rngs | None = None, train: bool = False
    ) -> Array:
        """Returns the logits (batch,) float32 of images (batch, S, S, band).

        `rngs` draws dropout masks and, in training, skipped blocks; None turns both off. `train`
        takes the batch's own statistics and updates the running ones; without it the running ones
        are used and kept.
        """
        return self.head(self.layers(images, rngs=rngs, train=train).features, rngs=rngs)
