"""The grades of several people, merged into labels and weights to learn from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.table import Table, vstack
from numpy.typing import NDArray

from lensjax import controls, results
from lensjax.data.formats.tables import filled, texts
from lensjax.errors import UsageError, refuse
from lensjax.files import replacing
from lensjax.grade_files import NAMES, Grade, latest, read_grades
from lensjax.intervals import share_interval
from lensjax.labels import GRADES
from lensjax.trust import graders
from lensjax.trust.graders import Skill

Array = NDArray[Any]

UNDECIDED = (0.4, 0.6)
"""A consensus between these gives no label. Chosen."""
OF_RUN = ("ra", "dec", "path", "group")
LISTED = 20  # ids, at most, in a line


@dataclass(frozen=True)
class GradesConfig:
    """Options of scripts/grades.py merge."""

    output: Path | None = None
    """CSV of the candidates with label, weight, group and consensus; a .json of the same name says
    what is known of the graders."""
    run: Path | None = None
    """Folder of the run whose page was graded: gives the paths of the cutouts, which training
    needs, and its controls.csv where there is one."""
    controls: Path | None = None
    """The controls.csv by which the graders are measured (None: that of --run)."""
    prior: float | None = None
    """Share of lenses among the candidates (None: the one that makes the grades most likely)."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        prior, output = self.prior, self.output
        refuse(
            {
                "--output is missing, or no .csv: name one": (
                    output is None or output.suffix != ".csv"
                ),
                "--prior is a share between 0 and 1": prior is not None and not 0 < prior < 1,
            }
        )

    def truth(self) -> Path | None:
        """Returns where the truth about controls is, None where there is none."""
        of_run = self.run and self.run / controls.TRUTH
        return self.controls or (of_run if of_run and of_run.exists() else None)


class Graded(NamedTuple):
    """Grades of cutouts: ids (n,), names of graders, grades (n, grader) as places in NAMES, -1 for
    none, the kinds of impostor that were named (n,), and positions (n,), degrees or NaN."""

    ids: Array
    graders: list[str]
    grade: Array
    kinds: Array
    ra: Array
    dec: Array

    def votes(self) -> Array:
        """Returns (n, grader): 1 for the grades of lenses, 0 for the others, -1 for none."""
        return np.array([*(GRADES[name] for name in NAMES), -1])[self.grade]


def merge(files: Sequence[Path], options: GradesConfig) -> str:
    """Writes a catalogue of all candidates that have a grade, and returns lines about it.

    Its columns, the likeliest lens first: `id, ra, dec, path` as far as they are known, `label` (1
    lens, 0 none, -1 undecided), `weight` (0 to 1: by how much the label is likelier than the
    other), `group`, `consensus` (the probability to be a lens), `graders` (how many), `grades`,
    `class` and `second_look` (whether graders differ on lens or none). Raises UsageError for files
    that hold no grades, for grades of cutouts that are not known, and where somebody gives a cutout
    two grades of which none is the later.
    """
    if not files:
        raise UsageError("name the files that the pages export: grades merge A.csv B.csv ...")
    given, truth = [grade for file in files for grade in read_grades(file)], options.truth()
    table = None if truth is None else controls.read_truth(truth)
    if table is not None:
        given = list(_in_catalogue(given, table, str(truth), options.run))
    given, replaced = latest(given)
    of_controls = {} if table is None else _controls(table)
    who = sorted({grade.grader for grade in given})
    graded = _tabulated([each for each in given if each.id not in of_controls], who)
    if not len(graded.ids):
        raise UsageError("none of the candidates has a grade")
    measured: list[str] = []
    skill = None
    if table is not None:
        on_controls = _tabulated([each for each in given if each.id in of_controls], who)
        measured, skill = _measured(on_controls, of_controls)
    found = graders.conclusion(graded.votes(), skill, options.prior)
    catalogue = _catalogue(graded, found.probability, options.run)
    agreement, agreed = _agreement(graded)
    second_look = catalogue["id"][catalogue["second_look"]].tolist()
    record = {
        "files": list(files),
        "graders": _of_graders(who, found.skill),
        "on_controls": None if skill is None else _counts(who, skill),
        "skill_from": found.origin,
        "share_of_lenses": found.share,
        "agreement": agreement,
        "second_look": second_look,
    }
    _write(options.output or Path(), catalogue, record)
    return "\n".join(
        [
            *replaced,
            *measured,
            *agreed,
            *_summary(catalogue, found, second_look),
            str(options.output),
        ]
    )


def _in_catalogue(
    given: Iterable[Grade], truth: Table, where: str, run: Path | None
) -> Iterator[Grade]:
    """Yields the grades, those of candidates under the ids of the catalogue. Raises UsageError for
    a cutout that is neither on the page nor one of the candidates, which are all of the `run` where
    that is known."""
    is_candidate = np.asarray(truth["truth"]) == controls.CANDIDATE
    named = dict(zip(truth["id"].tolist(), truth["cutout"].tolist(), strict=True))
    of_controls = _controls(truth)
    grades = [
        grade if grade.id in of_controls else grade._replace(id=named.get(grade.id, grade.id))
        for grade in given
    ]
    known = {*of_controls, *truth["cutout"][is_candidate].tolist()}
    unknown = {grade.id for grade in grades} - known
    if unknown and run is not None:
        ids = np.array(sorted(unknown))
        unknown -= {name for table in _candidates(run, ids) for name in table["id"].tolist()}
    for grade in grades:
        if grade.id in unknown:
            raise UsageError(
                f"{grade.grader} has graded {grade.id}, which is no cutout of {where}: give the "
                "file of its page"
            )
        yield grade


def _controls(truth: Table) -> dict[str, tuple[str, str]]:
    """Returns truth and origin of each control, by its name on the page."""
    rows = truth[np.asarray(truth["truth"]) != controls.CANDIDATE]
    said = zip(rows["truth"].tolist(), rows["origin"].tolist(), strict=True)
    return dict(zip(rows["id"].tolist(), said, strict=True))


def _tabulated(given: Sequence[Grade], who: list[str]) -> Graded:
    """Returns the grades as a table, the cutouts in the order of their ids."""
    ids = sorted({each.id for each in given})
    row, column = ({name: place for place, name in enumerate(names)} for names in (ids, who))
    grade = np.full((len(ids), len(who)), -1, np.int8)
    kinds: list[set[str]] = [set() for _ in ids]
    places = np.full((2, len(ids)), np.nan)
    for each in given:
        at = row[each.id]
        grade[at, column[each.grader]] = NAMES.index(each.grade)
        kinds[at] |= {each.kind} - {""}
        places[:, at] = np.where(np.isnan(places[:, at]), (each.ra, each.dec), places[:, at])
    named = np.array([", ".join(sorted(each)) for each in kinds], str)
    return Graded(np.array(ids, str), who, grade, named, *places)


def _measured(
    graded: Graded, of_controls: Mapping[str, tuple[str, str]]
) -> tuple[list[str], Skill]:
    """Returns lines on how each grader did on the controls, and the skills."""
    said = [of_controls[id_] for id_ in graded.ids.tolist()]
    is_lens = np.array([truth == controls.LENS for truth, _ in said], bool)
    skill = graders.skill(graded.votes(), is_lens)
    lines = [
        f"{name}: completeness {_share(skill.found[n], skill.lenses[n])} of simulated lenses, "
        f"false-positive rate {_share(skill.nones[n] - skill.cleared[n], skill.nones[n])} of "
        "non-lenses"
        for n, name in enumerate(graded.graders)
    ]
    if any(origin == controls.LOW for _, origin in said):
        lines.append(
            "these non-lenses have low scores: of non-lenses among the candidates, which look more "
            "like lenses, more are called lenses"
        )
    return lines, skill


def _share(hits: float, of: float) -> str:
    """Returns a share with its exact 95 % interval."""
    low, high = share_interval(hits, of)
    value = f"{hits / of:.2f}" if of else "unknown"
    return f"{value} [{low:.2f}, {high:.2f}] ({hits:.0f} of {of:.0f})"


def _agreement(graded: Graded) -> tuple[dict[str, Any], list[str]]:
    """Returns the kappas of pairs of graders and of all, on the candidates, and lines that say
    them."""
    of_pairs, lines = [], []
    kinds = {"lens_or_none": (graded.votes(), 2), "grades": (graded.grade, len(NAMES))}
    for one, other in combinations(range(len(graded.graders)), 2):
        both = (graded.grade[:, [one, other]] >= 0).all(1)
        kappas = {
            name: graders.cohen_kappa(values[both, one], values[both, other])
            for name, (values, _) in kinds.items()
        }
        pair = [graded.graders[one], graded.graders[other]]
        of_pairs.append({"graders": pair, "candidates": int(both.sum()), **kappas})
        lines.append(f"{' and '.join(pair)}: Cohen's {_said(kappas, int(both.sum()))}")
    by_all, of_all = (graded.grade >= 0).all(1), {}
    if len(graded.graders) > 1:
        for name, (values, count) in kinds.items():
            counts = np.stack([(values[by_all] == kind).sum(1) for kind in range(count)], axis=1)
            of_all[name] = graders.fleiss_kappa(counts)
        lines.append(f"all graders: Fleiss' {_said(of_all, int(by_all.sum()))}")
    return {"cohen": of_pairs, "fleiss": {"candidates": int(by_all.sum()), **of_all}}, lines


def _said(kappas: Mapping[str, float], count: int) -> str:
    return (
        f"kappa is {kappas['lens_or_none']:.2f} on lens or none, {kappas['grades']:.2f} on the "
        f"grades, of {count} candidates"
    )


def _catalogue(graded: Graded, probability: Array, run: Path | None) -> Table:
    """Returns the catalogue, the likeliest lens first."""
    known = {"ra": graded.ra, "dec": graded.dec} if run is None else _of_run(graded.ids, run)
    votes, (low, high) = graded.votes(), UNDECIDED
    table = Table({"id": graded.ids} | {n: known[n] for n in known if n != "group"})
    table["label"] = np.where(probability >= high, 1, np.where(probability <= low, 0, -1))
    # At a probability of one half a logistic loss pulls on a network as hard with this weight on
    # the label as with the consensus for a label.
    table["weight"] = np.round(np.abs(2 * probability - 1), 4)
    table["group"] = known.get("group", graded.ids)
    table["consensus"] = np.round(probability, 4)
    table["graders"] = (votes >= 0).sum(1)
    table["grades"] = [
        ", ".join(f"{who} {NAMES[g]}" for who, g in zip(graded.graders, row, strict=True) if g >= 0)
        for row in graded.grade
    ]
    table["class"] = graded.kinds
    table["second_look"] = (votes == 1).any(1) & (votes == 0).any(1)
    return table[np.lexsort((graded.ids, -probability))]


def _of_run(ids: Array, run: Path) -> dict[str, Array]:
    """Returns those of the columns OF_RUN that the candidates of a run have, for these ids. Raises
    UsageError for an id that is none of them."""
    found = vstack(list(_candidates(run, ids)), metadata_conflicts="silent")
    names, first = np.unique(np.asarray(found["id"]), return_index=True)
    if len(missing := np.setdiff1d(ids, names)):
        raise UsageError(f"{missing[0]} was graded, and is no candidate of {run}: name its run")
    rows = first[np.searchsorted(names, ids)]
    return {name: filled(found[name][rows]) for name in OF_RUN if name in found.colnames}


def _candidates(run: Path, ids: Array) -> Iterator[Table]:
    """Yields those of the candidates of a run that have these ids, in parts: `id` as text, and the
    columns OF_RUN that there are."""
    for _, table in results.read_candidates(run):
        names = np.array(list(texts(table["id"])), str)
        part = table[[name for name in OF_RUN if name in table.colnames]]
        part["id"] = names
        yield part[np.isin(names, ids)]


def _counts(who: list[str], skill: Skill) -> dict[str, Any]:
    """Returns the counts of each grader, by the names of the fields of a Skill."""
    counts = zip(*skill, strict=True)
    return {
        name: dict(zip(Skill._fields, count, strict=True))
        for name, count in zip(who, counts, strict=True)
    }


def _of_graders(who: list[str], skill: Skill | None) -> dict[str, Any]:
    """Returns the skill of each grader: posterior means, their 95 % intervals and the counts."""
    if skill is None:
        return {name: None for name in who}
    of_lenses = zip(skill.of_lenses, *graders.credible(skill.found, skill.lenses), strict=True)
    of_nones = zip(skill.of_nones, *graders.credible(skill.cleared, skill.nones), strict=True)
    return {
        name: {"of_lenses": lens, "of_nones": none, **count}
        for (name, count), lens, none in zip(
            _counts(who, skill).items(), of_lenses, of_nones, strict=True
        )
    }


def _summary(
    catalogue: Table, found: graders.Conclusion, second_look: Sequence[str]
) -> Iterator[str]:
    """Yields what is said of the catalogue."""
    label = np.asarray(catalogue["label"])
    lenses, nones = (int((label == value).sum()) for value in (1, 0))
    yield found.origin
    yield (
        f"{len(label)} candidates: {lenses} lenses, {nones} none, {len(label) - lenses - nones} "
        f"undecided; about {found.share:.2g} of them are lenses"
    )
    if second_look:
        more = f" and {len(second_look) - LISTED} more" if len(second_look) > LISTED else ""
        yield f"graders differ on {', '.join(second_look[:LISTED])}{more}: give them a second look"
    if "path" not in catalogue.colnames:
        yield "without --run the catalogue has no paths: train.py cannot read its cutouts"


def _write(path: Path, catalogue: Table, record: Mapping[str, Any]) -> None:
    from lensjax.data.formats import arrow

    with replacing(path) as file:
        arrow.write_csv(file, catalogue)
    results.write_json(path.with_suffix(".json"), record)
