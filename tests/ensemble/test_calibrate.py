"""Calibration and stacking weights against known optima and scikit-learn."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from lensjax.ensemble import calibrate


def draw(n: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True log-odds and labels drawn from them."""
    rng = np.random.default_rng(seed)
    odds = 2.0 * rng.standard_normal(n) - 0.5
    return odds, (rng.random(n) < expit(odds)).astype(float)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_platt_finds_the_temperature(temperature):
    odds, label = draw()
    slope, intercept = calibrate.platt(odds * temperature + 3.0, label)
    assert slope * temperature == pytest.approx(1.0, rel=0.05)
    assert intercept + 3.0 * slope == pytest.approx(0.0, abs=0.1)


def test_platt_equals_logistic_regression():
    odds, label = draw(5000, seed=1)
    slope, intercept = calibrate.platt(7.0 * odds, label)
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(7.0 * odds[:, None], label)
    assert slope == pytest.approx(fitted.coef_[0, 0], rel=1e-2)
    assert intercept == pytest.approx(fitted.intercept_[0], rel=1e-2, abs=1e-2)


def test_platt_stays_finite_where_the_classes_are_separable():
    slope, intercept = calibrate.platt(np.array([-3.0, -2.0, 2.0, 3.0]), np.array([0, 0, 1, 1]))
    assert np.isfinite([slope, intercept]).all() and slope > 0


def test_platt_needs_both_classes():
    with pytest.raises(ValueError, match="lenses and non-lenses"):
        calibrate.platt(np.zeros(3), np.ones(3))


def test_stacking_equals_logistic_regression_where_the_data_decide():
    odds, label = draw(40_000, seed=2)
    rng = np.random.default_rng(3)
    logits = np.stack(
        [odds + rng.standard_normal(odds.size), odds + rng.standard_normal(odds.size)]
    )
    weights, bias, share = calibrate.stacking(logits, label)
    np.testing.assert_allclose(share, 0.5, atol=0.02)
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(logits.T, label)
    np.testing.assert_allclose(weights, fitted.coef_[0], rtol=1e-2)
    assert bias == pytest.approx(fitted.intercept_[0], abs=1e-2)


def test_a_useless_member_gets_no_say():
    odds, label = draw(600, seed=4)
    good = 3.0 * odds
    useless = 0.1 * np.random.default_rng(5).standard_normal(odds.size)
    weights, bias, share = calibrate.stacking(np.stack([good, useless]), label)
    fused = weights @ np.stack([good, useless]) + bias
    assert roc_auc_score(label, fused) >= roc_auc_score(label, good) - 2e-3
    np.testing.assert_array_equal(share, [1.0, 0.0])
    assert weights[1] == 0.0


def test_a_weak_member_that_knows_something_else_is_heard():
    rng = np.random.default_rng(7)
    common, apart = 2.0 * rng.standard_normal(4000), 1.0 * rng.standard_normal(4000)
    label = (rng.random(4000) < expit(common + apart)).astype(float)
    assert calibrate.useful_members(np.stack([apart, common]), label) == [1, 0]
    _, _, share = calibrate.stacking(np.stack([apart, common]), label)
    assert 0.2 < share[0] < 0.45


def test_peers_are_all_heard_however_little_each_adds():
    odds, label = draw(500, seed=8)
    peers = odds[None] + 0.3 * np.random.default_rng(9).standard_normal((6, odds.size))
    assert sorted(calibrate.useful_members(peers, label)) == list(range(6))


def test_equal_members_get_equal_weights():
    odds, label = draw(300, seed=6)
    weights, _, share = calibrate.stacking(np.stack([odds, odds, odds]), label)
    np.testing.assert_allclose(weights, weights.mean(), rtol=1e-3)
    np.testing.assert_allclose(share, 1 / 3, rtol=1e-3)


def test_only_members_of_the_same_validation_objects_share_labels():
    first = {"id": np.array([1, 2, 3]), "label": np.array([0, 1, 1])}
    other = {"id": np.array([1, 2, 4]), "label": np.array([0, 1, 1])}
    np.testing.assert_array_equal(calibrate.shared_labels([first, dict(first)]), [0, 1, 1])
    assert calibrate.shared_labels([first, other]) is None
