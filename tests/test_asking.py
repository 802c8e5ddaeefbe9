"""What is asked for: what a grade would teach, against closed forms, and no two alike."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.spatial.distance import jensenshannon
from scipy.special import expit
from scipy.stats import norm

from lensjax.asking import disagreement, mutual_information, spread, together, worth
from lensjax.trust.prevalence import estimate
from tests.scored import scored


def bernoulli_entropy(p: float) -> float:
    return -sum(q * np.log(q) for q in (p, 1 - p) if q > 0)


@pytest.mark.parametrize(("mean", "width"), [(0.0, 1.0), (2.0, 0.5), (-4.0, 2.0), (-9.0, 1.0)])
def test_mutual_information_is_the_integral(mean, width):
    def over(function):
        def weighed(x):
            return function(expit(x)) * norm.pdf(x, mean, width)

        return quad(weighed, mean - 12 * width, mean + 12 * width, epsabs=1e-13, limit=400)[0]

    expected = bernoulli_entropy(over(lambda p: p)) - over(bernoulli_entropy)
    (found,) = mutual_information(np.array([mean]), np.array([width]))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_what_is_sure_or_certain_of_its_doubt_teaches_nothing():
    assert mutual_information(np.zeros(1), np.zeros(1)) == pytest.approx(0, abs=1e-12)
    assert mutual_information(np.full(1, 40.0), np.ones(1)) == pytest.approx(0, abs=1e-12)


def test_disagreement_is_the_divergence_of_jensen_and_shannon():
    logits = np.array([[-60.0, 1.0, 3.0], [60.0, 1.0, -1.0]])
    found = disagreement(logits)
    assert found[:2] == pytest.approx([np.log(2), 0.0], abs=1e-12)
    first, second = expit(logits[:, 2])
    expected = jensenshannon([first, 1 - first], [second, 1 - second]) ** 2
    assert found[2] == pytest.approx(expected, rel=1e-9)


def test_where_lenses_are_rare_what_is_open_lies_near_the_top():
    logit = np.linspace(-8, 8, 161)
    predictions = scored(
        161,
        (3,),
        logit=logit,
        logit_std=np.ones(161),
        member_logits=np.stack([logit - 0.5, logit + 0.5]),
    )
    for prevalence, lenses in ((0.5, 100), (1e-2, 100), (1e-2, 300)):
        found = worth(predictions, (lenses, 100), prevalence)
        assert found[3] == 0 and (found >= 0).all()
        # By symmetry it is most where lens and other are as likely in the survey.
        open_at = np.log((1 - prevalence) / prevalence) + np.log(lenses / 100)
        assert logit[found.argmax()] == pytest.approx(open_at, abs=0.051)


def test_a_prevalence_that_is_not_known_is_the_most_likely_one():
    rng = np.random.default_rng(0)
    centre = np.where(rng.random(20_000) < 0.02, 1.5, -1.5)
    ratio = 3 * (centre + rng.standard_normal(centre.size))  # of two normal distributions
    found = estimate(ratio)
    assert found == pytest.approx(0.02, rel=0.15)
    by_steps = 0.5
    for _ in range(300):  # as Saerens et al. do it
        by_steps = expit(ratio + np.log(by_steps / (1 - by_steps))).mean()
    assert found == pytest.approx(by_steps, rel=1e-6)
    assert estimate(np.full(9, -2.0)) == 0.1 and estimate(np.full(9, 2.0)) == 0.9


def test_of_two_copies_one_is_taken():
    features = np.random.default_rng(0).normal(size=(6, 4))
    twice = together({"a": np.concatenate([features, features]), "b": np.tile(features, (2, 3))})
    assert np.square(twice).sum(1).mean() == pytest.approx(1)
    for seed in range(5):
        taken = spread(twice, np.ones(12), 12, seed)
        assert sorted(taken % 6) == list(range(6))
        np.testing.assert_array_equal(taken, spread(twice, np.ones(12), 12, seed))
    assert 11 not in spread(twice, np.where(np.arange(12) % 6 == 5, 0.0, 1.0), 12, 0)


def test_a_choice_that_is_spread_sees_kinds_that_the_best_scores_do_not_hold():
    """Eight kinds of cutouts of 50 each, of which two score highest."""
    rng = np.random.default_rng(1)
    kind = np.repeat(np.arange(8), 50)
    features = rng.normal(size=(8, 16))[kind] + 0.1 * rng.normal(size=(400, 16))
    gain = np.where(kind < 2, 2.0, 1.0) + 0.1 * rng.random(400)
    by_score = {*kind[np.argsort(-gain)[:16]]}
    assert by_score <= {0, 1}
    for seed in range(5):
        assert {*kind[spread(together({"a": features}), gain, 16, seed)]} == set(range(8))
