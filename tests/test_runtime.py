"""What a user sees while work goes on, the order in which it is done, and the memory it leaves."""

import os
import platform
import re
import signal
from types import SimpleNamespace

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


def test_without_a_terminal_progress_is_a_line_every_ten_batches_or_seconds(monkeypatch, capsys):
    """At most one per second."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(runtime, "time", clock)

    def told(*seconds: float) -> list[str]:
        with runtime.progress("scoring", 5 * len(seconds), "cutouts") as advance:
            for of_batch in seconds:
                clock.now += of_batch
                advance(5, loss=0.25)
        return re.findall(r"scoring: (\d+)/", capsys.readouterr().err)

    assert told(*25 * [0.5]) == ["50", "100", "125"]
    assert told(*4 * [6]) == ["10", "20"]
    assert told(*3 * [60]) == ["5", "10", "15"]
    assert told(*1024 * [1 / 128]) == [str(5 * 128 * second) for second in range(1, 9)]
    assert told() == []
    with runtime.progress("scoring", 100, "cutouts") as advance:
        clock.now += 0.1
        advance(5, loss=0.25)
    line = capsys.readouterr().err
    assert line == "scoring: 5/100 cutouts, 50/s, 0:00:02 left loss 0.25\n"


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


def test_who_stops_a_run_is_answered_at_once(capfd):
    """The step under way may be compiled for minutes."""
    with runtime.asked_to_stop() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    said = capfd.readouterr().err.strip()
    assert said == "stopping as soon as what is under way can be kept; again stops at once"
