"""Losses against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from lensjax.train.losses import binary_loss, consistency

LOGITS = st.floats(-30, 30, width=32)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_equals_its_definition_and_smoothing_moves_the_labels(smoothing):
    logits, labels = np.array([2.0, -1.0, 9.0]), np.array([1.0, 0.0, 0.0])
    p, t = expit(logits), labels * (1 - smoothing) + smoothing / 2
    expected = -(t * np.log(p) + (1 - t) * np.log1p(-p))
    found = binary_loss(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("gamma", [1.0, 2.5])
def test_the_focal_loss_equals_its_definition(gamma):
    logits, labels = np.array([2.0, -1.0, 9.0, 40.0]), np.array([1.0, 0.0, 0.0, 1.0])
    true = np.where(labels == 1, expit(logits), expit(-logits))
    expected = -((1 - true) ** gamma) * np.log(true)

    def loss(logits):
        return binary_loss(logits, jnp.asarray(labels), 0.0, gamma)

    np.testing.assert_allclose(loss(jnp.asarray(logits)), expected, rtol=1e-4, atol=1e-7)
    assert np.isfinite(jax.grad(lambda x: loss(x).sum())(jnp.asarray(logits))).all()


@settings(deadline=None)
@given(st.lists(st.tuples(LOGITS, LOGITS, LOGITS), min_size=2, max_size=2))
def test_consistency_is_the_mean_of_both_divergences_over_the_pairs(rows):
    logits = np.array(rows, np.float64).T

    def divergence(a, b):  # KL(a|b), with log(1 - p) of logit x as log sigmoid(-x)
        def log(x):
            return -np.logaddexp(0, -x)

        return expit(a) * (log(a) - log(b)) + expit(-a) * (log(-a) - log(-b))

    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = (
        sum(divergence(logits[a], logits[b]) + divergence(logits[b], logits[a]) for a, b in pairs)
        / 3
    )
    found = consistency(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_consistency_is_zero_for_equal_predictions_and_above_it_for_opposite_ones():
    np.testing.assert_array_equal(consistency(jnp.full((3, 2), 1.7)), 0.0)
    assert consistency(jnp.array([[4.0], [-4.0]]))[0] > 7.0
    np.testing.assert_array_equal(consistency(jnp.ones((1, 4))), 0.0)


def test_consistency_and_its_gradient_are_finite_for_certain_predictions():
    logits = jnp.array([[50.0, -50.0, 50.0, 300.0], [-50.0, 50.0, 50.0, -300.0]])
    value, gradient = jax.value_and_grad(lambda x: consistency(x).sum())(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_the_gradient_of_consistency_equals_finite_differences():
    logits = np.random.default_rng(0).normal(0, 2, (3, 4))
    gradient = jax.grad(lambda x: consistency(x).sum())(jnp.asarray(logits, jnp.float32))

    def value(x):  # in float64
        p = expit(x)
        return sum(((p[a] - p[b]) * (x[a] - x[b])).sum() for a, b in [(0, 1), (0, 2), (1, 2)]) / 3

    for place in np.ndindex(3, 4):
        step = np.zeros((3, 4))
        step[place] = 1e-5
        expected = (value(logits + step) - value(logits - step)) / 2e-5
        np.testing.assert_allclose(gradient[place], expected, rtol=1e-3, atol=1e-5)
