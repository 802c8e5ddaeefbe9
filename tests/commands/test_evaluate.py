"""scripts/evaluate.py as its user sees it: from a run's predictions and labels."""

import json
from pathlib import Path

import numpy as np
import pytest

from lensjax.commands import evaluate
from lensjax.results import OUTPUTS


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
        id=np.array([f"<b>$\\x{row}</b>" for row in range(40)]),
        ensemble_probs=probability,
        **{"a$b_probs": probability},
    )
    return folder


def labels(folder: Path, values: list[int]) -> Path:
    path = folder / "labels.csv"
    rows = [f"<b>$\\x{row}</b>,{value}" for row, value in enumerate(values)]
    path.write_text("\n".join(["id,label", *rows]))
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


def test_the_file_of_predictions_serves_as_its_folder_does(run, predictions, tmp_path):
    file = labels(tmp_path, [row % 2 for row in range(40)])
    path = predictions / "predictions.npz"
    ended = run(evaluate.main, "--predictions", path, "--labels", file, "--bootstrap", 10)
    assert ended.status == 0, ended
    found = json.loads((predictions / "metrics.json").read_text())
    assert found["ensemble"]["unscored"] == 1 and found["ensemble"]["lenses"] == 19
