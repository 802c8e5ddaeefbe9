"""What training minimises."""

import jax.numpy as jnp
import optax
from jax import Array


def binary_loss(logits: Array, labels: Array, smoothing: float) -> Array:
    """Returns the mean binary cross entropy, in nats, of logits (batch,) against labels (batch,).

    `smoothing` moves the labels 0 and 1 to smoothing / 2 and 1 - smoothing / 2.
    """
    targets = labels * (1.0 - smoothing) + 0.5 * smoothing
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets))
