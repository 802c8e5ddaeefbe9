"""scripts/export.py: the file scores as the ensemble does, by JAX and NumPy alone."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lensjax
from lensjax.cli import export
from lensjax.ensemble import checkpoint, portable
from tests.cli.conftest import PREPROCESSING
from tests.ensemble.members import random_member

# `lensjax` cannot be imported where the program runs.
READER = """
import sys
sys.modules["lensjax"] = None
import json
import numpy as np
for name in ("one", "all"):
    images = np.load(f"{name}.npy")
    {lines}
    np.savez(f"{name}.npz", **scores)
print(*json.loads(str(saved["about"]))["members"])
"""


def reader() -> str:
    """Returns a program with the lines that the documentation has users write."""
    section = Path("docs/usage.md").read_text().partition("## Scoring without lensjax")[2]
    (lines, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return READER.replace("{lines}", lines.replace("\n", "\n    "))


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """A folder of members of two architectures that see other pixels and bands."""
    folder = tmp_path_factory.mktemp("members")
    finer = dataclasses.replace(
        PREPROCESSING,
        bands=PREPROCESSING.bands[:1],
        mean=PREPROCESSING.mean[:1],
        std=PREPROCESSING.std[:1],
        pixel_scale=PREPROCESSING.pixel_scale * 0.8,
        stretch="percentile",
    )
    for architecture, seed, sees in (
        ("resnet18", 0, PREPROCESSING),
        ("resnet18", 1, PREPROCESSING),
        ("vit_b16", 0, finer),
    ):
        member = random_member(architecture, seed, sees)
        checkpoint.save_member(folder / architecture / str(seed), member)
    return folder


def test_the_file_scores_as_the_ensemble_without_lensjax(run, members, tmp_path):
    ended = run(export.main, "--checkpoints", members, "--output", tmp_path / "ensemble.npz")
    assert ended.status == 0, ended
    bands, size = PREPROCESSING.bands, PREPROCESSING.input_size
    rng = np.random.default_rng(0)
    images = rng.normal(100, 5, (7, size, size, len(bands)))
    images[3] *= 1e-12  # in another unit of flux
    images[4, 10:13, 10:13] += rng.uniform(3e6, 4e6, (3, 3, len(bands)))  # a star
    images[5] = np.round(images[5])  # many pixels alike
    images = images.astype(np.float32)
    np.save(tmp_path / "one.npy", images[:1])
    np.save(tmp_path / "all.npy", images)
    program = [sys.executable, "-c", reader()]
    said = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=True)

    finder = lensjax.load_ensemble(members)
    columns = {"id": np.arange(len(images))}
    cutouts = lensjax.Cutouts(images, bands, PREPROCESSING.pixel_scale, columns)
    wanted = finder.score(cutouts).candidates
    wanted.sort("id")
    assert said.stdout.split() == list(finder.members)
    scores = np.load(tmp_path / "all.npz")
    np.testing.assert_allclose(scores["probability"], wanted["probability"], atol=1e-6)
    for name in ("logit", "logit_std", "mutual_information"):
        np.testing.assert_allclose(scores[name], wanted[name], rtol=1e-5, atol=1e-5, err_msg=name)
    alone = np.load(tmp_path / "one.npz")
    np.testing.assert_allclose(alone["logit"], scores["logit"][:1], rtol=1e-5, atol=1e-5)


def test_one_program_is_for_every_platform(run, members, tmp_path):
    path = tmp_path / "ensemble.npz"
    run(export.main, "--checkpoints", members, "--output", path, "--ensemble", "resnet18")
    program = portable.export.deserialize(bytearray(np.load(path)["program"]))
    assert program.platforms == portable.PLATFORMS


@pytest.mark.parametrize(
    "options, said",
    [
        (("--size", "4000"), "pixels"),
        (("--output", "ensemble.bin"), "--output must end in .npz"),
        (("--mc-samples", "0"), "--mc-samples must be at least 1"),
        (("--ensemble", "resnet34"), "resnet34"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(run, members, tmp_path, options, said):
    ended = run(export.main, "--checkpoints", members, "--output", tmp_path / "e.npz", *options)
    assert ended.status == 2 and said in ended.error and ended.error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_zscale_is_refused(run, tmp_path):
    sees = dataclasses.replace(PREPROCESSING, stretch="zscale")
    checkpoint.save_member(tmp_path / "m" / "vit_s16" / "0", random_member("vit_s16", 0, sees))
    ended = run(export.main, "--checkpoints", tmp_path / "m", "--output", tmp_path / "e.npz")
    assert ended.status == 2 and "zscale" in ended.error
