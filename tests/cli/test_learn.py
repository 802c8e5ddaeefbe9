"""scripts/train.py --replay as its user sees it: it says where grades made a member worse."""

import json
from pathlib import Path

import numpy as np
import pytest

from lensjax.cli import train
from lensjax.cutouts import Cutouts
from lensjax.data.preprocess import Preprocessing
from lensjax.data.splits import held_back
from lensjax.ensemble import checkpoint
from lensjax.train.data import read_labelled
from lensjax.train.replay import replayed
from lensjax.train.verdict import logits_before
from tests.ensemble.members import random_member
from tests.train.small import UNCHANGED

SEEN = Preprocessing(("g",), 16, 0.2, "asinh", 2.0, (0.1,), (1.5,))
HELD = 0.4


@pytest.fixture
def start(tmp_path) -> Path:
    checkpoint.save_member(tmp_path / "start" / "vit_s16" / "0", random_member("vit_s16", 0, SEEN))
    return tmp_path / "start"


def cutouts(count: int, seed: int) -> Cutouts:
    images = np.random.default_rng(seed).normal(size=(count, 16, 16, 1)).astype(np.float32)
    images += 4 * images.mean((1, 2), keepdims=True)
    names = np.array([f"{seed}-{row}" for row in range(count)])
    return Cutouts(images, ("g",), 0.2, {"id": names, "label": np.arange(count) % 2})


def test_a_member_that_grades_made_worse_is_said_to_be_worse(run, start, tmp_path):
    """The grades held back are what the member thought; those to learn from are the opposite."""
    graded, sky = cutouts(160, 0), cutouts(64, 1)
    data = [read_labelled(each.source(), SEEN, "auto") for each in (graded, sky)]
    parts = replayed(*data, 0.5, HELD, SEEN)
    thought = {}
    for part in parts:
        own = part.take(np.arange(part.graded))
        thought |= dict(zip(own.id, logits_before(start / "vit_s16" / "0", own), strict=True))
    logits = np.array([thought[name] for name in graded.columns["id"]])
    label = (logits > np.median(logits)) ^ ~held_back(graded.columns["id"], HELD, "validation")
    graded.columns["label"][:] = label
    command = (
        *("--start-from", start, "--data", graded.save(tmp_path / "graded.npz")),
        *("--replay", sky.save(tmp_path / "sky.npz"), "--replay-share", 0.5, *UNCHANGED),
        *("--arch", "vit_s16", "--batch-size", 16, "--epochs", 3, "--learning-rate", 5e-3),
        *("--validation-fraction", HELD, "--output", tmp_path / "learned"),
    )
    ended = run(train.main, *command)
    assert ended.status == 0, ended.error
    folder = tmp_path / "learned" / "vit_s16" / "0"
    line = ended.out.splitlines()[1]
    assert "AUROC 1.000 before" in line and line.endswith(": worse")
    info = checkpoint.read_info(folder)
    held = sum(held_back(graded.columns["id"], HELD, "validation"))
    assert (info.verdict["word"], info.verdict["cutouts"]) == ("worse", held)
    assert info.preprocessing == SEEN and info.training["replayed"]["cutouts"] < 64
    card = (folder / "README.md").read_text()
    assert "Verdict: **worse**" in card and "which made up 50 % of every batch" in card
    (log,) = (tmp_path / "learned").glob("vit_s16/runs/*/verdict-0.json")
    assert json.loads(log.read_text())["word"] == "worse"
    again = run(train.main, *command)
    assert "was there" in again.out and again.out.splitlines()[1] == line


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ((), "--replay mixes its sky with graded cutouts: give --data and --start-from"),
        (("--start-from", "start", "--data", "x.npz", "--scales", 16), "drop --scales"),
        (("--start-from", "start", "--data", "x.npz", "--replay-share", 1), "between 0 and 1"),
        (("--start-from", "start", "--data", "x.npz", "--patience", 3), "keeps the last epoch"),
    ],
)
def test_what_does_not_go_with_a_replayed_sky_is_wrong_use(run, more, error):
    ended = run(train.main, "--replay", "sky.npz", *more)
    assert ended.status == 2 and error in ended.error
