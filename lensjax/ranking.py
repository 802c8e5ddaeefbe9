"""Seven metrics of objects that are there several times over: what resampling takes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
NAMES = (
    *("auroc", "average_precision", "tpr0", "tpr10"),
    *("expected_calibration_error", "log_loss", "brier"),
)

Array = NDArray[Any]


def bin_of(scores: Array) -> Array:
    """Returns the bin of probability (n,) of each score, of BINS of equal width."""
    return np.digitize(scores, np.linspace(0, 1, BINS + 1)[1:-1])


def resampler(lens: Array, unit: Array) -> Callable[[np.random.Generator], Array]:
    """Returns a function that draws how often (n,) each object is there in a resample.

    Whole units are drawn: `unit` (n,) int says which an object is of. Those of lenses alone, of
    others alone and of both are drawn apart, so that the number of each stays (Efron and Tibshirani
    1993, section 8.3).
    """
    # Numbered as they come: what is drawn does not depend on their names.
    _, first, unit = np.unique(unit, return_index=True, return_inverse=True)
    unit = np.argsort(np.argsort(first))[unit]
    kind = np.zeros((2, first.size), bool)
    kind[0, unit[lens]] = kind[1, unit[~lens]] = True
    strata = [np.flatnonzero((kind[0] == a) & (kind[1] == b)) for a, b in ((1, 0), (1, 1), (0, 1))]

    def draw(rng: np.random.Generator) -> Array:
        count = np.zeros(kind.shape[1])
        for units in filter(len, strata):
            count[units] = np.bincount(rng.integers(units.size, size=units.size), None, units.size)
        return count[unit]

    return draw


class Ranked:
    """Lenses (P,) and others (Q,), each from best to worst, and what each object adds to the
    metrics: all that is needed to resample them, 1,000 times in seconds where there are 100,000."""

    def __init__(self, scores: Array, lens: Array) -> None:
        """Takes probabilities (n,) and whether each object is a lens (n,) bool."""
        # Lenses first, each kind from best to worst.
        self._order = np.lexsort([-scores, ~lens])
        sizes = int(lens.sum()), int((~lens).sum())
        self._sizes = sizes
        lenses, others = np.split(-scores[self._order], sizes[:1])
        self._others_above = np.searchsorted(others, lenses, "left")
        self._others_level = np.searchsorted(others, lenses, "right")
        self._lenses_level = np.searchsorted(lenses, lenses, "right")
        # The last is of the place below all others.
        self._lenses_above = np.append(np.searchsorted(lenses, others, "left"), lenses.size)
        probability = -np.append(lenses, others)
        truth = np.repeat([1.0, 0.0], sizes)
        self._bin = bin_of(probability)
        self._gap = probability - truth
        # Kept one rounding step of their own type away from 0 and 1 for the logarithm.
        tiny = np.finfo(scores.dtype).eps
        clipped = np.clip(probability.astype(float), tiny, 1 - tiny)
        self._losses = -np.log(np.where(truth, clipped, 1 - clipped)), self._gap**2

    def metrics(self, weights: Array | None = None) -> Array:
        """Returns the metrics, in the order of `NAMES`, of objects that are there as often as
        `weights` (n,) says; once each by default. NaN where there are none, or only of one kind."""
        if not self._order.size:
            return np.full(len(NAMES), np.nan)
        weights = np.ones(self._order.size) if weights is None else weights[self._order]
        gaps = np.bincount(self._bin, weights * self._gap, BINS)
        # Not by `@`, whose threads would wait for each other where the cores are busy.
        losses = [np.abs(gaps).sum(), *((weights * each).sum() for each in self._losses)]
        return np.append(self._of_ranking(weights), np.divide(losses, weights.sum()))

    def _of_ranking(self, weights: Array) -> list[float]:
        lens_sums, other_sums = (
            np.append(0, np.cumsum(part)) for part in np.split(weights, self._sizes[:1])
        )
        size, others = lens_sums[-1], other_sums[-1]
        if not (size and others):
            return [math.nan] * 4
        lens_weights = weights[: self._sizes[0]]
        above, level = other_sums[self._others_above], other_sums[self._others_level]
        found = lens_sums[self._lenses_level]
        # A lens of weight 0 with nothing at all above it has no precision, and no say.
        precision = found / np.maximum(found + level, 1)
        worst = [np.searchsorted(other_sums[1:], count) for count in (1, 10)]
        return [
            1 - (lens_weights * (above + level)).sum() / (2 * size * others),
            (lens_weights * precision).sum() / size,
            *lens_sums[self._lenses_above[worst]] / size,
        ]
