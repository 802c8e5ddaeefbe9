"""The promise of a certified list, against simulated surveys of which the truth is known."""

import numpy as np
import pytest
from scipy import stats

from lensjax.trust import envelope
from lensjax.trust.envelope import false_positives_at_most, p_values


@pytest.mark.parametrize(("negatives", "survey"), [(200, 10**5), (10**4, 10**6), (10**5, 10**7)])
def test_fresh_rankings_stay_below_the_envelope_as_often_as_promised(negatives, survey):
    most = envelope.envelope(negatives, survey, paths=4000)
    places = envelope._grid(negatives)
    left, simple = np.zeros(20_000, bool), np.zeros(20_000, bool)
    # The bound of Katsevich & Ramdas (2020), which takes the p-values to be independent.
    constant = np.log(20) / np.log1p(np.log(20))
    for place, above in zip(
        places, envelope.urn_paths(places, negatives, survey, left.size, seed=7), strict=True
    ):
        left |= above > most[place - 1]
        simple |= above > constant * (1 + survey * place / (negatives + 1))
    assert 0.94 <= 1 - left.mean() <= 0.96
    assert 1 - simple.mean() < 0.92


def test_paths_of_the_urn_are_rankings_of_shuffled_negatives():
    negatives, survey, rng = 30, 70, np.random.default_rng(0)
    ranked = rng.permuted(np.tile(np.arange(negatives + survey) < negatives, (4000, 1)), axis=1)
    places = np.array([1, 3, 10, 30])
    found = [(~ranked[:, None] & (ranked.cumsum(1)[:, None] < j))[:, 0].sum(1) for j in places]
    drawn = list(envelope.urn_paths(places, negatives, survey, 4000, seed=1))
    for by_hand, by_urn in zip(found, drawn, strict=True):
        assert stats.ks_2samp(by_hand, by_urn).pvalue > 1e-3
    # Jointly, not only place by place.
    steps = [np.diff(values, axis=0)[1] for values in (found, drawn)]
    assert stats.ks_2samp(*steps).pvalue > 1e-3


def simulated(rng, negatives, survey, lenses, separation=3.0, rounded=False):
    """Returns scores of calibration negatives and of a survey, and which of the latter are
    lenses."""
    calibration = rng.normal(size=negatives)
    truth = np.arange(survey) < lenses
    scores = rng.normal(size=survey) + separation * truth
    if rounded:  # saturated probabilities: many are equal
        calibration, scores = (np.round(np.minimum(each, 3), 1) for each in (calibration, scores))
    order = rng.permutation(survey)
    return calibration, scores[order], truth[order]


@pytest.mark.parametrize("rounded", [False, True])
def test_no_list_of_a_survey_breaks_the_promise_more_often_than_promised(rounded):
    rng = np.random.default_rng(2)
    kept = 0
    for repeat in range(400):
        calibration, scores, truth = simulated(rng, 2000, 5000, 40, rounded=rounded)
        most = false_positives_at_most(calibration, scores, seed=repeat % 3)
        order = np.argsort(-scores, kind="stable")
        false = np.cumsum(~truth[order])
        # Of equal scores the list holds all.
        last = np.searchsorted(-scores[order], -scores[order], "right") - 1
        kept += bool((false[last] <= most[order]).all())
    assert kept / 400 >= 0.93


def test_the_bound_is_given_in_the_order_of_the_scores_and_grows_along_the_ranking():
    calibration, scores, _ = simulated(np.random.default_rng(3), 500, 3000, 30)
    most = false_positives_at_most(calibration, scores)
    order = np.argsort(-scores)
    steps = np.diff(most[order])
    assert steps.min() >= 0 and steps.max() <= 1 and most.max() <= scores.size
    shuffled = np.random.default_rng(4).permutation(scores.size)
    np.testing.assert_array_equal(
        false_positives_at_most(calibration, scores[shuffled]), most[shuffled]
    )


def test_equal_scores_and_nan_count_against_the_list():
    calibration = np.array([5.0, 1.0, 0.0] + [-1.0] * 97)
    level, above = false_positives_at_most(calibration, np.array([5.0, 5.1]))
    assert above <= level
    worse = false_positives_at_most(np.append(calibration[1:], np.nan), np.array([5.0, 5.1]))
    assert (worse >= [level, above]).all()
    unscored = false_positives_at_most(calibration, np.array([9.0, np.nan]))
    assert unscored[1] >= unscored[0]
    np.testing.assert_allclose(p_values([1, 2, 3], [2.5, 3, 0, np.nan]), [0.5, 0.5, 1, 1])


def test_lenses_left_in_the_calibration_cost_the_list_and_their_inspection_brings_it_back():
    rng = np.random.default_rng(5)
    calibration, scores, _ = simulated(rng, 30_000, 60_000, 300, separation=6)
    contaminated = np.append(calibration, rng.normal(size=150) + 6)
    best = scores >= 4.5

    def purity(negatives):
        most = false_positives_at_most(negatives, scores)
        return 1 - most[best].max() / best.sum()

    assert purity(contaminated) < 0.1
    assert purity(calibration) > 0.8


def test_a_cut_that_was_fixed_beforehand_costs_less_than_one_chosen_later():
    fixed = envelope.fixed_cut(1000, 3, 20_000)
    draws = np.random.default_rng(6).beta(4, 997, 50_000)
    above = np.random.default_rng(7).binomial(20_000, draws)
    assert 0.945 < (above <= fixed).mean() < 0.96
    assert fixed < envelope.envelope(1000, 20_000)[3]


def test_nothing_is_said_without_negatives():
    with pytest.raises(ValueError, match="no calibration negatives"):
        false_positives_at_most([], [1.0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        false_positives_at_most([0.0], [1.0], confidence=1.5)
