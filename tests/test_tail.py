"""Rates and purities against simulated surveys, scikit-learn and brute force."""

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.metrics import average_precision_score

from lensjax import tail
from lensjax.errors import UsageError

SHIFT = 2.5  # by which lenses score higher, in standard deviations of either class


def drawn(rng: np.random.Generator, lenses: int, others: int, levels: float = 0) -> tuple:
    """Scores of both classes; with `levels`, rounded to so many per unit, so that many tie."""
    scores = rng.normal(SHIFT, 1, lenses), rng.normal(0, 1, others)
    return tuple(np.round(each * levels) / levels for each in scores) if levels else scores


def truth(rate: float) -> float:
    """The true-positive rate at a false-positive rate."""
    return stats.norm.sf(stats.norm.isf(rate) - SHIFT)


@pytest.mark.parametrize(("size", "rate"), [(1000, 1e-3), (250, 1e-2), (2000, 1e-2)])
def test_the_exact_interval_covers_the_rate(size: int, rate: float) -> None:
    rng = np.random.default_rng(0)
    found = np.array([tail.tpr_at(*drawn(rng, size, size), rate) for _ in range(400)])
    value, low, high = found.T
    assert ((low <= value) & (value <= high)).all()
    assert ((low <= truth(rate)) & (truth(rate) <= high)).mean() >= 0.95


def test_the_bootstrap_does_not_cover_it() -> None:
    rng, size, rate = np.random.default_rng(1), 1000, 1e-3
    held = 0
    for _ in range(200):
        lenses, others = drawn(rng, size, size)
        ranked = np.sort(others)[::-1]
        # The other of rank floor(rate n) + 1 in each resample, and the lenses above it in one of
        # their own.
        cuts = ranked[np.sort(rng.integers(size, size=(200, size)))[:, int(size * rate)]]
        above = size - np.searchsorted(np.sort(lenses), cuts, "right")
        counts = rng.binomial(size, above / size)
        low, high = np.percentile(counts / size, [2.5, 97.5])
        held += low <= truth(rate) <= high
    assert held / 200 < 0.9


def test_the_exact_interval_covers_with_ties() -> None:
    """Of scores of a few levels the rate above a cut jumps: what counts is the highest cut above
    which there are at most so many others."""
    rng, rate, levels = np.random.default_rng(2), 1e-2, 4
    cuts = np.arange(-40, 40) / levels
    above = stats.norm.sf(cuts + 0.5 / levels)  # of a rounded score strictly above the cut
    cut = cuts[np.flatnonzero(above <= rate)[0]]
    true_rate = stats.norm.sf(cut + 0.5 / levels - SHIFT)
    found = np.array([tail.tpr_at(*drawn(rng, 500, 1500, levels), rate) for _ in range(300)])
    assert ((found[:, 1] <= true_rate) & (true_rate <= found[:, 2])).mean() >= 0.95


def test_the_rate_is_that_above_the_eleventh_other() -> None:
    others, lenses = np.arange(1000.0), np.array([988.5, 989.0, 989.5, 2000.0])
    found = tail.tpr_at(lenses, others, 1e-2)  # ten others lie above 989
    assert found.value == 0.5
    # Scores that tell nothing apart, and those that tell all.
    assert tail.tpr_at(np.zeros(50), np.zeros(2000), 1e-2)[:2] == (0, 0)
    assert tail.tpr_at(np.ones(50), np.zeros(2000), 1e-2).low > 0.9
    assert tail.tpr_at(lenses, others[:5], 1e-2).low == 0  # no cut above all is known


@pytest.mark.parametrize(
    ("lenses", "others", "rate", "said"),
    [
        (5, 1000, 1e-2, ""),
        (5, 999, 1e-2, "needs 1,000 others"),
        (5, 9999, 1e-3, "needs 10,000 others"),
        (5, 10_000, 1e-3, ""),
        (5, 99_999, 1e-4, "needs 100,000 others"),
        (5, 100_000, 1e-4, ""),
        (0, 100_000, 1e-2, "no lenses"),
    ],
)
def test_too_few_are_refused(lenses: int, others: int, rate: float, said: str) -> None:
    assert tail.refusal(lenses, others, rate) == said


def test_purity_is_that_of_a_simulated_survey() -> None:
    rng, prevalence, size = np.random.default_rng(3), 1e-3, 1_000_000
    lenses = rng.binomial(size, prevalence)
    of_lenses, of_others = drawn(rng, lenses, size - lenses)
    for cut in (1.5, 2.5, 3.5):
        listed = (of_lenses >= cut).sum(), (of_others >= cut).sum()
        share = listed[0] / sum(listed)
        expected = tail.purity(stats.norm.sf(cut - SHIFT), stats.norm.sf(cut), prevalence)
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / sum(listed))
    assert np.isnan(tail.purity(0, 0, prevalence))


def test_intervals_of_the_purity_cover_it_at_a_fixed_cut() -> None:
    rng, prevalence, draws = np.random.default_rng(4), 1e-3, 500
    true, false = 0.7, 0.004
    many = tail.Curve(
        np.zeros(draws), rng.binomial(400, true, draws), rng.binomial(3000, false, draws), 400, 3000
    )
    *_, completeness, purity = tail.at_cuts(many, prevalence)
    for band, value in ((completeness, true), (purity, tail.purity(true, false, prevalence))):
        assert ((band.low <= band.value) & (band.value <= band.high)).all()
        assert 0.925 <= ((band.low <= value) & (value <= band.high)).mean() <= 0.985
    # With hardly a doubt of T the purity's ends are those of the share F by Jeffreys.
    one = tail.Curve(np.zeros(1), np.array([10**7]), np.array([12]), 10**7, 3000)
    ends = tail.purity(1, stats.beta.ppf([0.975, 0.025], 12.5, 2988.5), prevalence)
    found = tail.at_cuts(one, prevalence).purity
    assert [found.low[0], found.high[0]] == pytest.approx(ends, rel=0.02)


def test_a_list_without_false_ones_may_be_pure_and_one_without_lenses_not() -> None:
    rows = tail.Curve(np.arange(2.0), np.array([20, 0]), np.array([0, 3]), 40, 3000)
    purity = tail.at_cuts(rows, 1e-2).purity
    assert (purity.value[0], purity.high[0]) == (1, 1) and purity.low[0] < 0.99
    assert (purity.value[1], purity.low[1]) == (0, 0) and purity.high[1] > 0


@pytest.mark.parametrize("levels", [0, 3])
def test_the_bracket_of_the_area_holds_average_precision(levels: int) -> None:
    rng, prevalence = np.random.default_rng(5), 1e-3
    lenses, others = drawn(rng, 300, 5000, levels)
    weights = np.repeat([prevalence / 300, (1 - prevalence) / 5000], [300, 5000])
    scores, labels = np.append(lenses, others), np.arange(5300) < 300
    expected = average_precision_score(labels, scores, sample_weight=weights)
    low, high = tail.auprc(tail.curve(lenses, others), prevalence)
    assert high == pytest.approx(expected, rel=1e-9)
    assert low < high
    # One other more, above all lenses: the lower end is not below what that would give.
    weights = np.repeat([prevalence / 300, (1 - prevalence) / 5001], [300, 5001])
    worse = np.append(scores, 99), np.append(labels, False)
    assert low == pytest.approx(
        average_precision_score(worse[1], worse[0], sample_weight=weights), rel=1e-9
    )


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize("size", [5, 40, 700, 20_000])
def test_the_best_of_a_survey_against_brute_force(size: int, levels: int) -> None:
    """A survey in which each lens is there twice and each other 40 times, ties in random order."""
    rng = np.random.default_rng(6)
    lenses, others = drawn(rng, 100, 1000, levels)
    scores = np.append(np.repeat(lenses, 2), np.repeat(others, 40))
    found = tail.top(tail.curve(lenses, others), 200 / 40_200, 40_200, size)
    is_lens = np.arange(scores.size) < 200
    many = [np.lexsort([rng.random(scores.size), -scores])[:size] for _ in range(40)]
    purity = np.mean([is_lens[rows].mean() for rows in many])
    assert found.purity.value == pytest.approx(purity, rel=0.05)
    assert found.completeness.value * 200 == pytest.approx(found.purity.value * size)
    assert found.cut == min(scores[many[0]])
    false = np.mean([(~is_lens[rows]).sum() / 40 for rows in many])
    assert found.false == pytest.approx(false, rel=0.1)


@pytest.mark.parametrize("share", [1e-4, 1e-3, 1e-2])
def test_intervals_of_a_list_cover_its_purity(share: float) -> None:
    rng, prevalence, objects = np.random.default_rng(9), 1e-3, 10**6

    def listed(cut: float) -> float:
        found, false = stats.norm.sf(cut - SHIFT), stats.norm.sf(cut)
        return prevalence * found + (1 - prevalence) * false

    cut = optimize.brentq(lambda cut: listed(cut) - share, -9, 9)
    truth = prevalence * stats.norm.sf(cut - SHIFT) / share
    held = []
    for _ in range(150):
        curve = tail.curve(*drawn(rng, 500, 8000))
        found = tail.top(curve, prevalence, objects, round(share * objects))
        assert found.purity.low <= found.purity.value <= found.purity.high
        held.append(found.purity.low <= truth <= found.purity.high)
    assert np.mean(held) >= 0.94


def test_the_whole_survey_is_a_list_and_more_is_none() -> None:
    curve = tail.curve(*drawn(np.random.default_rng(7), 50, 500))
    whole = tail.top(curve, 1e-3, 10_000, 10_000)
    assert whole.purity == pytest.approx((1e-3,) * 3, rel=0.1) and whole.completeness.value == 1
    for size in (0, 10_001):
        with pytest.raises(UsageError, match="a list has 1 to 10,000"):
            tail.top(curve, 1e-3, 10_000, size)


def test_cuts_of_a_completeness_list_that_share_of_the_lenses() -> None:
    curve = tail.curve(np.arange(1.0, 11), np.array([0.5, 9.5]))
    some = tail.at_completeness(curve, [1, 0.5, 0.11])
    assert some.cut.tolist() == [1, 6, 9] and some.found.tolist() == [10, 5, 2]
    assert some.false.tolist() == [1, 1, 1]
    few = tail.shown(tail.curve(*drawn(np.random.default_rng(8), 5000, 5000)))
    assert 200 < few.cut.size <= tail.POINTS and (few.found[-1], few.false[-1]) == (5000, 5000)


def test_of_a_group_one_object_counts() -> None:
    lens = np.array([0, 1, 0, 1, 0, 0], bool)
    assert tail.independent(lens, None).tolist() == [0, 1, 2, 3, 4, 5]
    assert tail.independent(lens, ["a", "a", "b", "b", "c", "c"]).tolist() == [1, 3, 4]
    # Those whose group is not known stand alone.
    assert tail.independent(lens, ["", "a", "", "a", "c", "c"]).tolist() == [0, 1, 2, 4]
    gaps = np.ma.masked_array([1, 1, 2, 2, 3, 3], mask=[1, 1, 0, 0, 0, 0])
    assert tail.independent(lens, gaps).tolist() == [0, 1, 3, 4]
    assert tail.independent(lens, [np.nan, 1, np.nan, 1, 2, 2]).tolist() == [0, 1, 2, 4]
