"""The selection function: which lenses a score above a cut finds, by injections.

The efficiency is the share of injected lenses that score above the cut. Exact intervals in bins are
the guarantee; a smooth surface describes what lies between.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from lensjax.errors import LensjaxError, UsageError
from lensjax.intervals import Interval, share_interval
from lensjax.metrics import evaluate

Array = NDArray[Any]


class Axis(NamedTuple):
    """A property of lenses: its column, its unit, and whether its logarithm is taken."""

    name: str
    unit: str
    is_log: bool


AXES = (Axis("theta_e", "arcsec", True), Axis("arc_snr", "", True), Axis("lens_mag", "mag", False))

PARTS = 3  # bins along each axis, of equally many injections
LEAST_IN_BIN = 10
LEAST = LEAST_IN_BIN * PARTS ** len(AXES)
# Cubic splines on six knots an axis; with the products of two axes 169 terms. With four, intervals
# of 10,000 injections miss steps of 0.2 dex.
DEGREE, KNOTS = 3, 6
SPLINES = KNOTS + DEGREE - 2  # without the last, which the others and the constant make up
RIDGE = 0.1
# Half the width of a 95 % interval in standard deviations.
Z95 = 1.959964

# Folds, and injections that real lenses are told from.
FOLDS, MOST_TOLD_APART = 5, 2000


@dataclass(frozen=True)
class Surface:
    """The efficiency as a smooth function of the three AXES.

    Its logit is a sum of `terms`, each a product of B-splines of at most two axes, with these
    `coefficients` (term,) and their `covariance` (term, term). `knots` are the base knots (KNOTS,
    axis), `domain` (axis, 2) the least and the largest injected value; both on the axes' own scale,
    log10 for the first two.
    """

    knots: Array
    domain: Array
    coefficients: Array
    covariance: Array

    @cached_property
    def splines(self) -> Any:
        """Returns scikit-learn's transformer of points (n, axis) to splines (n, axis * spline)."""
        from sklearn.preprocessing import SplineTransformer  # takes half a second to import

        made = SplineTransformer(
            degree=DEGREE, knots=self.knots, include_bias=False, extrapolation="constant"
        )
        return made.fit(self.knots)

    @property
    def terms(self) -> list[list[tuple[str, int]]]:
        """Returns the splines that each term is a product of: axis and number; none is one."""
        splines = [[(axis.name, number) for number in range(SPLINES)] for axis in AXES]
        pairs = itertools.combinations(splines, 2)
        products = [[*both] for one, other in pairs for both in itertools.product(one, other)]
        return [[], *([each] for of_axis in splines for each in of_axis), *products]

    def design(self, points: Array) -> Array:
        """Returns the terms (n, term) at points (n, axis) on the axes' own scale."""
        splines = np.split(self.splines.transform(points), len(AXES), axis=1)
        products = [
            (one[:, :, None] * other[:, None, :]).reshape(len(points), -1)
            for one, other in itertools.combinations(splines, 2)
        ]
        return np.hstack([np.ones((len(points), 1)), *splines, *products])

    def efficiency(self, lenses: Mapping[str, ArrayLike] | Table) -> tuple[Array, Array, Array]:
        """Returns the efficiency (n,) for lenses with the columns of AXES, and both ends of its
        95 % interval; NaN outside of the domain.

        The interval is that of the penalised likelihood's Hessian, symmetric in the logit.
        """
        points = scaled(lenses)
        low, high = self.domain.T
        inside = np.all((points >= low) & (points <= high), axis=1)
        design = self.design(np.where(inside[:, None], points, low))
        logit = design @ self.coefficients
        width = Z95 * np.sqrt(((design @ self.covariance) * design).sum(axis=1))
        value, lower, upper = (
            np.where(inside, expit(logit + shift), np.nan) for shift in (0, -width, width)
        )
        return value, lower, upper

    def to_json(self) -> dict[str, Any]:
        """Returns all that another program needs to compute the efficiency: per axis the scale, the
        domain and the knots of its B-splines, and the terms."""
        axes = [
            {
                "name": axis.name,
                "unit": axis.unit,
                "scale": "log10" if axis.is_log else "linear",
                "domain": domain,
                "knots": splines.t,
            }
            for axis, domain, splines in zip(AXES, self.domain, self.splines.bsplines_, strict=True)
        ]
        return {
            "formula": "logit(efficiency) = sum over terms of coefficient * product of B-splines; "
            "[axis, n] is the n-th B-spline (from 0) on the knots of that axis; the variance of "
            "the logit is terms . covariance . terms",
            "degree": DEGREE,
            "axes": axes,
            "terms": self.terms,
            "coefficients": self.coefficients,
            "covariance": self.covariance,
        }


def scaled(lenses: Mapping[str, ArrayLike] | Table) -> Array:
    """Returns the values (n, axis) float64 of lenses on the axes' own scale."""
    columns = [np.atleast_1d(np.asarray(lenses[axis.name], np.float64)) for axis in AXES]
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = [np.log10(c) if a.is_log else c for a, c in zip(AXES, columns, strict=True)]
    return np.stack(np.broadcast_arrays(*scales), axis=1)


def fit_surface(lenses: Mapping[str, ArrayLike] | Table, found: Array) -> Surface:
    """Returns the surface of injected lenses with the columns of AXES, found (n,) bool or not.

    A logistic regression on B-splines (Eilers & Marx 1996) and their products, with a ridge penalty
    RIDGE / 2 * |coefficients|^2; the covariance is the inverse of the penalised Hessian.

    Raises LensjaxError where fewer than LEAST_IN_BIN are found, or missed, or fewer than LEAST
    injected, or into too few galaxies.
    """
    from sklearn.linear_model import LogisticRegression

    refuse_few(found)
    points = scaled(lenses)
    knots = np.quantile(points, np.linspace(0, 1, KNOTS), axis=0)
    for axis, values in zip(AXES, knots.T, strict=True):
        if (np.diff(values) <= 0).any():
            raise LensjaxError(
                f"the injections have too few different values of {axis.name}: give cutouts of "
                "more galaxies"
            )
    domain = np.stack([points.min(axis=0), points.max(axis=0)], axis=1)
    bare = Surface(knots, domain, np.empty(0), np.empty((0, 0)))
    design = bare.design(points)
    fitted = LogisticRegression(C=1 / RIDGE, solver="newton-cholesky", max_iter=200, tol=1e-8)
    fitted.fit(design[:, 1:], found)
    coefficients = np.append(fitted.intercept_, fitted.coef_[0])
    chance = expit(design @ coefficients)
    hessian = design.T @ (design * (chance * (1 - chance))[:, None])
    hessian += np.diag([0.0, *[RIDGE] * (len(coefficients) - 1)])
    return Surface(knots, domain, coefficients, np.linalg.inv(hessian))


def refuse_few(found: Array) -> None:
    """Raises LensjaxError where injections, found (n,) bool or not, are too few to say anything."""
    hits, count = int(np.sum(found)), len(found)
    if count < LEAST:
        raise LensjaxError(
            f"{count} injections with a score are too few: {LEAST} are needed, 10 for each bin; "
            "give a larger --count"
        )
    if min(hits, count - hits) < LEAST_IN_BIN:
        raise LensjaxError(
            f"{hits} of {count} injections score above the cut: that says nothing about where they "
            "are found and where not; choose another --cut"
        )


def bins(lenses: Mapping[str, ArrayLike] | Table, found: ArrayLike) -> Table:
    """Returns the efficiency in PARTS^3 bins between the quantiles of the injected lenses, found
    (n,) bool or not: for each axis low and high edge (the last one closed) and the median of those
    in the bin, then `injected`, `found`, `efficiency` and the ends `low` and `high` of its exact
    95 % interval (Clopper & Pearson 1934). The median and these three are NaN where fewer than
    LEAST_IN_BIN were injected."""
    points, found = scaled(lenses), np.asarray(found, bool)
    edges = np.quantile(points, np.linspace(0, 1, PARTS + 1), axis=0).T
    place = [
        np.clip(np.searchsorted(edge[1:-1], values, "right"), 0, PARTS - 1)
        for edge, values in zip(edges, points.T, strict=True)
    ]
    number, size = np.ravel_multi_index(place, (PARTS,) * len(AXES)), PARTS ** len(AXES)
    injected = np.bincount(number, minlength=size)
    hits = np.bincount(number[found], minlength=size)
    blank = injected < LEAST_IN_BIN
    columns: dict[str, Array] = {}
    at = np.unravel_index(np.arange(size), (PARTS,) * len(AXES))
    for axis, edge, which, values in zip(AXES, edges, at, points.T, strict=True):
        middle = [
            np.nan if is_blank else np.median(values[number == each])
            for each, is_blank in enumerate(blank)
        ]
        ends = {"low": edge[which], "high": edge[which + 1], "median": np.array(middle)}
        for end, shown in ends.items():
            columns[f"{axis.name}_{end}"] = 10**shown if axis.is_log else shown
    low, high = share_interval(hits, injected)
    shares = {"efficiency": hits / np.maximum(injected, 1), "low": low, "high": high}
    shares = {name: np.where(blank, np.nan, values) for name, values in shares.items()}
    return Table(columns | {"injected": injected, "found": hits} | shares)


def told_apart(injected: Array, groups: Array, real: Array) -> Interval:
    """Returns how well a classifier tells injected lenses from real ones by their features (n,
    feature) and (m, feature): its AUROC with a 95 % bootstrap interval; 0.5 is best.

    A logistic regression, cross-validated in FOLDS; injections of one of the `groups` (n,), as
    those in one host, stay in one fold. Rows with NaN are left out, and all but MOST_TOLD_APART
    injections. Raises UsageError where fewer than ten real lenses can be read.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    shown = np.isfinite(injected).all(axis=1)
    injected, groups = injected[shown][:MOST_TOLD_APART], groups[shown][:MOST_TOLD_APART]
    real = real[np.isfinite(real).all(axis=1)]
    if len(real) < LEAST_IN_BIN:
        raise UsageError(f"--real: {len(real)} lenses can be read, {LEAST_IN_BIN} are needed")
    label = np.repeat([0, 1], [len(injected), len(real)])
    _, number = np.unique(groups, return_inverse=True)
    groups = np.concatenate([number, len(injected) + np.arange(len(real))])
    # A strong ridge: there may be more features than lenses.
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(C=1e-2, class_weight="balanced", max_iter=1000)
    )
    chance = cross_val_predict(
        classifier,
        np.concatenate([injected, real]).astype(np.float64),
        label,
        groups=groups,
        cv=StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0),
        method="predict_proba",
    )
    return evaluate(chance[:, 1], label).auroc
