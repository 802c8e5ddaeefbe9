"""What a user sees while work goes on, the order in which it is done, and the memory it leaves."""

import platform
import re

import psutil
import pytest

from lensjax import runtime


def test_one_item_is_always_under_way():
    events = []

    def launch(item: int) -> int:
        events.append(f"launch {item}")
        return item

    for item in runtime.one_ahead(launch, [0, 1, 2]):
        events.append(f"take {item}")
    assert events == ["launch 0", "launch 1", "take 0", "launch 2", "take 1", "take 2"]
    assert list(runtime.one_ahead(launch, [])) == []


def test_without_a_terminal_progress_is_rare_lines_and_a_last_one(monkeypatch, capsys):
    with runtime.progress("scoring", 100, "cutouts") as advance:
        for _ in range(20):
            advance(5, loss=0.25)
    assert re.fullmatch(
        r"scoring: 100/100 cutouts, \d+/s, 0 s gone, 0 s left loss 0.25\n", capsys.readouterr().err
    )
    monkeypatch.setattr(runtime, "LOG_INTERVAL_SECONDS", 0.0)
    with runtime.progress("scoring", 100, "cutouts") as advance:
        for _ in range(20):
            advance(5)
    lines = capsys.readouterr().err.splitlines()
    assert [re.match(r"scoring: (\d+)/100", line)[1] for line in lines] == ["50", "100", "100"]


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LENSJAX_CACHE", str(tmp_path / "named"))
    assert runtime.cache_folder() == tmp_path / "named"
    monkeypatch.delenv("LENSJAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert runtime.cache_folder() == tmp_path / "xdg" / "lensjax"


def test_memory_and_versions_are_measured():
    assert runtime.peak_memory_bytes() > 50e6
    assert {"lensjax", "jax", "flax", "numpy", "python"} <= runtime.versions().keys()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_is_free_goes_back_to_the_system():
    blocks = [b"x" * 60_000 + bytes([number % 256]) for number in range(2000)]
    # Between those that go: only memory above all that is used goes back by itself.
    kept = blocks[99::100]
    del blocks
    before = psutil.Process().memory_info().rss
    runtime.give_back_memory()
    assert before - psutil.Process().memory_info().rss > 60e6
    assert len(kept) == 20
