"""What is certain of the list of a run: its promise, a cut that keeps a share of the lenses, and
between what bounds the survey's prevalence lies."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.table import Table, vstack

from lensjax import hats, inspection, results
from lensjax.columns import OF_MEMBERS
from lensjax.errors import UsageError, refuse
from lensjax.files import gathering
from lensjax.labels import match, read_labels
from lensjax.predictions import ranking, read_npz
from lensjax.trust import certificate, completeness, prevalence, run
from lensjax.trust.run import PromiseOptions, Said

KEYS = ("id", "path", "probability", "logit", "calibration")
FALSE_SHARES = (0.0, 0.05, 0.1, 0.2, 1 / 3)


@dataclass(frozen=True)
class CertifyConfig(PromiseOptions):
    """Options of scripts/certify.py."""

    run: Path | None = None
    """Folder of the results of infer.py."""
    max_false_discovery: float | None = 0.5
    """Certify the longest list of which at most this share is false."""
    labels: Path | None = None
    """What was seen: the CSV that a page exports (grades A and B are lenses, C and X none), or any
    table with id and label (1 a lens, 0 none)."""
    inspect: int = certificate.INSPECTED
    """So many of the drawn rows, and of the others, are shown to be looked at."""
    average: bool = False
    """Also the list of Benjamini and Hochberg, whose false share is that low on average only."""
    completeness: float | None = None
    """Also the cut that keeps this share of lenses like those of --lenses."""
    lenses: Path | None = None
    """Folder of a run of the same members over lenses (column label) that are like the survey's:
    gives the interval of the survey's prevalence."""
    strata: str | None = "einstein_radius,arc_snr"
    """Columns of --lenses in whose thirds, each, the share is kept (None: in all together)."""
    plan: bool = False
    """Say how many rows a promise takes, and how many of them are to be looked at, and stop."""
    prevalence: float = 1e-3
    """Share of lenses in the survey, for --plan."""
    survey: int = 1_000_000
    """Cutouts of the survey, for --plan."""
    seed: int = 0
    """Seed of what is drawn."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        super().__post_init__()
        share = self.completeness
        wrong = {
            "--inspect must be at least 1": self.inspect < 1,
            "--completeness is a share between 0 and 1": share is not None and not 0 < share < 1,
            "--completeness needs --lenses": not self.plan
            and share is not None
            and self.lenses is None,
            "--prevalence is a share between 0 and 1": not 0 < self.prevalence < 1,
            "--survey must be at least 1": self.survey < 1,
        }
        refuse(wrong)


def plan(options: CertifyConfig) -> str:
    """Returns a table of what the promise takes, by the share of the list that is false in
    truth."""
    promised, kept = options.max_false_discovery or 0.5, options.completeness or 0.5
    lines = [
        f"To promise that at most {promised:.3g} of a list is false that holds {kept:.3g} of the "
        f"lenses, of which there are {options.prevalence:.3g} of {options.survey:,} cutouts:",
        "",
        "false in truth   rows to draw   of these to look at",
    ]
    for share in FALSE_SHARES:
        needs = certificate.needs(
            options.prevalence,
            survey=options.survey,
            completeness=kept,
            max_false_discovery=promised,
            false_share=share,
            confidence=options.confidence,
        )
        said = (
            f"{needs.negatives:>12,}   {needs.inspections:>19,}"
            if needs
            else f"{'none suffice':>12}"
        )
        lines.append(f"{share:>14.2f}   {said}")
    return "\n".join(lines)


def certify(options: CertifyConfig) -> str:
    """Writes the promise into the candidates of a run, and returns it in words.

    Raises UsageError where the folder holds no run, or the labels none of its cutouts.
    """
    if options.run is None:
        raise UsageError("--run is missing: name the folder of the results of infer.py")
    ranked = _ranked(options.run, KEYS)
    logit = np.asarray(ranked["logit"])
    labels = np.full(logit.size, -1)
    if options.labels is not None:
        labels = match(ranked, read_labels(options.labels)).labels
    is_drawn = "calibration" in ranked.colnames and results.is_of_trust(ranked["calibration"])
    if is_drawn and options.calibration == "auto":
        said = run.promise_of(
            options, logit, np.asarray(ranked["calibration"]), labels, options.seed
        )
    else:
        said = run.promise(options, logit, labels, options.seed)
    _write(options.run, said)
    lines = [*said.notes, *_figure(options.run, ranked, said)]
    if options.average:
        rows = certificate.of_average_purity(
            said.columns["p_value"], options.max_false_discovery or 0.5
        )
        lines.append(
            f"Benjamini-Hochberg: the first {rows:,} that were not drawn; on average over surveys "
            "no larger share is false, so about half of such lists hold more"
        )
    if options.lenses is not None:
        lenses = _lenses(options)
        lines += _completeness(options, logit, lenses)
        calibration = np.asarray(said.columns["calibration"])
        low, high = prevalence.interval(
            logit[calibration & (labels != 1)], logit[~calibration], lenses["logit"]
        )
        lines.append(
            f"from {low:.2g} to {high:.2g} of the cutouts are lenses, if they are like those of "
            f"{options.lenses} (confidence 0.9)"
        )
    if options.labels is None:
        lines += _inspection(options, said)
    return "\n".join(lines)


def _ranked(folder: Path, names: Sequence[str] | None = None) -> Table:
    """Returns all candidates of a run, best first, or what they have of some columns.

    The logit is minus infinity where a cascade has dropped a cutout: the others rank before it.
    """
    parts = []
    for _, table in results.read_candidates(folder):
        logit = np.array(table["logit"], np.float64)
        for column in table.itercols():
            if column.description == OF_MEMBERS.description:
                logit[np.ma.getmaskarray(np.ma.asarray(column))] = -np.inf
        table["logit"] = logit
        parts.append(table[[n for n in names or table.colnames if n in table.colnames]])
    return vstack(parts, metadata_conflicts="silent")


def _write(folder: Path, said: Said) -> None:
    """Writes the columns into each part of the candidates, and into candidates.hats where the run
    has it, and the record into run.json."""
    before, parts = 0, []
    in_pieces = (folder / hats.FOLDER).exists()
    for number, table in results.read_candidates(folder):
        rows = slice(before, before + len(table))
        columns = {name: values[rows] for name, values in said.columns.items()}
        with gathering() as attempt:
            certified = results.with_trust(table, columns)
            results.write_candidates(folder, certified, number, attempt)
        before = rows.stop
        parts += [certified] if in_pieces else []
    if parts:
        # The positions are the same, so each file takes the place of its own.
        results.write_hats(folder, vstack(parts, metadata_conflicts="silent"))
    results.write_json(folder / "run.json", {**results.read_record(folder), **said.record})


def _figure(folder: Path, ranked: Table, said: Said) -> list[str]:
    """Draws the promise, and returns where."""
    from lensjax.report import figures

    purity = said.columns["purity_at_least"]
    scored = figures.Scored({"ensemble": ranked["probability"]}, purity_at_least=purity)
    return [str(figures.save(folder, "promise", figures.draw(scored)["promise"])[0])]


def _inspection(options: CertifyConfig, said: Said) -> list[str]:
    """Writes what is to be looked at, from the data of the run, and returns what to do with it."""
    folder = options.run or Path()
    arrays = read_npz(folder / "predictions.npz")
    config = results.read_record(folder).get("config", {})
    page, _ = inspection.write(
        folder,
        results.scored_cutouts(folder, arrays["id"]),
        ranking(
            arrays["ensemble_probs"],
            arrays["ensemble_logits"],
            np.stack([arrays[f"{name}_logits"] for name in arrays["members"]]),
        ),
        np.asarray(said.columns["calibration"]),
        most=options.inspect,
        seed=options.seed,
        impostors=config.get("impostors", inspection.IMPOSTORS),
        data=config.get("data"),
    )
    return [f"{page}: {inspection.WHAT_TO_DO.format(folder=folder)}"]


def _lenses(options: CertifyConfig) -> Table:
    """Returns the candidates of --lenses that are lenses. Raises UsageError where other members
    scored them, or it does not say which they are."""
    folder = options.lenses or Path()
    mine, theirs = (
        results.read_record(each or Path())["members"] for each in (options.run, folder)
    )
    if [m["weights_sha256"] for m in mine] != [m["weights_sha256"] for m in theirs]:
        raise UsageError(f"{folder} was scored by other members than {options.run}")
    if len({_cut_of_cascade(each or Path()) for each in (options.run, folder)}) > 1:
        raise UsageError(f"{folder} was scored by another cascade than {options.run}")
    table = _ranked(folder)
    if "label" not in table.colnames:
        raise UsageError(f"{folder} has no column label: which of them are lenses?")
    return table[np.asarray(table["label"]) == 1]


def _cut_of_cascade(folder: Path) -> tuple[str, float] | None:
    """Returns the first member of a run's cascade and its cut, None where it had none."""
    cascade = results.read_record(folder).get("cascade")
    return cascade and (cascade["member"], cascade["cut"])


def _completeness(options: CertifyConfig, logit: np.ndarray, lenses: Table) -> list[str]:
    """Returns the cut that keeps the wanted share of the lenses, and what they are. Raises
    UsageError where they are too few."""
    kept = options.completeness
    if kept is None:
        return []
    strata, domain = _strata(lenses, options.strata.split(",") if options.strata else [])
    try:
        cut, _ = completeness.cut_of_strata(strata, kept, confidence=options.confidence)
    except completeness.TooFewLenses as error:
        raise UsageError(f"--completeness {kept}: {error}") from error
    rows = int((logit >= cut.score).sum())
    return [
        f"the {rows:,} candidates of logit {cut.score:.3f} and more hold at least {kept:.3g} of "
        f"lenses like the {len(lenses):,} of {options.lenses}, in each of {len(strata)} strata "
        f"(confidence {options.confidence:.3g})",
        f"these lenses have {domain}: it says nothing of others",
    ]


def _strata(lenses: Table, names: Sequence[str]) -> tuple[dict[str, np.ndarray], str]:
    """Returns the logits of the lenses in each combination of thirds of these columns, by name,
    and the domain of the lenses in words."""
    missing = [name for name in names if name not in lenses.colnames]
    if missing:
        raise UsageError(f"--strata: the lenses have no column {missing[0]}")
    strata, domain = {"all": np.ones(len(lenses), bool)}, []
    for name in names:
        values = np.asarray(lenses[name], np.float64)
        low, *inner, high = np.quantile(values, [0, 1 / 3, 2 / 3, 1])
        domain.append(f"{name} from {low:.3g} to {high:.3g}")
        third = np.searchsorted(inner, values, "right")
        strata = {
            f"{known}, {name} third {number + 1}".removeprefix("all, "): rows & (third == number)
            for known, rows in strata.items()
            for number in range(3)
        }
    logit = np.asarray(lenses["logit"], np.float64)
    return {name: logit[rows] for name, rows in strata.items()}, ", ".join(domain) or "no strata"
