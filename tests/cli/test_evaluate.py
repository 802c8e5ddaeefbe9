"""scripts/evaluate.py as its user sees it: from a run's predictions and labels."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from lensjax.cli import evaluate
from lensjax.report import figures
from lensjax.results import OUTPUTS

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
    """Draws one figure, which the data always allow: all of them are another test's."""
    draw = figures.draw

    def first(scored):
        return {name: figure for name, figure in draw(scored).items() if name == "scores"}

    monkeypatch.setattr(figures, "draw", first)


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
