"""Loss functions."""

from itertools import combinations

import jax
import jax.numpy as jnp
import optax
from jax import Array


def binary_loss(logits: Array, labels: Array, smoothing: float, focusing: float = 0.0) -> Array:
    """Returns the binary cross entropies, in nats, of logits (..., batch) against labels (batch,).

    `smoothing` moves the labels 0 and 1 to smoothing / 2 and 1 - smoothing / 2. `focusing` is gamma
    of the focal loss (Lin et al. 2017, "Focal loss for dense object detection", equation 4): what
    is sure already counts less; 0 for none, else at least 1.
    """
    targets = jnp.broadcast_to(labels * (1.0 - smoothing) + 0.5 * smoothing, logits.shape)
    if focusing == 0:
        return optax.sigmoid_binary_cross_entropy(logits, targets)
    return optax.sigmoid_focal_loss(logits, targets, gamma=focusing)


def distillation_loss(logits: Array, teacher_logits: Array) -> Array:
    """Returns the cross entropies, in nats, of logits (..., batch) against the probabilities of
    teachers whose logits are (batch,) (Hinton et al. 2015, at temperature 1)."""
    targets = jnp.broadcast_to(jax.nn.sigmoid(teacher_logits), logits.shape)
    return optax.sigmoid_binary_cross_entropy(logits, targets)


def unlike(features: Array, others: Array) -> Array:
    """Returns how much two networks' features of the same images differ, (n, p) and (n, q): from 0,
    where a rotation and one factor make the same of both, to 1.

    One less the linear centred kernel alignment of Kornblith et al. (2019), "Similarity of neural
    network representations revisited", table 1. It needs no weights between the two.
    """
    x, y = (each - each.mean(0, keepdims=True) for each in (features, others))
    covariances = (a.T @ b / len(features) for a, b in ((x, y), (x, x), (y, y)))
    shared, own, other = (jnp.square(covariance).sum() for covariance in covariances)
    return 1 - shared / jnp.sqrt(own * other + 1e-9)


def consistency(logits: Array) -> Array:
    """Returns how much the predictions of several scales (scale, batch) differ, (batch,) in nats.

    The mean over the pairs of scales of the divergence of Jeffreys (1946) between their Bernoulli
    distributions, KL(p|q) + KL(q|p) = (p - q)(logit p - logit q): zero for equal predictions,
    above it for others, and finite for all finite logits.
    """
    probability, pairs = jax.nn.sigmoid(logits), combinations(range(logits.shape[0]), 2)
    divergences = [(probability[a] - probability[b]) * (logits[a] - logits[b]) for a, b in pairs]
    if not divergences:
        return jnp.zeros(logits.shape[1:], logits.dtype)
    return jnp.stack(divergences).mean(0)
