"""From the logits of all members and samples to one score with its uncertainty.

All functions are pure and run inside the compiled step. `logits` are calibrated and have shape
(member, sample, batch); K members, T samples, B cutouts.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lensjax.predictions import Scores

Fusion = Literal["stacked", "mean_prob", "mean_logit", "inverse_variance"]


class FusionParams(NamedTuple):
    """Calibration and stacking parameters, as arrays that a compiled step takes as arguments.

    slope, intercept: (member,) Platt calibration, calibrated = slope * logit + intercept.
    weight: (member,), bias: () stacking coefficients of the calibrated logits.
    share: (member,) what each member contributes to the stack, summing to one.
    error: (member,) mean squared error of the probability (Brier score).
    """

    slope: Array
    intercept: Array
    weight: Array
    bias: Array
    share: Array
    error: Array


def fuse(raw_logits: Array, fusion_params: FusionParams, fusion: Fusion) -> Scores:
    """Returns the fused Scores of `raw_logits` (member, sample, batch).

    `stacked`: log-odds are bias + sum of weight times member log-odds, with the non-negative
    weights that did best on validation data (Wolpert 1992). `mean_prob`: the mean probability.
    `mean_logit`: the mean of the log-odds. `inverse_variance`: the mean of the probabilities, each
    member weighed by 1 / (variance over its samples + its mean squared error on validation data);
    the second term keeps a member that is sure and wrong from taking over.

    Entropies are in nats. With p the mean probability over members (by their weights) and samples:
    total = H(p), aleatoric = mean of H(p of one member and sample), and the mutual information
    between the label and the network is their difference (Depeweg et al. 2018, eq. 3).
    """
    calibrated = (
        fusion_params.slope[:, None, None] * raw_logits + fusion_params.intercept[:, None, None]
    )
    member_logits = calibrated.mean(1)
    member_probs = jax.nn.sigmoid(calibrated).mean(1)
    shares = _shares(calibrated, fusion_params, fusion)
    mixed = _mixture_logit(calibrated, shares)
    if fusion == "stacked":
        logit = (fusion_params.weight[:, None] * member_logits).sum(0) + fusion_params.bias
    elif fusion == "mean_logit":
        logit = member_logits.mean(0)
    else:
        logit = mixed
    aleatoric = (shares * bernoulli_entropy(calibrated).mean(1)).sum(0)
    total = jnp.maximum(bernoulli_entropy(mixed), aleatoric)
    centre = (shares * member_logits).sum(0)
    spread = (shares * ((calibrated - centre[None, None]) ** 2).mean(1)).sum(0)
    return Scores(
        probability=jax.nn.sigmoid(logit),
        logit=logit,
        logit_std=jnp.sqrt(spread),
        total_entropy=total,
        aleatoric_entropy=aleatoric,
        mutual_information=total - aleatoric,
        member_logits=member_logits,
        member_probs=member_probs,
    )


def bernoulli_entropy(logits: Array) -> Array:
    """Returns the entropy in nats of Bernoulli variables with these log-odds, tails too."""
    distance = jnp.abs(logits)
    return jax.nn.softplus(-distance) + distance * jax.nn.sigmoid(-distance)


def _shares(logits: Array, fusion_params: FusionParams, fusion: Fusion) -> Array:
    """Returns each member's share of the mixture, (member, batch), summing to one over members."""
    members, _, batch = logits.shape
    if fusion == "inverse_variance":
        variance = jax.nn.sigmoid(logits).var(1) + fusion_params.error[:, None]
        weights = 1.0 / jnp.maximum(variance, 1e-12)
    elif fusion == "stacked":
        weights = fusion_params.share[:, None]
    else:
        weights = jnp.ones((members, 1))
    return jnp.broadcast_to(weights / weights.sum(0, keepdims=True), (members, batch))


def _mixture_logit(logits: Array, shares: Array) -> Array:
    """Returns the log-odds (batch,) of the mean probability; a mean near one does not saturate."""
    log_share = jnp.log(shares)[:, None] - jnp.log(logits.shape[1])
    log_yes = jax.nn.logsumexp(jax.nn.log_sigmoid(logits) + log_share, axis=(0, 1))
    log_no = jax.nn.logsumexp(jax.nn.log_sigmoid(-logits) + log_share, axis=(0, 1))
    return log_yes - log_no
