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
from threadpoolctl import threadpool_limits

from lensjax.data.on_device import Transform, seen
from lensjax.ensemble import calibration, checkpoint
from lensjax.ensemble.checkpoint import Member, MemberInfo, State
from lensjax.train.data import Labelled
from lensjax.train.finish import as_member
from lensjax.train.known_pixels import PICTURE, known_pixels
from lensjax.train.replay import Replayed

Array = NDArray[np.floating]

KERNEL, BIAS = "head.linear.kernel", "head.linear.bias"
# Nats per squared change of a weight, for features of unit spread. With less than the first, what
# no grade is like may come to lead the list.
PENALTIES = (30.0, 100.0, 300.0, 1e3, 1e4)
OF_BIAS = 1e-3  # keeps it finite where all grades are alike
# Cutouts of the replayed sky that are learned beside the grades, and the weight of all of them over
# that of these: chosen by simulated rounds, in which more cost lenses and none let some lists fail.
OF_SKY, WEIGHT_OF_SKY = 1000, 0.25
AT_ONCE = 64


class Known(NamedTuple):
    """Cutouts whose labels are known: `features` (n, feature) of about unit spread, the `logits`
    (n,) that the last layer gave, `labels` (n,) 0 or 1, by what `weights` (n,) they count, and
    their `groups` (n,)."""

    features: Array
    logits: Array
    labels: Array
    weights: Array
    groups: np.ndarray

    def take(self, rows: np.ndarray) -> "Known":
        """Returns some of them."""
        return Known(*(values[rows] for values in self))

    def folds(self) -> Iterator[np.ndarray]:
        """Yields which rows (n,) bool to hold back: all once, whole groups at a time."""
        fold = np.unique(self.groups, return_inverse=True)[1] % calibration.FOLDS
        yield from (fold == number for number in np.unique(fold))


class Change(NamedTuple):
    """What is added to the weights (feature,) and the bias of a last layer."""

    weights: Array
    bias: float


def learn_head(start: Path, info: MemberInfo, seed: int, data: Replayed) -> Member:
    """Returns the member in `start` with a last layer that has learned from all graded cutouts of
    `data`. `info` is what is known of the member before.

    Each of these validates what was learned from others. The sky, of which little is learned, says
    how far features spread, and calibrates the member together with the grades.
    """
    held = dataclasses.replace(checkpoint.load_member(start), info=info)
    features = features_of(held, data.transform, data)
    of_sky = features[data.graded :]
    centre, spread = of_sky.mean(axis=0), of_sky.std(axis=0)
    spread[spread == 0] = np.inf
    known = Known(
        (features - centre) / spread,
        logits_of(held.state, features),
        *(data.labels, data.weights, data.group),
    )
    grades = known.take(np.arange(data.graded))
    sky = known.take(np.unique(np.linspace(data.graded, len(data) - 1, OF_SKY, dtype=int)))
    # Products so small are slower with threads, which wait for each other.
    with threadpool_limits(1):
        change = learned(grades, sky)
        folds = [(own, learned(grades.take(~own), sky)) for own in grades.folds()]
    logits = known.logits + known.features @ change.weights + change.bias
    of_grades = logits[: data.graded]  # a view
    for own, others in folds:
        # The bias of all: folds are then compared by what tells cutouts apart.
        of_grades[own] = grades.logits[own] + grades.features[own] @ others.weights + change.bias
    added = change.weights / spread
    state = held.state | {
        KERNEL: (held.state[KERNEL] + added[:, None]).astype(np.float32),
        BIAS: (held.state[BIAS] + change.bias - centre @ added).astype(np.float32),
    }
    # What the features know stays known.
    knows_pictures = held.pixels is not None and bool(held.pixels[:, PICTURE].any())
    pixels = known_pixels(data, knows_pictures)
    return as_member(info, state, logits, seed, data, pixels)


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


def learned(grades: Known, sky: Known) -> Change:
    """Returns the change of a last layer that is the likeliest after the grades, and after a sky
    which has another share of lenses: its cutouts do without the change of the bias.

    Labels count by their weights, relative to the mean of these, and each weight of the layer has a
    Gaussian prior around what it was. Its width is the one of PENALTIES by which grades that are
    held back are told best.
    """
    grades = grades._replace(weights=grades.weights / grades.weights.mean())
    sky = sky._replace(weights=np.full(len(sky.labels), WEIGHT_OF_SKY / len(sky.labels)))

    def loss_held_back(penalty: float) -> float:
        losses = 0.0
        for own in grades.folds():
            change = _fitted(grades.take(~own), sky, penalty)
            losses += _loss(grades.take(own), change.weights, change.bias)[0]
        return losses

    # The firmest of equals.
    return _fitted(grades, sky, min(reversed(PENALTIES), key=loss_held_back))


def _fitted(grades: Known, sky: Known, penalty: float) -> Change:
    sky = sky._replace(weights=sky.weights * grades.weights.sum())
    penalties = np.append(np.full(grades.features.shape[1], penalty), OF_BIAS)

    def loss(values: Array) -> tuple[float, Array]:
        of_grades, gradient = _loss(grades, values[:-1], float(values[-1]))
        of_sky, gradient_of_sky = _loss(sky, values[:-1], 0.0)
        gradient[:-1] += gradient_of_sky[:-1]
        value = of_grades + of_sky + float(penalties @ values**2) / 2
        return value, gradient + penalties * values

    found = minimize(loss, np.zeros(len(penalties)), jac=True, method="L-BFGS-B").x
    return Change(found[:-1], float(found[-1]))


def _loss(known: Known, weights: Array, bias: float) -> tuple[float, Array]:
    """Returns the loss of a change in nats, and its gradient by the weights and the bias."""
    logits = known.logits + known.features @ weights + bias
    pull = known.weights * (expit(logits) - known.labels)
    value = known.weights @ calibration.object_loss(logits, known.labels)
    return float(value), np.append(known.features.T @ pull, pull.sum())
