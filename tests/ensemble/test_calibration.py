"""Calibration and stacking weights against known optima and scikit-learn."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from lensjax.ensemble import calibration


def draw(n: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True log-odds and labels drawn from them."""
    rng = np.random.default_rng(seed)
    odds = 2.0 * rng.standard_normal(n) - 0.5
    return odds, (rng.random(n) < expit(odds)).astype(float)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_platt_finds_the_temperature(temperature):
    odds, label = draw()
    slope, intercept = calibration.platt(odds * temperature + 3.0, label)
    assert slope * temperature == pytest.approx(1.0, rel=0.05)
    assert intercept + 3.0 * slope == pytest.approx(0.0, abs=0.1)


def test_platt_equals_logistic_regression():
    odds, label = draw(5000, seed=1)
    slope, intercept = calibration.platt(7.0 * odds, label)
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(7.0 * odds[:, None], label)
    assert slope == pytest.approx(fitted.coef_[0, 0], rel=1e-2)
    assert intercept == pytest.approx(fitted.intercept_[0], rel=1e-2, abs=1e-2)


def test_platt_stays_finite_where_the_classes_are_separable():
    slope, intercept = calibration.platt(np.array([-3.0, -2.0, 2.0, 3.0]), np.array([0, 0, 1, 1]))
    assert np.isfinite([slope, intercept]).all() and slope > 0


def test_platt_needs_both_classes():
    with pytest.raises(ValueError, match="lenses and non-lenses"):
        calibration.platt(np.zeros(3), np.ones(3))


def test_stacking_equals_logistic_regression_where_the_data_decide():
    odds, label = draw(40_000, seed=2)
    rng = np.random.default_rng(3)
    logits = np.stack(
        [odds + rng.standard_normal(odds.size), odds + rng.standard_normal(odds.size)]
    )
    weights, bias, share = calibration.stacking(logits, label)
    np.testing.assert_allclose(share, 0.5, atol=0.02)
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(logits.T, label)
    np.testing.assert_allclose(weights, fitted.coef_[0], rtol=1e-2)
    assert bias == pytest.approx(fitted.intercept_[0], abs=1e-2)


def test_a_useless_member_gets_no_say():
    odds, label = draw(600, seed=4)
    good = 3.0 * odds
    useless = 0.1 * np.random.default_rng(5).standard_normal(odds.size)
    weights, bias, share = calibration.stacking(np.stack([good, useless]), label)
    fused = weights @ np.stack([good, useless]) + bias
    assert roc_auc_score(label, fused) >= roc_auc_score(label, good) - 2e-3
    np.testing.assert_array_equal(share, [1.0, 0.0])
    assert weights[1] == 0.0


def test_a_weak_member_that_knows_something_else_is_heard():
    rng = np.random.default_rng(7)
    common, apart = 2.0 * rng.standard_normal(4000), 1.0 * rng.standard_normal(4000)
    label = (rng.random(4000) < expit(common + apart)).astype(float)
    assert calibration.useful_members(np.stack([apart, common]), label) == [1, 0]
    _, _, share = calibration.stacking(np.stack([apart, common]), label)
    assert 0.2 < share[0] < 0.45


def test_peers_are_all_heard_however_little_each_adds():
    odds, label = draw(500, seed=8)
    peers = odds[None] + 0.3 * np.random.default_rng(9).standard_normal((6, odds.size))
    assert sorted(calibration.useful_members(peers, label)) == list(range(6))


def test_equal_members_get_equal_weights():
    odds, label = draw(300, seed=6)
    weights, _, share = calibration.stacking(np.stack([odds, odds, odds]), label)
    np.testing.assert_allclose(weights, weights.mean(), rtol=1e-3)
    np.testing.assert_allclose(share, 1 / 3, rtol=1e-3)


def test_only_members_of_the_same_validation_objects_share_labels():
    first = {"id": np.array([1, 2, 3]), "label": np.array([0, 1, 1])}
    other = {"id": np.array([1, 2, 4]), "label": np.array([0, 1, 1])}
    np.testing.assert_array_equal(calibration.shared_labels([first, dict(first)]), [0, 1, 1])
    assert calibration.shared_labels([first, other]) is None


def drawn_members(
    separations: list[float], n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Raw logits (member, n), too large by a factor of five, of members whose errors are half in
    common, and labels (n,) of as many lenses as others."""
    label = (np.arange(n) % 2).astype(float)
    common = rng.standard_normal(n)
    logits = [
        separation * (label - 0.5) + np.sqrt(0.5) * (common + rng.standard_normal(n))
        for separation in separations
    ]
    return 5 * np.stack(logits), label


def stacked_on_fresh_data(
    separations: list[float], n: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stacked log-odds of 4,000 fresh objects, all learned from n validation objects, and their
    labels."""
    rng = np.random.default_rng(seed)
    logits, label = drawn_members(separations, n, rng)
    fresh, fresh_label = drawn_members(separations, 4000, rng)
    slope, intercept = np.transpose([calibration.platt(row, label) for row in logits])[..., None]
    weight, bias, _ = calibration.stacking(slope * logits + intercept, label)
    return weight @ (slope * fresh + intercept) + bias, fresh_label


def mean_loss(separations: list[float], n: int, draws: int = 8) -> float:
    drawn = [stacked_on_fresh_data(separations, n, seed) for seed in range(draws)]
    return float(np.mean([calibration.object_loss(*of_one).mean() for of_one in drawn]))


def test_few_validation_objects_do_not_make_two_peers_sure_of_what_they_cannot_know():
    assert mean_loss([3.0, 3.0], 60) < 0.25


def test_members_of_every_strength_stay_calibrated_on_few_and_on_some_objects():
    mixed = [1.0, 2.0, 2.0, 3.0, 3.0, 3.0]
    assert mean_loss(mixed, 60, draws=4) < 0.17
    assert mean_loss(mixed, 300, draws=2) < 0.13


@pytest.mark.parametrize("separation", [6.0, 10.0])
def test_members_that_separate_the_classes_stay_as_sure_as_the_number_of_objects_allows(separation):
    drawn = [stacked_on_fresh_data([separation] * 2, 600, seed)[0] for seed in range(5)]
    assert 4 < np.abs(drawn).max() < 20


def test_the_stack_of_one_calibrated_member_is_that_member():
    label = np.arange(80) % 2
    logits = 10.0 * (label - 0.5) + np.random.default_rng(0).standard_normal(80)
    slope, intercept = calibration.platt(logits, label)
    calibrated = slope * logits + intercept
    weight, bias, _ = calibration.stacking(calibrated[None], label)
    np.testing.assert_allclose(weight * calibrated + bias, calibrated, atol=0.05)


def test_members_that_know_nothing_count_alike_and_say_nothing():
    label = np.arange(200) % 2
    backwards = -(label - 0.5) + np.random.default_rng(0).standard_normal((2, 200))
    weight, bias, share = calibration.stacking(backwards, label)
    np.testing.assert_allclose(weight @ backwards + bias, 0.0, atol=1e-6)
    np.testing.assert_allclose(share, 0.5, atol=0.05)


@pytest.mark.parametrize("objects", [16, 300])
def test_a_member_that_says_the_same_of_all_says_nothing(objects):
    label = np.arange(objects) % 2
    rng = np.random.default_rng(0)
    dead = np.float32(0.3) + 1e-8 * rng.standard_normal(objects)
    slope, intercept = calibration.platt(dead, label)
    assert slope == 0 and intercept == pytest.approx(0, abs=1e-6)
    good = 2.0 * (label - 0.5) + rng.standard_normal(objects)
    weight, bias, share = calibration.stacking(np.stack([good, dead]), label)
    alone = calibration.stacking(good[None], label)
    np.testing.assert_allclose(share, [1, 0], atol=1e-6)
    np.testing.assert_allclose(
        weight @ np.stack([good, dead]) + bias, alone.weight[0] * good + alone.bias, atol=1e-5
    )
    _, _, of_none = calibration.stacking(np.stack([dead, dead]), label)
    np.testing.assert_allclose(of_none, 0.5)
