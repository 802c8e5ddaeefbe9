"""Metrics against scikit-learn, loops over objects, and closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from lensjax import intervals, metrics, tail
from lensjax.errors import UsageError
from lensjax.ranking import Ranked, resampler


def survey(seed: int, size: int = 200, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores that know something of the labels; with `levels`, so few values that many tie."""
    rng = np.random.default_rng(seed)
    labels = rng.random(size) < 0.3
    labels[:2] = [True, False]
    scores = 1 / (1 + np.exp(-rng.normal(labels * 1.5, 1.0)))
    return (np.round(scores * levels) / levels if levels else scores), labels


def looped_tpr(scores: np.ndarray, labels: np.ndarray, rank: int) -> float:
    others = sorted(scores[labels == 0], reverse=True)
    threshold = others[rank - 1] if rank <= len(others) else -math.inf
    found = [score > threshold for score, label in zip(scores, labels, strict=True) if label == 1]
    return sum(found) / len(found)


def looped_calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    total = 0.0
    for k in range(15):
        bounds = (scores >= k / 15) & ((scores < (k + 1) / 15) | (k == 14))
        if bounds.any():
            total += bounds.sum() * abs(scores[bounds].mean() - labels[bounds].mean())
    return total / scores.size


def expected(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "auroc": sklearn_metrics.roc_auc_score(labels, scores),
        "average_precision": sklearn_metrics.average_precision_score(labels, scores),
        "tpr0": looped_tpr(scores, labels, 1),
        "tpr10": looped_tpr(scores, labels, 10),
        "expected_calibration_error": looped_calibration_error(scores, labels),
        "log_loss": sklearn_metrics.log_loss(labels, scores),
        "brier": sklearn_metrics.brier_score_loss(labels, scores),
    }


@pytest.mark.parametrize("levels", [None, 7, 1])
@pytest.mark.parametrize("seed", range(4))
def test_values_agree_with_scikit_learn_and_loops(seed: int, levels: int | None) -> None:
    scores, labels = survey(seed, levels=levels)
    found = metrics.evaluate(scores, labels, bootstrap=0)
    values = {name: interval.value for name, interval in found.intervals().items()}
    assert values == pytest.approx(expected(scores, labels), rel=1e-12, abs=1e-12)
    assert values == metrics.values(scores, labels)
    assert (found.lenses, found.others) == (labels.sum(), (~labels).sum())


@pytest.mark.parametrize("levels", [None, 5])
def test_resamples_have_the_metrics_of_their_objects(levels: int | None) -> None:
    scores, labels = survey(3, levels=levels)
    ranked, rng = Ranked(scores, labels), np.random.default_rng(1)
    draw = resampler(labels, np.arange(labels.size))
    for _ in range(25):
        weights = draw(rng).astype(int)
        assert weights[labels].sum() == labels.sum() and weights.sum() == labels.size
        again = np.repeat(scores, weights), np.repeat(labels, weights)
        found = dict(zip(metrics.NAMES, ranked.metrics(weights), strict=True))
        assert found == pytest.approx(expected(*again), rel=1e-12, abs=1e-12)


def test_interval_of_the_auroc_has_the_width_of_hanley_and_mcneil() -> None:
    scores, labels = survey(5, size=2000)
    found = metrics.evaluate(scores, labels).auroc
    area, lenses, others = found.value, labels.sum(), (~labels).sum()
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (
        area * (1 - area) + (lenses - 1) * (q1 - area**2) + (others - 1) * (q2 - area**2)
    ) / (lenses * others)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.15)


def test_perfect_and_worst_and_constant_scores() -> None:
    labels = np.array([1] * 5 + [0] * 20)
    perfect = metrics.evaluate(labels.astype(float), labels)
    assert perfect.auroc == metrics.Interval(1, 1, 1)
    assert perfect.tpr10 == metrics.Interval(1, 1, 1)
    # Five lenses and twenty others leave much open; the best other might have been no better.
    assert perfect.tpr0 == metrics.Interval(1, 0, 1)
    assert perfect.brier == metrics.Interval(0, 0, 0)
    assert metrics.values(1.0 - labels, labels)["auroc"] == 0
    constant = metrics.evaluate(np.full(25, 0.2), labels)
    assert constant.auroc.value == 0.5
    assert constant.average_precision.value == pytest.approx(0.2)
    assert constant.tpr0.value == constant.tpr10.value == 0
    assert constant.expected_calibration_error.value == pytest.approx(0)


def test_tpr10_is_the_rate_before_the_tenth_false_positive() -> None:
    # 100 others at 0.01, 0.02 ... 1.00: the tenth-ranked stands at 0.91
    others = np.arange(1, 101) / 100
    lenses = np.array([0.905, 0.91, 0.915, 1.0])
    scores = np.concatenate([lenses, others])
    labels = np.arange(scores.size) < 4
    found = metrics.values(scores, labels)
    assert found["tpr10"] == 2 / 4
    assert found["tpr0"] == 0  # the lens at 1.0 ties with an other
    assert metrics.values(scores[:13], labels[:13])["tpr10"] == 1  # there are but nine others


def test_calibration_error_counts_both_ends() -> None:
    for scores, labels, error in (
        ([0.0, 0.0], [1, 1], 1),
        ([1.0, 1.0], [0, 0], 1),
        ([0.0, 0.0, 1.0], [0, 1, 1], 1 / 3),
    ):
        found = metrics.values(scores, labels)["expected_calibration_error"]
        assert found == pytest.approx(error)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 12).map(lambda k: k / 12), st.booleans()), min_size=1, max_size=40
    )
)
def test_any_small_sample(sample: list[tuple[float, bool]]) -> None:
    scores, labels = np.array([s for s, _ in sample]), np.array([y for _, y in sample])
    found = metrics.evaluate(scores, labels, bootstrap=20)
    calibration = looped_calibration_error(scores, labels)
    assert found.expected_calibration_error.value == pytest.approx(calibration)
    both = labels.any() and not labels.all()
    for interval in (found.auroc, found.average_precision, found.tpr0, found.tpr10):
        assert math.isnan(interval.value) != both
    if both:
        assert found.auroc.value == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores))
        assert found.tpr10.value == looped_tpr(scores, labels, 10)
    for interval in found.intervals().values():
        assert math.isnan(interval.value) or interval.low <= interval.value <= interval.high


def test_unknown_labels_and_missing_scores_are_left_out_and_counted() -> None:
    scores, labels = survey(1, size=60)
    wide_scores = np.concatenate([scores, [0.9, 0.8, np.nan]])
    wide_labels = np.concatenate([labels, [np.nan, -1, 1]])
    found = metrics.evaluate(wide_scores, wide_labels)
    plain = metrics.evaluate(scores, labels)
    assert (found.unlabelled, found.unscored) == (2, 1)
    assert found.intervals() == plain.intervals()
    masked = np.ma.masked_array(np.append(labels, 0), mask=np.append(np.zeros(60, bool), True))
    assert metrics.evaluate(np.append(scores, 0.5), masked).unlabelled == 1


def test_nothing_at_all_is_nan_not_an_error() -> None:
    found = metrics.evaluate([], [])
    assert all(math.isnan(interval.value) for interval in found.intervals().values())
    assert metrics.roc_curve([], [])[0].size == 0


def test_saturated_float32_probabilities_cost_a_finite_log_loss() -> None:
    scores = np.array([1.0, 0.0, 1.0], np.float32)
    found = metrics.evaluate(scores, [1, 0, 0], bootstrap=0)
    assert found.log_loss.value == pytest.approx(sklearn_metrics.log_loss([1, 0, 0], scores))
    assert math.isfinite(found.log_loss.value)


def test_wrong_input_is_named() -> None:
    with pytest.raises(UsageError, match="neither 1"):
        metrics.evaluate([0.1, 0.2], [0, 2])
    with pytest.raises(UsageError, match="outside 0..1"):
        metrics.evaluate([0.1, 3.2], [0, 1])
    with pytest.raises(UsageError, match="do not match"):
        metrics.evaluate([0.1, 0.2], [0, 1, 1])


def test_seed_decides_the_interval() -> None:
    scores, labels = survey(2)
    assert metrics.evaluate(scores, labels, seed=1) == metrics.evaluate(scores, labels, seed=1)
    assert metrics.evaluate(scores, labels, seed=1) != metrics.evaluate(scores, labels, seed=2)


def test_curves_hold_the_areas() -> None:
    scores, labels = survey(6, levels=20)
    found = metrics.values(scores, labels)
    false_rate, true_rate = metrics.roc_curve(scores, labels)
    assert np.trapezoid(true_rate, false_rate) == pytest.approx(found["auroc"])
    recall, precision = metrics.precision_recall_curve(scores, labels)
    area = np.sum(np.diff(recall, prepend=0) * precision)
    assert area == pytest.approx(found["average_precision"])


def test_reliability_counts_everything_once() -> None:
    scores, labels = survey(7)
    count, promised, share = metrics.reliability(scores, labels)
    assert count.sum() == scores.size
    assert np.nansum(share * count) == pytest.approx(labels.sum())
    assert (promised >= np.arange(15) / 15)[count > 0].all()


def test_groups_are_resampled_as_a_whole() -> None:
    """With every object there twice in one group, nothing is known that was not known before."""
    scores, labels = survey(9, size=400)
    once = metrics.evaluate(scores, labels)
    groups = np.repeat(np.arange(400), 2)
    twice = np.repeat(scores, 2), np.repeat(labels, 2)
    found = metrics.evaluate(*twice, groups=groups)
    for name in ("auroc", "expected_calibration_error", "log_loss", "brier"):
        assert getattr(found, name) == pytest.approx(getattr(once, name)), name
    apart = metrics.evaluate(*twice).auroc
    assert apart.high - apart.low < 0.8 * (once.auroc.high - once.auroc.low)


def test_groups_of_both_classes_have_resamples_of_any_number_of_lenses() -> None:
    scores, labels = survey(10, size=300)
    groups = np.arange(300) // 3
    draw, rng = resampler(labels, groups), np.random.default_rng(0)
    for weights in (draw(rng) for _ in range(20)):
        assert (weights.reshape(-1, 3) == weights[::3, None]).all() and weights.sum() == 300
    found = metrics.evaluate(scores, labels, groups=groups)
    for interval in found.intervals().values():
        assert interval.low <= interval.value <= interval.high


def test_exact_rates_take_one_of_each_group() -> None:
    scores, labels = survey(11, size=6000)
    found = metrics.evaluate(scores, labels, bootstrap=0)
    lenses, others = scores[labels], scores[~labels]
    assert found.tpr_at_fpr["1e-2"] == tail.tpr_at(lenses, others, 1e-2)
    assert math.isnan(found.tpr_at_fpr["1e-3"].value)
    assert found.refused == {"1e-3": "needs 10,000 others", "1e-4": "needs 100,000 others"}
    twice = metrics.evaluate(
        np.repeat(scores, 2),
        np.repeat(labels, 2),
        groups=np.repeat(np.arange(6000), 2),
        bootstrap=0,
    )
    assert twice.tpr_at_fpr["1e-2"] == found.tpr_at_fpr["1e-2"]
    assert twice.refused == found.refused


def test_two_scores_are_compared_on_the_same_resamples() -> None:
    scores, labels = survey(12, size=600)
    rng = np.random.default_rng(3)
    noisy = np.clip(scores + rng.normal(0, 0.15, 600), 0, 1)
    found, count = metrics.compare(np.append(scores, np.nan), np.append(noisy, 0.5), [*labels, 1])
    assert count == 600 and list(found) == ["tpr10", "auroc", "log_loss"]
    for name, interval in found.items():
        difference = metrics.values(scores, labels)[name] - metrics.values(noisy, labels)[name]
        assert interval.value == pytest.approx(difference), name
    # By a loop over resamples and pairs; apart, the two would have a wider interval.
    drawn = []
    for _ in range(400):
        lenses, others = (
            rng.choice(rows, rows.size) for rows in map(np.flatnonzero, (labels, ~labels))
        )
        areas = [(s[lenses, None] > s[others]).mean() for s in (scores, noisy)]
        drawn.append(areas[0] - areas[1])
    width = found["auroc"].high - found["auroc"].low
    assert width == pytest.approx(np.diff(np.percentile(drawn, [2.5, 97.5]))[0], rel=0.2)
    apart = metrics.evaluate(noisy, labels).auroc
    assert width < apart.high - apart.low
    same, _ = metrics.compare(scores, scores, labels)
    assert all(interval == (0, 0, 0) for interval in same.values())


def test_the_table_begins_with_the_rate_at_few_false_positives_or_why_there_is_none() -> None:
    scores, labels = survey(13, size=2000)
    first, row = metrics.table({"ensemble": metrics.evaluate(scores, labels)}).splitlines()
    assert " ".join(first.split()) == "score TPR at FPR 1e-2 TPR10 TPR0 ECE AUROC"
    value, low, high = tail.tpr_at(scores[labels], scores[~labels], 1e-2)
    assert row.startswith(f"ensemble  {value:.4f} [{low:.4f}, {high:.4f}]  ")
    few = metrics.table({"ensemble": metrics.evaluate(scores[:200], labels[:200])})
    assert few.splitlines()[1].startswith("ensemble  needs 1,000 others  0.")


def test_large_tables_have_fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = survey(8, size=2000)
    assert metrics.evaluate(scores, labels).resamples == 1000
    monkeypatch.setattr(metrics, "_MOST_DRAWN", 20_000)
    assert metrics.evaluate(scores, labels).resamples == 10


def test_interval_of_a_share_is_exact() -> None:
    """By scipy's test of proportions, and by adding up how often it holds the truth."""
    found, of = np.array([0, 1, 3, 10, 10, 0, 7]), np.array([10, 10, 10, 10, 11, 0, 20_000])
    low, high = intervals.share_interval(found, of)
    for k, n, a, b in zip(found[of > 0], of[of > 0], low[of > 0], high[of > 0], strict=True):
        expected = stats.binomtest(int(k), int(n)).proportion_ci(0.95, method="exact")
        assert (a, b) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert (low[5], high[5]) == (0, 1)
    low, high = intervals.share_interval(np.arange(26), 25)
    for truth in (0.01, 0.2, 0.5, 0.97):
        held = (low <= truth) & (truth <= high)
        assert stats.binom.pmf(np.arange(26), 25, truth)[held].sum() >= 0.95


@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [
        ([0.1, 0.2], None, "the data have no labels"),
        ([0.1, np.nan], [-1, 1], "none of the cutouts that were scored has a label"),
        ([0.1, np.nan, 0.5], [1, 0, 1], "that have a label and a score (2) are lenses"),
        ([0.1, 0.2], [0, -1], "(1) are no lenses"),
        ([], [], "none of the cutouts"),
        ([0.1] * 30, [1] * 9 + [0] * 21, "so few lenses (9)"),
        ([0.1] * 30, [1] * 28 + [0, -1], "so few others (1)"),
    ],
)
def test_what_is_missing_is_said(scores: list, labels: list | None, said: str) -> None:
    (line,) = metrics.caveats(scores, labels)
    assert said in line
    assert metrics.caveats([0.1] * 20, [0, 1] * 10) == []
    (line,) = metrics.caveats([0.1] * 20, [0, 1] * 10, np.arange(20) // 4)
    assert "so few groups of lenses (5)" in line
    if labels:
        text = metrics.table({"ensemble": metrics.evaluate(scores, labels, bootstrap=5)})
        assert "nan" not in text
