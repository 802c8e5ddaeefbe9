"""Figures of a run: what the ranking finds, what the probabilities are worth, how sure they are."""

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from lensjax import intervals, metrics
from lensjax.files import replacing
from lensjax.results import FIGURES
from lensjax.tail import AtCuts

Array = NDArray[Any]

FORMS = ("png", "pdf")
LENS, OTHER, MAIN = "#e0734a", "#4f86c6", "#2f9e82"
MEMBERS = ("#4f86c6", "#b58a2c", "#a06cc4", "#c9587a", "#5c9a3f", "#8a8f9c")
POINTS = 4000  # drawn of each class: more would only cover each other
BAND = "95 % interval"
PLAIN = "{x:g}"
BAND_POINTS = 400  # of a curve at which its interval is drawn
INK = "#7a8090"
DOTTED: Any = {"color": INK, "linewidth": 0.9, "linestyle": (0, (2, 3))}
STYLE = Path(__file__).with_name("figures.mplstyle")


@dataclass(frozen=True)
class Scored:
    """What the figures show: `probabilities` (N,) of each score by name, the ensemble's first,
    `logit` and `logit_std` (N,) of the ensemble where known, `labels` (N,) where known, `at_cuts`
    where the purity in a survey is asked for, `purity_at_least` (N,) of the list down to each row,
    best first, masked where the promise is not about the row."""

    probabilities: Mapping[str, Array]
    labels: Array | None = None
    logit: Array | None = None
    logit_std: Array | None = None
    at_cuts: AtCuts | None = None
    purity_at_least: Array | None = None

    @property
    def fused(self) -> Array:
        return np.asarray(next(iter(self.probabilities.values())), float)

    @property
    def classes(self) -> Array:
        """(N,) int8: 1 lens, 0 other, -1 unknown."""
        if self.labels is None:
            return np.full(self.fused.size, -1, np.int8)
        return metrics.lens_or_unknown(self.labels)

    @property
    def counts(self) -> tuple[int, int]:
        """Returns how many lenses and how many others have a score of the ensemble."""
        known = self.classes[~np.isnan(self.fused)]
        return int((known == 1).sum()), int((known == 0).sum())


def draw(scored: Scored) -> dict[str, Figure]:
    """Returns the figures that these scores allow, by file name: those of ranking and calibration
    need both classes, that of uncertainty the logits."""
    if not np.isfinite(scored.fused).any():
        return {}
    wanted: dict[str, Callable[[Figure, Scored], None]] = {}
    if min(scored.counts) > 0:
        wanted |= {"roc": _roc, "precision_recall": _precision_recall}
        if scored.at_cuts is not None:
            wanted["purity"] = _purity
        wanted["reliability"] = _reliability
    wanted["scores"] = _scores
    if scored.logit is not None:
        wanted["uncertainty"] = _uncertainty
    if scored.purity_at_least is not None:
        wanted["promise"] = _promise
    figures = {}
    with matplotlib.rc_context(fname=STYLE):
        for name, paint in wanted.items():
            figures[name] = Figure(figsize=(4.8, 3.5), layout="constrained")
            paint(figures[name], scored)
    return figures


def write_figures(folder: str | os.PathLike[str], scored: Scored) -> list[Path]:
    """Writes each figure on white in `folder`, as PNG and PDF, and returns the paths.

    Those of former data that these do not allow are removed. Raises LensjaxError where they cannot
    be written.
    """
    for former in FIGURES:
        for form in FORMS:
            (Path(folder) / f"{former}.{form}").unlink(missing_ok=True)
    figures = draw(scored)
    return [path for name, figure in figures.items() for path in save(folder, name, figure)]


def save(folder: str | os.PathLike[str], name: str, figure: Figure) -> list[Path]:
    """Writes a figure on white in `folder`, as PNG and PDF, and returns the paths."""
    paths = [Path(folder) / f"{name}.{form}" for form in FORMS]
    for path, form in zip(paths, FORMS, strict=True):
        with matplotlib.rc_context(fname=STYLE), replacing(path) as file:
            figure.savefig(file, format=form, dpi=160, facecolor="white")
    return paths


def as_svg(figure: Figure) -> str:
    """Returns an <svg> element for a page, in the page's font and colour of text."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(fname=STYLE):
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    # Inside a page the element needs no name spaces, takes its size from the page, and shares
    # ids and style rules with the other figures.
    head, body = svg[svg.index("<svg") :].split(">", 1)
    head = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", head)
    body = re.sub(r"<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r' id="\w[\w.]*_\d+"', "", body)
    return f"{head}>{body}".replace(INK, "currentColor").strip()


def _curves(
    axes: Axes, scored: Scored, metric: str, curve: Callable, step: Literal["pre", "post"]
) -> tuple[Array, Array]:
    """Draws a curve of each score, its area in the legend, and returns that of the ensemble, which
    is on top."""
    for index, (name, probabilities) in enumerate(scored.probabilities.items()):
        tone = MEMBERS[(index - 1) % len(MEMBERS)] if index else MAIN
        style: Any = {"linewidth": 1.1, "alpha": 0.8} if index else {"linewidth": 2.4, "zorder": 3}
        area = metrics.values(probabilities, scored.classes)[metric]
        label = f"{_text(name)}  {area:.4f}"
        found = curve(probabilities, scored.classes)
        axes.plot(*found, drawstyle=f"steps-{step}", color=tone, label=label, **style)
    return curve(scored.fused, scored.classes)


def _text(name: str) -> str:
    """Returns a name that matplotlib does not take for a formula."""
    return name.replace("$", r"\$")


def _band(axes: Axes, place: Array, found: Array, of: Array, step: Literal["pre", "post"]) -> None:
    """Shades the interval of the share `found / of` at each place of the ensemble's curve."""
    shown = np.unique(np.geomspace(1, place.size, BAND_POINTS).astype(int)) - 1
    low, high = intervals.share_interval(found[shown], of[shown])
    axes.fill_between(
        place[shown], low, high, step=step, color=MAIN, alpha=0.16, linewidth=0, label=BAND
    )


def _roc(figure: Figure, scored: Scored) -> None:
    axes = figure.subplots()
    lenses, others = scored.counts
    floor = 0.5 / others  # there is no 0 on a logarithmic axis
    axes.set(xscale="log", xlim=(floor, 1), ylim=(0, 1.02))
    false_rate, true_rate = _curves(axes, scored, "auroc", metrics.roc_curve, "post")
    found = np.rint(true_rate * lenses)
    _band(axes, np.maximum(false_rate, floor), found, np.full(found.size, lenses), "post")
    for count in (1, 10):
        if count < others:
            axes.axvline(count / others, **DOTTED)
            place: Any = {"transform": axes.get_xaxis_transform(), "ha": "center"}
            axes.text(count / others, 1.02, f" {count} false", fontsize=8, **place)
    axes.set(xlabel="false-positive rate", ylabel="lenses found")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_formatter(PLAIN)
    axes.legend(loc="lower right")


def _precision_recall(figure: Figure, scored: Scored) -> None:
    axes = figure.subplots()
    lenses, others = scored.counts
    axes.axhline(lenses / (lenses + others), **DOTTED)
    curve = metrics.precision_recall_curve
    recall, precision = _curves(axes, scored, "average_precision", curve, "pre")
    recall, precision = recall[recall > 0], precision[recall > 0]
    found = np.rint(recall * lenses)
    _band(axes, recall, found, np.rint(found / precision), "pre")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    axes.set(xlabel="lenses found (recall)", ylabel="purity (precision)")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="lower left")


def _purity(figure: Figure, scored: Scored) -> None:
    axes = figure.subplots()
    found = scored.at_cuts
    assert found is not None
    # A probability that is 0 or 1 in its type has a place on the axis all the same.
    place = np.clip(found.cut.astype(float), 1e-6, 1 - 1e-6)
    for name, tone in {"completeness": OTHER, "purity": LENS}.items():
        band = getattr(found, name)
        axes.plot(place, band.value, color=tone, linewidth=2, label=name)
        style: Any = {"color": tone, "alpha": 0.18, "linewidth": 0}
        axes.fill_between(place, band.low, band.high, **style)
    axes.set_xscale("logit")
    axes.set_xticks((1e-4, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999))
    axes.xaxis.set_major_formatter(PLAIN)
    axes.xaxis.set_minor_formatter("")
    axes.set(ylim=(0, 1.02), xlabel=f"cut in probability (shaded: {BAND})")
    axes.set_title(f"one lens in {1 / found.prevalence:,.4g} objects", fontsize=9.5)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="best")


def _reliability(figure: Figure, scored: Scored) -> None:
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    table = np.stack(metrics.reliability(scored.fused, scored.classes))
    filled = table[0] > 0
    count, promised, share = table[:, filled]
    low, high = intervals.share_interval(np.rint(share * count), count)
    axes.plot([0, 1], [0, 1], **DOTTED)
    axes.errorbar(
        promised,
        share,
        yerr=[share - low, high - share],
        color=MAIN,
        marker="o",
        markersize=5,
        elinewidth=1,
        linewidth=1.6,
        label=_text(f"{next(iter(scored.probabilities))}, {BAND}"),
    )
    axes.legend(loc="upper left")
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="fraction of lenses")
    middles = (np.arange(metrics.BINS) + 0.5) / metrics.BINS
    width = 0.86 / metrics.BINS
    counts.bar(middles[filled], count, width=width, color=MAIN, alpha=0.55, log=True)
    counts.set(xlabel="probability", ylabel="objects", ylim=(0.7, None))
    counts.yaxis.set_major_formatter(PLAIN)
    counts.grid(axis="x", visible=False)


def _by_class(scored: Scored) -> Iterator[tuple[str, str, Array]]:
    """Yields name, colour and rows of each class that has scored objects."""
    scores, classes = scored.fused, scored.classes
    names = {0: ("not lenses", OTHER), -1: ("not labelled", INK), 1: ("lenses", LENS)}
    if scored.labels is None or (classes < 0).all():
        names[-1] = ("all", MAIN)
    for value, (name, tone) in names.items():
        rows = np.flatnonzero((classes == value) & ~np.isnan(scores))
        if rows.size:
            yield f"{name} ({rows.size:,})", tone, rows


def _scores(figure: Figure, scored: Scored) -> None:
    axes = figure.subplots()
    for name, tone, rows in _by_class(scored):
        axes.hist(scored.fused[rows], bins=40, range=(0, 1), color=tone, alpha=0.5, label=name)
    axes.set(xlim=(0, 1), yscale="log", ylim=(0.7, None), xlabel="probability", ylabel="objects")
    axes.yaxis.set_major_formatter(PLAIN)
    axes.legend()


def _uncertainty(figure: Figure, scored: Scored) -> None:
    axes = figure.subplots()
    logit, spread = np.asarray(scored.logit, float), np.asarray(scored.logit_std, float)
    rng = np.random.default_rng(0)
    for name, tone, rows in _by_class(scored):
        drawn = rng.permutation(rows)[:POINTS]
        style: Any = {"s": 9, "color": tone, "alpha": 0.55, "linewidths": 0, "rasterized": True}
        axes.scatter(logit[drawn], spread[drawn], label=name, **style)
    axes.set(xlabel="logit of the ensemble", ylabel="standard deviation of the logit")
    axes.set(ylim=(0, None))
    axes.legend()


def _promise(figure: Figure, scored: Scored) -> None:
    axes = figure.subplots()
    purity: Array = np.ma.compressed(np.ma.asarray(scored.purity_at_least))
    axes.plot(np.arange(1, purity.size + 1), purity, color=MAIN, drawstyle="steps-post")
    axes.fill_between(np.arange(1, purity.size + 1), purity, color=MAIN, alpha=0.16, step="post")
    axes.set(xscale="log", xlim=(1, purity.size), ylim=(0, 1.02))
    axes.set(xlabel="candidates in the list", ylabel="purity at least")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
