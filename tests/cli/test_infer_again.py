"""A scoring that is run again: what it goes on from, what it refuses, and what it never deletes."""

import dataclasses
import errno
import json
import os
import shutil
import signal

import numpy as np
import pytest
from astropy.table import Table
from PIL import Image

from lensjax import inference, ledger, pages, results
from lensjax.cli import infer
from lensjax.data.planes import Cutout, Unreadable
from lensjax.data.source import Source
from lensjax.ensemble import checkpoint
from lensjax.errors import Interrupted
from tests.cli.conftest import CUTOUTS
from tests.scored import scored


@pytest.fixture
def command(members, stack_file, tmp_path):
    """Returns a function from options to the arguments of a run on copies of members and data."""
    shutil.copytree(members, tmp_path / "members")
    shutil.copy(stack_file, tmp_path / "x.npz")
    common = {
        "--checkpoints": tmp_path / "members",
        "--data": tmp_path / "x.npz",
        "--output": tmp_path / "r",
        "--batch-size": 8,
        "--mc-samples": 2,
    }
    return lambda **more: [
        str(word)
        for pair in (
            common | {f"--{name.replace('_', '-')}": v for name, v in more.items()}
        ).items()
        for word in pair
    ]


@pytest.fixture
def stopped(run, command, monkeypatch):
    """Returns a function that runs a command which stops when half of its rows are done. Nothing is
    scored: what has to be the same is known before."""

    def stop(*given):
        parts = given[3]
        missing = parts.missing()
        half = parts.rows[: len(parts.rows) // 2]
        parts.add(half.start, {"probability": np.zeros(len(half))})
        parts.save()
        raise Interrupted(f"began with {missing} missing")

    monkeypatch.setattr(inference, "compile_step", lambda *_: None)
    monkeypatch.setattr(inference, "load_weights", lambda *_: None)
    monkeypatch.setattr(inference.scoring, "score", stop)
    return lambda **more: run(infer.main, *command(**more))


def saved(folder) -> dict[str, bytes]:
    parts = folder / "r" / inference.PARTS
    return {str(path): path.read_bytes() for path in parts.rglob("*") if path.is_file()}


def replace_images(folder, change) -> None:
    """Writes other images under the same name, at the same time."""
    path = folder / "x.npz"
    before = path.stat()
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **(arrays | {"images": change(arrays["images"])}))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def change_member(folder, **changed) -> None:
    path = folder / "members" / "vit_s16" / "1" / "member.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def change_validation(folder) -> None:
    path = folder / "members" / "vit_s16" / "1"
    member = checkpoint.load_member(path)
    logit = member.validation["logit"] + 1
    checkpoint.save_member(
        path, dataclasses.replace(member, validation=member.validation | {"logit": logit})
    )


OTHER_OPTIONS = {
    "seed 0 (now 5)": {"seed": 5},
    "mc_samples 2 (now 3)": {"mc_samples": 3},
    "fusion stacked (now mean_prob)": {"fusion": "mean_prob"},
    "precision float32 (now bfloat16)": {"precision": "bfloat16"},
    "max_values 67108864 (now 9999)": {"max_values": 9999},
    "format auto (now numpy)": {"format": "numpy"},
    "fit auto (now crop)": {"fit": "crop"},
    "bands None (now g,r,i)": {"bands": "g,r,i"},
    "pixel_scale None (now 0.2)": {"pixel_scale": 0.2},
    "members.vit_s16 None (now": {"ensemble": "vit_s16:1"},
}
OTHER_INPUTS = {
    "data_sha256": lambda folder: replace_images(folder, lambda images: images[::-1]),
    "members.vit_s16.1": lambda folder: change_member(folder, dropout=0.3),
    "members.vit_s16.1 ": change_validation,
}


def assert_refused(ended, *words) -> None:
    assert ended.status == 2 and ended.error.count("\n") == 1, ended
    for word in (*words, "11 rows", "--no-resume", "another output folder"):
        assert word in ended.error


def test_scores_of_other_settings_are_refused_and_kept(stopped, tmp_path):
    assert stopped().status == 3
    before = saved(tmp_path)
    for words, options in OTHER_OPTIONS.items():
        assert_refused(stopped(**options), words)
    assert saved(tmp_path) == before


@pytest.mark.parametrize("words", OTHER_INPUTS)
def test_scores_of_other_data_and_members_are_refused_and_kept(words, stopped, tmp_path):
    assert stopped().status == 3
    before = saved(tmp_path)
    OTHER_INPUTS[words](tmp_path)
    assert_refused(stopped(), words)
    assert saved(tmp_path) == before


def test_a_part_with_other_settings_leaves_the_parts_that_are_there(stopped, tmp_path):
    assert stopped(part="1/2").status == 3
    before = saved(tmp_path)
    ended = stopped(part="2/2", seed=5)
    assert ended.status == 2 and "seed 0 (now 5)" in ended.error, ended
    assert saved(tmp_path) == before
    assert "began with [range(11, 22)] missing" in stopped(part="2/2").error
    assert len(saved(tmp_path)) == len(before) + 1


def test_data_elsewhere_with_the_same_content_are_the_same(stopped, tmp_path):
    assert stopped().status == 3
    shutil.move(tmp_path / "x.npz", tmp_path / "y.npz")
    assert "began with [range(11, 22)] missing" in stopped(data=tmp_path / "y.npz").error


def test_results_among_the_cutouts_are_refused(run, command, tmp_path):
    (tmp_path / "cutouts" / "r").mkdir(parents=True)
    for output in (tmp_path / "cutouts", tmp_path / "cutouts" / "r", tmp_path / "cutouts" / "new"):
        ended = run(infer.main, *command(data=tmp_path / "cutouts", output=output))
        assert ended.status == 2 and "give an --output outside" in ended.error, ended


def test_what_is_scored_outlives_sigterm_and_a_full_disk(
    run, command, tmp_path, monkeypatch, undrawn
):
    """Told to end after the first of three batches; then there is no room for the catalogue."""
    output, add = tmp_path / "r", ledger.Ledger.add

    def add_then_be_told(*given):
        add(*given)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(ledger.Ledger, "add", add_then_be_told)
        ended = run(infer.main, *command())
    assert ended.status == 3, ended
    last = ended.error.splitlines()[-1]
    assert last == "stopped after 8 of 22 rows; the same command goes on there"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("metrics.json", "roc.png", "run.json", "own.txt"):
        (output / name).write_text("of a run before")
    with monkeypatch.context() as patched:
        patched.setattr(results, "_write_csv", full)
        ended = run(infer.main, *command())
    assert ended.status == 1 and "No space left" in ended.error, ended
    ended = run(infer.main, *command())
    assert ended.status == 0, ended
    record = json.loads((output / "run.json").read_text())
    assert (record["scored"], record["scored_before"]) == (CUTOUTS, CUTOUTS)
    left = {path.name for path in output.iterdir()}
    assert "own.txt" in left and "candidates.csv" in left
    assert not left & {"metrics.json", "roc.png", inference.PARTS}


def test_a_cutout_that_cannot_be_read_again_is_a_blank_tile(tmp_path):
    """The second of three is gone when the mosaic is drawn."""

    def read(row: int) -> Cutout:
        if row == 1:
            raise Unreadable("no such file")
        return Cutout(np.zeros((16, 16, 3), np.float32), 0.2)

    source = Source(Table({"id": [7, 8, 9]}), ("g", "r", "i"), "", read)
    predictions = scored(3, probability=np.array([0.9, 0.8, 0.7]))
    candidates = results.candidate_table(source.table, predictions)
    options = inference.InferenceConfig(output=tmp_path)
    pages.draw(options, source, candidates, predictions, {"scored": 3}, {}, {})
    mosaic = np.asarray(Image.open(tmp_path / "mosaic.png").convert("L"), int)
    middles = [mosaic[118:178, 14 + 190 * row :][:, 30:146] for row in range(3)]
    assert [bool((middle > 100).any()) for middle in middles] == [False, True, False]
    assert (tmp_path / "report.html").read_text().count('"pixels": null') == 1
