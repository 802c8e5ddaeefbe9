"""What the benchmark of rounds says, and how its grader grades."""

import csv
from pathlib import Path

import pytest

from benchmarks.rounds import COMPLETENESS, FALSE_POSITIVE_RATE, Found, grade, table, with_interval
from lensjax.rounds import round_of


def test_an_interval_is_that_of_student():
    # 4.3027 is the 97.5 % point of Student's t with two degrees of freedom.
    half = 4.3027 / 3**0.5
    assert with_interval([1, 2, 3], ".2f") == f"2.00 [{2 - half:.2f}, {2 + half:.2f}]"
    assert with_interval([5], ".1f") == "5.0"


def test_the_table_has_a_line_for_each_way_and_number_of_rounds():
    skies = {"gain": [[Found(3, 0.5, 0), Found(6, 0.75, 8)]], "random": [[Found(3, 0.5, 0)]]}
    lines = list(table(skies))[1:]
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| gain", "0", "3.0"],
        ["| gain", "1", "6.0"],
        ["| random", "0", "3.0"],
    ]


def graded(folder: Path, truth: dict[str, int], seed: int, asked: list[str]) -> dict[str, str]:
    here = round_of(folder, 1)
    here.results.mkdir(parents=True)
    (here.results / "ask.csv").write_text("\n".join(["id,label", *(f"{n},-1" for n in asked)]))
    grade(here, truth, seed)
    with (here.grades / "grader.csv").open(newline="") as file:
        return {row["id"]: row["grade"] for row in csv.DictReader(file)}


def test_the_grader_errs_as_often_as_is_said_and_says_the_same_again(tmp_path):
    truth = {f"c{row}": row % 2 for row in range(4000)}
    said = graded(tmp_path / "all", truth, 1, list(truth))
    for label, rate in ((1, COMPLETENESS), (0, FALSE_POSITIVE_RATE)):
        of_kind = [said[name] == "B" for name in truth if truth[name] == label]
        assert sum(of_kind) / len(of_kind) == pytest.approx(rate, abs=0.03)
    some = list(truth)[7:70:3]
    assert graded(tmp_path / "some", truth, 1, some) == {name: said[name] for name in some}
    assert graded(tmp_path / "other", truth, 2, list(truth)) != said
