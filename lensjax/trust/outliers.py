"""Which cutouts are unlike those that the members were calibrated on: artefacts, other surveys.

The score is of a few statistics of the pixels. The members' features were tried, alone and beside
them, and told none of these apart that the pixels do not.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lensjax.data.pixel_statistics import STATISTICS
from lensjax.errors import UsageError
from lensjax.intervals import share_interval
from lensjax.trust.run import Said

LEAST_REFERENCE = 20
UNLIKE = 0.01
"""A cutout is said to be unlike the reference where its p-value is at most this."""

# Added before the logarithm is taken: shares and heights may be zero.
_ADDED = {
    **dict.fromkeys(("equal", "signal", "dark", "one_band"), 1e-3),
    **{"plateau": 0.01, "middle": 0.05, "column": 1.0},
}
_KIND = list(STATISTICS).index("picture")
# A run differs where so large a share of its cutouts lies outside the central part of calibration's
# that holds all but TAILS of them, by at least this factor of that range's limits.
TAILS, DIFFERS, FACTOR = 0.02, 0.25, 1.5


class Outliers(NamedTuple):
    """distance: (n,) of Mahalanobis; p_value: (n,) the share of such cutouts as the reference that
    lie at least as far. NaN where a feature is."""

    distance: NDArray[np.float64]
    p_value: NDArray[np.float64]


def outlier_scores(
    reference_features: NDArray[np.floating], features: NDArray[np.floating], seed: int = 0
) -> Outliers:
    """Returns how far features (n, feature) lie from those of reference cutouts (m, feature).

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


def said(pixels: NDArray[np.floating], reference: NDArray[np.floating] | None) -> Said:
    """Returns what a run says of how unlike its cutouts are: columns of the `pixels`' STATISTICS
    (n, statistic), NaN where a cutout is not readable.

    The `reference` (m, statistic) are those that the members' calibration knew. Without it, the run
    itself is the reference: then p-values only rank its cutouts. Without enough of either, or any
    cutout, nothing is said.
    """
    readable = np.isfinite(pixels).all(axis=1)
    known = reference is not None and len(reference) >= LEAST_REFERENCE
    like = reference if reference is not None and known else pixels[readable]
    if len(like) < LEAST_REFERENCE or not readable.any():
        return Said({}, {}, [])
    found = Outliers(*np.full((2, len(pixels)), np.nan))
    kinds = list(of_one_kind(pixels, like))
    for rows, alike in kinds:
        of_kind = outlier_scores(features_of(alike), features_of(pixels[rows]))
        found.distance[rows], found.p_value[rows] = of_kind
    columns = {
        "outlier_distance": np.ma.masked_invalid(found.distance.astype(np.float32)),
        "outlier_p_value": np.ma.masked_invalid(found.p_value.astype(np.float32)),
    }
    unlike = int((found.p_value[readable] <= UNLIKE).sum())
    record: dict[str, Any] = {"reference": "validation data" if known else "this run"}
    compared = np.concatenate([alike for _, alike in kinds] or [like])
    record |= {"reference_cutouts": len(compared), "pixels": _medians(pixels[readable])}
    if known:
        record |= {"unlike": unlike, "reference_pixels": _medians(compared)}
        note = (
            f"{unlike:,} of {readable.sum():,} cutouts are unlike the members' validation data "
            f"(`outlier_p_value` of at most {UNLIKE}, as a share {UNLIKE} of similar cutouts has)"
        )
    else:
        note = (
            "`outlier_p_value` compares cutouts with the others of this run: the members keep no "
            "statistics, or those of another version, of the pixels that they were calibrated on "
            "(import_weights.py --calibrated-on adds them)"
        )
    return Said(columns, {"outliers": record}, [note], unlike_pixels(pixels, reference))


def of_one_kind(
    pixels: NDArray[np.floating], reference: NDArray[np.floating]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.floating]]]:
    """Yields which cutouts (n,) are fluxes, and which pictures, by STATISTICS (n, statistic), and
    with what of a reference (m, statistic) they are to be compared: with its cutouts of that kind,
    or with all where these are too few."""
    for kind in np.unique(pixels[np.isfinite(pixels).all(axis=1), _KIND]):
        alike = reference[reference[:, _KIND] == kind]
        yield pixels[:, _KIND] == kind, alike if len(alike) >= LEAST_REFERENCE else reference


def features_of(pixels: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns STATISTICS (n, statistic) on a scale where distances mean something: logarithms,
    without the kind of the cutout."""
    added = [_ADDED.get(name, 0.0) for name in STATISTICS]
    return np.log(np.delete(np.asarray(pixels, np.float64) + added, _KIND, axis=1))


def unlike_pixels(
    pixels: NDArray[np.floating], reference: NDArray[np.floating] | None
) -> list[str]:
    """Returns warnings where STATISTICS of a run (n, statistic) differ from those (m, statistic)
    that the members' calibration knew: one for fluxes, and one for pictures.

    One differs where clearly more than DIFFERS of the run's cutouts, by the lower 95 % limit of
    Clopper & Pearson, lie outside the range that holds all but TAILS of the reference, by FACTOR:
    what is rounded is no difference.
    """
    if reference is None or len(reference) < LEAST_REFERENCE:
        return []
    kinds = of_one_kind(pixels, reference)
    different = ["; ".join(_different(pixels[rows], alike)) for rows, alike in kinds]
    return [
        f"the pixels differ from those of the members' validation data in {statistics}: "
        "probabilities and what is certified by validation may not hold here; check --bands and "
        "--pixel-scale, and calibrate on labelled cutouts of this survey"
        for statistics in different
        if statistics
    ]


def _different(pixels: NDArray[np.floating], reference: NDArray[np.floating]) -> list[str]:
    """Returns which STATISTICS of cutouts (n, statistic) differ from a reference, in words."""
    low, high = np.quantile(reference, (TAILS / 2, 1 - TAILS / 2), axis=0)
    added = np.array([_ADDED.get(name, 0.0) for name in STATISTICS])
    is_low = pixels + added < (low + added) / FACTOR
    is_high = pixels + added > (high + added) * FACTOR
    least, _ = share_interval((is_low | is_high).sum(axis=0), len(pixels))
    middle = np.median(pixels, axis=0)
    return [
        f"{meaning} ({middle[n]:.2g}, there {low[n]:.2g} to {high[n]:.2g})"
        for n, meaning in enumerate(STATISTICS.values())
        if np.asarray(least)[n] > DIFFERS
    ]


def _medians(pixels: NDArray[np.floating]) -> Mapping[str, float]:
    return dict(zip(STATISTICS, np.median(pixels, axis=0).tolist(), strict=True))
