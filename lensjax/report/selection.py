"""The figure of a selection function: surface and bins, over Einstein radius."""

import matplotlib
import numpy as np
from astropy.table import Table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lensjax.report.figures import LENS, MAIN, OTHER, PLAIN, STYLE
from lensjax.trust.selection import PARTS, Surface

TONES = (OTHER, MAIN, LENS)


def draw_selection(surface: Surface, bins: Table) -> Figure:
    """Returns a figure with a panel for each third of lens magnitude and a colour for each third of
    arc S/N: the surface at the middle of these thirds, with its 95 % interval, and the bins, with
    theirs. Nothing is drawn where there are too few injections."""
    cube = {name: np.asarray(bins[name]).reshape((PARTS,) * 3) for name in bins.colnames}
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(9.6, 3.5), layout="constrained")
        panels = figure.subplots(1, PARTS, sharex=True, sharey=True)
        for number, axes in enumerate(panels):
            bright, faint = (cube[f"lens_mag_{end}"][0, 0, number] for end in ("low", "high"))
            axes.set_title(f"lens magnitude {bright:.1f} to {faint:.1f}", fontsize=9.5)
            for part, tone in enumerate(TONES):
                row = {name: values[:, part, number] for name, values in cube.items()}
                _third(axes, surface, row, tone)
            axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="Einstein radius (arcsec)")
            axes.xaxis.set_major_formatter(PLAIN)
            axes.xaxis.set_minor_formatter(PLAIN)
            axes.tick_params(axis="x", which="minor", labelsize=7)
        panels[0].set(ylabel="lenses above the cut")
        panels[0].yaxis.set_major_formatter(PercentFormatter(1))
        panels[-1].legend(loc="best", title="arc S/N, 95 % intervals", title_fontsize=8.5)
    return figure


def _third(axes: Axes, surface: Surface, row: dict[str, np.ndarray], tone: str) -> None:
    """Draws surface and bins for a third of arc S/N and one of lens magnitude; `row` has the
    columns of its bins (PARTS,)."""
    low, high = row["arc_snr_low"][0], row["arc_snr_high"][0]
    middle = np.sqrt(low * high)
    magnitude = (row["lens_mag_low"][0] + row["lens_mag_high"][0]) / 2
    for place in range(PARTS):
        if np.isnan(row["efficiency"][place]):
            continue
        ends = row["theta_e_low"][place], row["theta_e_high"][place]
        radius = np.geomspace(*ends, 40)
        lenses = {"theta_e": radius, "arc_snr": middle, "lens_mag": magnitude}
        value, lower, upper = surface.efficiency(lenses)
        label = f"{low:.0f} to {high:.0f}" if place == PARTS - 1 else None
        axes.plot(radius, value, color=tone, label=label)
        axes.fill_between(radius, lower, upper, color=tone, alpha=0.16, linewidth=0)
        found = row["efficiency"][place]
        error = [[found - row["low"][place]], [row["high"][place] - found]]
        axes.errorbar(
            np.sqrt(ends[0] * ends[1]), found, error, color=tone, marker="o", markersize=4,
            elinewidth=1,
        )  # fmt: skip
