"""How good the scores are: ranking, top-of-list purity and calibration, with intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensjax import tail
from lensjax.errors import UsageError
from lensjax.intervals import UNKNOWN, Interval
from lensjax.ranking import BINS, NAMES, Ranked, bin_of, resampler

FEW = 10  # objects of a class, below which resampling them says little of what others would do
FIRST_RATE = tail.RATES[0]
DIFFERENCES = ("tpr10", "auroc", "log_loss")
_MOST_DRAWN = 100_000_000  # objects in all resamples: a million are resampled a hundred times

Array = NDArray[Any]


@dataclass(frozen=True)
class Metrics:
    """What `evaluate` found; probabilities and labels left out are counted, never hidden.

    `tpr0` and `tpr10` are the fractions of lenses found before the first and the tenth false
    positive, as the lens finding challenge has it (Metcalf et al. 2019, A&A 625, A119): scored
    strictly above every non-lens, or the tenth-ranked one; one where there are fewer non-lenses.
    They are not rates at a false-positive rate: `tpr_at_fpr` has these, by the rate as it is
    written (`tail.RATES`), NaN where there are too few objects, of which `refused` says why.

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
    tpr_at_fpr: Mapping[str, Interval]
    refused: Mapping[str, str]
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
        rates = {rate: found._asdict() for rate, found in self.tpr_at_fpr.items()}
        of_names = {name: found._asdict() for name, found in self.intervals().items()}
        return vars(self) | of_names | {"tpr_at_fpr": rates}


def evaluate(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Metrics:
    """Returns all metrics of `probabilities` (n,) against `labels` (n,), with 95 % intervals.

    Labels are 1 (lens), 0 (other) or unknown (NaN, negative, masked); unknown ones and NaN
    probabilities are left out and counted. Of `tpr0` and `tpr_at_fpr` the intervals are exact,
    `tpr0` being taken at the false-positive rate of 1 / (n + 1) that is left above the best of n
    others on average: resampling fails there. The
    others are percentiles of a stratified bootstrap (lenses and others are resampled apart, so
    their numbers stay), widened to hold the value itself, which resampling noise can lift the
    calibration error away from. Beyond 100,000 objects fewer resamples than `bootstrap` may be
    drawn (100 at a million); `resamples` says how many. Metrics that need both classes are NaN
    where there is one.

    Objects that share one of the `groups` (n,) are resampled as a whole, and exact intervals take
    one of each group (`tail.independent`).
    """
    known = _known(probabilities, labels)
    unit = tail.units(known.use.size, groups)[known.use]
    # Best first: intervals do not depend on the order in which objects are given.
    order = np.lexsort([-known.scores, ~known.lens])
    scores, lens = known.scores[order], known.lens[order]
    ranked, draw = Ranked(scores, lens), resampler(lens, unit[order])
    value = ranked.metrics()
    rng, resamples = np.random.default_rng(seed), _resamples(bootstrap, lens.size)
    found = _intervals(value, [ranked.metrics(draw(rng)) for _ in range(resamples)])
    alone = tail.independent(known.lens, unit)
    lenses, others = known.lenses_and_others(alone)
    found["tpr0"] = _with_exact(found["tpr0"].value, lenses, others)
    why = {rate: tail.refusal(lenses.size, others.size, float(rate)) for rate in tail.RATES}
    return Metrics(
        **found,
        tpr_at_fpr={
            rate: UNKNOWN if why[rate] else tail.tpr_at(lenses, others, float(rate)) for rate in why
        },
        refused={rate: reason for rate, reason in why.items() if reason},
        lenses=int(lens.sum()),
        others=int((~lens).sum()),
        unlabelled=known.unlabelled,
        unscored=known.unscored,
        resamples=resamples,
    )


def evaluate_all(
    probabilities: Mapping[str, ArrayLike], labels: ArrayLike, **options: Any
) -> dict[str, Metrics]:
    """Returns the metrics of scores by name, as `evaluate` does."""
    return {name: evaluate(values, labels, **options) for name, values in probabilities.items()}


def values(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Returns the metrics of `evaluate` by name, without intervals."""
    known = _known(probabilities, labels)
    return dict(zip(NAMES, Ranked(known.scores, known.lens).metrics().tolist(), strict=True))


def compare(
    probabilities: ArrayLike,
    others: ArrayLike,
    labels: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Interval], int]:
    """Returns by how much `probabilities` (n,) exceed `others` (n,) in the metrics of DIFFERENCES,
    and of how many objects: those that have a label and both scores.

    95 % intervals of a paired bootstrap: both are resampled as one, by groups as in `evaluate`.
    """
    missing = np.isnan(np.asarray(probabilities)) | np.isnan(np.asarray(others))
    labels = np.where(missing, -1, lens_or_unknown(labels))
    first, second = _known(probabilities, labels), _known(others, labels)
    mine, theirs = (Ranked(known.scores, known.lens) for known in (first, second))
    draw = resampler(first.lens, tail.units(missing.size, groups)[first.use])
    rng = np.random.default_rng(seed)

    def resampled() -> Array:
        weights = draw(rng)
        return mine.metrics(weights) - theirs.metrics(weights)

    drawn = [resampled() for _ in range(_resamples(bootstrap, first.lens.size))]
    found = _intervals(mine.metrics() - theirs.metrics(), drawn)
    return {name: found[name] for name in DIFFERENCES}, first.lens.size


def caveats(
    probabilities: ArrayLike, labels: ArrayLike | None, groups: ArrayLike | None = None
) -> list[str]:
    """Returns why there are no metrics, or not all, or no good intervals; mostly nothing."""
    if labels is None:
        return ["no metrics: the data have no labels"]
    known = _known(probabilities, labels)
    lens, unit = known.lens, tail.units(known.use.size, groups)[known.use]
    if not lens.size:
        return ["no metrics: none of the cutouts that were scored has a label"]
    if lens.all() or not lens.any():
        kind = "are lenses" if lens.all() else "are no lenses"
        return [
            "no AUROC, average precision, TPR0 and TPR10: all cutouts that have a label and a "
            f"score ({lens.size:,}) {kind}"
        ]
    kinds = {"lenses": lens, "others": ~lens}
    number = {kind: np.unique(unit[rows]).size for kind, rows in kinds.items()}
    fewest = min(number, key=lambda kind: number[kind])
    if number[fewest] >= FEW:
        return []
    kind = fewest if groups is None else f"groups of {fewest}"
    return [
        f"intervals are too narrow where there are so few {kind} ({number[fewest]}) to resample"
    ]


def reliability(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array, Array]:
    """Returns a reliability diagram: count, mean probability and fraction of lenses (BINS,) in bins
    of equal width; the last two are NaN in an empty bin."""
    scores, lens = _known(probabilities, labels)[:2]
    index = bin_of(scores)
    count = np.bincount(index, minlength=BINS)
    divisor = np.where(count, count, np.nan)
    promised, lenses = (np.bincount(index, values, BINS) for values in (scores, lens))
    return count, promised / divisor, lenses / divisor


def roc_curve(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Returns false-positive and true-positive rate at each distinct score, from (0, 0) on.

    Empty unless both classes are there.
    """
    scores, lens = _known(probabilities, labels)[:2]
    if not 0 < lens.sum() < lens.size:
        return np.empty(0), np.empty(0)
    from sklearn import metrics  # takes half a second to import, and only figures need it

    false_rate, true_rate, _ = metrics.roc_curve(lens, scores)
    return false_rate, true_rate


def precision_recall_curve(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Returns recall and precision at each distinct score, best first, empty as in `roc_curve`."""
    scores, lens = _known(probabilities, labels)[:2]
    if not 0 < lens.sum() < lens.size:
        return np.empty(0), np.empty(0)
    from sklearn import metrics

    curve = metrics.precision_recall_curve(lens, scores, drop_intermediate=True)
    # The last point (0, 1) is a convention: no score stands behind it.
    return curve[1][-2::-1], curve[0][-2::-1]


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


def table(found: Mapping[str, Metrics], title: str = "score") -> str:
    """Returns lines of text, a row a score: the true-positive rate at a false-positive rate of 1e-2
    or why there is none, TPR10, TPR0, ECE and AUROC, with their intervals."""
    shown = {"TPR10": "tpr10", "TPR0": "tpr0", "ECE": NAMES[4], "AUROC": "auroc"}
    rows = [[title, f"TPR at FPR {FIRST_RATE}", *shown]]
    for name, metrics in found.items():
        tpr = metrics.refused.get(FIRST_RATE) or cell(metrics.tpr_at_fpr[FIRST_RATE])
        rows.append([name, tpr, *(cell(getattr(metrics, field)) for field in shown.values())])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of texts, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def cell(found: Interval, form: str = ".4f") -> str:
    """Returns a value and its interval as text, without it where it is not known."""
    value, low, high = found
    if math.isnan(value):
        return "-"
    return f"{value:{form}}" + ("" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]")


class _Known(NamedTuple):
    """What `use` (given,) is of the objects that have a score and a label: scores (n,) and bool
    lens (n,); and how many have no label, and no score."""

    scores: Array
    lens: Array
    use: Array
    unlabelled: int
    unscored: int

    def lenses_and_others(self, rows: Array) -> tuple[Array, Array]:
        """Returns the scores of the lenses and of the others among some of the rows."""
        scores, lens = self.scores[rows], self.lens[rows]
        return scores[lens], scores[~lens]


def _resamples(wanted: int, size: int) -> int:
    return min(wanted, max(_MOST_DRAWN // max(size, 1), 1))


def _intervals(value: Array, drawn: Sequence[Array]) -> dict[str, Interval]:
    """Returns values (7,) by the name of their metric, with percentiles of those `drawn` anew."""
    # A resample of groups may be of one class, and lack some; where all do, the value is NaN too.
    filled = np.where(np.isnan(value), 0, drawn or [value])
    low, high = np.nanpercentile(filled, [2.5, 97.5], axis=0)
    bounds = np.stack([value, np.minimum(value, low), np.maximum(value, high)], axis=1).tolist()
    return {name: Interval(*each) for name, each in zip(NAMES, bounds, strict=True)}


def _with_exact(tpr0: float, lenses: Array, others: Array) -> Interval:
    """Returns TPR0 with the interval of the rate that it stands for, given independent objects."""
    if not (lenses.size and others.size):
        return Interval(tpr0, math.nan, math.nan)
    _, low, high = tail.tpr_at(lenses, others, 1 / (others.size + 1))
    return Interval(tpr0, min(tpr0, low), max(tpr0, high))


def _known(probabilities: ArrayLike, labels: ArrayLike) -> _Known:
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
    counts = int((classes < 0).sum()), int((~scored).sum())
    return _Known(scores[use], classes[use] == 1, use, *counts)
