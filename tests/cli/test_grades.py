"""scripts/grades.py: grades of several people become one catalogue, in whatever order they come."""

import csv
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from sklearn.metrics import cohen_kappa_score

from lensjax import injection
from lensjax.cli import grades as command
from lensjax.cli import infer
from lensjax.controls import read_truth
from lensjax.cutouts import Cutouts
from lensjax.data.catalog import open_source
from lensjax.grades import GradesConfig, merge
from lensjax.labels import read_labels
from lensjax.report import page
from lensjax.results import write_outputs
from lensjax.sky.survey import GROUND
from tests.scored import scored
from tests.test_controls import brighter

HEAD = "id,ra,dec,grade,class,grader,time,seconds,notes\r\n"


def exported(path: Path, grader: str, *rows: str) -> Path:
    """Writes what a page exports; each row is an id, a grade and, where it matters, a minute and a
    kind of impostor."""
    lines = []
    for row in rows:
        id_, grade, minute, kind = (
            [*row.split(), "", ""][:4] if len(row.split()) < 4 else row.split()
        )
        time = f"2026-01-01T00:{minute or 0:0>2}:00.000Z"
        lines.append(f'{id_},,,{grade.strip("-")},{kind},{grader},{time},2.5,"a\r\n""b"""\r\n')
    path.write_text(HEAD + "".join(lines), newline="")
    return path


def merged(files, folder: Path, **options) -> tuple[str, list[dict[str, str]], dict]:
    output = folder / "merged.csv"
    said = merge(files, GradesConfig(output=output, **options))
    with output.open(newline="") as file:
        return said, list(csv.DictReader(file)), json.loads(output.with_suffix(".json").read_text())


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [
        exported(tmp_path / "ann.csv", "Ann", "j1 A", "j2 X 1", "j2 B 3", "j3 X 0 ring", "j4 A"),
        exported(tmp_path / "ben.csv", "Ben", "j1 B", "j2 A", "j3 C", "j4 X", "j5 -"),
        exported(tmp_path / "x.csv", "", "j1 A", "j3 X", "j4 X", "j2 B"),
    ]


def test_the_order_of_files_does_not_matter_and_the_later_grade_counts(three, tmp_path) -> None:
    found = [merged(files, tmp_path) for files in itertools.permutations(three)]
    assert all(rows == found[0][1] for _, rows, _ in found)
    assert len({json.dumps(each["agreement"]) for *_, each in found}) == 1
    said, rows, record = found[0]
    assert "Ann gave several grades to 1 cutouts: the latest of each counts" in said
    by_id = {row["id"]: row for row in rows}
    assert by_id["j2"]["grades"] == "Ann B, Ben A, x B" and by_id["j3"]["class"] == "ring"
    assert [by_id[id_]["label"] for id_ in ("j1", "j2", "j3")] == ["1", "1", "0"]
    assert by_id["j4"]["second_look"] == "1" and record["second_look"] == ["j4"]
    assert "differ on j4" in said and "j5" not in by_id
    consensus = [float(row["consensus"]) for row in rows]
    assert consensus == sorted(consensus, reverse=True)
    for row in rows:
        assert float(row["weight"]) == pytest.approx(abs(2 * float(row["consensus"]) - 1), abs=2e-4)
    pair = record["agreement"]["cohen"][0]
    assert pair["graders"] == ["Ann", "Ben"] and pair["candidates"] == 4
    assert pair["lens_or_none"] == pytest.approx(cohen_kappa_score([1, 1, 0, 1], [1, 1, 0, 0]))
    assert pair["grades"] == pytest.approx(cohen_kappa_score(list("ABXA"), list("BACX")))
    # Of the twelve votes seven are for a lens: P_e = (7/12)^2 + (5/12)^2, P = (3 + 1/3) / 4.
    chance = (49 + 25) / 144
    fleiss = record["agreement"]["fleiss"]
    assert fleiss["candidates"] == 4
    assert fleiss["lens_or_none"] == pytest.approx(((3 + 1 / 3) / 4 - chance) / (1 - chance))


def test_without_controls_two_graders_count_alike(three, tmp_path) -> None:
    said, rows, record = merged(three[:2], tmp_path)
    by_id = {row["id"]: row for row in rows}
    assert [float(by_id[f"j{k}"]["consensus"]) for k in (1, 3, 4)] == [0.75, 0.25, 0.5]
    assert by_id["j4"]["label"] == "-1" and by_id["j4"]["weight"] == "0"
    assert "no skill can be known" in said and record["graders"] == {"Ann": None, "Ben": None}


@pytest.fixture
def graded_run(tmp_path: Path) -> Path:
    """A run of four candidates, whose page has eight controls besides."""
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    ids = np.array(["j1", "j2", "j3", "j4"])
    np.savez(tmp_path / "sky.npz", images=images, id=ids, group=np.array([7, 7, 8, 9]))
    source = open_source(tmp_path / "sky.npz", needed=None, bands="g,r,i")
    write_outputs(tmp_path, source.table, scored(4))
    rows = [f"p{k},j{k},,,,,," for k in range(1, 5)]
    rows += [f"l{k},h{k},lens,simulated,1.2,20,19,22" for k in range(4)]
    rows += [f"n{k},m{k},none,lower half,,,," for k in range(4)]
    head = "id,cutout,truth,origin,theta_e,arc_snr,lens_mag,arc_mag"
    (tmp_path / "controls.csv").write_text("\n".join([head, *rows]) + "\n")
    return tmp_path


def test_controls_measure_graders_and_are_in_no_catalogue(graded_run, tmp_path) -> None:
    good = ["l0 A", "l1 B", "l2 A", "l3 C", "n0 X", "n1 C", "n2 X", "n3 X"]
    files = [
        exported(graded_run / "ann.csv", "Ann", *good, "p1 A", "p2 X", "p3 A"),
        exported(graded_run / "ben.csv", "Ben", "l0 A", "n0 A", "p1 X", "p2 A", "j3 B"),
    ]
    said, rows, record = merged(files, graded_run, run=graded_run, prior=0.5)
    assert "Ann: completeness 0.75 [0.19, 0.99] (3 of 4)" in said
    assert "false-positive rate 0.00 [0.00, 0.60] (0 of 4)" in said
    assert "these non-lenses have low scores" in said
    assert {row["id"] for row in rows} == {"j1", "j2", "j3"}
    ann = record["graders"]["Ann"]
    assert (ann["of_lenses"][0], ann["of_nones"][0]) == pytest.approx((4 / 6, 5 / 6))
    assert (ann["found"], ann["lenses"], ann["cleared"], ann["nones"]) == (3, 4, 4, 4)
    by_id = {row["id"]: row for row in rows}
    odds = (4 / 6) / (1 / 6) * (1 / 3) / (1 / 3)  # Ben: PL = 2/3, PD = 1/3: his votes say nothing
    assert float(by_id["j1"]["consensus"]) == pytest.approx(odds / (1 + odds), abs=1e-4)
    assert by_id["j1"]["label"] == "1" and by_id["j2"]["label"] == "0"
    assert by_id["j2"]["group"] == "7" and by_id["j2"]["path"] == str(tmp_path / "sky.npz[1]")


def test_grades_of_candidates_that_are_not_on_the_page_count_too(graded_run, tmp_path) -> None:
    truth = (graded_run / "controls.csv").read_text().splitlines()
    (graded_run / "controls.csv").write_text("\n".join(row for row in truth if row[:2] != "p4"))
    file = exported(graded_run / "ann.csv", "Ann", "l0 A", "l1 X", "n0 X", "p1 A", "j4 X")
    said, rows, record = merged([file], graded_run, run=graded_run)
    assert {row["id"]: row["label"] for row in rows} == {"j1": "1", "j4": "0"}
    assert record["on_controls"] == {"Ann": {"found": 1, "lenses": 2, "cleared": 1, "nones": 1}}
    assert "there are too few controls" in said and "completeness 0.50" in said


def test_training_and_evaluation_take_the_catalogue(graded_run) -> None:
    files = [exported(graded_run / "ann.csv", "Ann", "p1 A", "p2 X", "p4 C", "l0 A", "n0 X")]
    merged(files, graded_run, run=graded_run)
    source = open_source(graded_run / "merged.csv", needed=("g", "r", "i"), bands="g,r,i")
    labels = dict(zip(source.table["id"], source.table["label"], strict=True))
    assert labels == {"j1": 1, "j2": 0, "j4": 0}
    row = source.table["id"].tolist().index("j4")
    with np.load(graded_run / "sky.npz") as arrays:
        np.testing.assert_array_equal(source[row].image, arrays["images"][3])
    assert {"weight", "group", "consensus"} <= set(source.table.colnames)
    read = read_labels(graded_run / "merged.csv")
    assert set(read["id"]) == {"j1", "j2", "j4"} and set(read["label"]) == {0, 1}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["p1 D"], "gives p1 the grade 'D': grades are A, B, C, X"),
        (["q9 A"], "Ann has graded q9, which is no cutout of .*controls.csv"),
        (
            ["p1 A 1", "p1 X 1"],
            "Ann gives j1 the grades 'A' and 'X', of which none is the later",
        ),
        (["l1 A"], "none of the candidates has a grade"),
        (["p1 A half"], "gives p1 the time '2026-01-01T00:half"),
    ],
)
def test_what_is_wrong_is_one_line(run, graded_run, rows, said) -> None:
    file = exported(graded_run / "ann.csv", "Ann", *rows)
    ended = run(command.main, "merge", file, "--output", graded_run / "m.csv", "--run", graded_run)
    assert ended.status == 2 and len(ended.error.splitlines()) == 1
    assert re.search(said, ended.error)


def test_wrong_use_is_said(run, graded_run, tmp_path) -> None:
    (tmp_path / "no.csv").write_text("id,label\n1,1\n")
    for argv, said in (
        (["merg"], "the nearest known one is 'merge'"),
        (["merge", "--output", "m.csv"], "name the files"),
        (["merge", tmp_path / "no.csv"], "--output is missing"),
        (["merge", tmp_path / "no.csv", "--output", "m.csv"], "has no column grade"),
        (["merge", tmp_path / "gone.csv", "--output", "m.csv"], "gone.csv"),
        (["merge", "a.csv", "--output", "m.csv", "--prior", "1"], "--prior"),
        (["merge", "a.csv", "--output", "m.csv", "--controls", tmp_path / "no.csv"], "a.csv"),
    ):
        ended = run(command.main, *argv)
        assert ended.status == 2 and said in ended.error, argv
    (graded_run / "controls.csv").unlink()
    file = exported(graded_run / "ann.csv", "Ann", "j1 A", "j9 A")
    ended = run(command.main, "merge", file, "--output", graded_run / "m.csv", "--run", graded_run)
    assert "j9 was graded, and is no candidate of" in ended.error


@pytest.mark.parametrize(
    ("asked", "named", "other"),
    [((), "grading.html", "ask.html"), (("--ask", 8, "--by", "score"), "ask.html", "grading.html")],
)
def test_controls_are_planted_graded_and_merged_and_in_no_catalogue(
    run, members, tmp_path, monkeypatch, asked, named, other
) -> None:
    """Scored, planted, graded and merged, as a user does it."""
    offset = 0.2 * (np.arange(16) - 7.5)
    light = np.exp(-0.5 * (offset[:, None] ** 2 + offset**2) / 0.4**2)
    images = np.random.default_rng(0).normal(0, GROUND.sky_sigma, (30, 16, 16, 3))
    images += np.geomspace(300, 1000, 30)[:, None, None, None] * light[..., None]
    cutouts = Cutouts(images.astype(np.float32), ("g", "r", "i"), 0.2, {"group": np.arange(30)})
    monkeypatch.setattr(injection, "inject", brighter)
    monkeypatch.setattr(page, "draw", lambda _: {})
    planted = tmp_path / "planted"
    ended = run(
        infer.main, "--data", cutouts.save(tmp_path / "sky.npz"), "--checkpoints", members,
        "--mc-samples", "1", "--top", "8", "--controls", "0.5", "--output", planted, *asked,
    )  # fmt: skip
    assert ended.status == 0 and "30 scored + 0 rejected = 30 given" in ended.out
    assert str(planted / named) in ended.out and not (planted / other).exists()
    for form in ("csv", "parquet", "fits"):
        candidates = Table.read(planted / f"candidates.{form}")
        assert sorted(candidates["id"].tolist()) == list(range(30))
    with np.load(planted / "predictions.npz") as arrays:
        assert arrays["id"].tolist() == list(range(30))
    truth = read_truth(planted / "controls.csv")
    assert sorted(truth["truth"]) == [""] * 8 + ["lens"] * 2 + ["none"] * 2
    said = {"lens": "A", "none": "X", "": "B"}
    rows = [f"{row['id']} {said[str(row['truth'])]}" for row in truth]
    exported(tmp_path / "ann.csv", "Ann", *rows)
    output = tmp_path / "m.csv"
    files = ("merge", tmp_path / "ann.csv", "--output", output, "--run", planted)
    ended = run(command.main, *files)
    assert ended.status == 0 and "Ann: completeness 1.00 [0.16, 1.00] (2 of 2)" in ended.out
    catalogue = read_labels(output)
    best = candidates["id"][:8]
    assert sorted(catalogue["id"].tolist()) == sorted(best.tolist())
    assert (catalogue["label"] == 1).all() and (catalogue["group"] == catalogue["id"]).all()
