"""What scripts/train.py does around the training itself: its data, its folders, how it ends."""

import dataclasses
import os
import shutil
import signal
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from lensjax import runtime, training, training_data
from lensjax.cli import train
from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble import checkpoint
from lensjax.errors import Interrupted, LensjaxError
from lensjax.launch import INTERRUPTED
from lensjax.sky.draw import Simulation
from lensjax.train.simulated import Simulated
from lensjax.train.snapshots import Snapshot, Snapshots
from tests.ensemble.members import random_member
from tests.train.small import UNCHANGED

TINY = ("--arch", "light_transformer", "--batch-size", 8)


@pytest.fixture
def begun(monkeypatch):
    """What trainings begin with: this one ends there."""
    found = []

    def stop(training, validation, architecture, hyperparameters, seeds, folder, **_):
        found.append((training, validation, hyperparameters, folder))
        raise LensjaxError("far enough")

    monkeypatch.setattr(training, "train_members", stop)
    return found


@pytest.fixture
def cutouts(tmp_path) -> Path:
    """Two hundred others, then two hundred lenses: what class folders give."""
    images = np.random.default_rng(0).normal(size=(400, 16, 16, 1)).astype(np.float32)
    path = tmp_path / "cutouts.npz"
    label = np.arange(400) // 200
    np.savez(path, images=images, label=label, id=np.arange(400), bands=np.array(["g"]))
    return path


def test_smoke_takes_the_first_cutouts_of_the_given_data(run, begun, cutouts, tmp_path):
    ended = run(train.main, "--smoke", "--data", cutouts, *TINY, "--output", tmp_path / "out")
    assert "far enough" in ended.error, ended
    ((training, validation, _, folder),) = begun
    ids = {*training.id.tolist(), *validation.id.tolist()}
    assert ids == {*range(80), *range(200, 280)}
    assert folder.is_relative_to(tmp_path / "out")
    ended = run(train.main, "--smoke", "--data", tmp_path / "nowhere.npz", *TINY)
    assert ended.status == 2 and "no such file" in ended.error


def test_smoke_leaves_the_members_that_are_there_alone(run, begun, cutouts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(f"data: {cutouts}\noutput: {tmp_path / 'members'}\n")
    for more in ((), ("--config", "own.yaml")):
        run(train.main, "--smoke", "--data", cutouts, *TINY, *more)
        assert begun[-1][-1].is_relative_to(runtime.cache_folder() / "smoke")


def test_without_data_it_trains_on_the_simulated_sky_and_says_so(run, begun, tmp_path, monkeypatch):
    def noise(survey, *, count, **_):
        images = np.random.default_rng(0).normal(size=(count, survey.size, survey.size, 3))
        row = np.arange(count)
        truth = {"label": row % 2, "id": row, "group": row, "artefact": np.full(count, "")}
        return Simulation(images.astype(np.float32), truth)

    monkeypatch.setattr("lensjax.train.simulated.simulate", noise)
    (tmp_path / "sky.yaml").write_text("count: 64\nsize: 24\n")
    command = ("--scales", "8,16", *TINY, "--epochs", 2, "--sky", tmp_path / "sky.yaml")
    ended = run(train.main, *command, "--validation-fraction", 0.5, "--output", tmp_path)
    assert "far enough" in ended.error, ended
    (line,) = ended.out.splitlines()
    for words in ("simulated", "decam", "g, r, i", "24x24", "at 8, 16 pixels", "16 steps of 8"):
        assert words in line
    ((training, validation, hyperparameters, _),) = begun
    assert isinstance(training, Simulated) and len(training) == 64 and len(validation) == 32
    assert hyperparameters.sizes() == [8, 16]


def interrupting(times: int):
    """Progress that has training told to end, so many times, after each step."""

    @contextmanager
    def progress(what: str, *_: object):
        def advance(*_: object, **__: float) -> None:
            for _ in range(times * what.startswith("training")):
                os.kill(os.getpid(), signal.SIGINT)

        yield advance

    return progress


@pytest.mark.slow
def test_ctrl_c_is_no_error(run, cutouts, vit_tiny, tmp_path, monkeypatch):
    command = ("--data", cutouts, *TINY, "--epochs", 0.1, "--output", tmp_path / "out")
    command = (*command, "--arch", vit_tiny, *UNCHANGED)
    for times, status, error in (
        (1, 3, "stopped after 1 of 4 steps; the same command goes on there\n"),
        (2, 130, f"{INTERRUPTED}\n"),  # the second asks for an end at once
    ):
        with monkeypatch.context() as patch:
            patch.setattr(runtime, "progress", interrupting(times))
            ended = run(train.main, *command)
        assert (ended.status, ended.error) == (status, error)


def test_what_a_member_was_trained_on_is_known_by_content(run, begun, cutouts, tmp_path):
    """Other pixels under the same name, with the same labels, make another member."""
    command = ("--data", cutouts, *TINY, "--output", tmp_path / "out")
    run(train.main, *command)
    run(train.main, *command)
    with np.load(cutouts) as stored:
        arrays = dict(stored)
    np.savez(cutouts, **(arrays | {"images": arrays["images"][::-1]}))
    run(train.main, *command)
    run(train.main, *command, "--pixel-scale", 0.2)
    first, again, other, read_otherwise = (training.record for training, *_ in begun)
    assert first == again and len({found["data_sha256"] for found in (first, other)}) == 2
    assert read_otherwise == other | {"pixel_scale": 0.2}


@pytest.fixture
def start(tmp_path) -> Path:
    """A folder with a member of no default settings, which saw one band more than `cutouts` has."""
    preprocessing = Preprocessing(("r", "g"), 24, 0.3, "log", 1.5, (0.1, 0.2), (1.0, 2.0))
    member = random_member("light_transformer", 0, preprocessing)
    member = dataclasses.replace(member, info=dataclasses.replace(member.info, dropout=0.4))
    checkpoint.save_member(tmp_path / "start" / "light_transformer" / "0", member)
    return tmp_path / "start"


@pytest.mark.parametrize(
    ("more", "size", "pixel_scale", "stretch", "softening", "dropout", "new"),
    [
        ((), 24, 0.3, "log", 1.5, 0.4, ""),
        (("--scales", "8,16"), 16, 0.3, "log", 1.5, 0.4, "input size 16 instead of 24"),
        (("--fit", "resize"), 24, 0.25 * 16 / 24, "log", 1.5, 0.4, "instead of 0.3"),
        (("--fit", "crop"), 24, 0.25, "log", 1.5, 0.4, "pixel scale 0.25 instead of 0.3"),
        (("--stretch", "asinh"), 24, 0.3, "asinh", 1.5, 0.4, "stretch asinh instead of log"),
        (("--softening", 2), 24, 0.3, "log", 2.0, 0.4, "softening 2.0 instead of 1.5"),
        (("--dropout", 0), 24, 0.3, "log", 1.5, 0.0, "dropout 0.0 instead of 0.4"),
    ],
)
def test_what_training_starts_from_is_kept_unless_told_otherwise(
    run, begun, cutouts, start, tmp_path, more, size, pixel_scale, stretch, softening, dropout, new
):
    command = ("--data", cutouts, *TINY, "--start-from", start, "--output", tmp_path / "out")
    ended = run(train.main, *command, "--pixel-scale", 0.25, *more)
    assert "far enough" in ended.error, ended
    ((training, _, hyperparameters, _),) = begun
    seen = training.preprocessing
    assert (seen.input_size, seen.stretch, seen.softening) == (size, stretch, softening)
    assert seen.pixel_scale == pytest.approx(pixel_scale)
    assert hyperparameters.rates() == (dropout, 0.0) and seen.bands == ("g",)
    said = f"light_transformer starts from {start}/light_transformer/0: keeps "
    (line,) = (line for line in ended.error.splitlines() if line.startswith(said))
    assert (
        "what was learned of g" in line
        and "block dropout" not in line
        and new in line
        and ("new:" in line) == bool(new)
    )


def test_training_from_nothing_has_the_defaults(run, begun, cutouts, tmp_path):
    run(train.main, "--data", cutouts, *TINY, "--output", tmp_path / "out", "--scales", "8,32")
    ((training, _, hyperparameters, _),) = begun
    seen = training.preprocessing
    assert (seen.input_size, seen.pixel_scale, seen.stretch, seen.softening) == (
        *(32, None),
        *("asinh", 2.0),
    )
    assert hyperparameters.rates() == (0.2, 0.0)


def test_a_member_set_aside_by_a_killed_replacement_is_still_there(
    run, begun, cutouts, start, tmp_path
):
    members = tmp_path / "out" / "light_transformer"
    command = ("--data", cutouts, *TINY, "--output", tmp_path / "out")
    for name in ("0", ".0.old"):
        members.mkdir(parents=True, exist_ok=True)
        shutil.copytree(start / "light_transformer" / "0", members / name)
        ended = run(train.main, *command)
        assert ended.status == 2 and "holds a member trained otherwise" in ended.error
        shutil.rmtree(members / name)
    assert not begun


def test_the_sky_is_seen_as_by_what_training_starts_from(run, start, tmp_path, monkeypatch):
    found = []

    def stop(sky, count, validation, preprocessing):
        found.append(preprocessing)
        raise LensjaxError("far enough")

    monkeypatch.setattr(training_data, "simulated", stop)
    ended = run(train.main, *TINY, "--start-from", start, "--output", tmp_path)
    assert "far enough" in ended.error and "at 24 pixels" in ended.out, ended
    assert found == [Preprocessing.unnormalised(("g", "r", "i"), 24, 0.3, "log", 1.5)]


def test_members_that_differ_ask_for_the_option(run, begun, cutouts, start, tmp_path):
    other = dataclasses.replace(
        random_member("light_transformer", 1).info.preprocessing, pixel_scale=0.3, softening=1.5
    )
    member = random_member("light_transformer", 1, other)
    member = dataclasses.replace(member, info=dataclasses.replace(member.info, dropout=0.4))
    checkpoint.save_member(start / "light_transformer" / "1", member)
    command = ("--data", cutouts, *TINY, "--start-from", start, "--output", tmp_path / "out")
    ended = run(train.main, *command)
    assert ended.status == 2 and "differ in input size (" in ended.error
    assert "give --scales" in ended.error
    ended = run(train.main, *command, "--scales", 16)
    assert ended.status == 2 and "differ in stretch (" in ended.error
    run(train.main, *command, "--scales", 16, "--stretch", "log")
    assert len(begun) == 1


def test_a_stopped_run_of_other_members_is_named_and_goes_on(run, cutouts, tmp_path, monkeypatch):
    """And when its members are kept, its state goes and its metrics stay."""
    begun, kept = [], tmp_path / "light_transformer" / "runs" / "0-1-2-3"

    def stopped(training, validation, architecture, hyperparameters, seeds, folder, **_):
        with closing(Snapshots(folder, {"seeds": list(seeds)}, resume=True)) as snapshots:
            snapshots.save(Snapshot(5, {"weight": np.zeros(1)}, {}))
        begun.append((list(seeds), folder))
        (folder / "metrics.csv").write_text("step")
        if len(begun) == 1:
            raise Interrupted("stopped")
        return [random_member(architecture, seed) for seed in seeds]

    monkeypatch.setattr(training, "train_members", stopped)
    command = ("--data", cutouts, *TINY, "--output", tmp_path, "--members")
    assert run(train.main, *command, 4).status == 3
    ended = run(train.main, *command, 2)
    assert ended.status == 2 and len(begun) == 1
    for words in (str(kept), "seeds 0, 1, 2, 3", "--seed 0 --members 4 goes on"):
        assert words in ended.error
    monkeypatch.setattr(training.Trained, "summary", lambda trained: trained.folder.name)
    ended = run(train.main, *command, 4)
    assert ended.status == 0 and ended.out.split() == ["0", "1", "2", "3"]
    assert begun == [([0, 1, 2, 3], kept)] * 2
    assert [path.name for path in kept.iterdir()] == ["metrics.csv"]


def test_a_run_killed_while_its_members_are_kept_goes_on_with_all_of_them(tmp_path):
    run = tmp_path / "0-1"
    (run / "steps" / "7").mkdir(parents=True)
    (run / "settings.json").write_text('{"seeds": [0, 1]}')
    assert training._seeds_of_run(tmp_path, range(2), [1]) == [0, 1]
    assert training._seeds_of_run(tmp_path, range(2, 4), [2, 3]) == [2, 3]
