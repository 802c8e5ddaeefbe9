"""scripts/benchmark.py: a run without peers, wrong use, and a contender that disagrees."""

import json
import shutil
from types import SimpleNamespace

import pytest

from lensjax.benchmark import arena, cases
from lensjax.benchmark.arena import Block, Ratio, Row
from lensjax.cli import benchmark

FEW = ("lensjax float32", "lensjax one by one", "PyTorch before")


@pytest.fixture(autouse=True, scope="module")
def small_networks() -> None:
    """The real ones: weights and peers are theirs."""


@pytest.fixture
def no_peers(monkeypatch):
    monkeypatch.setattr(arena.importlib.util, "find_spec", lambda _: None)


@pytest.mark.slow
def test_a_quick_run_without_peers(run, no_peers, tmp_path):
    ended = run(
        benchmark.main,
        *("--quick", "--contenders", ",".join(FEW), "--output", tmp_path),
        *("--rounds", 1, "--seconds", 0.01),
    )
    assert ended.status == 0, ended.error
    record = json.loads((tmp_path / "benchmark.json").read_text())
    assert [block["title"][-5:] for block in record["blocks"]] == ["T = 1", "T = 3"]
    for block in record["blocks"]:
        ours, one_by_one, before = block["rows"]
        assert [row["name"] for row in block["rows"]] == list(FEW)
        assert block["reference"] == "lensjax one by one"
        for row in (ours, one_by_one):
            assert row["agrees"] and row["difference"] < 1e-4
            assert row["images_per_second"] > 0 and row["compile_seconds"] > 0
            assert row["peak_bytes"] > 1e8 and 0 < row["share"][0] < 2
        assert "pip install '.[peers]'" in before["note"] and before["images_per_second"] is None
    assert "needs torch" in ended.out
    assert (tmp_path / "benchmark.md").read_text().splitlines()[0] in ended.out


def test_a_disagreement_is_a_failed_run(run, monkeypatch, tmp_path):
    rows = [
        Row("lensjax float32", rates=[1.0], images_per_second=1.0, compile_seconds=1.0),
        Row("odd", rates=[1.0], images_per_second=1.0, compile_seconds=1.0, agrees=False,
            difference=0.5, ratio=Ratio(1.0, 1.0, 1.0)),
    ]  # fmt: skip
    block = Block("case", "odd", [1e9], rows)
    monkeypatch.setattr(arena, "contest", lambda *_: iter([block]))
    ended = run(benchmark.main, "--output", tmp_path)
    assert ended.status == 1 and "odd (case)" in ended.error
    assert "5.0e-01 DISAGREES" in ended.out
    assert json.loads((tmp_path / "benchmark.json").read_text())["blocks"][0]["rows"][1]["ratio"]


@pytest.mark.slow
def test_reading_files_is_measured_and_compared(run, monkeypatch, tmp_path):
    monkeypatch.setattr(cases, "CLOSE_ROUNDS", 2)
    ended = run(
        benchmark.main,
        *("--data", "--items", 16, "--batch-size", 8, "--rounds", 1, "--seconds", 0.01),
        *("--cases", "reading*at 64 px,*catalogue*,*shards at 64 px"),
        *("--contenders", "lensjax*,in memory,from *"),
        *("--output", tmp_path),
    )
    assert ended.status == 0, ended
    record = json.loads((tmp_path / "benchmark.json").read_text())
    of_catalogue, of_fits, of_png, *fed = record["blocks"]
    assert of_catalogue["title"] == "opening a catalogue of 800 rows"
    assert [row["name"] for row in of_fits["rows"]] == [
        "lensjax, FITS files",
        "lensjax, ArrayRecord shards",
    ]
    assert [block["title"] for block in fed] == [
        "resnet18 fed from ArrayRecord shards at 64 px",
        "resnet18 trained from ArrayRecord shards at 64 px",
    ]
    assert [len(block["rows"]) for block in fed] == [2, 2]
    assert {len(row["rates"]) for block in fed for row in block["rows"]} == {2}
    for row in (row for block in record["blocks"] for row in block["rows"]):
        assert row["agrees"] and row["images_per_second"] > 0
    shards = tmp_path / "data" / "shards-64-16"
    assert (shards / "index.parquet").exists()


def test_files_that_the_disk_has_no_room_for_are_not_begun(run, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2e9))
    ended = run(benchmark.main, "--data", "--output", tmp_path)
    assert ended.status == 2 and ended.error.count("\n") == 2  # what it does, and what is wrong
    assert "20000 cutouts of 64 pixels take 2.2 GB" in ended.error and "2.0 GB left" in ended.error
    assert not list((tmp_path / "data").iterdir())


def test_wrong_use_is_one_clear_line(run, tmp_path):
    for words, options in {
        "nothing is called 'resnet'": ("--cases", "resnet"),
        "there are: lensjax": ("--contenders", "torch"),
        "--rounds must be above 0": ("--rounds", 0),
    }.items():
        ended = run(benchmark.main, *options, "--output", tmp_path)
        assert ended.status == 2 and words in ended.error and ended.error.count("\n") == 1
    assert "resnet18 + vit_b16 at 64 px\n" in run(benchmark.main, "--list").out
