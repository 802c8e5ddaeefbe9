"""Fusion and uncertainty against float64 formulas written out one cutout at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from lensjax.ensemble.fusion import FusionParams, bernoulli_entropy, fuse

fuse = jax.jit(fuse, static_argnames="fusion")

MEMBERS, SAMPLES, BATCH = 3, 4, 5
KNOWLEDGE = FusionParams(
    slope=jnp.array([1.0, 0.5, 2.0]),
    intercept=jnp.array([0.0, 0.3, -0.2]),
    weight=jnp.array([0.7, 0.0, 0.4]),
    bias=jnp.array(0.1),
    share=jnp.array([0.6, 0.0, 0.4]),
    error=jnp.array([0.02, 0.2, 0.05]),
)


def plain_knowledge(error: jax.Array) -> FusionParams:
    """Members that need no calibration, all alike but for their error."""
    ones = jnp.ones_like(error)
    return FusionParams(ones, 0 * ones, ones, jnp.array(0.0), ones / len(error), error)


def raw_logits(scale: float = 2.0) -> np.ndarray:
    shape = (MEMBERS, SAMPLES, BATCH)
    return scale * np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p) + (1 - p) * np.log1p(-p))


def expected(fusion: str) -> dict[str, np.ndarray]:
    """The scores of `raw_logits()`, in float64, one cutout at a time."""
    fusion_params = [np.asarray(values, np.float64) for values in KNOWLEDGE]
    slope, intercept, weight, bias, share, error = fusion_params
    rows = []
    for cutout in raw_logits().astype(np.float64).transpose(2, 0, 1):
        logits = slope[:, None] * cutout + intercept[:, None]
        p = expit(logits)
        shares = {
            "stacked": share,
            "inverse_variance": 1 / (p.var(1) + error),
        }.get(fusion, np.ones(MEMBERS))
        shares = shares / shares.sum()
        mixed = (shares * p.mean(1)).sum()
        if fusion == "stacked":
            fused = (weight * logits.mean(1)).sum() + bias
        elif fusion == "mean_logit":
            fused = logits.mean()
        else:
            fused = logit(mixed)
        centre = (shares * logits.mean(1)).sum()
        aleatoric = (shares * entropy(p).mean(1)).sum()
        rows.append(
            {
                "probability": expit(fused),
                "logit": fused,
                "logit_std": np.sqrt((shares[:, None] * (logits - centre) ** 2).sum() / SAMPLES),
                "total_entropy": entropy(mixed),
                "aleatoric_entropy": aleatoric,
                "mutual_information": entropy(mixed) - aleatoric,
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("fusion", ["stacked", "mean_prob", "mean_logit", "inverse_variance"])
def test_scores_equal_the_formulas_in_float64(fusion):
    scores = fuse(jnp.asarray(raw_logits()), KNOWLEDGE, fusion)
    for name, values in expected(fusion).items():
        np.testing.assert_allclose(
            getattr(scores, name), values, rtol=2e-5, atol=2e-6, err_msg=name
        )


def test_member_columns_are_calibrated_means_over_samples():
    scores = fuse(jnp.asarray(raw_logits()), KNOWLEDGE, "stacked")
    slope, intercept = np.asarray(KNOWLEDGE.slope), np.asarray(KNOWLEDGE.intercept)
    calibrated = slope[:, None, None] * raw_logits() + intercept[:, None, None]
    np.testing.assert_allclose(scores.member_logits, calibrated.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores.member_probs, expit(calibrated).mean(1), rtol=1e-5)


def test_a_certain_ensemble_keeps_its_ranking_beyond_probability_one():
    logits = jnp.array([[[30.0, 40.0, 50.0, -30.0, -50.0]]])
    identity = plain_knowledge(jnp.zeros(1))
    for fusion in ("stacked", "mean_prob", "mean_logit", "inverse_variance"):
        np.testing.assert_allclose(fuse(logits, identity, fusion).logit, logits[0, 0], rtol=1e-5)


def test_agreement_has_no_mutual_information_and_disagreement_has_log_two():
    fusion_params = plain_knowledge(jnp.ones(2))
    same = fuse(jnp.full((2, 3, 1), 1.7), fusion_params, "mean_prob")
    opposite = fuse(jnp.array([[[40.0]], [[-40.0]]]), fusion_params, "mean_prob")
    np.testing.assert_allclose(same.mutual_information, [0.0], atol=1e-6)
    np.testing.assert_allclose(opposite.mutual_information, [np.log(2)], rtol=1e-5)


def test_a_sure_but_wrong_member_does_not_take_over_inverse_variance():
    logits = jnp.stack([jnp.full((4, 1), 9.0), jnp.array([[-3.0], [-2.0], [-4.0], [-3.0]])])
    fusion_params = plain_knowledge(jnp.array([0.3, 0.01]))
    assert fuse(logits, fusion_params, "inverse_variance").probability[0] < 0.2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-60, 60), min_size=6, max_size=6), st.sampled_from([0, 1, 2, 3]))
def test_uncertainties_are_finite_and_ordered(values, which):
    fusion = ("stacked", "mean_prob", "mean_logit", "inverse_variance")[which]
    logits = jnp.array(values, jnp.float32).reshape(3, 2, 1)
    scores = fuse(logits, KNOWLEDGE, fusion)
    assert all(bool(jnp.isfinite(part).all()) for part in scores if part is not None)
    assert 0 <= scores.aleatoric_entropy[0] <= scores.total_entropy[0] <= np.log(2) + 1e-6
    assert scores.mutual_information[0] >= 0


def test_entropy_is_exact_in_the_tails():
    logits = np.array([-30.0, -5.0, 0.0, 5.0, 30.0])
    with jax.enable_x64(True):
        truth = np.asarray(bernoulli_entropy(jnp.asarray(logits)))
    single = bernoulli_entropy(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(single, truth, rtol=1e-5)
    np.testing.assert_allclose(truth[2], np.log(2))


@pytest.mark.parametrize("fusion", ["stacked", "mean_prob", "mean_logit", "inverse_variance"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_member_that_is_not_finite_shows_in_the_fused_scores(fusion, wrong):
    """Also one without weight: scores that are finite are of finite members."""
    for member in range(MEMBERS):
        raw = raw_logits()
        raw[member, 2, 1] = wrong
        scores = fuse(raw, KNOWLEDGE, fusion=fusion)
        finite = np.isfinite(np.vstack([values for values in scores[:-1] if values.ndim == 1]))
        assert finite.all(axis=0).tolist() == [True, False, True, True, True]
