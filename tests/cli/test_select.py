"""scripts/select.py as its user sees it: cutouts of galaxies in, the selection function out."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lensjax.cli import select
from lensjax.sky.survey import GROUND

COUNT = 288


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory) -> Path:
    """A stack of 20 galaxies on a noisy sky, the last without any pixel."""
    offset = 0.2 * (np.arange(16) - 7.5)
    light = np.exp(-0.5 * (offset[:, None] ** 2 + offset**2) / 0.4**2)
    images = np.random.default_rng(0).normal(0, GROUND.sky_sigma, (20, 16, 16, 3))
    images += np.geomspace(100, 1000, 20)[:, None, None, None] * light[..., None]
    images[-1] = np.nan
    path = tmp_path_factory.mktemp("galaxies") / "galaxies.npz"
    np.savez(
        path, images=images.astype(np.float32), pixel_scale=0.2, bands=np.array(["g", "r", "i"])
    )
    return path


@pytest.fixture(scope="module")
def injections(tmp_path_factory, cutouts, members) -> Path:
    """The injections of a run whose cut no lens reaches, with real lenses to compare with."""
    output = tmp_path_factory.mktemp("selection")
    options = select.SelectConfig(
        data=str(cutouts), real=str(cutouts), output=output, checkpoints=members, count=COUNT,
        mc_samples=1, cut=1e3,
    )  # fmt: skip
    table, record = select.injected(options)
    assert record["cutouts_left_out"] == {"not readable": 1} and record["hosts"] == 19
    assert record["beyond_the_edge"] == COUNT - len(table)
    assert 0 <= record["told_from_real_auroc"]["low"] <= record["told_from_real_auroc"]["high"] <= 1
    table.write(output / select.INJECTIONS, format="ascii.csv")
    return output / select.INJECTIONS


def read(path: Path) -> dict[str, np.ndarray]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows])
            for name in rows[0] if name not in ("id", "host")}  # fmt: skip


def test_the_efficiency_is_recomputed_from_the_injections(run, injections, tmp_path):
    truth = read(injections)
    cut = float(np.median(truth["logit"]))
    ended = run(
        select.main, "--injections", injections, "--output", tmp_path, "--cut", f"{cut:.6f}"
    )
    assert (ended.status, ended.error) == (0, "")
    found = int((truth["logit"] > float(f"{cut:.6f}")).sum())
    total = len(truth["logit"])
    assert f"{total} scored + 0 rejected = {total} injected into 19 galaxies" in ended.out
    said = json.loads((tmp_path / "selection.json").read_text())
    assert (said["injected"], said["found"], said["cut_logit"]) == (
        total, found, pytest.approx(cut, abs=1e-6)
    )  # fmt: skip
    bins = read(tmp_path / "selection.csv")
    assert len(bins["found"]) == 27
    assert bins["injected"].sum() == total and bins["found"].sum() == found
    np.testing.assert_array_equal(np.isnan(bins["efficiency"]), bins["injected"] < 10)
    domain = {axis["name"]: axis["domain"] for axis in said["surface"]["axes"]}
    assert domain["lens_mag"] == pytest.approx([truth["lens_mag"].min(), truth["lens_mag"].max()])
    assert 10 ** domain["arc_snr"][0] >= 4.9 and 10 ** domain["arc_snr"][1] <= 101
    with Image.open(tmp_path / "selection.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5
    assert (tmp_path / "selection.pdf").read_bytes().startswith(b"%PDF")


def test_a_cut_that_finds_nothing_is_one_line(run, injections, tmp_path):
    ended = run(select.main, "--injections", injections, "--output", tmp_path, "--cut", "1000")
    assert ended.status == 1 and ended.error.count("\n") == 1
    assert ended.error.startswith("error: 0 of ") and "another --cut" in ended.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --data"),
        (["--data", "a", "--injections", "b"], "either --data"),
        (["--data", "a", "--count", "269"], "at least 270"),
        (["--injections", "b", "--real", "c"], "--real needs --data"),
        (["--data", "a", "--survey", "euclid"], "no band g, r, i"),
        (["--data", "a", "--arc-snr", "0"], "above 0"),
    ],
)
def test_wrong_use_is_one_line(run, members, tmp_path, words, message):
    ended = run(select.main, *words, "--output", tmp_path, "--checkpoints", members)
    assert ended.status == 2 and message in ended.error and ended.error.count("\n") == 1


def test_a_file_without_scores_is_one_line(run, tmp_path):
    (tmp_path / "other.csv").write_text("theta_e,lens_mag\n1,20\n")
    ended = run(
        select.main, "--injections", tmp_path / "other.csv", "--output", tmp_path / "selection"
    )
    assert ended.status == 2 and "lacks host, logit, arc_snr" in ended.error


def test_other_scripts_get_the_module_of_python_that_has_its_name():
    scripts = Path(__file__).parents[2] / "scripts"
    words = f"import sys; sys.path.insert(0, {str(scripts)!r}); import select; print(select.poll)"
    ended = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    assert "built-in" in ended.stdout, ended.stderr
