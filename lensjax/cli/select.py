"""scripts/select.py: measures which lenses an ensemble finds, with arcs injected into cutouts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from lensjax import __version__, config, inference, results
from lensjax.api import LensFinder
from lensjax.cli.infer import CHECKPOINTS
from lensjax.cutouts import Cutouts
from lensjax.data.catalog import DataOptions
from lensjax.data.formats.tables import read_table
from lensjax.ensemble.features import member_features
from lensjax.errors import UsageError, refuse
from lensjax.files import make_folder, replacing
from lensjax.injection import (
    APERTURE,
    Hosts,
    calibrated_survey,
    find_hosts,
    inject,
    with_all_lenses,
)
from lensjax.intervals import Interval, share_interval
from lensjax.members import Members, ScoringOptions, read_ensemble
from lensjax.simulation import SimulateConfig, sources_of, survey_of
from lensjax.sky.survey import Survey
from lensjax.trust import selection

INJECTIONS = "injections.csv"


@dataclass(frozen=True)
class SelectConfig(DataOptions, ScoringOptions):
    """Options of scripts/select.py."""

    data: str | None = None
    """Cutouts of galaxies (as --data of infer.py) around which arcs are laid."""
    survey: str = "ground"
    """Whose PSF and gain the cutouts have: decam, hsc, euclid, ground."""
    output: Path = Path("selection")
    """Folder of the results."""
    ensemble: str | None = None
    """Architectures, comma separated (None: those with a share in the stacked score)."""
    checkpoints: Path = CHECKPOINTS
    """Folder of the members."""
    cut: float = 0.0
    """Logit above which a lens counts as found; 0 is a probability of one half."""
    count: int = 10_000
    """Lenses to inject; all are in memory at once."""
    zero_point: str | None = None
    """AB magnitude of one unit of flux, or one a band as 30,30,29.8 (None: the survey's)."""
    seeing: float | None = None
    """FWHM of the cutouts, arcsec, all bands alike (None: the survey's)."""
    einstein_radius: float = 0.4
    """Smallest to inject, arcsec, but not below half the seeing."""
    arc_snr: float = 5.0
    """Smallest S/N of arcs; the largest is twenty times that."""
    sources: str | None = None
    """Real galaxies as sources: FITS or .npy of stamps, or `hubble` (None: Sersic clumps)."""
    sources_pixel_scale: float = 0.03
    """Arcsec/pixel of the stamps."""
    real: str | None = None
    """Cutouts of real lenses, to see how well injected ones can be told from them."""
    injections: Path | None = None
    """injections.csv of an earlier run, for another --cut: nothing is injected and scored."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        super().__post_init__()
        wrong = {
            "give either --data, cutouts to inject into, or --injections": (
                (self.data is None) == (self.injections is None)
            ),
            "--real needs --data: features are computed from pixels": (
                self.real is not None and self.injections is not None
            ),
            f"--count must be at least {selection.LEAST}": self.count < selection.LEAST,
            "--einstein-radius and --arc-snr must be above 0": (
                min(self.einstein_radius, self.arc_snr) <= 0
            ),
        }
        refuse(wrong)


def main(argv: Sequence[str]) -> None:
    """Runs the command and prints what was found."""
    print(select(config.parse(SelectConfig, argv, description=__doc__.split(": ", 1)[1])))


def select(options: SelectConfig) -> str:
    """Returns lines about the selection function that it writes to OUTPUT: injections.csv with the
    truth and the logit of each, selection.csv with the bins, selection.json with the surface, and
    the figure.

    Raises UsageError for options that do not fit, LensjaxError for too few injections.
    """
    make_folder(options.output)
    if options.injections is not None:
        injections = _read(options.injections)
        record: dict[str, Any] = {"injections": str(options.injections)}
    else:
        injections, record = injected(options)
        _write_csv(options.output / INJECTIONS, injections)
    logit = np.asarray(injections["logit"], float)
    scored = injections[np.isfinite(logit)]
    found = np.asarray(scored["logit"], float) > options.cut
    surface, bins = selection.fit_surface(scored, found), selection.bins(scored, found)
    _write_csv(options.output / "selection.csv", bins)
    record |= {
        "version": __version__,
        "cut_logit": options.cut,
        "injected": len(injections),
        "scored": len(scored),
        "found": int(found.sum()),
        "galaxies": len(set(np.asarray(scored["host"]).tolist())),
        "surface": surface.to_json(),
    }
    results.write_json(options.output / "selection.json", record)
    from lensjax.report.figures import save
    from lensjax.report.selection import draw_selection

    figures = save(options.output, "selection", draw_selection(surface, bins))
    return "\n".join([*_summary(record), *map(str, figures)])


def injected(options: SelectConfig) -> tuple[Table, dict[str, Any]]:
    """Returns the injections with their truth and logit (NaN: not readable), and what
    selection.json says of them."""
    members = inference.find_members(options.checkpoints, options.ensemble)
    simulated = SimulateConfig(
        survey=options.survey,
        seeing=options.seeing,
        einstein_radius=options.einstein_radius,
        arc_snr=options.arc_snr,
        sources=options.sources,
        sources_pixel_scale=options.sources_pixel_scale,
    )
    survey = with_all_lenses(calibrated_survey(survey_of(simulated), options.zero_point))
    missing = ", ".join(band for band in members.bands if band not in survey.bands)
    if missing:
        raise UsageError(
            f"--survey {survey.name} has no band {missing}, which the members see: choose another"
        )
    source = options.opened(str(options.data), survey.bands)
    hosts = find_hosts(source, survey, options.count, options.seed)
    cutouts = inject(hosts, survey, options.count, options.seed, sources_of(simulated))
    finder = LensFinder(members, options)
    candidates = finder.score(cutouts, fit=options.fit).candidates
    logits = dict(zip(candidates["id"].tolist(), candidates["logit"].tolist(), strict=True))
    table = Table(dict(cutouts.columns))
    table["logit"] = [logits.get(name, np.nan) for name in table["id"].tolist()]
    record = _record(options, members, survey, hosts, options.count - len(cutouts))
    if options.real is not None:
        auc = _told_apart(options, options.real, members, cutouts)
        record["told_from_real_auroc"] = auc._asdict()
    return table, record


def _record(
    options: SelectConfig, members: Members, survey: Survey, hosts: Hosts, beyond: int
) -> dict[str, Any]:
    """Returns what the injections were made of."""
    return {
        "config": vars(options),
        "members": {name: info.weights_sha256 for name, info in members.infos.items()},
        "zero_points": dict(zip(survey.bands, survey.zero_points, strict=True)),
        "lens_mag": f"AB in {survey.selection_band} within {APERTURE:g} arcsec of the middle",
        "hosts": len(hosts.id),
        "cutouts_left_out": hosts.left_out,
        "beyond_the_edge": beyond,
    }


def _told_apart(options: SelectConfig, real: str, members: Members, cutouts: Cutouts) -> Interval:
    """Returns the AUROC with which injected lenses are told from real ones."""
    ensemble = read_ensemble(members, members.ensemble)
    few = cutouts[: selection.MOST_TOLD_APART]
    sources = few.source(members.bands), inference.open_cutouts(real, members, options)
    ours, theirs = (
        np.hstack(list(member_features(ensemble, source, options.fit).values()))
        for source in sources
    )
    return selection.told_apart(ours, np.asarray(few.columns["host"]), theirs)


def _read(path: Path) -> Table:
    """Returns injections of an earlier run. Raises UsageError where the file has none."""
    table = read_table(path)
    needed = ("host", "logit", *(axis.name for axis in selection.AXES))
    missing = ", ".join(name for name in needed if name not in table.colnames)
    if missing:
        raise UsageError(f"--injections {path} lacks {missing}: give the {INJECTIONS} of a run")
    return Table({name: np.ma.filled(table[name], np.nan) for name in needed})


def _write_csv(path: Path, table: Table) -> None:
    from lensjax.data.formats import arrow

    with replacing(path) as file:
        arrow.write_csv(file, table)


def _summary(record: dict[str, Any]) -> list[str]:
    """Returns what a user reads at the end."""
    found, scored = record["found"], record["scored"]
    low, high = share_interval(found, scored)
    lines = [
        f"{scored} scored + {record['injected'] - scored} rejected = {record['injected']} injected "
        f"into {record['galaxies']} galaxies",
        f"{found / scored:.3f} [{low:.3f}, {high:.3f}] of them above logit {record['cut_logit']:g}",
    ]
    if record.get("beyond_the_edge"):
        lines.append(f"{record['beyond_the_edge']} more have their arcs beyond the cutout's edge")
    left_out = record.get("cutouts_left_out")
    if left_out:
        said = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        lines.append(f"cutouts left out: {said}")
    if record["galaxies"] < scored / 2:
        lines.append(
            f"each galaxy has {scored / record['galaxies']:.0f} injections: intervals are about "
            "these galaxies alone"
        )
    if "told_from_real_auroc" in record:
        value, low, high = record["told_from_real_auroc"].values()
        lines.append(
            f"told from real lenses with AUROC {value:.3f} [{low:.3f}, {high:.3f}] (0.5 is best)"
        )
    return lines
