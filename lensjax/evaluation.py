"""What the scores of a run are worth against labels: in all, in a survey, by column, by run."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from lensjax import errors, metrics, results, tail
from lensjax.errors import UsageError
from lensjax.intervals import UNKNOWN, Interval
from lensjax.labels import Match, match, read_labels
from lensjax.metrics import Metrics
from lensjax.predictions import read_probabilities

COMPLETENESS = (0.9, 0.7, 0.5, 0.3, 0.1)  # at which purity is printed
DIFFERENCES = dict(zip(metrics.DIFFERENCES, ("TPR10", "AUROC", "log loss"), strict=True))
LISTS = (100, 1000, 10_000, 100_000)  # lengths of lists that are printed
QUANTILES = 4  # bins of a column of numbers
MOST_VALUES = 30  # of a column of texts, each a bin

Array = NDArray[Any]


@dataclass(frozen=True)
class Labelled:
    """The scores of a run, and what its labels say of its cutouts, in input order.

    `probabilities` (n,) by name, the ensemble's first; `given` is the table of the labels, of
    which `match` knows the rows.
    """

    catalogue: Table
    probabilities: Mapping[str, Array]
    match: Match
    given: Table

    @property
    def scores(self) -> Array:
        """(n,) probabilities of the ensemble."""
        return self.probabilities["ensemble"]

    @property
    def labels(self) -> Array:
        return self.match.labels

    @property
    def groups(self) -> Array | None:
        """(n,) of the labels' column `group`, None where they have none."""
        return self.column("group") if "group" in self.given.colnames else None

    def column(self, name: str) -> np.ma.MaskedArray:
        """Returns (n,) values of a column of the labels, masked where there are none. Raises
        UsageError where there is no such column."""
        if name not in self.given.colnames:
            raise errors.unknown("column of the labels", name, self.given.colnames)
        values = np.ma.asarray(self.given[name])[self.match.rows]
        data, mask = np.ma.getdata(values), np.ma.getmaskarray(values) | (self.match.rows < 0)
        if data.dtype.kind == "U":
            mask = mask | (data == "")
            with contextlib.suppress(ValueError):  # numbers beside a "nan", as some write a gap
                data = np.where(mask, "nan", data).astype(float)
        if data.dtype.kind == "f":
            mask = mask | np.isnan(data)
        return np.ma.masked_array(data, mask)

    def independent(self) -> tuple[Array, Array]:
        """Returns the ensemble's scores of lenses and of others, one of each group."""
        known = (self.labels >= 0) & ~np.isnan(self.scores)
        groups = self.groups
        lens, scores = self.labels[known] == 1, self.scores[known]
        rows = tail.independent(lens, None if groups is None else groups[known])
        return scores[rows][lens[rows]], scores[rows][~lens[rows]]

    def notes(self) -> list[str]:
        """Returns why metrics are missing or doubtful, and what groups mean for them."""
        notes = metrics.caveats(self.scores, self.labels, self.groups)
        lenses, others = map(len, self.independent())
        if lenses + others < int(((self.labels >= 0) & ~np.isnan(self.scores)).sum()):
            notes.append(
                "cutouts of one group are resampled as a whole; TPR at FPR, and the interval of "
                f"TPR0, take one of each: {lenses:,} lenses and {others:,} others"
            )
        return notes


class Found(NamedTuple):
    """What is to be printed and what is to be written of one question."""

    lines: Sequence[str]
    record: Mapping[str, Any]


def read(predictions: Path, labels: Path) -> Labelled:
    """Returns the scores of a run with the labels of its cutouts.

    Raises UsageError where they cannot be read or share no id.
    """
    catalogue, probabilities = read_probabilities(predictions)
    given = read_labels(labels)
    return Labelled(catalogue, probabilities, match(catalogue, given), given)


def in_survey(
    labelled: Labelled, prevalence: float, objects: int, area: float | None = None
) -> tuple[Found, tail.AtCuts | None]:
    """Returns what the ensemble's scores find where a share `prevalence` of `objects`, in `area`
    square degrees, are lenses; and the curves of the figure. Nothing unless both classes are known.
    """
    lenses, others = labelled.independent()
    if not (lenses.size and others.size):
        return Found(["no purity: it takes labelled lenses and others"], {}), None
    curve = tail.curve(lenses, others)
    rates = {
        rate: tail.refusal(lenses.size, others.size, float(rate))
        or metrics.cell(tail.tpr_at(lenses, others, float(rate)))
        for rate in tail.RATES
    }
    low, high = tail.auprc(curve, prevalence)
    at = tail.at_cuts(tail.at_completeness(curve, COMPLETENESS), prevalence)
    best = [tail.top(curve, prevalence, objects, size) for size in LISTS if size <= objects]
    lenses_there = objects * prevalence
    of_area = f" with {_number(lenses_there)} lenses"
    if area is not None:
        of_area += f" in {area:g} square degrees, {_number(lenses_there / area)} in each"
    lines = [
        f"one lens in {1 / prevalence:,.4g} objects, by {lenses.size:,} independent lenses and "
        f"{others.size:,} others (ensemble):",
        *(f"TPR at FPR {rate}: {said}" for rate, said in rates.items()),
        f"AUPRC at this prevalence: {low:.4f} to {high:.4f}",
        "",
        _table_of_cuts(at),
        "",
        f"a survey of {objects:,} objects{of_area}:",
        _table_of_lists(best, lenses_there, area),
        "",
    ]
    drawn = tail.at_cuts(tail.shown(curve), prevalence)
    record = {
        "prevalence": prevalence,
        "objects": objects,
        "area_deg2": area,
        "lenses_per_deg2": None if area is None else lenses_there / area,
        "independent_lenses": lenses.size,
        "independent_others": others.size,
        "auprc": {"low": low, "high": high},
        "at_cuts": _nested(drawn),
        "top": [_nested(each) for each in best],
    }
    return Found(lines, record), drawn


def by_column(
    labelled: Labelled, column: str, edges: Sequence[float] = (), **options: int
) -> Found:
    """Returns the ensemble's metrics in each bin of a column of the labels.

    Numbers are binned between the `edges`, by default quantiles; texts by value. Against lenses of
    a bin without others stand all others (as for an Einstein radius, which only lenses have),
    against others of a bin without lenses all lenses (as for a kind of look-alike); then what
    depends on the share of lenses is left out. Resampled intervals are left out where there are too
    few to resample. Raises UsageError where there is no such column, or one that has too many
    values.
    """
    values, groups = labelled.column(column), labelled.groups
    scores, labels = labelled.scores, labelled.labels
    known = (labels >= 0) & ~np.isnan(scores)
    valued = known & ~np.ma.getmaskarray(values)
    if not valued.any():
        raise UsageError(f"--by {column}: no cutout with a score and a label has a value there")
    found, few, notes, binned = {}, [], [], np.zeros(known.size, bool)
    without: dict[int, list[str]] = {0: [], 1: []}
    for name, rows in bins(column, np.ma.getdata(values), valued, edges).items():
        binned |= rows
        missing = [kind for kind in without if rows.any() and not (labels[rows] == kind).any()]
        for kind in missing:
            rows = rows | (known & (labels == kind))
            without[kind].append(name)
        mine = None if groups is None else groups[rows]
        metric = metrics.evaluate(scores[rows], labels[rows], groups=mine, **options)
        caveats = metrics.caveats(scores[rows], labels[rows], mine)
        if caveats:
            few.append(name)
            metric = _without_resampling(metric)
        found[name] = _of_ranking(metric) if missing else metric
    if few:
        notes.append(
            f"no resampled intervals in {column} {', '.join(few)}: fewer than {metrics.FEW} lenses "
            "or others, or groups of them"
        )
    for kind, what in enumerate(("others", "lenses")):
        if without[kind]:
            names = ", ".join(without[kind])
            notes.append(f"no {what} in {column} {names}: all {what} are taken there")
    # Where only lenses, or only others, have a value, the others are in every bin.
    classes = {int(label) for label in labels[valued]}
    left = known & ~binned & np.isin(labels, list(classes))
    if left.any():
        notes.append(f"{left.sum():,} cutouts are in no bin of {column}: no value, or beyond edges")
    shown = {
        f"{name} ({metric.lenses:,} + {metric.others:,})": metric for name, metric in found.items()
    }
    table = metrics.table(shown, f"{column} (lenses + others)")
    record = {"column": column, "bins": {k: m.to_json() for k, m in found.items()}, "notes": notes}
    return Found([table, *notes, ""], record)


def bins(
    column: str, values: Array, valued: Array, edges: Sequence[float] = ()
) -> dict[str, Array]:
    """Returns the rows (n,) bool of each bin of a column's `values` (n,), by name.

    `valued` (n,) bool says which count. Of bins between edges each is closed below, the last above
    too. Raises UsageError for edges of texts, and for too many texts.
    """
    numbers = values.dtype.kind in "iuf"
    if edges and not numbers:
        raise UsageError(f"--edges are for numbers: {column} holds texts, each of which is a bin")
    distinct = np.unique(values[valued])
    if not edges and (not numbers or distinct.size <= QUANTILES):
        if distinct.size > MOST_VALUES:
            raise UsageError(
                f"--by {column}: {distinct.size:,} different texts; bins take {MOST_VALUES} at most"
            )
        return {str(value): valued & (values == value) for value in distinct}
    if not edges:
        quantiles = np.quantile(values[valued], np.linspace(0, 1, QUANTILES + 1))
        edges = np.unique(quantiles).tolist()
    digits = next(k for k in range(4, 18) if len({f"{e:.{k}g}" for e in edges}) == len(edges))
    found = {}
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        below = values <= high if high == edges[-1] else values < high
        found[f"{low:.{digits}g} to {high:.{digits}g}"] = valued & (values >= low) & below
    return found


def against(labelled: Labelled, others: Mapping[str, Labelled], **options: int) -> Found:
    """Returns by how much the ensemble's metrics exceed those of other runs on the same objects,
    with paired intervals. Raises UsageError where two runs share no labelled object."""
    rows, record, notes = [["difference from", "objects", *DIFFERENCES.values()]], {}, []
    for name, other in others.items():
        mine, theirs = _shared(labelled.match.rows, other.match.rows)
        if not mine.size:
            raise UsageError(f"--compare {name}: it shares no labelled cutout with this run")
        scores, labels = labelled.scores[mine], labelled.labels[mine]
        groups = None if labelled.groups is None else labelled.groups[mine]
        both = np.where(np.isnan(other.scores[theirs]), np.nan, scores)
        caveats = metrics.caveats(both, labels, groups)
        difference, count = metrics.compare(
            scores, other.scores[theirs], labels, groups=groups, **options
        )
        if caveats:
            notes.append(f"{name}: {caveats[0].replace('are too narrow', 'are left out')}")
            difference = {key: _bare(value) for key, value in difference.items()}
        cells = (metrics.cell(difference[key], "+.4f") for key in DIFFERENCES)
        rows.append([name, f"{count:,}", *cells])
        record[name] = {"objects": count, **{k: v._asdict() for k, v in difference.items()}}
    return Found([metrics.aligned(rows), *notes, ""], record)


def worst(labelled: Labelled, count: int) -> dict[str, Array]:
    """Returns the rows of the others that score highest and of the lenses that score lowest, so
    many of each, the worst first, by the name of their mosaic."""
    order = np.argsort(-labelled.scores, kind="stable")
    order = order[~np.isnan(labelled.scores[order])]
    labels = labelled.labels[order]
    rows = order[labels == 0][:count], order[labels == 1][::-1][:count]
    return dict(zip(results.WORST, rows, strict=True))


def _shared(mine: Array, theirs: Array) -> tuple[Array, Array]:
    """Returns which predictions of two runs are of the same row of the labels, each row once."""
    _, first, second = np.intersect1d(mine, theirs, return_indices=True)
    known = mine[first] >= 0
    return first[known], second[known]


def _bare(found: Interval) -> Interval:
    return found._replace(low=math.nan, high=math.nan)


def _without_resampling(found: Metrics) -> Metrics:
    """Returns the metrics with their exact intervals alone."""
    resampled: Any = {k: _bare(v) for k, v in found.intervals().items() if k != "tpr0"}
    return dataclasses.replace(found, **resampled)


def _of_ranking(found: Metrics) -> Metrics:
    """Returns the metrics that do not depend on the share of lenses; the others are not known."""
    lost: Any = dict.fromkeys(set(metrics.NAMES) - {"auroc", "tpr0", "tpr10"}, UNKNOWN)
    return dataclasses.replace(found, **lost)


def _table_of_cuts(at: tail.AtCuts) -> str:
    rows = [["cut", "completeness", "purity = lenses per inspected cutout", "inspected per lens"]]
    for place, cut in enumerate(at.cut):
        bands = (at.completeness, at.purity)
        found = [Interval(*(float(each[place]) for each in band)) for band in bands]
        per_lens = _number(1 / found[1].value) if found[1].value else "-"
        rows.append([f"{cut:.6g}", *map(metrics.cell, found), per_lens])
    return metrics.aligned(rows)


def _table_of_lists(best: Sequence[tail.Top], lenses: float, area: float | None) -> str:
    rows = [["best", "cut", "purity", "completeness", "lenses", "labelled others above"]]
    if area is not None:
        rows[0] += ["inspected per deg2", "lenses per deg2"]
    for top in best:
        found = [each * lenses for each in top.completeness]
        row = [
            f"{top.size:,}",
            f"{top.cut:.6g}",
            *map(metrics.cell, (top.purity, top.completeness)),
        ]
        row += [_spread(found), f"{top.false:.1f}"]
        if area is not None:
            row += [_number(top.size / area), _spread([each / area for each in found])]
        rows.append(row)
    return metrics.aligned(rows)


def _spread(found: Sequence[float]) -> str:
    value, low, high = map(_number, found)
    return f"{value} [{low}, {high}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _nested(found: Any) -> Any:
    """Returns a tuple of named fields as a dict, and those in it."""
    if hasattr(found, "_asdict"):
        return {name: _nested(each) for name, each in found._asdict().items()}
    return found
