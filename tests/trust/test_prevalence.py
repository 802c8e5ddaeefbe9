"""Probabilities at a survey's prevalence, against skies of which the truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from lensjax.trust.prevalence import Counts, at_prevalence, interval, log_likelihood_ratio


def test_the_ratio_is_that_of_the_densities_whatever_the_share_of_lenses():
    scores = np.linspace(-1, 4, 6)
    truth = stats.norm(3).logpdf(scores) - stats.norm(0).logpdf(scores)
    for counts in (Counts(500, 500), Counts(100, 900)):
        logit = truth + math.log(counts.lenses / counts.others)
        ratio, beyond = log_likelihood_ratio(logit, counts)
        inside = ~beyond
        np.testing.assert_allclose(ratio[inside], truth[inside])
        np.testing.assert_array_equal(
            beyond, (truth > math.log(counts.others + 1)) | (truth < -math.log(counts.lenses + 1))
        )


def test_probabilities_are_right_where_lenses_are_rare():
    prevalence, count = 1e-2, 400_000
    rng = np.random.default_rng(0)
    lens = rng.random(count) < prevalence
    scores = rng.normal(size=count) + 2 * lens
    ratio = stats.norm(2).logpdf(scores) - stats.norm(0).logpdf(scores)
    probability = at_prevalence(ratio, prevalence)
    for low, high in ((0.01, 0.1), (0.1, 0.4), (0.4, 0.9)):
        rows = (probability >= low) & (probability < high)
        error = 3 * math.sqrt(probability[rows].mean() / rows.sum())
        assert abs(lens[rows].mean() - probability[rows].mean()) < error
    with pytest.raises(ValueError, match="between 0 and 1"):
        at_prevalence(ratio, 0)


def test_the_interval_of_the_prevalence_holds_the_truth():
    rng, missed = np.random.default_rng(1), 0
    for seed in range(60):
        lenses = rng.binomial(20_000, 2e-3)
        survey = np.append(rng.normal(size=20_000 - lenses), rng.normal(size=lenses) + 4)
        low, high = interval(rng.normal(size=3000), survey, rng.normal(size=300) + 4, seed=seed % 3)
        assert 0 <= low < high <= 1
        missed += not low <= lenses / 20_000 <= high
    assert missed <= 10
