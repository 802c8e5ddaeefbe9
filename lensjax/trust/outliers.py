"""How far cutouts lie from those that an ensemble knows, by the features of its members."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lensjax.errors import UsageError

LEAST_REFERENCE = 20


class Outliers(NamedTuple):
    """distance: (n,) of Mahalanobis; p_value: (n,) the share of such cutouts as the reference that
    lie at least as far. NaN where a feature is."""

    distance: NDArray[np.float64]
    p_value: NDArray[np.float64]


def outlier_scores(
    reference_features: NDArray[np.floating], features: NDArray[np.floating], seed: int = 0
) -> Outliers:
    """Returns how far features (n, feature) lie from those of reference cutouts (m, feature), as
    `ensemble.features.member_features` gives them: of one member, or of several side by side.

    Lee et al. (2018), without classes: d^2 = (x - mean)^T C^-1 (x - mean), where C is the
    covariance shrunk as in Ledoit & Wolf (2004), of standardised features. One half of the
    reference, drawn at random, gives mean and covariance; the other gives the distances that
    p = (1 + number at least as far) / (1 + number) counts, for those that the covariance was fitted
    to lie too near. Of cutouts like the reference, p is at most a with a chance of at most a (Bates
    et al. 2023).

    Raises UsageError where fewer than LEAST_REFERENCE reference cutouts have features.
    """
    from sklearn.covariance import LedoitWolf

    reference = np.asarray(reference_features, np.float64)
    reference = reference[np.isfinite(reference).all(axis=1)]
    if len(reference) < LEAST_REFERENCE:
        raise UsageError(
            f"{len(reference)} reference cutouts can be read: at least {LEAST_REFERENCE} are needed"
        )
    order = np.random.default_rng(seed).permutation(len(reference))
    fitted, others = np.array_split(reference[order], 2)
    scale = fitted.std(axis=0)
    scale[scale == 0] = 1.0  # of features that never change
    model = LedoitWolf().fit(fitted / scale)

    def distance(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sqrt(model.mahalanobis(values / scale))

    known = np.sort(distance(others))
    values = np.asarray(features, np.float64)
    readable = np.isfinite(values).all(axis=1)
    found = np.full(len(values), np.nan)
    if readable.any():
        found[readable] = distance(values[readable])
    farther = len(known) - np.searchsorted(known, found, "left")
    p_value = (1 + farther) / (1 + len(known))
    return Outliers(found, np.where(readable, p_value, np.nan))
