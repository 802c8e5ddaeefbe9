"""How good the scores are: ranking, top-of-list purity and calibration, with intervals.

Everything is computed from the lenses and the other objects sorted apart, under integer weights:
weights of one give the value itself, multinomial weights a bootstrap resample.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensjax.errors import UsageError

BINS = 15
FEW = 10  # objects of a class, below which resampling them says little of what others would do
_WEIGHTS_IN_MEMORY = 4_000_000  # 32 MB of float64 weights at a time
_WEIGHTS_IN_ALL = 100_000_000  # a million objects are resampled a hundred times

Array = NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % bootstrap interval; all NaN where the labels do not define it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Metrics:
    """What `evaluate` found; probabilities and labels left out are counted, never hidden.

    Of `tpr0` and `tpr10` see `tpr_at`, of `expected_calibration_error` the function of that name.
    `log_loss` is in nats, `brier` the mean squared error of the probability.
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
        """The seven metrics by name, in the order in which they are shown."""
        return {key: value for key, value in vars(self).items() if isinstance(value, Interval)}

    def to_json(self) -> dict[str, Any]:
        """Nested dict of plain numbers (NaN where undefined)."""
        return asdict(self)


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: per bin, what was promised and what came true.

    `edges` is (bins + 1,); `count`, `mean_probability` and `lens_fraction` are (bins,), the last
    two NaN in an empty bin.
    """

    edges: Array
    count: Array
    mean_probability: Array
    lens_fraction: Array


def evaluate(
    probabilities: ArrayLike, labels: ArrayLike, *, bootstrap: int = 1000, seed: int = 0
) -> Metrics:
    """All metrics of `probabilities` (N,) against `labels` (N,), with 95 % intervals.

    Labels are 1 (lens), 0 (other) or unknown (NaN, negative, masked); unknown ones and NaN
    probabilities are left out and counted. The intervals are percentiles of a stratified
    bootstrap (lenses and others are resampled apart, so their numbers stay), widened to hold the
    value itself, which resampling noise can lift the calibration error away from. Beyond 100,000
    objects fewer resamples than `bootstrap` may be drawn (100 at a million); `resamples` says how
    many. Metrics that need both classes are NaN where there is one.
    """
    scores, lens, unlabelled, unscored = _known(probabilities, labels)
    ranked = _Ranked.of(scores, lens)
    value = ranked.metrics(*ranked.once())[:, 0]
    resamples = min(bootstrap, max(_WEIGHTS_IN_ALL // max(scores.size, 1), 1))
    low = high = value
    if resamples and scores.size:
        draws = ranked.resample(resamples, np.random.default_rng(seed))
        spread = np.concatenate([ranked.metrics(*weights) for weights in draws], axis=1)
        low, high = np.percentile(spread, [2.5, 97.5], axis=1)
    auroc, average_precision, tpr0, tpr10, calibration, log_loss, brier = (
        Interval(float(v), float(min(v, a)), float(max(v, b)))
        for v, a, b in zip(value, low, high, strict=True)
    )
    return Metrics(
        auroc=auroc,
        average_precision=average_precision,
        tpr0=tpr0,
        tpr10=tpr10,
        expected_calibration_error=calibration,
        log_loss=log_loss,
        brier=brier,
        lenses=int(lens.sum()),
        others=int((~lens).sum()),
        unlabelled=unlabelled,
        unscored=unscored,
        resamples=resamples,
    )


def caveats(probabilities: ArrayLike, labels: ArrayLike | None) -> list[str]:
    """Why there are no metrics, or not all, or no good intervals, in a line; none where all are."""
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


def auroc(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a lens outscores another object (ties count half).

    NaN unless both classes are there.
    """
    ranked = _Ranked.of(*_known(probabilities, labels)[:2])
    return float(ranked.metrics(*ranked.once())[0, 0])


def tpr_at(probabilities: ArrayLike, labels: ArrayLike, false_positives: int) -> float:
    """Fraction of lenses found before the given false positive, as the lens finding challenge has
    it (Metcalf et al. 2019, A&A 625, A119).

    TPR0 (`false_positives=0`) is the fraction of lenses scored strictly above every non-lens,
    TPR10 the fraction scored strictly above the tenth-ranked non-lens. It is not the rate at a
    false-positive rate of 0.1. One where there are fewer than `false_positives` non-lenses, NaN
    unless both classes are there.
    """
    ranked = _Ranked.of(*_known(probabilities, labels)[:2])
    if not ranked.both_classes:
        return math.nan
    lens_sums, other_sums = map(_running_sum, ranked.once())
    return float(ranked.tpr(lens_sums, other_sums, false_positives)[0])


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean over objects of |mean probability - fraction of lenses| in their bin of probability.

    15 bins of equal width, each closed below, the last closed above too: both p = 0 and p = 1
    count (Guo et al. 2017, equation 3). NaN without objects.
    """
    table = reliability(probabilities, labels)
    gap = np.abs(table.mean_probability - table.lens_fraction)
    filled = table.count > 0
    return float(np.average(gap[filled], weights=table.count[filled])) if filled.any() else math.nan


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS) -> Reliability:
    """Counts, mean probability and fraction of lenses in bins of equal width."""
    scores, lens, _, _ = _known(probabilities, labels)
    index = _bin_of(scores, bins)
    count = np.bincount(index, minlength=bins)
    divisor = np.where(count, count, np.nan)
    return Reliability(
        np.linspace(0, 1, bins + 1),
        count,
        np.bincount(index, scores, bins) / divisor,
        np.bincount(index, lens, bins) / divisor,
    )


def roc_curve(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """False-positive and true-positive rate at each distinct score, best first, from (0, 0) on.

    Empty unless both classes are there.
    """
    from sklearn import metrics  # takes half a second to import, and only figures need it

    scores, lens, _, _ = _known(probabilities, labels)
    if not 0 < lens.sum() < lens.size:
        return np.empty(0), np.empty(0)
    false_rate, true_rate, _ = metrics.roc_curve(lens, scores)
    return false_rate, true_rate


def precision_recall_curve(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Recall and precision at each distinct score, best first. Empty unless both classes are."""
    from sklearn import metrics

    scores, lens, _, _ = _known(probabilities, labels)
    if not 0 < lens.sum() < lens.size:
        return np.empty(0), np.empty(0)
    precision, recall, _ = metrics.precision_recall_curve(lens, scores, drop_intermediate=True)
    # the last point (0, 1) is a convention: no score stands behind it
    return recall[-2::-1], precision[-2::-1]


def share_interval(found: ArrayLike, of: ArrayLike) -> tuple[Array, Array]:
    """The exact 95 % interval of the share of which `found` in `of` are a sample, by Clopper and
    Pearson (1934, Biometrika 26, 404); 0 to 1 where nothing was tried."""
    from scipy import special

    hits, misses = np.asarray(found, float), np.asarray(of, float) - np.asarray(found, float)
    low = special.betaincinv(np.maximum(hits, 1), misses + 1, 0.025)
    high = special.betaincinv(hits + 1, np.maximum(misses, 1), 0.975)
    return np.where(hits > 0, low, 0.0), np.where(misses > 0, high, 1.0)


def lens_or_unknown(labels: ArrayLike) -> Array:
    """Labels (N,) as int8: 1 lens, 0 other, -1 unknown (NaN, negative or masked).

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


def _known(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array, int, int]:
    """Scores (K,) and bool lens (K,) of the usable objects, and how many were left out and why."""
    scores, classes = np.asarray(probabilities), lens_or_unknown(labels)
    if scores.ndim != 1 or scores.shape != classes.shape:
        raise UsageError(
            f"{scores.shape} probabilities do not match {classes.shape} labels: give one a cutout"
        )
    scores = scores.astype(np.result_type(scores.dtype, np.float32))
    scored = ~np.isnan(scores)
    if ((scores[scored] < 0) | (scores[scored] > 1)).any():
        raise UsageError("scores outside 0..1 are no probabilities: evaluate probabilities")
    use = scored & (classes >= 0)
    return scores[use], classes[use] == 1, int((classes < 0).sum()), int((~scored).sum())


def _bin_of(scores: Array, bins: int) -> Array:
    return np.digitize(scores, np.linspace(0, 1, bins + 1)[1:-1])


def _running_sum(weights: Array) -> Array:
    """(R, n + 1) sums of the first 0, 1, ... n weights of each row of (R, n)."""
    sums = np.zeros((weights.shape[0], weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


@dataclass(frozen=True)
class _Ranked:
    """Lenses (P,) and others (Q,) sorted apart, best first, and where each falls in the other list.

    `others_above` and `others_level` (P,): others scored above, and not below, each lens;
    `lenses_level` (P,): lenses not below it; `lenses_above` (Q,): lenses above each other.
    `lens_losses` (P, BINS + 2) and `other_losses` (Q, BINS + 2): what each object adds to its bin's
    calibration gap, to the log loss and to the Brier score.
    """

    others_above: Array
    others_level: Array
    lenses_level: Array
    lenses_above: Array
    lens_losses: Array
    other_losses: Array

    @classmethod
    def of(cls, scores: Array, lens: Array) -> "_Ranked":
        lenses, others = -np.sort(-scores[lens]), -np.sort(-scores[~lens])
        return cls(
            np.searchsorted(-others, -lenses, side="left"),
            np.searchsorted(-others, -lenses, side="right"),
            np.searchsorted(-lenses, -lenses, side="right"),
            np.searchsorted(-lenses, -others, side="left"),
            _losses(lenses, 1.0),
            _losses(others, 0.0),
        )

    @property
    def both_classes(self) -> bool:
        return self.others_above.size > 0 and self.lenses_above.size > 0

    def once(self) -> tuple[Array, Array]:
        """Every object with weight one: (1, P) and (1, Q)."""
        return np.ones((1, self.others_above.size)), np.ones((1, self.lenses_above.size))

    def resample(self, times: int, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
        """Multinomial weights (R, P) and (R, Q), as many rows at a time as memory is set aside."""
        sizes = self.others_above.size, self.lenses_above.size
        step = max(1, _WEIGHTS_IN_MEMORY // sum(sizes))
        for start in range(0, times, step):
            rows = min(step, times - start)
            yield _draw(rows, sizes[0], rng), _draw(rows, sizes[1], rng)

    def metrics(self, lens_weights: Array, other_weights: Array) -> Array:
        """(7, R) metrics, in the order of `Metrics`, for weights (R, P) and (R, Q)."""
        rows, lenses = lens_weights.shape
        total = lenses + other_weights.shape[1]
        if not total:
            return np.full((7, rows), np.nan)
        losses = (lens_weights @ self.lens_losses + other_weights @ self.other_losses) / total
        absolute = [np.abs(losses[:, :BINS]).sum(axis=1), losses[:, BINS], losses[:, BINS + 1]]
        if not self.both_classes:
            return np.stack([np.full(rows, np.nan)] * 4 + absolute)

        lens_sums, other_sums = _running_sum(lens_weights), _running_sum(other_weights)
        above, level = other_sums[:, self.others_above], other_sums[:, self.others_level]
        beaten = np.einsum("rp,rp->r", lens_weights, above + level) / 2
        found = lens_sums[:, self.lenses_level]
        # a lens of weight 0 with nothing at all above it has no precision, and no say
        precision = found / np.maximum(found + level, 1)
        ranking = [
            1 - beaten / (lenses * other_weights.shape[1]),
            np.einsum("rp,rp->r", lens_weights, precision) / lenses,
            self.tpr(lens_sums, other_sums, 0),
            self.tpr(lens_sums, other_sums, 10),
        ]
        return np.stack(ranking + absolute)

    def tpr(self, lens_sums: Array, other_sums: Array, false_positives: int) -> Array:
        """(R,) share of the lenses above the first, or the `false_positives`-th, other."""
        reached = other_sums[:, 1:] >= max(false_positives, 1)
        worst = np.where(reached.any(axis=1), reached.argmax(axis=1), -1)
        above = np.where(worst < 0, lens_sums.shape[1] - 1, self.lenses_above[worst])
        return lens_sums[np.arange(worst.size), above] / lens_sums[:, -1]


def _losses(scores: Array, truth: float) -> Array:
    """(n, BINS + 2): p - y in the column of its bin, then -log p(truth) and (p - y)^2.

    Probabilities are kept one rounding step of their own type away from 0 and 1 for the logarithm.
    """
    tiny = np.finfo(scores.dtype).eps
    clipped = np.clip(scores.astype(float), tiny, 1 - tiny)
    losses = np.zeros((scores.size, BINS + 2))
    losses[np.arange(scores.size), _bin_of(scores, BINS)] = scores - truth
    losses[:, BINS] = -np.log(clipped if truth else 1 - clipped)
    losses[:, BINS + 1] = (scores - truth) ** 2
    return losses


def _draw(rows: int, size: int, rng: np.random.Generator) -> Array:
    """(rows, size) float64: how often each of `size` objects is drawn in `size` draws."""
    drawn = rng.integers(size, size=(rows, size)) if size else np.empty((rows, 0), np.int64)
    drawn += size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(float)


def table(found: Mapping[str, Metrics]) -> str:
    """Returns lines of text: AUROC, TPR0, TPR10 and ECE with their intervals, a row a score."""
    shown = {
        "AUROC": "auroc",
        "TPR0": "tpr0",
        "TPR10": "tpr10",
        "ECE": "expected_calibration_error",
    }
    width = max(len(name) for name in ("score", *found))
    lines = [f"{'score':<{width}}" + "".join(f"  {title:<22}" for title in shown)]
    for name, metrics in found.items():
        intervals = (getattr(metrics, field) for field in shown.values())
        cells = map(_shown, intervals)
        lines.append(f"{name:<{width}}" + "".join(f"  {cell:<22}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _shown(found: Interval) -> str:
    if math.isnan(found.value):
        return "-"
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"
