"""Learning the last layer alone, from a few hundred graded cutouts: a logistic regression on the
features that the network makes of them, around what the layer was.

So few grades do harm where they move all weights of a network (Kumar et al. 2022,
arXiv:2202.10054), and this takes seconds.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from lensjax.data.on_device import Transform, seen
from lensjax.ensemble import calibration, checkpoint
from lensjax.ensemble.checkpoint import Member, MemberInfo, State
from lensjax.train.data import Labelled
from lensjax.train.finish import as_member
from lensjax.train.replay import Replayed

Array = NDArray[np.floating]

KERNEL, BIAS = "head.linear.kernel", "head.linear.bias"
# Nats per squared change of a weight, for features of unit spread: from next to no restraint to
# next to no change.
PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4)
OF_SKY = 1000
"""Cutouts of the replayed sky that say how far features spread."""
AT_ONCE = 64


class Change(NamedTuple):
    """What is added to the weights (feature,) and the bias of a last layer."""

    weights: Array
    bias: float


def learn_head(
    start: Path, info: MemberInfo, seed: int, training: Replayed, validation: Replayed
) -> Member:
    """Returns the member in `start` with a last layer that has learned from the graded cutouts of
    `training`. The replayed sky says how far features spread, and calibrates the member together
    with the grades that are held back. `info` is what is known of the member before."""
    held = checkpoint.load_member(start)
    held = dataclasses.replace(held, info=info)
    graded, count = training.graded, len(training)
    of_sky = np.unique(np.linspace(graded, count - 1, OF_SKY, dtype=int))
    sky = features_of(held, training.transform, training.take(of_sky))
    centre, spread = sky.mean(axis=0), sky.std(axis=0)
    spread[spread == 0] = np.inf
    seen_graded = training.take(np.arange(graded))
    found = features_of(held, training.transform, seen_graded)
    change = learned(
        (found - centre) / spread,
        logits_of(held.state, found),
        *(seen_graded.labels, seen_graded.weights, seen_graded.group),
    )
    added = change.weights / spread
    state = held.state | {
        KERNEL: (held.state[KERNEL] + added[:, None]).astype(np.float32),
        BIAS: (held.state[BIAS] + change.bias - centre @ added).astype(np.float32),
    }
    logits = logits_of(state, features_of(held, validation.transform, validation))
    return as_member(info, state, logits, seed, validation, validation.pixel_statistics())


def features_of(member: Member, transform: Transform, data: Labelled) -> Array:
    """Returns the features (n, feature) float64 that a member makes of cutouts as a transform shows
    them."""
    model = member.info.abstract_model()
    network = nnx.merge(nnx.graphdef(model), checkpoint.nnx_state(model, member.state))

    @jax.jit
    def features(images: np.ndarray, brightness: np.ndarray) -> jax.Array:
        return network.features(seen(transform, images, brightness))

    batches = data.in_order(min(AT_ONCE, len(data)))
    parts = [np.asarray(features(batch["images"], batch["brightness"])) for batch in batches]
    return np.concatenate(parts)[: len(data)].astype(np.float64)


def logits_of(state: State, features: Array) -> Array:
    """Returns the logits (n,) float64 that the last layer makes of features (n, feature), without
    dropout."""
    return np.asarray(features @ state[KERNEL][:, 0] + state[BIAS][0], np.float64)


def learned(features: Array, logits: Array, labels: Array, weights: Array, groups: Array) -> Change:
    """Returns the change of a last layer for features (n, feature) of about unit spread.

    Maximum a posteriori: `logits` (n,) are what the layer gave, labels (n,) are 0 or 1 and count by
    their weights (n,), relative to their mean, and the change of each weight has a Gaussian prior
    around 0. Its width is the one of PENALTIES by which grades that are left out, whole groups at a
    time, are told best.
    """
    weights = weights / weights.mean()
    fold = np.unique(groups, return_inverse=True)[1] % calibration.FOLDS

    def loss_left_out(penalty: float) -> float:
        losses = 0.0
        for own in (fold == number for number in np.unique(fold)):
            change = _fitted(features[~own], logits[~own], labels[~own], weights[~own], penalty)
            there = logits[own] + features[own] @ change.weights + change.bias
            losses += float(weights[own] @ calibration.object_loss(there, labels[own]))
        return losses

    return _fitted(features, logits, labels, weights, min(reversed(PENALTIES), key=loss_left_out))


def _fitted(
    features: Array, logits: Array, labels: Array, weights: Array, penalty: float
) -> Change:
    def loss(change: Array) -> tuple[float, Array]:
        there = logits + features @ change[:-1] + change[-1]
        pull = weights * (expit(there) - labels)
        value = weights @ calibration.object_loss(there, labels)
        value += penalty * np.square(change[:-1]).sum() / 2
        return value, np.append(features.T @ pull + penalty * change[:-1], pull.sum())

    found = minimize(loss, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return Change(found[:-1], float(found[-1]))
