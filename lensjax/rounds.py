"""Rounds of looking and learning: score, ask, wait for grades, learn from them, score again.

All that is known lies in files, of each round in a folder of its number:

    results/     what `infer` writes, with ask.html, the page to grade
    grades/      what graders have exported from that page, put there by people
    controls.csv the truth about all controls so far, where there are any
    graded.csv   all grades so far, merged
    members/     the first members as they have learned from all grades so far
    next/        links to the members that score the next round

A step is done where what it writes last is there: a command that was killed goes on from it.
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.table import Table

from lensjax import controls, results
from lensjax.asking import AskOptions
from lensjax.controls import ControlOptions
from lensjax.data.catalog import DataOptions
from lensjax.data.formats.tables import read_table, texts
from lensjax.ensemble import checkpoint
from lensjax.errors import UsageError, refuse
from lensjax.files import make_folder, remove, replacing, replacing_folder
from lensjax.grades import GradesConfig, merge
from lensjax.inference import InferenceConfig, infer, is_finished
from lensjax.members import find_members
from lensjax.settings import differences, write_settings
from lensjax.train.verdict import sentence, speaks_for
from lensjax.training import train
from lensjax.training_config import TrainConfig
from lensjax.trust.graders import Skill

TOP = 100
LEDGER, SETTINGS = "rounds.csv", "settings.json"
METRICS = ("auroc", "log_loss")


@dataclass(frozen=True)
class RoundConfig(AskOptions, ControlOptions):
    """Options of scripts/round.py."""

    data: str | None = None
    """The cutouts to search, as --data of infer.py takes them."""
    replay: str | None = None
    """Labelled cutouts of a sky that the members know, such as simulate.py draws: learned beside
    the grades, so that it is not forgotten."""
    output: Path = Path("rounds")
    """Folder of the rounds and of their ledger, rounds.csv."""
    checkpoints: Path = Path("checkpoints")
    """Folder of the first members: each round they learn from all grades so far."""
    ensemble: str | None = None
    """Which of them, as --ensemble of infer.py names them (None: those with a share in the
    stacked score)."""
    ask: int = 200
    """Cutouts to grade in each round."""
    graded: Path | None = None
    """Grades that there are already, as a page exports them: they count in every round, and their
    cutouts are not asked for."""
    validation_fraction: float = 0.3
    """Fraction of the graded cutouts held back, by which members are called better or not, where
    all layers learn; where the last does, each is held back once."""
    replay_share: float = TrainConfig.replay_share
    """Share of the replayed sky in every batch."""
    head_only: bool = True
    """Teach the last layer alone; --no-head-only: all layers, for some thousand grades."""
    epochs: float = 5.0
    """How often each graded cutout is learned, where all layers are."""
    learning_rate: float = 2e-4
    """Peak of the learning rate."""
    layer_decay: float = 0.75
    """Factor of the learning rate from each layer to the one before it."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        for options in (AskOptions, ControlOptions):
            options.__post_init__(self)
        wrong = {
            "--zero-point is for --controls: give that too": (
                self.zero_point is not None and self.controls is None
            ),
            "--data and --replay are both needed": self.data is None or self.replay is None,
            "--ask must be at least 1: rounds are about what people grade": self.ask < 1,
        }
        refuse(wrong)

    def scoring(self, here: "Round") -> InferenceConfig:
        """Returns the options of `infer` in a round: those of the first members, or of those that
        the round before has left."""
        names = [field.name for kind in (AskOptions, ControlOptions) for field in fields(kind)]
        given = {name: getattr(self, name) for name in names}
        config = InferenceConfig(
            **given,
            checkpoints=self.checkpoints,
            ensemble=self.ensemble,
            data=self.data,
            output=here.results,
        )
        if here.number == 1:
            return config
        before = round_of(self.output, here.number - 1)
        return replace(
            config, checkpoints=before.next, ensemble=checkpoint.ALL, graded=before.graded
        )

    def learning(self, here: "Round", architecture: str, members: int) -> TrainConfig:
        """Returns the options of `train` in a round, for so many of the first members of an
        architecture: another seed has them learn in another order."""
        held = len(checkpoint.member_folders(self.checkpoints, architecture))
        return TrainConfig(
            **self.of_data() | {"format": "auto"},  # graded.csv is a catalogue whatever --data is
            arch=architecture,
            members=members,
            data=str(here.graded),
            start_from=str(self.checkpoints),
            output=here.members,
            seed=self.seed * held,  # the first starts from the first
            **{name: getattr(self, name) for name in OF_LEARNING},
        )


OF_LEARNING = (
    *("replay", "replay_share", "validation_fraction", "head_only"),
    *("epochs", "learning_rate", "layer_decay"),
)


class Round(NamedTuple):
    """A round by its number, and where its files are: see above."""

    number: int
    results: Path
    grades: Path
    controls: Path
    graded: Path
    members: Path
    next: Path


def round_of(root: Path, number: int) -> Round:
    """Returns a round of those in the folder `root`."""
    names = ("results", "grades", controls.TRUTH, "graded.csv", "members", "next")
    return Round(number, *(root / str(number) / name for name in names))


def go_on(options: RoundConfig) -> Iterator[str]:
    """Yields lines about what is done in this round and those that follow, as far as there are
    grades; then the ledger, and last which page is to be graded and where its CSV goes.

    Raises UsageError for what cannot be carried out, for a folder that holds rounds of other data
    or members, and for grades of cutouts that are not known.
    """
    _check(options)
    for number in itertools.count(1):
        here = round_of(options.output, number)
        if not is_finished(here.results):
            run = infer(options.scoring(here)).run
            yield f"round {number}: {run['scored']} cutouts are scored, {run['rejected']} are not"
        if not here.next.exists():
            make_folder(here.grades)
            if not any(here.grades.glob("*.csv")):
                break
            yield from _learn(options, here)
    table = ledger(options.output)
    from lensjax.data.formats import arrow

    with replacing(options.output / LEDGER) as file:
        arrow.write_csv(file, table)
    yield as_text(table)
    yield (
        f"grade {here.results / 'ask.html'} in a browser, export the grades to {here.grades}, and "
        "give the same command again: it goes on from there"
    )


def _check(options: RoundConfig) -> None:
    """Raises UsageError where the rounds in the output folder are of other data or members, and
    where there is no sky to replay: before anything is scored."""
    members = find_members(options.checkpoints, options.ensemble)
    hashes = {name: info.weights_sha256 for name, info in members.infos.items()}
    named = {name: getattr(options, name) for name in ("data", "replay")}
    settings, path = named | options.of_data() | {"members": hashes}, options.output / SETTINGS
    if path.exists():
        if found := differences(path, settings):
            raise UsageError(
                f"{options.output} holds rounds with {', '.join(found)}: give another --output"
            )
        return
    sky = DataOptions(fit=options.fit).opened(str(options.replay), members.bands)
    if "label" not in sky.table.colnames:
        raise UsageError(f"--replay {options.replay} has no labels: give a sky of known lenses")
    make_folder(options.output)
    write_settings(path, settings)


def _learn(options: RoundConfig, here: Round) -> Iterator[str]:
    """Merges all grades so far, has the first members learn from them, links those that score next,
    and yields lines about it."""
    yield _merge(options, here)
    first = checkpoint.find_members(options.checkpoints, options.ensemble)
    former = options.scoring(here)
    scores_next = checkpoint.find_members(former.checkpoints or Path(), former.ensemble)
    architectures = Counter(name.partition(".")[0] for name in first)
    learned = (train(options.learning(here, *each)) for each in architectures.items())
    for name, trained in zip(first, itertools.chain.from_iterable(learned), strict=True):
        verdict = trained.info.verdict
        if speaks_for(verdict):
            scores_next[name], how = trained.folder, "scores next"
        else:
            how = f"is not used: {scores_next[name]} scores next"
        yield f"{name}, as it has learned, {sentence(verdict)}; it {how}"
    with replacing_folder(here.next) as draft:
        for name, folder in scores_next.items():
            architecture, _, place = name.partition(".")
            (draft / architecture).mkdir(exist_ok=True)
            # As seen from where the draft will be.
            target = os.path.relpath(folder.resolve(), (here.next / architecture).resolve())
            (draft / architecture / (place or "0")).symlink_to(target)


def _merge(options: RoundConfig, here: Round) -> str:
    """Merges all grades so far into graded.csv, and returns what is to be said of them. What has
    been learned from others, before a further file came, is deleted."""
    so_far = [round_of(options.output, number) for number in range(1, here.number + 1)]
    files = [options.graded] if options.graded else []
    files += [file for each in so_far for file in sorted(each.grades.glob("*.csv"))]
    draft = here.graded.with_name(".graded.csv")
    config = GradesConfig(output=draft, run=here.results, controls=_truth(here, so_far))
    said, _, _ = merge(files, config).rpartition("\n")
    if not here.graded.exists() or here.graded.read_bytes() != draft.read_bytes():
        remove(here.members)
    for suffix in (".json", ".csv"):
        os.replace(draft.with_suffix(suffix), here.graded.with_suffix(suffix))
    return said


def _truth(here: Round, so_far: Sequence[Round]) -> Path | None:
    """Writes the truth about the controls of all rounds so far, and returns where; None where there
    are none."""
    # Of a cutout that a control of an earlier round was, the latest round has its say.
    paths = (each.results / controls.TRUTH for each in reversed(so_far))
    truths = [controls.read_truth(path) for path in paths if path.exists()]
    if not truths:
        return None
    controls.write_truth(here.controls, truths)
    return here.controls


def ledger(output: Path) -> Table:
    """Returns a row for each round that has been scored, from its files.

    `asked`, and of these `graded` and `lenses` by the grades of the round; `lenses_in_total` of all
    graded so far; on all controls so far and by all graders together the `completeness` among so
    many `control_lenses` and the `false_positive_rate` among `control_others`; of the grades held
    back `held_back` and `held_back_lenses`, and on them METRICS
    `_before` and `_after` learning, means over members (NaN: not known); their `verdict`; which
    members `score_next`; and what the best TOP of the round's list are by all grades that there are
    now, so that rounds can be compared: `top_lenses`, `top_others`, and `top_open`, which nobody
    has graded or graders leave open.
    """
    every = (round_of(output, number) for number in itertools.count(1))
    scored = list(itertools.takewhile(lambda each: is_finished(each.results), every))
    known: dict[str, int] = {}
    for each in scored:
        known |= _labels(each.graded)
    return Table([_row(each, known) for each in scored])


def as_text(table: Table) -> str:
    """Returns the ledger as people read it: a line for each of its columns, a column a round."""
    rounds = {str(row["round"]): [str(value) for value in row.values()][1:] for row in table}
    shown = Table({"round": table.colnames[1:]} | rounds)
    return "\n".join(shown.pformat(max_lines=-1, max_width=-1, align="<"))


def _row(here: Round, known: Mapping[str, int]) -> dict[str, Any]:
    own = _labels(here.graded)
    asked = list(texts(read_table(here.results / "ask.csv")["id"]))
    answers = [own[name] for name in asked if name in own]
    _, candidates = next(results.read_candidates(here.results))
    top = Counter(known.get(name, -1) for name in texts(candidates["id"][:TOP]))
    return {
        "round": here.number,
        "asked": len(asked),
        "graded": len(answers),
        "lenses": answers.count(1),
        "lenses_in_total": list(own.values()).count(1),
        **_on_controls(here),
        **_learned(here),
        "top_lenses": top[1],
        "top_others": top[0],
        "top_open": top[-1],
    }


def _on_controls(here: Round) -> dict[str, Any]:
    """Returns how graders did on the controls so far, all together."""
    path = here.graded.with_suffix(".json")
    said = json.loads(path.read_text()) if path.exists() else {}
    counted = said.get("on_controls") or {}
    found, lenses, cleared, nones = (
        sum(counts[name] for counts in counted.values()) for name in Skill._fields
    )
    return {
        "control_lenses": int(lenses),
        "completeness": round(found / lenses, 4) if lenses else float("nan"),
        "control_others": int(nones),
        "false_positive_rate": round(1 - cleared / nones, 4) if nones else float("nan"),
    }


def _learned(here: Round) -> dict[str, Any]:
    """Returns what the held-back grades say of the members of a round, and which score next."""
    links = sorted(here.next.glob("*/*"))
    folders = sorted(path.parent for path in here.members.glob("*/*/member.json"))
    verdicts = [checkpoint.read_info(folder).verdict for folder in folders if links]
    said: dict[str, Any] = {"held_back": 0, "held_back_lenses": 0}
    if verdicts:
        said = {"held_back": verdicts[0]["cutouts"], "held_back_lenses": verdicts[0]["lenses"]}
    for metric in METRICS:
        for when in ("before", "after"):
            said[f"{metric}_{when}"] = _mean(verdict[when][metric] for verdict in verdicts)
    said["verdict"] = ", ".join(verdict["word"] for verdict in verdicts)
    said["score_next"] = ", ".join(os.path.relpath(link.resolve()) for link in links)
    return said


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return round(float(np.mean(numbers)), 4) if numbers else float("nan")


def _labels(graded: Path) -> dict[str, int]:
    """Returns the label of each cutout that has a grade, by its id; none where there is no file."""
    if not graded.exists():
        return {}
    table = read_table(graded)
    return dict(zip(texts(table["id"]), table["label"].tolist(), strict=True))
