"""The path of a new user: simulate, train, infer, evaluate; and the demonstration."""

import json

import numpy as np
import pytest
from astropy.table import Table
from PIL import Image

from lensjax import demonstration, training
from lensjax.cli import evaluate, infer, simulate, train
from lensjax.data.catalog import open_source
from lensjax.data.splits import held_back
from lensjax.errors import LensjaxError
from lensjax.simulation import SimulateConfig
from lensjax.train.config import Hyperparameters
from lensjax.train.setup import member_info
from tests.train.small import UNCHANGED


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    output = tmp_path_factory.mktemp("sky")
    simulate.simulate_survey(SimulateConfig(output=output, count=80, size=32, test_fraction=0.3))
    return output


def arrays(path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def test_the_simulated_sky_is_complete_and_split_by_galaxy(sky):
    training, test = arrays(sky / "train.npz"), arrays(sky / "test.npz")
    truth = Table.read(sky / "truth.csv")
    assert len(training["id"]) + len(test["id"]) == len(truth) == 80
    assert not set(training["group"]) & set(test["group"])
    assert training["label"].sum() + test["label"].sum() == 40
    assert training["images"].shape[1:] == (32, 32, 3) and list(test["bands"]) == ["g", "r", "i"]
    assert set(truth["split"]) == {"train", "test"}
    assert Image.open(sky / "preview.png").width == 12 * 32


@pytest.mark.slow
def test_no_source_and_no_galaxy_stands_on_two_sides(run, tmp_path):
    """Of training and test, and of what validation by `group` takes from training."""
    stamps = np.random.default_rng(0).random((12, 5, 5)).astype(np.float32)
    np.save(tmp_path / "few.npy", stamps * (np.hypot(*np.mgrid[-2:3, -2:3]) < 2))
    options = ("--count", 64, "--size", 32, "--test-fraction", 0.3, "--sources")
    ended = run(simulate.main, "--output", tmp_path, *options, tmp_path / "few.npy")
    assert ended.status == 0, ended
    truth = Table.read(tmp_path / "truth.csv")
    is_lens = truth["label"] == 1
    assert all(name.startswith("few-") for name in truth["source"][is_lens])
    side = {"train": arrays(tmp_path / "train.npz"), "test": arrays(tmp_path / "test.npz")}
    held = held_back(side["train"]["group"], 0.3, "validation")
    parts = [(side["train"], held), (side["train"], ~held), (side["test"], slice(None))]
    for column in ("source", "group"):
        shown = [set(part[column][rows].tolist()) - {""} for part, rows in parts]
        assert all(shown), column
        assert not shown[0] & shown[1] and not (shown[0] | shown[1]) & shown[2]


@pytest.mark.slow
def test_a_simulated_sky_can_be_packed(run, sky, tmp_path):
    options = ("--count", 80, "--size", 32, "--test-fraction", 0.3, "--pack")
    ended = run(simulate.main, "--output", tmp_path, *options)
    assert ended.status == 0 and "in train, " in ended.out, ended
    for name in ("train", "test"):
        plain, packed = (
            open_source(path, needed=None) for path in (sky / f"{name}.npz", tmp_path / name)
        )
        rows = slice(0, len(plain))
        np.testing.assert_array_equal(*(list(of.stack.read(rows)) for of in (packed, plain)))
        for column in ("id", "label", "group", "kind"):
            assert packed.table[column].tolist() == plain.table[column].tolist()
        assert packed.bands == plain.bands and packed.stack.pixel_scale == plain.stack.pixel_scale


def test_simulate_train_infer_evaluate(run, sky, tmp_path):
    members, results = tmp_path / "members", tmp_path / "results"
    command = ("--data", sky / "train.npz", "--arch", "vit_s16", "--output", members)
    command = (*command, "--store", "int8", *UNCHANGED)
    hyperparameters = ("--epochs", 1, "--batch-size", 16, "--validation-fraction", 0.3)
    ended = run(train.main, *command, *hyperparameters)
    assert ended.status == 0 and "trained; validation AUROC" in ended.out, ended
    ended = run(train.main, *command, *hyperparameters)
    assert ended.status == 0 and "was there" in ended.out
    ended = run(train.main, *command, *hyperparameters, "--dropout", 0.5)
    assert ended.status == 2 and "--no-resume" in ended.error

    common = ("--ensemble", "vit_s16", "--checkpoints", members, "--output", results)
    ended = run(infer.main, *common, "--data", sky / "test.npz", "--batch-size", 16)
    assert ended.status == 0 and "AUROC" in ended.out and "report.html" in ended.out
    record = json.loads((members / "vit_s16" / "0" / "member.json").read_text())
    assert record["preprocessing"]["pixel_scale"] == pytest.approx(0.263)
    assert record["store"] == "int8"
    assert "| AUROC |" in (members / "vit_s16" / "0" / "README.md").read_text()

    ended = run(evaluate.main, "--predictions", results, "--labels", sky / "truth.csv")
    assert ended.status == 0, ended
    written = json.loads((results / "metrics.json").read_text())
    in_run = json.loads((results / "run.json").read_text())["metrics"]
    assert written["ensemble"]["auroc"]["value"] == in_run["ensemble"]["auroc"]["value"]
    assert written["predictions_without_label"] == 0
    assert (
        written["labels_without_prediction"]
        == 80 - in_run["ensemble"]["lenses"] - (in_run["ensemble"]["others"])
    )
    assert (results / "roc.png").exists()


def test_arcs_can_be_put_into_real_cutouts(run, tmp_path):
    backgrounds = np.random.default_rng(0).normal(0, 5, (12, 40, 40, 3)).astype(np.float32)
    np.savez(
        tmp_path / "real.npz",
        images=backgrounds,
        bands=np.array(["g", "r", "i"]),
        pixel_scale=np.array(0.263),
    )
    options = ("--output", tmp_path / "sky", "--size", 32, "--count", 24)
    ended = run(simulate.main, *options, "--backgrounds", tmp_path / "real.npz")
    assert ended.status == 0, ended
    sides = [arrays(tmp_path / "sky" / f"{name}.npz") for name in ("train", "test")]
    assert not set(sides[0]["group"]) & set(sides[1]["group"])
    for side in sides:
        for image, kind, group in zip(side["images"], side["kind"], side["group"], strict=True):
            untouched = np.array_equal(image, backgrounds[group, 4:36, 4:36])
            assert untouched == (kind == "background")


def test_an_input_size_that_the_network_cannot_take_is_one_clear_line(run, sky, tmp_path):
    command = ("--data", sky / "train.npz", "--arch", "vit_s16", "--scales", 30)
    ended = run(train.main, *command, "--output", tmp_path)
    assert ended.status == 2 and "input size of 16 or 32" in ended.error, ended


def test_another_input_size_is_the_same_sky_in_other_pixels(run, sky, tmp_path, monkeypatch):
    """Not its middle: what is scored later is brought to the same pixels."""
    hyperparameters = (
        "--epochs",
        0.2,
        "--batch-size",
        16,
        "--validation-fraction",
        0.3,
        "--scales",
        16,
    )
    command = ("--data", sky / "train.npz", "--arch", "light_transformer", *hyperparameters)
    scales = {"auto": 2 * 0.263, "crop": 0.263}
    prepared = []

    def begin(training, *_, **__):
        prepared.append(member_info(training, "light_transformer", Hyperparameters()).preprocessing)
        raise LensjaxError("far enough")

    monkeypatch.setattr(training, "train_members", begin)
    for fit in scales:
        assert "far enough" in run(train.main, *command, "--fit", fit, "--output", tmp_path).error
    assert [preprocessing.input_size for preprocessing in prepared] == [16, 16]
    found = [preprocessing.pixel_scale for preprocessing in prepared]
    assert found == pytest.approx(list(scales.values()))


def test_an_endless_sky_is_refused_what_it_cannot_do(run, tmp_path):
    (tmp_path / "sky.yaml").write_text("backgrounds: real.npz\n")
    (tmp_path / "odd.yaml").write_text("surveys: decam\n")
    cases = {
        "--bootstrap": ("--bootstrap",),
        "backgrounds are for simulate.py": ("--sky", tmp_path / "sky.yaml"),
        "unknown key 'surveys'": ("--sky", tmp_path / "odd.yaml"),
    }
    for words, more in cases.items():
        ended = run(train.main, "--data", "simulated", *more, "--output", tmp_path / "m")
        assert ended.status == 2 and ended.error.count("\n") == 1 and words in ended.error, ended


def test_training_data_that_cannot_serve_are_one_clear_line(run, tmp_path):
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    np.savez(tmp_path / "plain.npz", images=images)
    for name in ("lens", "nonlens"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "a.png").write_text("no picture")
    cases = {
        "no labels": ("--data", tmp_path / "plain.npz"),
        "no such file": ("--data", tmp_path / "nowhere.npz"),
        "--epochs": ("--data", tmp_path / "plain.npz", "--epochs", 0),
        "--dropout": ("--data", tmp_path / "plain.npz", "--dropout", 1),
        "none of the 2 cutouts": ("--data", tmp_path / "broken"),
    }
    for words, more in cases.items():
        ended = run(train.main, *more, "--output", tmp_path / "m")
        assert ended.status == 2 and ended.error.count("\n") == 1 and words in ended.error, ended


@pytest.mark.slow
def test_the_demonstration_draws_its_sky_once_and_scores_it(run, members, tmp_path, monkeypatch):
    monkeypatch.setenv("LENSJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demonstration, "SMOKE_SKY", SimulateConfig(count=40, test_fraction=1.0))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(members)
    command = ("--smoke", "--batch-size", 16, "--fit", "resample")
    first = run(infer.main, *command, "--output", "first")
    assert first.status == 0, first
    assert "scores 40 simulated cutouts" in first.out and "AUROC" in first.out
    assert "40 scored + 0 rejected = 40 given" in first.out and "simulating" in first.error
    second = run(infer.main, *command, "--output", "second")
    assert second.status == 0 and "simulating" not in second.error
    scores = [arrays(tmp_path / name / "predictions.npz") for name in ("first", "second")]
    np.testing.assert_array_equal(scores[0]["ensemble_logits"], scores[1]["ensemble_logits"])
