"""The figure of a selection function: surface and bins, over Einstein radius."""

import matplotlib
import numpy as np
from astropy.table import Table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from lensjax.report.figures import LENS, MAIN, OTHER, PLAIN, STYLE
from lensjax.trust.selection import PARTS, Surface

TONES = (OTHER, MAIN, LENS)


def draw_selection(surface: Surface, bins: Table) -> Figure:
    """Returns a figure with a panel for each third of lens magnitude and a colour for each third of
    arc S/N: the bins at the median Einstein radius, and the surface for the median S/N and
    magnitude, both with 95 % intervals. Nothing is drawn where there are too few injections."""
    cube = {name: np.asarray(bins[name]).reshape((PARTS,) * 3) for name in bins.colnames}
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(10.4, 3.5), layout="constrained")
        panels = figure.subplots(1, PARTS, sharex=True, sharey=True)
        for number, axes in enumerate(panels):
            bright, faint = (cube[f"lens_mag_{end}"][0, 0, number] for end in ("low", "high"))
            axes.set_title(f"lens magnitude {bright:.1f} to {faint:.1f}", fontsize=9.5)
            for part, tone in enumerate(TONES):
                row = {name: values[:, part, number] for name, values in cube.items()}
                _third(axes, surface, row, tone)
            axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="Einstein radius (arcsec)")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(PLAIN)
        panels[0].set(ylabel="lenses above the cut")
        panels[0].yaxis.set_major_formatter(PercentFormatter(1))
        shown = {
            label: line
            for axes in panels
            for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            shown.values(), shown.keys(), loc="outside right center",
            title="arc S/N,\n95 % intervals", title_fontsize=8.5,
        )  # fmt: skip
    return figure


def _third(axes: Axes, surface: Surface, row: dict[str, np.ndarray], tone: str) -> None:
    """Draws surface and bins for a third of arc S/N and one of lens magnitude; `row` has the
    columns of its bins (PARTS,)."""
    shown = ~np.isnan(row["efficiency"])
    if not shown.any():
        return
    row = {name: values[shown] for name, values in row.items()}
    label = f"{row['arc_snr_low'][0]:.0f} to {row['arc_snr_high'][0]:.0f}"
    found = row["efficiency"]
    axes.errorbar(
        row["theta_e_median"], found, [found - row["low"], row["high"] - found], color=tone,
        marker="o", markersize=4, elinewidth=1, linestyle="", label=label,
    )  # fmt: skip
    medians = {name: np.median(row[f"{name}_median"]) for name in ("arc_snr", "lens_mag")}
    for ends in zip(row["theta_e_low"], row["theta_e_high"], strict=True):
        radius = np.geomspace(*ends, 40)
        value, low, high = surface.efficiency({"theta_e": radius, **medians})
        axes.plot(radius, value, color=tone)
        axes.fill_between(radius, low, high, color=tone, alpha=0.16, linewidth=0)
