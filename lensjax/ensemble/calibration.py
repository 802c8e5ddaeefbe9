"""Calibration and weights of members, from their validation data. On the host, in float64."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

FOLDS = 5
RIDGE = 1.0
"""Ridge penalty of stacking coefficients (of logits of unit spread) on the distance from their
mean, in nats per unit squared: with few validation objects members count alike, with hundreds the
data decide."""


def object_loss(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the binary cross entropy (n,) in nats of log-odds (n,) against targets in 0..1."""
    return np.logaddexp(0.0, logits) - targets * logits


def platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Returns (slope, intercept) such that slope * logit + intercept are calibrated log-odds.

    Maximum likelihood with Platt's targets, which keep the slope finite where the classes are
    separable. Raises ValueError unless both classes are there.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, bool)
    if labels.all() or not labels.any():
        raise ValueError("calibration needs lenses and non-lenses")
    centre, spread = logits.mean(), _spread(logits)
    slope, intercept = _logistic((logits - centre)[None] / spread, _targets(labels))
    return slope / spread, intercept - slope * centre / spread


class Stacking(NamedTuple):
    """Stacked log-odds are bias + weight @ logits. `share` (member,), summing to one, is how much
    each member contributes: its weight times the spread of its logits."""

    weight: np.ndarray
    bias: float
    share: np.ndarray


def stacking(logits: np.ndarray, labels: np.ndarray) -> Stacking:
    """Returns the Stacking of calibrated log-odds (member, n) that fits the labels (n,) best.

    The weights of the members come from a logistic regression on logits of unit spread with
    non-negative coefficients and a ridge towards equal ones (Wolpert 1992 for stacking, Breiman
    1996 for the non-negative coefficients), over the members that `useful_members` names; the
    others have no share. What their weighted mean says of the odds is Platt's calibration of it:
    the regression alone is sure of all that it has seen where the classes are separable.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, bool)
    kept = useful_members(logits, labels)
    spread = _spread(logits[kept])
    coefficients = _logistic(logits[kept] / spread[:, None], _targets(labels))[:-1] / spread
    of_mean = np.zeros(len(logits))
    of_mean[kept] = coefficients if coefficients.any() else 1.0
    of_mean /= of_mean.sum()
    slope, bias = platt(of_mean @ logits, labels)
    contribution = of_mean * logits.std(axis=1)
    share = contribution / contribution.sum() if contribution.any() else of_mean
    return Stacking(slope * of_mean, bias, share)


def member_stacking(
    slope: Sequence[float],
    intercept: Sequence[float],
    validations: Sequence[Mapping[str, np.ndarray] | None],
) -> tuple[Stacking, str]:
    """Returns the Stacking of members of these calibrations, from the data on which they were
    validated, and where it comes from."""
    labels = shared_labels(validations)
    if labels is None:
        origin = "equal weights: the members share no validation data"
        return equal_stacking(len(validations)), origin
    logits = np.stack([each["logit"] for each in validations if each])
    calibrated = np.c_[slope] * logits + np.c_[intercept]
    return stacking(calibrated, labels), f"stacking on {labels.size} validation objects"


def useful_members(logits: np.ndarray, labels: np.ndarray) -> list[int]:
    """Returns the members, best first, that the stacked score should use.

    A member that is as good as the best, to two standard errors of the loss, is always used:
    averaging peers helps. One that is worse has to lower the cross-validated loss of the stack by
    one standard error (Breiman et al. 1984, "Classification and regression trees", section 3.4.3):
    otherwise its noise would cost the ranking more than it brings.
    """
    losses = np.stack([object_loss(row, labels) for row in logits])
    order = np.argsort(losses.mean(axis=1), kind="stable").tolist()
    kept = order[:1]
    for member in order[1:]:
        if _exceeds_zero(losses[member] - losses[order[0]], by=2):
            without = _cross_validated_loss(logits[kept], labels)
            with_it = _cross_validated_loss(logits[[*kept, member]], labels)
            if not _exceeds_zero(without - with_it, by=1):
                continue
        kept.append(member)
    return kept


def equal_stacking(members: int) -> Stacking:
    """Returns the Stacking of members of which no validation is known: the mean log-odds."""
    equal = np.full(members, 1.0 / members)
    return Stacking(equal, 0.0, equal)


def shared_labels(validations: Sequence[Mapping[str, np.ndarray] | None]) -> np.ndarray | None:
    """Returns the labels (n,) if all members were validated on the same objects, else None."""
    first = validations[0]
    if first is None:
        return None
    same = all(
        other is not None
        and np.array_equal(first["id"], other["id"])
        and np.array_equal(first["label"], other["label"])
        for other in validations
    )
    return first["label"] if same else None


def _spread(logits: np.ndarray) -> np.ndarray:
    """Returns the standard deviation of logits (..., n): infinite where they are all alike but for
    the rounding of float32, so that what is divided by it says nothing."""
    spread = logits.std(axis=-1)
    rounding = np.finfo(np.float32).eps * np.maximum(1.0, np.abs(logits.mean(axis=-1)))
    return np.where(spread > rounding, spread, np.inf)


def _targets(labels: np.ndarray) -> np.ndarray:
    """Returns what is fitted instead of the labels (n,), 1 or 0: (n1 + 1) / (n1 + 2) and
    1 / (n0 + 2) for n1 lenses and n0 others (Platt 1999, section 2.2)."""
    lenses = np.asarray(labels, bool)
    positives, negatives = lenses.sum(), (~lenses).sum()
    return np.where(lenses, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def _logistic(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the coefficients (feature + 1,), the bias last, of logits (feature, n)."""
    features = np.vstack([logits, np.ones(logits.shape[1])])

    def objective(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        fitted = coefficients @ features
        from_mean = coefficients[:-1] - coefficients[:-1].mean()
        loss = object_loss(fitted, targets).sum() + RIDGE * from_mean @ from_mean
        gradient = features @ (expit(fitted) - targets)
        gradient[:-1] += 2 * RIDGE * from_mean
        return loss, gradient

    start = np.append(np.full(len(logits), 1.0 / len(logits)), 0.0)
    bounds = [(0.0, None)] * len(logits) + [(None, None)]
    return minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 2000},
    ).x


def _cross_validated_loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the loss (n,) of each object under the regression on (member, n) fitted without
    it."""
    fold = np.arange(len(labels)) % FOLDS
    losses = np.empty(len(labels))
    for number in range(FOLDS):
        bounds, outside = fold == number, fold != number
        coefficients = _logistic(logits[:, outside], _targets(labels[outside]))
        fitted = coefficients[:-1] @ logits[:, bounds] + coefficients[-1]
        losses[bounds] = object_loss(fitted, labels[bounds])
    return losses


def _exceeds_zero(differences: np.ndarray, by: float) -> bool:
    """Returns whether the mean of differences (n,) is above zero by so many standard errors."""
    return bool(differences.mean() > by * differences.std() / np.sqrt(len(differences)))
