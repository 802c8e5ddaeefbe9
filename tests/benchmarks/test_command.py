"""scripts/benchmark.py: a small run, and wrong use."""

import json

import numpy as np
import pytest

from benchmarks import command, compare, reading
from benchmarks.compare import Ratio, Row
from tests.cli.conftest import run  # noqa: F401


@pytest.mark.slow
def test_a_small_run(run, tmp_path):  # noqa: F811
    """With PyTorch where it is installed; its compiler takes a minute."""
    ended = run(command.main, "--quick", "--output", tmp_path, "--rounds", 1, "--seconds", 0.01)
    assert ended.status == 0, ended.error
    (rows,) = json.loads((tmp_path / "benchmark.json").read_text())["cases"].values()
    assert [row["name"] for row in rows] == ["lensjax", "PyTorch loop", "torch.compile"]
    for row in rows:
        assert row["agrees"] and (row["rates"] or "needs torch" in row["note"])
    assert rows[0]["peak_bytes"] > 1e8 and rows[0]["compile_seconds"] > 0


def test_files_and_shards_are_read_alike(tmp_path):
    folders = reading.make(tmp_path, 16, 8)
    files, packed = (reading.cutouts(folder, 16, 4).run(3) for folder in folders.values())
    assert files.values.shape == (1, 4) and np.isfinite(files.values).all()
    np.testing.assert_array_equal(files.values, packed.values)


def test_a_disagreement_is_a_failed_run(run, monkeypatch, tmp_path):  # noqa: F811
    odd = Row("odd", rates=[1.0], agrees=False, difference=0.5, speedup=Ratio(1.0, 1.0, 1.0))
    monkeypatch.setattr(compare, "measure", lambda *_: [Row("lensjax", rates=[1.0]), odd])
    ended = run(command.main, "--quick", "--output", tmp_path)
    assert ended.status == 1 and "odd (2 resnet18 at 32 px)" in ended.error
    assert "0.5 of the largest DISAGREES" in ended.out


def test_wrong_use_is_one_clear_line(run, tmp_path):  # noqa: F811
    for words, options in {
        "there are: resnet18 + vit_b16 at 64 px": ("--cases", "alexnet"),
        "--rounds must be above 0": ("--rounds", 0),
    }.items():
        ended = run(command.main, *options, "--output", tmp_path)
        assert ended.status == 2 and words in ended.error and ended.error.count("\n") == 1
