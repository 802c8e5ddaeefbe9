"""How good the scores are: ranking, top-of-list purity and calibration, with intervals."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensjax.errors import UsageError

BINS = 15
FEW = 10  # objects of a class, below which resampling them says little of what others would do
_MOST_DRAWN = 100_000_000  # objects in all resamples: a million are resampled a hundred times

Array = NDArray[Any]


class Interval(NamedTuple):
    """A value and its 95 % bootstrap interval; all NaN where the labels do not define it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Metrics:
    """What `evaluate` found; probabilities and labels left out are counted, never hidden.

    `tpr0` and `tpr10` are the fractions of lenses found before the first and the tenth false
    positive, as the lens finding challenge has it (Metcalf et al. 2019, A&A 625, A119): scored
    strictly above every non-lens, or the tenth-ranked one; one where there are fewer non-lenses.
    They are not rates at a false-positive rate.

    `expected_calibration_error` is the mean over objects of |mean probability - fraction of
    lenses| in their bin of probability: 15 bins of equal width, each closed below, the last closed
    above too, so that both p = 0 and p = 1 count (Guo et al. 2017, equation 3). `log_loss` is in
    nats, `brier` the mean squared error of the probability.
    """

    auroc: Interval
    average_precision: Interval
    tpr0: Interval
    tpr10: Interval
    expected_calibration_error: Interval
    log_loss: Interval
    brier: Interval
    lenses: int
    others: int
    unlabelled: int
    unscored: int
    resamples: int

    def intervals(self) -> dict[str, Interval]:
        """Returns the seven metrics by name, in the order in which they are shown."""
        return {name: getattr(self, name) for name in NAMES}

    def to_json(self) -> dict[str, Any]:
        """Returns a nested dict of plain numbers (NaN where undefined)."""
        return vars(self) | {name: found._asdict() for name, found in self.intervals().items()}


NAMES = tuple(name for name, kind in Metrics.__annotations__.items() if kind is Interval)


def evaluate(
    probabilities: ArrayLike, labels: ArrayLike, *, bootstrap: int = 1000, seed: int = 0
) -> Metrics:
    """Returns all metrics of `probabilities` (n,) against `labels` (n,), with 95 % intervals.

    Labels are 1 (lens), 0 (other) or unknown (NaN, negative, masked); unknown ones and NaN
    probabilities are left out and counted. The intervals are percentiles of a stratified
    bootstrap (lenses and others are resampled apart, so their numbers stay), widened to hold the
    value itself, which resampling noise can lift the calibration error away from. Beyond 100,000
    objects fewer resamples than `bootstrap` may be drawn (100 at a million); `resamples` says how
    many. Metrics that need both classes are NaN where there is one.
    """
    scores, lens, unlabelled, unscored = _known(probabilities, labels)
    ranked = _Ranked(scores, lens)
    value = ranked.metrics(np.ones(lens.size))
    resamples = min(bootstrap, max(_MOST_DRAWN // max(lens.size, 1), 1))
    rng = np.random.default_rng(seed)
    drawn = [ranked.metrics(ranked.resampled(rng)) for _ in range(resamples)] or [value]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    bounds = np.stack([value, np.fmin(value, low), np.fmax(value, high)], axis=1).tolist()
    return Metrics(
        **{name: Interval(*each) for name, each in zip(NAMES, bounds, strict=True)},
        lenses=int(lens.sum()),
        others=int((~lens).sum()),
        unlabelled=unlabelled,
        unscored=unscored,
        resamples=resamples,
    )


def evaluate_all(
    probabilities: Mapping[str, ArrayLike], labels: ArrayLike, **options: int
) -> dict[str, Metrics]:
    """Returns the metrics of scores by name, as `evaluate` does."""
    return {name: evaluate(values, labels, **options) for name, values in probabilities.items()}


def values(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Returns the metrics of `evaluate` by name, without intervals."""
    scores, lens, _, _ = _known(probabilities, labels)
    found = _Ranked(scores, lens).metrics(np.ones(lens.size))
    return dict(zip(NAMES, found.tolist(), strict=True))


def caveats(probabilities: ArrayLike, labels: ArrayLike | None) -> list[str]:
    """Returns why there are no metrics, or not all, or no good intervals; mostly nothing."""
    if labels is None:
        return ["no metrics: the data have no labels"]
    scores, lens, _, _ = _known(probabilities, labels)
    if not scores.size:
        return ["no metrics: none of the cutouts that were scored has a label"]
    fewer = min(lens.sum(), lens.size - lens.sum())
    if fewer >= FEW:
        return []
    if fewer:
        kind = "lenses" if lens.sum() == fewer else "others"
        return [f"intervals are too narrow where there are so few {kind} ({fewer}) to resample"]
    kind = "are lenses" if lens.all() else "are no lenses"
    return [
        "no AUROC, average precision, TPR0 and TPR10: all cutouts that have a label and a score "
        f"({lens.size:,}) {kind}"
    ]


def reliability(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array, Array]:
    """Returns a reliability diagram: count, mean probability and fraction of lenses (BINS,) in bins
    of equal width; the last two are NaN in an empty bin."""
    scores, lens, _, _ = _known(probabilities, labels)
    index = _bin_of(scores)
    count = np.bincount(index, minlength=BINS)
    divisor = np.where(count, count, np.nan)
    promised, lenses = (np.bincount(index, values, BINS) for values in (scores, lens))
    return count, promised / divisor, lenses / divisor


def roc_curve(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Returns false-positive and true-positive rate at each distinct score, from (0, 0) on.

    Empty unless both classes are there.
    """
    scores, lens, _, _ = _known(probabilities, labels)
    if not 0 < lens.sum() < lens.size:
        return np.empty(0), np.empty(0)
    from sklearn import metrics  # takes half a second to import, and only figures need it

    false_rate, true_rate, _ = metrics.roc_curve(lens, scores)
    return false_rate, true_rate


def precision_recall_curve(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Returns recall and precision at each distinct score, best first, empty as in `roc_curve`."""
    scores, lens, _, _ = _known(probabilities, labels)
    if not 0 < lens.sum() < lens.size:
        return np.empty(0), np.empty(0)
    from sklearn import metrics

    curve = metrics.precision_recall_curve(lens, scores, drop_intermediate=True)
    # The last point (0, 1) is a convention: no score stands behind it.
    return curve[1][-2::-1], curve[0][-2::-1]


def share_interval(
    found: ArrayLike, of: ArrayLike, *, confidence: float = 0.95
) -> tuple[Array, Array]:
    """Returns the exact interval of the share of which `found` in `of` are a sample.

    By Clopper and Pearson (1934, Biometrika 26, 404); 0 to 1 where nothing was tried.
    """
    from scipy import special

    hits, misses = np.asarray(found, float), np.asarray(of, float) - np.asarray(found, float)
    side = (1 - confidence) / 2
    low = special.betaincinv(np.maximum(hits, 1), misses + 1, side)
    high = special.betaincinv(hits + 1, np.maximum(misses, 1), 1 - side)
    return np.where(hits > 0, low, 0.0), np.where(misses > 0, high, 1.0)


def lens_or_unknown(labels: ArrayLike) -> Array:
    """Returns labels (n,) as int8: 1 lens, 0 other, -1 unknown (NaN, negative or masked).

    Raises UsageError for any other value.
    """
    values = np.ma.filled(np.ma.asarray(labels).astype(float), np.nan)
    unknown = np.isnan(values) | (values < 0)
    strange = ~unknown & (values != 0) & (values != 1)
    if strange.any():
        raise UsageError(
            f"label {values[strange][0]:g} is neither 1 (lens), 0 (no lens) nor -1 (unknown): "
            "correct the labels"
        )
    return np.where(unknown, -1, values).astype(np.int8)


def table(found: Mapping[str, Metrics]) -> str:
    """Returns lines of text: AUROC, TPR0, TPR10 and ECE with their intervals, a row a score."""
    shown = {"AUROC": "auroc", "TPR0": "tpr0", "TPR10": "tpr10", "ECE": NAMES[4]}
    width = max(len(name) for name in ("score", *found))
    lines = [f"{'score':<{width}}" + "".join(f"  {title:<22}" for title in shown)]
    for name, metrics in found.items():
        cells = (_cell(getattr(metrics, field)) for field in shown.values())
        lines.append(f"{name:<{width}}" + "".join(f"  {cell:<22}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _cell(found: Interval) -> str:
    value, low, high = found
    return "-" if math.isnan(value) else f"{value:.4f} [{low:.4f}, {high:.4f}]"


def _known(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array, int, int]:
    """Returns scores (n,) and bool lens (n,) of the objects that have both, and how many have no
    label and no score."""
    scores, classes = np.asarray(probabilities), lens_or_unknown(labels)
    if scores.ndim != 1 or scores.shape != classes.shape:
        raise UsageError(
            f"{scores.shape} probabilities do not match {classes.shape} labels: give one per cutout"
        )
    scores = scores.astype(np.result_type(scores.dtype, np.float32))
    scored = ~np.isnan(scores)
    if ((scores[scored] < 0) | (scores[scored] > 1)).any():
        raise UsageError("scores outside 0..1 are no probabilities: evaluate probabilities")
    use = scored & (classes >= 0)
    return scores[use], classes[use] == 1, int((classes < 0).sum()), int((~scored).sum())


def _bin_of(scores: Array) -> Array:
    return np.digitize(scores, np.linspace(0, 1, BINS + 1)[1:-1])


class _Ranked:
    """Lenses (P,) and others (Q,), each from best to worst, and what each object adds to the
    metrics: all that is needed to resample them, 1,000 times in seconds where there are 100,000."""

    def __init__(self, scores: Array, lens: Array) -> None:
        lenses, others = np.sort(-scores[lens]), np.sort(-scores[~lens])
        self._sizes = lenses.size, others.size
        self._others_above = np.searchsorted(others, lenses, "left")
        self._others_level = np.searchsorted(others, lenses, "right")
        self._lenses_level = np.searchsorted(lenses, lenses, "right")
        # The last is of the place below all others.
        self._lenses_above = np.append(np.searchsorted(lenses, others, "left"), lenses.size)
        probability = -np.append(lenses, others)
        truth = np.repeat([1.0, 0.0], self._sizes)
        self._bin = _bin_of(probability)
        self._gap = probability - truth
        # Kept one rounding step of their own type away from 0 and 1 for the logarithm.
        tiny = np.finfo(scores.dtype).eps
        clipped = np.clip(probability.astype(float), tiny, 1 - tiny)
        self._losses = -np.log(np.where(truth, clipped, 1 - clipped)), self._gap**2

    def resampled(self, rng: np.random.Generator) -> Array:
        """Returns how often (P + Q,) each object is drawn, lenses and others apart."""
        drawn = [rng.integers(max(size, 1), size=size) for size in self._sizes]
        counts = [
            np.bincount(rows, minlength=size) for rows, size in zip(drawn, self._sizes, strict=True)
        ]
        return np.concatenate(counts, dtype=float)

    def metrics(self, weights: Array) -> Array:
        """Returns the seven metrics, in the order of `NAMES`, of objects that are there as often as
        `weights` (P + Q,) says."""
        total = sum(self._sizes)
        if not total:
            return np.full(len(NAMES), np.nan)
        gaps = np.bincount(self._bin, weights * self._gap, BINS)
        # Not by `@`, whose threads would wait for each other where the cores are busy.
        losses = [np.abs(gaps).sum(), *((weights * each).sum() for each in self._losses)]
        return np.append(self._of_ranking(weights), np.divide(losses, total))

    def _of_ranking(self, weights: Array) -> list[float]:
        size, others = self._sizes
        if not (size and others):
            return [math.nan] * 4
        lens_weights = weights[:size]
        lens_sums, other_sums = (
            np.append(0, np.cumsum(part)) for part in np.split(weights, [size])
        )
        above, level = other_sums[self._others_above], other_sums[self._others_level]
        found = lens_sums[self._lenses_level]
        # A lens of weight 0 with nothing at all above it has no precision, and no say.
        precision = found / np.maximum(found + level, 1)
        worst = [np.searchsorted(other_sums[1:], count) for count in (1, 10)]
        return [
            1 - (lens_weights * (above + level)).sum() / (2 * size * others),
            (lens_weights * precision).sum() / size,
            *lens_sums[self._lenses_above[worst]] / size,
        ]
