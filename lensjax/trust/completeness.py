"""Cuts that keep a stated share of the lenses, from lenses whose scores are known."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[Any]


class Cut(NamedTuple):
    """Keep what scores at least `score`: it is the `place`-th lowest of `lenses` lenses."""

    score: float
    place: int
    lenses: int


class TooFewLenses(ValueError):
    """No cut but the lowest keeps the promise with so few calibration lenses."""


def cut(lenses: ArrayLike, completeness: float, *, confidence: float = 0.95) -> Cut:
    """Returns the highest cut that keeps a share `completeness` of such lenses with probability
    `confidence`, over the draw of the calibration `lenses` (n,).

    It is their k-th lowest score, with k the largest for which a binomial variable of n and
    1 - completeness is below k with a probability of at most 1 - confidence (Wilks 1941, Annals of
    Mathematical Statistics 12, 91). NaN counts as the lowest score. Raises TooFewLenses where there
    is no such k: with fewer than 29 lenses for 90 %, 299 for 99 %.
    """
    scores = np.asarray(lenses, np.float64)
    scores = np.sort(np.where(np.isnan(scores), -np.inf, scores))
    place = _place(scores.size, completeness, 1 - confidence)
    if not place:
        raise TooFewLenses(
            f"{scores.size} lenses are too few to keep {completeness:.4g} of them with a "
            f"confidence of {confidence:.4g}: it takes {needed(completeness, confidence)}"
        )
    return Cut(float(scores[place - 1]), place, scores.size)


def cut_of_strata(
    strata: Mapping[str, ArrayLike], completeness: float, *, confidence: float = 0.95
) -> tuple[Cut, dict[str, Cut]]:
    """Returns the cut that keeps a share `completeness` of the lenses of every stratum at once, and
    the cut of each; the first is the lowest of these.

    Each has an equal part of the chance to fail (Bonferroni). Raises TooFewLenses, naming the
    stratum that has too few.
    """
    share = 1 - (1 - confidence) / max(len(strata), 1)
    cuts = {}
    for name, lenses in strata.items():
        try:
            cuts[name] = cut(lenses, completeness, confidence=share)
        except TooFewLenses as error:
            raise TooFewLenses(f"{name}: {error}") from None
    return min(cuts.values()), cuts


def needed(completeness: float, confidence: float = 0.95) -> int:
    """Returns how many calibration lenses it takes to promise anything."""
    return int(np.ceil(np.log(1 - confidence) / np.log(completeness)))


def _place(lenses: int, completeness: float, failure: float) -> int:
    """Returns the largest k with P(Bin(lenses, 1 - completeness) <= k - 1) <= failure."""
    if not lenses:
        return 0
    place = int(stats.binom.ppf(failure, lenses, 1 - completeness))
    return place + bool(stats.binom.cdf(place, lenses, 1 - completeness) <= failure)
