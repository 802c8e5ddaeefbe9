"""Graders of known skill are told apart, and their consensus is right as often as it says."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from lensjax.trust import graders

PL, PD = np.array([0.95, 0.8, 0.6, 0.9, 0.7]), np.array([0.9, 0.95, 0.7, 0.6, 0.99])


def votes_on(truth: np.ndarray, rng: np.random.Generator, missing: float = 0.0) -> np.ndarray:
    says_lens = rng.random((len(truth), len(PL))) < np.where(truth[:, None] == 1, PL, 1 - PD)
    return np.where(rng.random(says_lens.shape) < missing, -1, says_lens.astype(int))


def test_the_posterior_of_a_skill_covers_the_truth_as_often_as_it_says() -> None:
    covered, mean = [], []
    for seed in range(200):
        truth = np.arange(40) % 2
        known = graders.skill(votes_on(truth, np.random.default_rng(seed), 0.2), truth)
        low, high = graders.credible(known.found, known.lenses)
        covered.append((low <= PL) & (high >= PL))
        mean.append(known.of_nones)
    assert 0.92 <= np.mean(covered) <= 0.98  # 1,000 intervals of 95 %
    n = 16  # non-lenses that a grader sees
    np.testing.assert_allclose(np.mean(mean, axis=0), (n * PD + 1) / (n + 2), atol=0.02)


def test_one_vote_is_what_bayes_says_and_votes_may_come_in_any_order() -> None:
    known = graders.Skill(*(np.array([x]) for x in (7.0, 8.0, 8.0, 8.0)))  # PL 0.8, PD 0.9
    said = graders.consensus(np.array([[1], [0], [-1]]), known, 0.1)
    np.testing.assert_allclose(said, [0.08 / (0.08 + 0.09), 0.02 / (0.02 + 0.81), 0.1])
    counts = ((7.0, 3.0), (8.0, 9.0), (8.0, 5.0), (8.0, 9.0))
    many = graders.Skill(*map(np.array, counts))
    first, second = (graders.Skill(*(values[g : g + 1] for values in many)) for g in (0, 1))
    (after_one,) = graders.consensus(np.array([[1]]), first, 0.1)
    by_turns = graders.consensus(np.array([[0]]), second, after_one)
    np.testing.assert_allclose(graders.consensus(np.array([[1, 0]]), many, 0.1), by_turns)


@pytest.mark.parametrize("controls", [True, False])
def test_the_consensus_is_right_as_often_as_it_says(controls: bool) -> None:
    rng = np.random.default_rng(3)
    truth = (rng.random(4000) < 0.2).astype(int)
    votes = votes_on(truth, rng, 0.3)
    if controls:
        of_controls = np.arange(200) % 2
        known = graders.skill(votes_on(of_controls, rng), of_controls)
        prior = graders.estimated_prior(votes, known)
    else:
        known, prior = graders.without_controls(votes, None)
    np.testing.assert_allclose(known.of_lenses, PL, atol=0.1)
    np.testing.assert_allclose(known.of_nones, PD, atol=0.1)
    assert prior == pytest.approx(truth.mean(), abs=0.03)
    probability = graders.consensus(votes, known, prior)
    for low, high in ((0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1)):
        rows = (probability >= low) & (probability <= high)
        error = 3 * np.sqrt(0.25 / rows.sum()) + 0.03
        assert abs(truth[rows].mean() - probability[rows].mean()) < error
    majority = graders.votes_for_lens(votes) > 0.5
    assert ((probability > 0.5) == truth).mean() > (majority == truth).mean()


def test_few_controls_measure_but_overrule_no_grades() -> None:
    """A grader without a fault on ten controls of each kind, and one vote for a lens in 20."""
    votes = (np.arange(200) % 20 == 0).astype(int)[:, None]
    few, many = (graders.Skill(*np.full((4, 1), float(n))) for n in (10, 100))
    told = graders.consensus(votes, few, graders.estimated_prior(votes, few))
    assert (told < 0.4).all()  # by these controls alone all votes could be false
    found = graders.conclusion(votes, few, None)
    assert (found.probability > 0.6).tolist() == (votes[:, 0] == 1).tolist()
    assert "too few controls" in found.origin and found.skill is None
    found = graders.conclusion(votes, many, None)
    np.testing.assert_array_equal(found.probability, graders.consensus(votes, many, found.share))
    assert (found.probability > 0.6).tolist() == (votes[:, 0] == 1).tolist()
    assert graders.conclusion(votes, few, 0.05).skill is few  # a share that is given tells enough


def test_a_stated_share_of_lenses_stays() -> None:
    votes = votes_on((np.arange(300) % 3 == 0).astype(int), np.random.default_rng(0))
    assert graders.without_controls(votes, 0.01)[1] == 0.01


def test_fleiss_kappa_of_the_psychiatrists_is_the_published_one() -> None:
    """Table 1 of Fleiss (1971): 30 patients, six diagnoses each, of five kinds."""
    table = """
        00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
        00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
    """
    counts = np.array([[int(count) for count in row] for row in table.split()])
    assert (counts.sum(axis=1) == 6).all()
    assert graders.fleiss_kappa(counts) == pytest.approx(0.430, abs=5e-4)


def test_fleiss_kappa_of_two_graders_who_give_grades_as_often_is_cohens() -> None:
    first = np.array([0, 0, 1, 1, 2, 2, 3, 3, 0, 1])
    second = np.array([0, 1, 1, 0, 2, 2, 3, 3, 1, 0])  # each grade as often as the first
    counts = np.stack([(first == g).astype(int) + (second == g) for g in range(4)], axis=1)
    assert graders.fleiss_kappa(counts) == pytest.approx(cohen_kappa_score(first, second))
    assert np.isnan(graders.fleiss_kappa(np.array([[2, 0], [2, 0]])))
    assert np.isnan(graders.fleiss_kappa(np.zeros((0, 4), int)))
