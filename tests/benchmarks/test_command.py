"""scripts/benchmark.py: a small run, and wrong use."""

import numpy as np
import pytest

from benchmarks import cases, command, compare, reading
from benchmarks.cases import Case, Row
from tests.cli.conftest import run  # noqa: F401


def case(*rows: Row) -> Case:
    return Case("case", {"batch": 1}, rows)


@pytest.mark.slow
def test_a_small_case_of_scoring(monkeypatch):
    """With PyTorch where it is installed, but not its compiler, which takes a minute."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    small = cases.scoring(["resnet18.0"], 32, 4, 3, bfloat16=False)
    assert small.name == "resnet18 at 32 px"
    compare.measure(small, 1, 0.01, print)
    for row in small.rows:
        assert row.agrees and (row.rates or "needs torchvision" in row.note), row
    assert small.rows[0].peak_bytes > 1e8 and small.rows[0].compile_seconds > 0


def test_files_and_shards_are_read_alike(tmp_path):
    reading.make(tmp_path, 16, 8)
    files, packed = (
        reading.cutouts(str(tmp_path / kind), 16, 4).run(3) for kind in ("fits", "shards")
    )
    assert files.values.shape == (1, 4) and np.isfinite(files.values).all()
    np.testing.assert_array_equal(files.values, packed.values)


def test_a_disagreement_is_a_failed_run(run, monkeypatch):  # noqa: F811
    odd = Row("odd", "", rates=[1.0], agrees=False, difference=0.5, unit="sigma")
    monkeypatch.setattr(command.cases, "all_cases", lambda *_: [case(odd)])
    monkeypatch.setattr(compare, "measure", lambda *_: None)
    ended = run(command.main)
    assert ended.status == 1 and "odd (case)" in ended.error
    assert "0.5 sigma DISAGREES" in ended.out


def test_wrong_use_is_one_clear_line(run):  # noqa: F811
    for words, options in {
        "there are: resnet18 + vit_b16 at 64 px": ("--cases", "alexnet"),
        "--rounds must be above 0": ("--rounds", 0),
    }.items():
        ended = run(command.main, *options)
        assert ended.status == 2 and words in ended.error and ended.error.count("\n") == 1
