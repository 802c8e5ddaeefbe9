"""Controls: cutouts of known truth among those that people grade, by which graders are measured.

Half of them are simulated lenses, arcs laid into cutouts of the run; half are cutouts of the run
that are no lenses. The page gives all cutouts names that say nothing, no positions, no columns and
no scores: each of these would tell a control from a candidate, or a lens from what is none.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from astropy.table import MaskedColumn, Table, vstack

from lensjax.data.catalog import DataOptions
from lensjax.data.formats.tables import read_table, texts
from lensjax.data.levels import are_levels, flux_of, picture_of
from lensjax.data.planes import Cutout
from lensjax.data.source import Source
from lensjax.errors import LensjaxError, UsageError, refuse
from lensjax.files import replacing

if TYPE_CHECKING:  # the simulator, which scoring does not wait for
    from lensjax.injection import Hosts
    from lensjax.sky.survey import Survey

PAGE, TRUTH = "grading.html", "controls.csv"
LENS, NONE, CANDIDATE = "lens", "none", ""
"""What the column `truth` of controls.csv says of a cutout of the page."""
SIMULATED, LABELLED, LOW = "simulated", "labelled", "lower half"
"""What its column `origin` says of a control: how its truth is known."""
OF_ARCS = ("theta_e", "arc_snr", "lens_mag", "arc_mag")
TRIED = 64  # cutouts, before anything is scored, of whether arcs can be laid into any
SPARE = 4  # hosts that are read for each simulated lens: not every cutout has a galaxy to be one


@dataclass(frozen=True)
class ControlOptions(DataOptions):
    """How graders are measured, in the options of a script."""

    controls: float | None = None
    """Plant so many controls for each candidate (0.1: one for ten) on the page of --ask, else on
    grading.html, under neutral names: half simulated lenses, half non-lenses; controls.csv has the
    truth."""
    survey: str = "ground"
    """Whose PSF and gain the simulated lenses of --controls get: decam, hsc, euclid, ground."""
    zero_point: str | None = None
    """AB magnitude of one unit of flux, or one a band as 30,30,29.8, for --controls (None: the
    survey's) and --detect (None: as the headers say)."""
    seeing: float | None = None
    """FWHM of the cutouts into which lenses are put, arcsec, all bands alike (None: the
    survey's)."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        share = self.controls
        unused = share is None and (self.survey, self.seeing) != ("ground", None)
        wrong = {
            "--controls is a share above 0, at most 1": share is not None and not 0 < share <= 1,
            "--survey and --seeing are for --controls: give that too": unused,
            "--seeing must be above 0 arcsec": self.seeing is not None and self.seeing <= 0,
        }
        refuse(wrong)


class Shown(NamedTuple):
    """A cutout of the page: its row in the run (of a simulated lens, the host's), its truth, what
    that is known from, and of a simulated lens what its arcs are, by the names OF_ARCS."""

    cutout: Cutout | None
    row: int
    truth: str = CANDIDATE
    origin: str = ""
    arcs: Mapping[str, float] = MappingProxyType({})


class HostsOfRun(NamedTuple):
    """Cutouts of a run into which arcs can be laid, their `id` being the row; the survey that they
    are of, and all cutouts of the run in its bands. Pictures became fluxes, see `as_flux`."""

    hosts: "Hosts"
    survey: "Survey"
    source: Source


def check(options: ControlOptions, data: str, source: Source, most: int, seed: int) -> None:
    """Raises UsageError where controls could not be made in the end of the cutouts at `data`, of
    which at most so many are to be graded; `source` has them in the bands of the members."""
    if source.given <= most:
        raise UsageError(
            f"--controls are made of cutouts that are not among the {most} to be graded, and there "
            f"are {source.given} in all: give a smaller --top, or --ask where that is given"
        )
    find_hosts(options, data, source.bands, np.arange(source.given), TRIED, seed)


def find_hosts(
    options: ControlOptions,
    data: str,
    bands: tuple[str, ...],
    rows: np.ndarray,
    most: int,
    seed: int,
) -> HostsOfRun:
    """Returns hosts among at most so many of the `rows` of the cutouts at `data`, drawn at random.

    Raises UsageError where the survey lacks one of the `bands`, and where arcs cannot be laid.
    """
    from lensjax import injection
    from lensjax.simulation import SimulateConfig, survey_of

    simulated = SimulateConfig(survey=options.survey, seeing=options.seeing)
    survey = injection.calibrated_survey(survey_of(simulated), options.zero_point)
    missing = ", ".join(band for band in bands if band not in survey.bands)
    if missing:
        raise UsageError(
            f"--survey {survey.name} has no band {missing}, which the members see: choose another"
        )
    source = options.opened(data, survey.bands)
    taken = replace(source, read=lambda row: as_flux(source[row], survey, (seed, row))).take(rows)
    taken.table["id"] = rows
    hosts = injection.find_hosts(taken, survey, most, seed)
    if options.zero_point is not None and are_levels(source[hosts.id[0]].image):
        raise UsageError("--zero-point is for fluxes, and --data holds pictures: leave it out")
    return HostsOfRun(hosts, survey, source)


def as_flux(cutout: Cutout, survey: "Survey", seed: tuple[int, int]) -> Cutout:
    """Returns an 8-bit picture as flux, its sky as noisy in each band as the survey's; other
    cutouts as they are."""
    if not are_levels(cutout.image):
        return cutout
    noise, rng = _noise(survey, cutout.pixel_scale), np.random.default_rng(seed)
    return replace(cutout, image=flux_of(cutout.image, noise, rng))


def as_before(flux: np.ndarray, cutout: Cutout, survey: "Survey") -> np.ndarray:
    """Returns the image of a cutout to whose flux, see `as_flux`, light was added."""
    if not are_levels(cutout.image):
        return flux
    return picture_of(flux, _noise(survey, cutout.pixel_scale), cutout.image)


def _noise(survey: "Survey", pixel_scale: float | None) -> np.ndarray:
    """Returns the noise (band,) of the survey's sky in pixels of this scale."""
    return np.array(survey.sky_sigma) * (pixel_scale or survey.pixel_scale) / survey.pixel_scale


def simulated_lenses(of_run: HostsOfRun, bands: tuple[str, ...], seed: int) -> Iterator[Shown]:
    """Yields a simulated lens for each of the hosts, in these bands, as far as its arcs lie within
    the cutout.

    They are lenses such as the survey's networks are trained on: a person would see their arcs.
    """
    from lensjax.injection import inject
    from lensjax.sky.stamps import hubble_stamps

    hosts, survey, source = of_run
    injected = inject(hosts, survey, len(hosts.id), seed, hubble_stamps())
    channels = [injected.bands.index(band) for band in bands]
    columns = {name: np.asarray(injected.columns[name]) for name in ("host", *OF_ARCS)}
    for k, flux in enumerate(injected.images):
        arcs, row = {name: float(columns[name][k]) for name in OF_ARCS}, int(columns["host"][k])
        image = as_before(flux, source[row], survey)
        yield Shown(Cutout(image[:, :, channels], injected.pixel_scale), row, LENS, SIMULATED, arcs)


def non_lenses(source: Source, ranking: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, str]:
    """Returns the rows, but those `shown` as candidates, of which non-lenses are drawn, and their
    origin.

    Those that are labelled as none, where there are any. Else the lower half of the ranking: where
    a cutout in a thousand is a lens, next to none of them is one. Those are easier to tell from
    lenses than the candidates are, so that false positives are then counted too low.
    """
    low, others = (rows[~np.isin(rows, shown)] for rows in (ranking[len(ranking) // 2 :], ranking))
    if "label" not in source.table.colnames:
        return low, LOW
    label = np.asarray(source.table["label"])
    labelled = others[label[others] == 0]
    return (labelled, LABELLED) if len(labelled) else (low[label[low] != 1], LOW)


def write(
    path: Path,
    options: ControlOptions,
    data: str,
    source: Source,
    ranking: np.ndarray,
    candidates: Mapping[int, Cutout | None],
    impostors: Sequence[str],
    seed: int,
) -> tuple[Path, Path]:
    """Writes the page at `path` and beside it controls.csv, and returns their paths.

    `ranking` (n,) are the rows of the `source` that controls may be made of, best first, and
    `candidates` those that are to be graded, with their cutouts. Rows of pages that were written to
    the folder before stay in controls.csv, for people may have graded them. Raises LensjaxError
    where there are no controls.
    """
    rows, rng = np.array(list(candidates), int), np.random.default_rng(seed)
    count = max(2, round((options.controls or 0) * len(rows)))
    pool, origin = non_lenses(source, ranking, rows)
    nones = list(islice(_readable(source, rng.permutation(pool), origin), count // 2))
    others = np.setdiff1d(ranking, [*rows, *(each.row for each in nones)])
    lenses: list[Shown] = []
    if len(others):
        of_run = find_hosts(options, data, source.bands, others, SPARE * count, seed)
        lenses = list(islice(simulated_lenses(of_run, source.bands, seed), count - count // 2))
    if not lenses or not nones:
        raise LensjaxError(
            f"--controls: {len(lenses)} simulated lenses and {len(nones)} non-lenses could be made "
            f"of the cutouts that are not among the {len(rows)} to be graded: have fewer graded"
        )
    asked = [Shown(cutout, row) for row, cutout in candidates.items()]
    # In the order of the names, which says nothing.
    named = dict(sorted({name_of(each, seed): each for each in (*asked, *lenses, *nones)}.items()))
    _write_truth(path.with_name(TRUTH), named, source)
    write_page(path, named, source.bands, data, impostors)
    return path, path.with_name(TRUTH)


def _readable(source: Source, rows: np.ndarray, origin: str) -> Iterator[Shown]:
    """Yields those of the rows that can still be read, as non-lenses."""
    from lensjax import report

    for row in rows.tolist():
        cutout = report.look(source, row)
        if cutout is not None:
            yield Shown(cutout, row, NONE, origin)


def write_page(
    path: Path,
    named: Mapping[str, Shown],
    bands: Sequence[str],
    data: str,
    impostors: Sequence[str],
) -> None:
    """Writes a page to grade cutouts of these names, and says nothing else of them."""
    from lensjax.report import page

    cutouts = [_to_four_digits(each.cutout) for each in named.values()]
    places = [{"id": name, "ra": None, "dec": None} for name in named]
    page.write_page(
        path, graded=page.graded_page(path.stem, data, places, cutouts, bands, impostors)
    )


def _to_four_digits(cutout: Cutout | None) -> Cutout | None:
    """Returns a cutout whose pixel scale has the digits that those of hosts have."""
    if cutout is None or cutout.pixel_scale is None:
        return cutout
    return replace(cutout, pixel_scale=round(cutout.pixel_scale, 4))


def name_of(shown: Shown, seed: int) -> str:
    """Returns ten letters and digits that stand for a cutout on the page, always the same."""
    pixels = b"" if shown.cutout is None else np.ascontiguousarray(shown.cutout.image).tobytes()
    return hashlib.sha256(f"{seed}/{shown.row}/".encode() + pixels).hexdigest()[:10]


def _write_truth(path: Path, named: dict[str, Shown], source: Source) -> None:
    shown = list(named.values())
    table = Table({"id": list(named), "cutout": [str(source.table["id"][s.row]) for s in shown]})
    table["truth"], table["origin"] = [s.truth for s in shown], [s.origin for s in shown]
    for name in OF_ARCS:
        values = np.array([s.arcs.get(name, np.nan) for s in shown])
        table[name] = MaskedColumn(np.round(values, 4), mask=np.isnan(values))
    write_truth(path, [table, read_truth(path)] if path.exists() else [table])


def write_truth(path: Path, truths: Sequence[Table]) -> None:
    """Writes what several controls.csv say into one; of a name that is in more than one, the
    first."""
    from lensjax.data.formats import arrow

    table = vstack(list(truths), metadata_conflicts="silent")
    _, first = np.unique(np.asarray(table["id"], str), return_index=True)
    with replacing(path) as file:
        arrow.write_csv(file, table[np.sort(first)])


def read_truth(path: Path) -> Table:
    """Returns the columns `id`, `cutout`, `truth`, `origin` and OF_ARCS of a controls.csv.

    Raises UsageError where it is none.
    """
    table = read_table(path)
    of_texts = ("id", "cutout", "truth", "origin")
    if missing := [name for name in (*of_texts, *OF_ARCS) if name not in table.colnames]:
        raise UsageError(f"{path} lacks {', '.join(missing)}: give the {TRUTH} of a run")
    found = Table({name: np.array(texts(table[name]), str) for name in of_texts})
    if odd := set(found["truth"].tolist()) - {LENS, NONE, CANDIDATE}:
        raise UsageError(f"column truth of {path} holds {min(odd)!r}: give the {TRUTH} of a run")
    for name in OF_ARCS:
        numbers = np.array([float(text or "nan") for text in texts(table[name])])
        found[name] = MaskedColumn(numbers, mask=np.isnan(numbers))
    return found
