"""scripts/evaluate.py as its user sees it: from a run's predictions and labels."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from PIL import Image
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from lensjax import metrics, tail
from lensjax.cli import evaluate
from lensjax.report import figures
from lensjax.results import OUTPUTS, WORST

ODD = (
    "<b>$\\x</b>",
    "a\nb",
    "=1+2",
    'say "x"',
    "😀 é",
    "\u202e",
    "</script>",
    "x" * 300,
    " ",
    "%s{}",
)
IDS = [f"{ODD[row % len(ODD)]}{row}" for row in range(40)]


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """A run's folder with the scores of 40 cutouts, the last of which could not be read."""
    folder = tmp_path / "results"
    folder.mkdir()
    rng = np.random.default_rng(0)
    probability = np.clip(rng.normal(0.3 + 0.4 * (np.arange(40) % 2), 0.2), 0, 1)
    probability[-1] = np.nan
    np.savez(
        folder / "predictions.npz",
        id=np.array(IDS),
        ensemble_probs=probability,
        **{"a$b_probs": probability},
    )
    return folder


@pytest.fixture
def few_figures(monkeypatch) -> None:
    """Draws two figures: all of them are another test's."""
    draw = figures.draw

    def some(scored):
        return {k: figure for k, figure in draw(scored).items() if k in ("scores", "purity")}

    monkeypatch.setattr(figures, "draw", some)


def labels(folder: Path, values: list[int]) -> Path:
    path = folder / "labels.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "label"), *zip(IDS, values, strict=True)])
    return path


def test_it_says_every_file_that_it_wrote(run, predictions, tmp_path):
    file = labels(tmp_path, [row % 2 for row in range(40)])
    before = set(predictions.iterdir())
    ended = run(evaluate.main, "--predictions", predictions, "--labels", file)
    assert ended.status == 0, ended
    written = set(predictions.iterdir()) - before
    assert {Path(line) for line in ended.out.splitlines() if line.startswith(str(tmp_path))} == (
        written
    )
    assert {path.name for path in written} <= set(OUTPUTS)
    assert {"metrics.json", "roc.png", "roc.pdf"} <= {path.name for path in written}


def test_the_file_of_predictions_serves_as_its_folder_does(run, few_figures, predictions, tmp_path):
    file = labels(tmp_path, [row % 2 for row in range(40)])
    path = predictions / "predictions.npz"
    ended = run(evaluate.main, "--predictions", path, "--labels", file, "--bootstrap", 10)
    assert ended.status == 0, ended
    found = json.loads((predictions / "metrics.json").read_text())
    assert found["ensemble"]["unscored"] == 1 and found["ensemble"]["lenses"] == 19


@pytest.mark.parametrize(("label", "said"), [(1, "are lenses"), (-1, "has a label")])
def test_labels_of_one_kind_say_what_they_do_not_give(run, predictions, tmp_path, label, said):
    (predictions / "roc.png").write_text("of former labels")
    file = labels(tmp_path, [label] * 40)
    ended = run(evaluate.main, "--predictions", predictions, "--labels", file, "--bootstrap", 10)
    assert ended.status == 0, ended
    assert said in ended.out and "nan" not in ended.out
    assert not (predictions / "roc.png").exists() and (predictions / "scores.png").exists()
    written = json.loads((predictions / "metrics.json").read_text())
    assert written["notes"][0] in ended.out and said in written["notes"][0]
    assert written["ensemble"]["auroc"] == {
        "value": None, "low": None, "high": None,
    }  # fmt: skip


@pytest.mark.parametrize("option", [("--bootstrap", 0), ("--bootstrap", -3), ("--seed", -1)])
def test_numbers_that_give_no_interval_are_wrong_use(run, predictions, tmp_path, option):
    file = labels(tmp_path, [row % 2 for row in range(40)])
    ended = run(evaluate.main, "--predictions", predictions, "--labels", file, *option)
    assert ended.status == 2 and option[0] in ended.error and ended.error.count("\n") == 1, ended


@pytest.fixture
def survey(tmp_path: Path, monkeypatch) -> Path:
    """Two runs on 60 lenses and 1,200 others, and labels with columns; no figures are drawn."""
    monkeypatch.setattr(figures, "draw", lambda scored: {})
    rng, label = np.random.default_rng(1), np.arange(1260) < 60
    logit = rng.normal(3.0 * label - 2, 1)
    for name, noise in (("first", 0.0), ("second", 2.0)):
        (tmp_path / name).mkdir()
        scores = expit(logit + rng.normal(0, noise, label.size))
        # Another order, and a cutout that the other run has not.
        rows = np.arange(label.size) if name == "first" else rng.permutation(1259)
        np.savez(tmp_path / name / "predictions.npz", id=rows, ensemble_probs=scores[rows])
    radius = np.where(label, np.linspace(0.5, 3, label.size), np.nan)
    columns = {"id": np.arange(label.size), "label": label.astype(int), "radius": radius}
    columns |= {"seeing": np.linspace(0.5, 1.5, 1260)[::-1], "field": np.arange(1260) % 2}
    columns["tile"] = np.array([f"tile {row % 3}" for row in range(1260)])
    columns["group"] = np.arange(1260)
    Table(columns).write(tmp_path / "truth.csv")
    return tmp_path


def of_survey(run, folder: Path, *options) -> tuple[str, dict]:
    """Returns what evaluating the first run prints and writes."""
    words = ("--predictions", folder / "first", "--labels", folder / "truth.csv")
    ended = run(evaluate.main, *words, "--bootstrap", 20, *options)
    assert ended.status == 0, ended
    return ended.out, json.loads((folder / "first" / "metrics.json").read_text())


def first_run(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of the first run and who is a lens."""
    return np.load(folder / "first" / "predictions.npz")["ensemble_probs"], np.arange(1260) < 60


def test_a_survey_of_few_lenses(run, survey):
    survey_of = ("--prevalence", "1e-3", "--objects", 200_000, "--area", 50)
    out, written = of_survey(run, survey, *survey_of)
    found = written["in_survey"]
    scores, lens = first_run(survey)
    rate = tail.tpr_at(scores[lens], scores[~lens], 1e-2)
    assert "TPR at FPR 1e-2: {:.4f} [{:.4f}, {:.4f}]\n".format(*rate) in out
    assert "TPR at FPR 1e-3: needs 10,000 others\n" in out
    assert written["ensemble"]["tpr_at_fpr"]["1e-2"] == pytest.approx(rate._asdict())
    assert written["ensemble"]["tpr_at_fpr"]["1e-3"]["value"] is None
    cut = found["at_cuts"]["cut"][100]
    shares = [(scores[rows] >= cut).mean() for rows in (lens, ~lens)]
    assert found["at_cuts"]["completeness"]["value"][100] == pytest.approx(shares[0])
    assert found["at_cuts"]["purity"]["value"][100] == pytest.approx(tail.purity(*shares, 1e-3))
    assert "with 200 lenses in 50 square degrees, 4 in each" in out
    assert [top["size"] for top in found["top"]] == [100, 1000, 10_000, 100_000]
    of_list = tail.top(tail.curve(scores[lens], scores[~lens]), 1e-3, 200_000, 1000)
    assert found["top"][1]["purity"] == pytest.approx(of_list.purity._asdict())
    line = next(line for line in out.splitlines() if line.startswith("1,000 "))
    inspected, lenses = 1000 / 50, of_list.completeness.value * 200 / 50
    assert f"  {inspected:.3g} " in line and f"  {lenses:.3g} [" in line


def test_purity_is_drawn_where_a_prevalence_is_given(run, few_figures, predictions, tmp_path):
    file = labels(tmp_path, [row % 2 for row in range(40)])
    words = ("--predictions", predictions, "--labels", file, "--bootstrap", 5)
    ended = run(evaluate.main, *words, "--prevalence", 0.01)
    assert ended.status == 0 and "needs 1,000 others" in ended.out, ended
    assert {"purity.png", "purity.pdf"} <= {path.name for path in predictions.iterdir()}
    assert run(evaluate.main, *words).status == 0
    assert not (predictions / "purity.png").exists()


def test_one_class_has_no_purity(run, few_figures, predictions, tmp_path):
    words = ("--predictions", predictions, "--labels", labels(tmp_path, [1] * 40))
    ended = run(evaluate.main, *words, "--bootstrap", 5, "--prevalence", 0.01)
    assert ended.status == 0 and "no purity: it takes labelled lenses and others" in ended.out


@pytest.mark.parametrize(
    ("column", "sizes"),
    [
        ("seeing", {"1.25 to 1.5": (60, 255)}),
        ("tile", {"tile 0": (20, 400), "tile 2": (20, 400)}),
        ("field", {"0": (30, 600), "1": (30, 600)}),
    ],
)
def test_metrics_by_column(run, survey, column, sizes):
    out, written = of_survey(run, survey, "--by", column)
    bins = written["by"]["bins"]
    assert sum(found["others"] for found in bins.values()) == 1200
    for name, (lenses, others) in sizes.items():
        assert (bins[name]["lenses"], bins[name]["others"]) == (lenses, others)
        assert f"{name} ({lenses} + {others})" in out
    scores, lens = first_run(survey)
    if column == "tile":
        rows = np.arange(1260) % 3 == 0
        area = roc_auc_score(lens[rows], scores[rows])
        assert bins["tile 0"]["auroc"]["value"] == pytest.approx(area)
        assert re.search(r"tile 0 \(20 \+ 400\) +needs 1,000 others  0\.", out)


def test_lenses_by_a_column_that_others_lack_stand_against_all_others(run, survey):
    out, written = of_survey(run, survey, "--by", "radius", "--edges", "0.5,0.51,0.6,9")
    bins, (few, *_, shared) = written["by"]["bins"], written["by"]["notes"]
    assert [found["lenses"] for found in bins.values()] == [6, 45, 9]
    scores, lens = first_run(survey)
    chosen = lens & (np.linspace(0.5, 3, 1260) >= 0.51) & (np.linspace(0.5, 3, 1260) < 0.6)
    rate = tail.tpr_at(scores[chosen], scores[~lens], 1e-2)
    assert bins["0.51 to 0.6"]["tpr_at_fpr"]["1e-2"] == pytest.approx(rate._asdict())
    assert bins["0.51 to 0.6"]["log_loss"]["value"] is None
    # Six lenses are too few to resample; the exact interval stays.
    first = bins["0.5 to 0.51"]
    assert first["auroc"]["low"] is None and first["tpr_at_fpr"]["1e-2"]["low"] is not None
    assert few in out and few.startswith("no resampled intervals in radius 0.5 to 0.51, 0.6 to 9:")
    names = "0.5 to 0.51, 0.51 to 0.6, 0.6 to 9"
    assert shared == f"no others in radius {names}: all others are taken there"


def test_others_of_a_kind_stand_against_all_lenses(run, survey):
    _, written = of_survey(run, survey, "--by", "seeing", "--edges", "0.5,0.75,1.5")
    found = written["by"]["bins"]["0.5 to 0.75"]
    scores, lens = first_run(survey)
    rows = lens | (np.linspace(1.5, 0.5, 1260) < 0.75)
    assert found["auroc"]["value"] == pytest.approx(roc_auc_score(lens[rows], scores[rows]))
    assert found["brier"]["value"] is None
    assert written["by"]["notes"] == ["no lenses in seeing 0.5 to 0.75: all lenses are taken there"]


def test_what_is_in_no_bin_is_counted(run, survey):
    _, written = of_survey(run, survey, "--by", "seeing", "--edges", "0.5,1")
    (name,) = written["by"]["bins"]
    found = written["by"]["bins"][name]
    assert f"{1260 - found['others']} cutouts are in no bin" in written["by"]["notes"][-1]


def test_runs_are_compared_on_the_same_cutouts(run, survey):
    out, written = of_survey(run, survey, "--compare", f"{survey / 'second'},{survey / 'first'}")
    other, same = written["compared"].values()
    assert (other["objects"], same["objects"]) == (1259, 1260)
    with np.load(survey / "second" / "predictions.npz") as second:
        theirs = second["ensemble_probs"][np.argsort(second["id"])]
    scores, lens = first_run(survey)
    for name in ("auroc", "tpr10", "log_loss"):
        mine = metrics.values(scores[:1259], lens[:1259])[name]
        difference = mine - metrics.values(theirs, lens[:1259])[name]
        assert other[name]["value"] == pytest.approx(difference)
        assert same[name] == {"value": 0, "low": 0, "high": 0}
    assert other["auroc"]["low"] > 0 and "difference from" in out


def test_groups_are_said(run, survey):
    table = Table.read(survey / "truth.csv")
    table["group"] = np.arange(1260) // 2
    table.write(survey / "truth.csv", overwrite=True)
    out, written = of_survey(run, survey)
    assert "take one of each: 30 lenses and 600 others" in out
    assert written["ensemble"]["refused"]["1e-2"] == "needs 1,000 others"


def test_the_worst_are_shown_where_the_cutouts_can_be_read(run, survey, monkeypatch):
    scores, lens = first_run(survey)
    images = np.random.default_rng(0).normal(size=(1260, 4, 4, 3)).astype(np.float32)
    np.savez(survey / "sky.npz", images=images, id=np.arange(1260))
    out, written = of_survey(run, survey)
    assert "no mosaics of the worst" in out and "run.json" in out
    record = {"config": {"data": str(survey / "sky.npz"), "bands": "i,r,g"}}
    (survey / "first" / "run.json").write_text(json.dumps(record))
    drawn = {}

    def mosaic(path, pictures, best, count, **said):
        drawn[Path(path).name] = (best["rank"].tolist(), best["id"].tolist(), len(pictures), count)

    monkeypatch.setattr("lensjax.report.worst.write_mosaic", mosaic)
    out, written = of_survey(run, survey)
    false = np.argsort(np.where(lens, -1, scores))[::-1][:24]
    missed = np.argsort(np.where(lens, scores, 2))[:24]
    ranks = 1 + np.argsort(np.argsort(-scores))
    assert drawn == {
        "false_positives.png": (ranks[false].tolist(), false.tolist(), 24, 1200),
        "missed_lenses.png": (ranks[missed].tolist(), missed.tolist(), 24, 60),
    }
    assert written["worst"] == {
        "false_positives": false.tolist(),
        "missed_lenses": missed.tolist(),
    }
    assert str(survey / "first" / "missed_lenses.png") in out


def test_mosaics_of_the_worst_are_pictures(run, survey, monkeypatch):
    monkeypatch.setattr(evaluate, "WORST", 3)
    images = np.random.default_rng(0).normal(size=(1260, 4, 4, 3)).astype(np.float32)
    np.savez(survey / "sky.npz", images=images, id=np.arange(1260))
    of_survey(run, survey, "--data", survey / "sky.npz", "--output", survey / "first")
    for name in WORST:
        with Image.open(survey / "first" / name) as picture:
            assert picture.width > 600
    (survey / "first" / "run.json").write_text("[]")
    out, _ = of_survey(run, survey)
    assert "no record of a run" in out and not (survey / "first" / WORST[0]).exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prevalence", 0), "--prevalence must lie between 0 and 1"),
        (("--objects", 5), "for --prevalence"),
        (("--prevalence", 0.1, "--area", 5), "--area needs --objects"),
        (("--prevalence", 0.1, "--objects", 9, "--area", 0), "--area must be more than 0"),
        (("--prevalence", 0.1, "--objects", 0), "--objects must be at least 1"),
        (("--edges", "1,2"), "--edges are for --by"),
        (("--by", "seeing", "--edges", "2,1"), "rising numbers"),
        (("--by", "seeing", "--edges", "1,x"), "rising numbers"),
        (("--by", "seing"), "the nearest known one is 'seeing'"),
        (("--by", "tile", "--edges", "1,2"), "tile holds texts"),
        (("--compare", "nowhere"), "nowhere"),
        (("--data", "nowhere.npz"), "nowhere.npz"),
    ],
)
def test_what_cannot_be_asked_is_one_line(run, survey, options, said):
    words = ("--predictions", survey / "first", "--labels", survey / "truth.csv")
    ended = run(evaluate.main, *words, "--bootstrap", 2, *options)
    assert ended.status == 2 and said in ended.error and ended.error.count("\n") == 1, ended


def test_other_cutouts_than_those_of_the_run_are_refused(run, survey):
    np.savez(survey / "sky.npz", images=np.ones((1260, 4, 4, 3)), id=np.arange(1260) + 1)
    words = ("--predictions", survey / "first", "--labels", survey / "truth.csv")
    ended = run(evaluate.main, *words, "--bootstrap", 2, "--data", survey / "sky.npz")
    assert ended.status == 2 and "holds other cutouts than those" in ended.error, ended
