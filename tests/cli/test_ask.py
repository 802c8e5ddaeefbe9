"""scripts/infer.py --ask as its user sees it: a page without scores, of cutouts that nobody has
graded, by default of such as are no two alike."""

import csv
from pathlib import Path

import numpy as np
import pytest

from lensjax.cli import infer
from lensjax.ensemble import scoring

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def cutouts(images, tmp_path) -> Path:
    """Twenty-two cutouts and a copy of each under another name."""
    path, twice = tmp_path / "stack.npz", np.concatenate([images, images])
    names = np.array([f"{which}{row}" for which in "ab" for row in range(len(images))])
    np.savez(path, images=twice, id=names, bands=np.array(["g", "r", "i"]), pixel_scale=0.2)
    return path


def asked(run, members, cutouts: Path, output: Path, *more: object) -> list[str]:
    ended = run(
        infer.main,
        *("--checkpoints", members, "--data", cutouts, "--output", output),
        *("--batch-size", 8, "--mc-samples", 2, *more),
    )
    assert ended.status == 0, ended.error
    assert str(output / "ask.html") in ended.out
    with (output / "ask.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"-1"}
    page = (output / "ask.html").read_text()
    assert all(f'"id": "{row["id"]}"' in page for row in rows)
    assert '"score":' not in page and '"of_members":' not in page
    return [row["id"] for row in rows]


def test_what_is_asked_for_differs_and_is_not_known(run, members, cutouts, tmp_path):
    first = asked(run, members, cutouts, tmp_path / "first", "--ask", 8)
    assert len({name[1:] for name in first}) == len(first) == 8
    grades = tmp_path / "grades.csv"
    with grades.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "grade"), *((name, "X") for name in first)])
    second = asked(run, members, cutouts, tmp_path / "next", "--ask", 8, "--graded", grades)
    assert len(second) == 8 and not {*first} & {*second}


def test_the_best_or_any_can_be_asked_for_instead(run, members, cutouts, tmp_path):
    best = asked(run, members, cutouts, tmp_path / "best", "--ask", 6, "--by", "score")
    with (tmp_path / "best" / "candidates.csv").open(newline="") as file:
        ranked = [row["id"] for row in csv.DictReader(file)]
    assert sorted(best) == sorted(ranked[:6]) and best != ranked[:6]
    grades = tmp_path / "merged.csv"
    with grades.open("w", newline="") as file:  # of one the graders leave it open
        rows = [(best[0], -1, 0.5), *((name, 0, 0.1) for name in best[1:])]
        csv.writer(file).writerows([("id", "label", "consensus"), *rows])
    more = ("--ask", 6, "--graded", grades, "--by")
    following = asked(run, members, cutouts, tmp_path / "then", *more, "score")
    assert sorted(following) == sorted(ranked[6:12])
    drawn = asked(run, members, cutouts, tmp_path / "any", *more, "random")
    assert len({*drawn}) == 6 and not {*drawn} & {*best} and {*drawn} - {*ranked[:12]}


def test_where_nothing_can_be_asked_nothing_is_scored(
    run, members, cutouts, stack_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(scoring, "score", None)
    command = ("--checkpoints", members, "--output", tmp_path / "results")
    ended = run(infer.main, *command, "--data", stack_file, "--ask", 3)
    assert ended.status == 2 and "all 22 cutouts have a label already" in ended.error
    ended = run(infer.main, *command, "--data", stack_file, "--graded", stack_file)
    assert ended.status == 2 and "--graded is for --ask" in ended.error
    ended = run(infer.main, *command, "--data", cutouts, "--by", "score")
    assert ended.status == 2 and "--by is for --ask" in ended.error
    alone = ("--ensemble", "vit_s16:1", "--mc-samples", 1, "--data", cutouts, "--ask", 3)
    ended = run(infer.main, *command, *alone)
    assert ended.status == 2 and "--ask: a network says by itself" in ended.error
