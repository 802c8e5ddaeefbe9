"""The selection function against known truths."""

import json

import numpy as np
import pytest
from scipy import stats
from scipy.interpolate import BSpline
from scipy.special import expit

from lensjax.errors import LensjaxError, UsageError
from lensjax.results import to_json
from lensjax.trust import selection


def drawn(rng, count):
    return {
        "theta_e": 10 ** rng.uniform(-0.3, 0.5, count),
        "arc_snr": 10 ** rng.uniform(0.7, 2.0, count),
        "lens_mag": rng.normal(19.5, 1.0, count),
    }


def truth(lenses):
    """An efficiency that rises, saturates below one, and depends on magnitude by radius."""
    radius, snr = np.log10(lenses["theta_e"]) - 0.1, np.log10(lenses["arc_snr"]) - 1.2
    faint = lenses["lens_mag"] - 19.5
    logit = 4 * np.tanh(2.5 * radius) + 5 * np.tanh(1.5 * snr) - 0.5 * faint**2
    return 0.97 * expit(logit + 1.5 * radius * faint - 1)


def linear_interval(points, found, at):
    """The 95 % interval of logistic regression on the bare coordinates, by Newton's method."""
    design, there = (np.column_stack([np.ones(len(x)), x - points.mean(0)]) for x in (points, at))
    coefficients = np.zeros(4)
    for _ in range(25):
        chance = expit(design @ coefficients)
        hessian = design.T @ (design * (chance * (1 - chance))[:, None])
        coefficients += np.linalg.solve(hessian, design.T @ (found - chance))
    width = 1.96 * np.sqrt(np.einsum("ni,ij,nj->n", there, np.linalg.inv(hessian), there))
    return expit(there @ coefficients - width), expit(there @ coefficients + width)


def test_the_surface_covers_a_truth_that_a_linear_one_does_not():
    rng = np.random.default_rng(1)
    covered, by_linear = [], []
    for _ in range(8):
        lenses, at = drawn(rng, 1500), drawn(rng, 150)
        found, real = rng.random(1500) < truth(lenses), truth(at)
        _, low, high = selection.fit_surface(lenses, found).efficiency(at)
        inside = ~np.isnan(low)
        covered.append(((low <= real) & (real <= high))[inside].mean())
        low, high = linear_interval(selection.scaled(lenses), found, selection.scaled(at))
        by_linear.append(((low <= real) & (real <= high)).mean())
    assert np.mean(covered) >= 0.9
    assert np.mean(by_linear) < 0.6


@pytest.fixture(scope="module")
def injections():
    rng = np.random.default_rng(2)
    lenses = drawn(rng, 800)
    # Bright lenses have large Einstein radii: some bins are nearly empty.
    lenses["lens_mag"] = 19.5 - 4 * np.log10(lenses["theta_e"]) + rng.normal(0, 0.15, 800)
    return lenses, rng.random(800) < truth(lenses)


@pytest.fixture(scope="module")
def surface(injections):
    return selection.fit_surface(*injections)


def test_bins_are_exact_binomial_intervals_and_blank_where_few(injections):
    lenses, found = injections
    bins = selection.bins(lenses, found)
    assert len(bins) == 27 and bins["injected"].sum() == 800 and bins["found"].sum() == found.sum()
    blank = bins["injected"] < 10
    assert 0 < blank.sum() < 20
    for name in ("efficiency", "low", "high", "theta_e_median"):
        np.testing.assert_array_equal(np.isnan(bins[name]), blank)
    for row in bins[~blank]:
        exact = stats.binomtest(int(row["found"]), int(row["injected"])).proportion_ci(0.95)
        assert (row["low"], row["high"]) == pytest.approx((exact.low, exact.high), abs=1e-9)
    middle = bins[13]
    inside = np.all([
        (lenses[name] >= middle[f"{name}_low"]) & (lenses[name] < middle[f"{name}_high"])
        for name in lenses
    ], axis=0)  # fmt: skip
    assert (middle["injected"], middle["found"]) == (inside.sum(), found[inside].sum())
    assert middle["arc_snr_median"] == pytest.approx(np.median(lenses["arc_snr"][inside]), 1e-3)


def test_another_program_gets_the_surface_from_the_json(surface, injections):
    said = json.loads(json.dumps(to_json(surface.to_json())))
    at = {name: np.quantile(values, [0.2, 0.5, 0.7]) for name, values in injections[0].items()}
    knots = {axis["name"]: axis["knots"] for axis in said["axes"]}
    scales = {axis["name"]: axis["scale"] for axis in said["axes"]}

    def spline(name, number):
        coefficients = np.zeros(len(knots[name]) - said["degree"] - 1)
        coefficients[number] = 1
        value = np.log10(at[name]) if scales[name] == "log10" else at[name]
        return BSpline(knots[name], coefficients, said["degree"])(value)

    terms = np.array([np.prod([np.ones(3), *(spline(*each) for each in term)], axis=0)
                      for term in said["terms"]])  # fmt: skip
    logit = said["coefficients"] @ terms
    width = 1.959964 * np.sqrt(np.einsum("in,ij,jn->n", terms, said["covariance"], terms))
    value, low, high = surface.efficiency(at)
    np.testing.assert_allclose(value, expit(logit), rtol=1e-9)
    np.testing.assert_allclose(low, expit(logit - width), rtol=1e-9)
    np.testing.assert_allclose(high, expit(logit + width), rtol=1e-9)


def test_the_fit_is_where_the_penalised_likelihood_is_flat(surface, injections):
    lenses, found = injections
    design = surface.design(selection.scaled(lenses))
    chance = expit(design @ surface.coefficients)
    penalty = np.append(0, 0.1 * surface.coefficients[1:])
    np.testing.assert_allclose(design.T @ (found - chance), penalty, atol=1e-4)


def test_outside_of_what_was_injected_nothing_is_said(surface, injections):
    lenses = {name: np.array([np.median(values)] * 2) for name, values in injections[0].items()}
    lenses["theta_e"][1] = 1.01 * injections[0]["theta_e"].max()
    for values in surface.efficiency(lenses):
        assert np.isnan(values).tolist() == [False, True]


def test_too_few_are_refused():
    lenses = drawn(np.random.default_rng(0), 300)
    alternating = np.arange(300) % 2 == 0
    with pytest.raises(LensjaxError, match="269 injections .* 270 are needed"):
        selection.fit_surface({k: v[:269] for k, v in lenses.items()}, alternating[:269])
    for found in (np.arange(300) < 9, np.arange(300) >= 9):
        with pytest.raises(LensjaxError, match="of 300 injections .* another --cut"):
            selection.fit_surface(lenses, found)
    lenses["lens_mag"] = np.repeat([18.0, 19.0, 20.0], 100)
    with pytest.raises(LensjaxError, match="values of lens_mag: .* more galaxies"):
        selection.fit_surface(lenses, alternating)


def test_real_lenses_are_told_from_others_but_not_from_their_like():
    rng = np.random.default_rng(0)
    injected, groups = rng.normal(size=(300, 20)), np.arange(300) // 3
    injected[5, 2] = np.nan
    like = selection.told_apart(injected, groups, rng.normal(size=(60, 20)))
    unlike = selection.told_apart(injected, groups, rng.normal(1.0, size=(60, 20)))
    assert 0.35 < like.value < 0.65 and like.low < 0.5
    assert unlike.low > 0.95 and unlike.low <= unlike.value <= unlike.high
    with pytest.raises(UsageError, match="9 lenses can be read"):
        selection.told_apart(injected, groups, np.zeros((9, 20)))
