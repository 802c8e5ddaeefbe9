"""scripts/round.py: the whole loop, with an oracle that grades what is asked, killed after every
step."""

import csv
import dataclasses
import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from lensjax import controls, injection, rounds
from lensjax.cli import round as command
from lensjax.cutouts import Cutouts
from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble import checkpoint
from lensjax.sky.survey import GROUND
from lensjax.train.verdict import speaks_for
from tests.ensemble.members import random_member
from tests.train.small import UNCHANGED_VALUES

pytestmark = pytest.mark.usefixtures("undrawn")

SEEN = Preprocessing(("g",), 16, 0.2, "asinh", 2.0, (0.1,), (1.5,))
ASKED, SKIPPED = 80, 5


def cutouts(count: int, seed: int) -> tuple[Cutouts, dict[str, int]]:
    """Returns cutouts, and which of them are lenses: bright in the middle."""
    rng = np.random.default_rng(seed)
    label = (rng.random(count) < 0.5).astype(int)
    images = rng.normal(size=(count, 16, 16, 1))
    images[label == 1, 4:12, 4:12] += 4
    names = np.array([f"{seed}-{row}" for row in range(count)])
    truth = dict(zip(names.tolist(), label.tolist(), strict=True))
    return Cutouts(images.astype(np.float32), ("g",), 0.2, {"id": names}), truth


@pytest.fixture
def first(tmp_path) -> None:
    """Writes members and a sky to replay."""
    for seed in (3, 4):
        folder = tmp_path / "first" / "vit_s16" / str(seed)
        checkpoint.save_member(folder, random_member("vit_s16", seed, SEEN))
    known, labels = cutouts(48, 1)
    known.columns["label"] = np.array(list(labels.values()))
    known.save(tmp_path / "known.npz")


@pytest.fixture
def sky(first, tmp_path) -> dict[str, int]:
    """Writes cutouts to search, too; returns which of these are lenses."""
    searched, truth = cutouts(240, 2)
    searched.save(tmp_path / "survey.npz")
    return truth


@pytest.fixture
def killed(monkeypatch) -> list[str]:
    """Has each step that is named be killed when it is done, and be named no more. Training takes
    no time for augmentation."""
    names: list[str] = []
    train = rounds.train
    quick = UNCHANGED_VALUES | {"batch_size": 16}
    monkeypatch.setattr(
        rounds, "train", lambda options: train(dataclasses.replace(options, **quick))
    )

    def dies(name: str, step, *given, **more):
        done = step(*given, **more)
        if name == "train":
            done = iter([next(done)] if name in names else list(done))
        if name in names:
            names.remove(name)
            if name == "train":
                return dying(done)
            raise MemoryError(name)
        return done

    def dying(done):
        yield from done
        raise MemoryError("train")

    for name in ("infer", "merge", "train", "make_folder"):
        monkeypatch.setattr(rounds, name, functools.partial(dies, name, getattr(rounds, name)))
    return names


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def grade(folder: Path, truth: dict[str, int], skipped: int = SKIPPED) -> dict[str, int]:
    """Grades what a round asks for, but the last, and returns the labels by id."""
    asked = [row["id"] for row in rows_of(folder / "results" / "ask.csv")]
    graded = asked[: len(asked) - skipped]
    with (folder / "grades" / "oracle.csv").open("w", newline="") as file:
        rows = [(name, "A" if truth[name] else "X", "oracle") for name in graded]
        csv.writer(file).writerows([("id", "grade", "grader"), *rows])
    return {name: truth[name] for name in graded}


@pytest.mark.slow
def test_a_loop_that_is_killed_after_every_step_loses_nothing(run, sky, tmp_path, killed):
    here = tmp_path / "rounds"
    typed = (
        *("--data", tmp_path / "survey.npz", "--replay", tmp_path / "known.npz"),
        *("--checkpoints", tmp_path / "first", "--output", here, "--ask", ASKED),
        *("--mc-samples", 2, "--validation-fraction", 0.5, "--replay-share", 0.5),
        *("--graded", tmp_path / "early.csv"),
    )

    early = {name: sky[name] for name in ("2-0", "2-100", "2-200")}
    lines = (f"{name},{'B' if label else 'C'}" for name, label in early.items())
    (tmp_path / "early.csv").write_text("\n".join(["id,grade", *lines]))

    def on(status: int = 0, *more: object):
        ended = run(command.main, *typed, *more)
        assert ended.status == status, ended.error
        return ended

    killed += ["make_folder", "infer"]
    on(1), on(1)
    waiting = on().out.splitlines()[-1]
    assert str(here / "1" / "results" / "ask.html") in waiting
    assert str(here / "1" / "grades") in waiting and not (here / "1" / "graded.csv").exists()
    assert on().out.splitlines()[-1] == waiting  # nothing is done twice

    (here / "1" / "grades" / "odd.csv").write_text("id,grade\nnobody,A\n")
    assert "nobody was graded, and is no candidate" in on(2).error
    (here / "1" / "grades" / "odd.csv").unlink()
    first = grade(here / "1", sky, skipped=ASKED - 12)
    killed += ["merge", "train", "infer"]
    assert (on(1), on(1), on(1)) and not killed
    assert str(here / "2" / "results" / "ask.html") in on().out.splitlines()[-1]
    links = sorted((here / "1" / "next" / "vit_s16").iterdir())
    # Twelve grades do not say which member is better.
    assert [link.resolve().name for link in links] == ["3", "4"]
    assert all(link.resolve().parents[1] == (tmp_path / "first").resolve() for link in links)

    second = grade(here / "2", sky)
    assert not (early.keys() & first.keys() or (early | first).keys() & second.keys())
    said = on().out
    links = sorted((here / "2" / "next" / "vit_s16").iterdir())
    learned = checkpoint.member_folders(here / "2" / "members", "vit_s16")
    verdicts = [checkpoint.read_info(folder).verdict for folder in learned]
    words = [verdict["word"] for verdict in verdicts]
    assert "better" in words and [link.resolve() for link in links] == [
        folder if speaks_for(verdict) else tmp_path / "first" / "vit_s16" / str(3 + place)
        for place, (folder, verdict) in enumerate(zip(learned, verdicts, strict=True))
    ]
    grades, (one, two, three) = early | first | second, rows_of(here / "rounds.csv")
    assert {*grades} == {row["id"] for row in rows_of(here / "2" / "graded.csv")}
    assert not {*grades} & {row["id"] for row in rows_of(here / "3" / "results" / "ask.csv")}
    for row, own, so_far in ((one, first, early | first), (two, second, grades)):
        assert (int(row["asked"]), int(row["graded"])) == (ASKED, len(own))
        assert int(row["lenses"]) == sum(own.values())
        assert int(row["lenses_in_total"]) == sum(so_far.values())
    assert one["verdict"] == "not known, not known" and two["verdict"] == ", ".join(words)
    assert (three["graded"], three["verdict"]) == ("0", "")
    for number, row in enumerate((one, two, three), start=1):
        best = rows_of(here / str(number) / "results" / "candidates.csv")[: rounds.TOP]
        labels = [grades.get(each["id"]) for each in best]
        counts = [int(row[f"top_{name}"]) for name in ("lenses", "others", "open")]
        assert counts == [labels.count(label) for label in (1, 0, None)]
    assert int(two["top_lenses"]) < int(three["top_lenses"])
    assert "lenses_in_total" in said

    other = on(2, "--replay", tmp_path / "survey.npz").error
    assert "holds rounds with replay" in other and "give another --output" in other


def arcs(hosts, survey, count, seed, sources) -> Cutouts:
    """Stands in for `inject`, which takes long to compile: hosts with a bright line."""
    images = hosts.images.copy()
    images[:, 2] += 500 + seed
    columns = {"host": hosts.id, **dict.fromkeys(controls.OF_ARCS, hosts.magnitude)}
    return Cutouts(images, survey.bands, hosts.pixel_scale, columns)


@pytest.mark.slow
def test_controls_measure_the_grader_of_each_round_and_nobody_learns_them(
    run, first, tmp_path, killed, monkeypatch
):
    monkeypatch.setattr(injection, "inject", arcs)
    plain, sky = cutouts(240, 2)
    names, images = list(sky), np.repeat(plain.images, 3, axis=3) * GROUND.sky_sigma
    offset = np.hypot(*np.mgrid[-7.5:8:1, -7.5:8:1])[..., None]
    images += 20 * np.exp(-0.5 * (offset / 3) ** 2) * GROUND.sky_sigma  # a galaxy in each
    searched = Cutouts(images.astype(np.float32), GROUND.bands, 0.2, plain.columns)
    searched.save(tmp_path / "survey.npz")
    here = tmp_path / "rounds"
    typed = (
        *("--data", tmp_path / "survey.npz", "--replay", tmp_path / "known.npz"),
        *("--checkpoints", tmp_path / "first", "--output", here, "--ask", 60),
        *("--mc-samples", 2, "--validation-fraction", 0.5, "--replay-share", 0.5),
        *("--controls", 0.5),
    )

    def on(status: int = 0) -> str:
        ended = run(command.main, *typed)
        assert ended.status == status, ended.error
        return ended.out

    def grade_all(number: int) -> dict[str, int]:
        """The grader misses every eighth simulated lens, and takes every eighth other for one."""
        folder, rows = here / str(number), []
        truth = rows_of(folder / "results" / "controls.csv")
        page = (folder / "results" / "ask.html").read_text()
        shown = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["candidates"]
        assert [each["id"] for each in shown] == [row["id"] for row in truth]
        assert not any(f'"{name}"' in page for name in names)
        of_kind = {kind: [r for r in truth if r["truth"] == kind] for kind in ("lens", "none", "")}
        assert [len(rows) for rows in of_kind.values()] == [15, 15, 60]
        grades = {row["id"]: "X" if k % 8 == 0 else "A" for k, row in enumerate(of_kind["lens"])}
        grades |= {row["id"]: "A" if k % 8 == 0 else "X" for k, row in enumerate(of_kind["none"])}
        asked = {row["id"]: row["cutout"] for row in of_kind[""]}
        assert {*asked.values()} == {r["id"] for r in rows_of(folder / "results" / "ask.csv")}
        grades |= {name: "A" if sky[cutout] else "X" for name, cutout in asked.items()}
        rows = [("id", "grade", "grader"), *((*each, "oracle") for each in grades.items())]
        with (folder / "grades" / "oracle.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        return {cutout: sky[cutout] for cutout in asked.values()}

    on()
    assert not (here / "1" / "results" / "grading.html").exists()
    early = grade_all(1)
    killed += ["merge", "infer"]
    assert (on(1), on(1)) and not killed
    on()
    late = grade_all(2)
    said = on()
    assert "oracle: completeness 0.87" in said and "(26 of 30)" in said and "(4 of 30)" in said
    for number, graded in ((1, early), (2, early | late)):
        rows = rows_of(here / str(number) / "graded.csv")
        assert {row["id"]: int(row["label"]) for row in rows} == graded
    ledger = rows_of(here / "rounds.csv")
    told = ("control_lenses", "completeness", "control_others", "false_positive_rate")
    assert [[row[name] for name in told] for row in ledger] == [
        ["15", "0.8667", "15", "0.1333"], ["30", "0.8667", "30", "0.1333"], ["0", "", "0", ""],
    ]  # fmt: skip
    planted = [rows_of(here / str(n) / "results" / "controls.csv") for n in (1, 2)]
    ids = [{row["id"] for row in rows} for rows in planted]
    assert not ids[0] & ids[1]
    # Nothing that has been graded is a control: graders would know it again.
    assert not {row["cutout"] for row in planted[1] if row["truth"]} & {*early}


def test_a_sky_without_labels_is_refused_before_anything_is_scored(run, sky, tmp_path, killed):
    survey = tmp_path / "survey.npz"
    typed = ("--data", survey, "--replay", survey, "--checkpoints", tmp_path / "first")
    ended = run(command.main, *typed, "--output", tmp_path / "rounds")
    assert ended.status == 2 and "has no labels" in ended.error
    assert not (tmp_path / "rounds").exists()
