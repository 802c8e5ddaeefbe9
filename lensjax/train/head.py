"""Learning the last layer alone, from a few hundred graded cutouts: a logistic regression on the
features that the network makes of them, around what the layer was.

So few grades do harm where they move all weights of a network (Kumar et al. 2022,
arXiv:2202.10054), and this takes seconds.
"""

import dataclasses
from collections.abc import Iterator
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
OF_BIAS = 1e-3  # keeps it finite where all grades are alike
AT_ONCE = 64


class Grades(NamedTuple):
    """Graded cutouts: `features` (n, feature) of about unit spread, the `logits` (n,) that the last
    layer gave, `labels` (n,) 0 or 1, by what `weights` (n,) they count, and their `groups` (n,)."""

    features: Array
    logits: Array
    labels: Array
    weights: Array
    groups: np.ndarray

    def take(self, rows: np.ndarray) -> "Grades":
        """Returns some of them."""
        return Grades(*(values[rows] for values in self))

    def folds(self) -> Iterator[np.ndarray]:
        """Yields which rows (n,) bool to hold back: all once, whole groups at a time."""
        fold = np.unique(self.groups, return_inverse=True)[1] % calibration.FOLDS
        yield from (fold == number for number in np.unique(fold))


class Change(NamedTuple):
    """What is added to the weights (feature,) and the bias of a last layer."""

    weights: Array
    bias: float

    def of_logits(self, features: Array) -> Array:
        """Returns what is added to the logits (n,) of features (n, feature)."""
        return np.asarray(features @ self.weights + self.bias)


def learn_head(start: Path, info: MemberInfo, seed: int, data: Replayed) -> Member:
    """Returns the member in `start` with a last layer that has learned from all graded cutouts of
    `data`. `info` is what is known of the member before.

    The sky is not learned: it says how far features spread, and calibrates the member together with
    the grades. Each of these validates what was learned from others.
    """
    held = dataclasses.replace(checkpoint.load_member(start), info=info)
    features = features_of(held, data.transform, data)
    before, sky = logits_of(held.state, features), features[data.graded :]
    centre, spread = sky.mean(axis=0), sky.std(axis=0)
    spread[spread == 0] = np.inf
    features = (features - centre) / spread
    of_cutouts = (features, before, data.labels, data.weights, data.group)
    grades = Grades(*(values[: data.graded] for values in of_cutouts))
    change = learned(grades)
    logits = before + change.of_logits(features)
    of_grades = logits[: data.graded]  # a view
    for own in grades.folds():
        # The bias of all: folds are then compared by what tells cutouts apart.
        others = learned(grades.take(~own))._replace(bias=change.bias)
        of_grades[own] = grades.logits[own] + others.of_logits(grades.features[own])
    added = change.weights / spread
    state = held.state | {
        KERNEL: (held.state[KERNEL] + added[:, None]).astype(np.float32),
        BIAS: (held.state[BIAS] + change.bias - centre @ added).astype(np.float32),
    }
    return as_member(info, state, logits, seed, data, data.pixel_statistics())


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


def learned(grades: Grades) -> Change:
    """Returns the change of a last layer that is the likeliest after the grades.

    Labels count by their weights, relative to the mean of these, and each weight of the layer has a
    Gaussian prior around what it was. Its width is the one of PENALTIES by which grades that are
    held back are told best.
    """
    grades = grades._replace(weights=grades.weights / grades.weights.mean())

    def loss_held_back(penalty: float) -> float:
        return sum(
            _loss(grades.take(own), _fitted(grades.take(~own), penalty)) for own in grades.folds()
        )

    # The firmest of equals.
    return _fitted(grades, min(reversed(PENALTIES), key=loss_held_back))


def _loss(grades: Grades, change: Change) -> float:
    logits = grades.logits + change.of_logits(grades.features)
    return float(grades.weights @ calibration.object_loss(logits, grades.labels))


def _fitted(grades: Grades, penalty: float) -> Change:
    penalties = np.append(np.full(grades.features.shape[1], penalty), OF_BIAS)

    def loss(values: Array) -> tuple[float, Array]:
        change = Change(values[:-1], float(values[-1]))
        logits = grades.logits + change.of_logits(grades.features)
        pull = grades.weights * (expit(logits) - grades.labels)
        gradient = np.append(grades.features.T @ pull, pull.sum()) + penalties * values
        return _loss(grades, change) + float(penalties @ values**2) / 2, gradient

    found = minimize(loss, np.zeros(len(penalties)), jac=True, method="L-BFGS-B").x
    return Change(found[:-1], float(found[-1]))
