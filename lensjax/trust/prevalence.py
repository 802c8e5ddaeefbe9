"""What a score says at the prevalence of a survey, where lenses are rarer than in any labelled set.

A calibrated logit is the log-odds at the prevalence of the validation data. The log likelihood
ratio is what the cutout itself says; together with the survey's prevalence it gives the probability
there (Saerens et al. 2002, Neural Computation 14, 21, eq. 4). That is exact as long as lenses and
non-lenses look as they did in the validation data.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from lensjax.intervals import share_interval

Array = NDArray[Any]


class Counts(NamedTuple):
    """How many lenses and others logits were calibrated on."""

    lenses: int
    others: int


def log_likelihood_ratio(logit: ArrayLike, counts: Counts) -> tuple[Array, Array]:
    """Returns ln(p(cutout | lens) / p(cutout | no lens)) of calibrated log-odds (n,), and whether
    it lies beyond the calibration data, (n,) bool.

    With n1 lenses and n0 others no ratio above n0 + 1 or below 1 / (n1 + 1) can be known: it is
    clipped there, and flagged.
    """
    ratio = np.asarray(logit, np.float64) - math.log(counts.lenses / counts.others)
    low, high = -math.log(counts.lenses + 1), math.log(counts.others + 1)
    return np.clip(ratio, low, high), (ratio < low) | (ratio > high)


def at_prevalence(ratio: ArrayLike, prevalence: float) -> Array:
    """Returns the probability (n,) of log likelihood ratios where a share `prevalence` of all
    cutouts are lenses. Raises ValueError unless it is between 0 and 1."""
    if not 0 < prevalence < 1:
        raise ValueError(f"a prevalence of {prevalence} is none: give one between 0 and 1")
    return special.expit(np.asarray(ratio, np.float64) + special.logit(prevalence))


def estimate(ratio: ArrayLike) -> float:
    """Returns the prevalence at which the log likelihood ratios (n,) of cutouts are most likely,
    where the iteration of Saerens et al. (2002, section 2.2) ends, within one object of 0 and 1.

    It is as good as the ratios: a survey full of what the members take for lenses has many.
    """
    excess = np.expm1(np.asarray(ratio, np.float64))
    least, most = 1 / (excess.size + 1), excess.size / (excess.size + 1)

    def slope(prevalence: float) -> float:
        return float(np.mean(excess / (1 + prevalence * excess)))

    if slope(least) <= 0:
        return least
    return most if slope(most) >= 0 else float(optimize.brentq(slope, least, most))


def interval(
    calibration: ArrayLike,
    scores: ArrayLike,
    lenses: ArrayLike,
    *,
    confidence: float = 0.9,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns bounds of the prevalence of lenses in a survey, each missed with a probability of at
    most (1 - confidence) / 2.

    `calibration` are scores of negatives of the survey itself, `scores` (m,) all of its others,
    `lenses` those of lenses like the survey's. The lower bound is the most that some list must
    hold beside its false positives. The upper one takes each object above the median of the lenses
    for a lens: Poisson's limit on their number, over the exact lower limit of the share of lenses
    found there.
    """
    from lensjax.trust import envelope  # scipy.stats takes a second to import

    survey, found = np.asarray(scores, np.float64), np.asarray(lenses, np.float64)
    side = (1 - confidence) / 2
    most = envelope.false_positives_at_most(calibration, survey, confidence=1 - side, seed=seed)
    ascending = np.sort(survey)
    listed = survey.size - np.searchsorted(ascending, survey, "left")
    low = float(np.max(listed - most, initial=0)) / survey.size
    cut = np.median(found)
    share, _ = share_interval((found >= cut).sum(), found.size, 1 - side)
    number = special.gammaincinv((survey >= cut).sum() + 1, 1 - side / 2)
    return low, min(float(number / (share * survey.size)), 1.0)
