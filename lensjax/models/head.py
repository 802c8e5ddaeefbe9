"""The last layer of every network: dropout, then one logit."""

import jax.numpy as jnp
from flax import nnx
from jax import Array


class Head(nnx.Module):
    """Features (batch, feature) -> logits (batch,) float32.

    With the dropout here and nowhere else, nothing before it depends on the dropout key, so that
    a `vmap` over keys computes the rest of the network once. The logit is float32 whatever the
    precision of the features. It starts from zero weights: every image at probability one half.
    """

    def __init__(self, features: int, dropout: float, *, rngs: nnx.Rngs) -> None:
        self.dropout = nnx.Dropout(dropout)
        self.linear = nnx.Linear(features, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, features: Array, *, rngs: nnx.Rngs | None) -> Array:
        features = features.astype(jnp.float32)
        features = self.dropout(features, deterministic=rngs is None, rngs=rngs)
        return self.linear(features)[:, 0]
