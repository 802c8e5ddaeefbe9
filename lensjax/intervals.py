"""A value with its interval, and the exact interval of a share."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95

Array = NDArray[Any]


class Interval(NamedTuple):
    """A value and its 95 % interval; all NaN where the labels do not define it."""

    value: float
    low: float
    high: float


UNKNOWN = Interval(np.nan, np.nan, np.nan)


def share_interval(
    found: ArrayLike, of: ArrayLike, confidence: float = CONFIDENCE
) -> tuple[Array, Array]:
    """Returns the exact interval of the share of which `found` in `of` are a sample.

    By Clopper and Pearson (1934, Biometrika 26, 404): either end fails in at most half of
    1 - `confidence`. It is 0 to 1 where nothing was tried.
    """
    from scipy import special

    hits, misses = np.asarray(found, float), np.asarray(of, float) - np.asarray(found, float)
    beyond = (1 - confidence) / 2
    low = special.betaincinv(np.maximum(hits, 1), misses + 1, beyond)
    high = special.betaincinv(hits + 1, np.maximum(misses, 1), 1 - beyond)
    return np.where(hits > 0, low, 0.0), np.where(misses > 0, high, 1.0)
