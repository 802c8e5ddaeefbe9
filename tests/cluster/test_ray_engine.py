"""The engine on a real Ray of this machine: whoever is killed, every row is scored once."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest

from lensjax.cluster import progress, ray_engine, work
from lensjax.errors import Interrupted, UsageError
from lensjax.ledger import Ledger

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="an extra"),
]

RUN, BATCH, ROWS = {"seed": 0}, 8, 2000
LIMIT_SECONDS = 120.0
# One fewer than users have: each death is an actor to be started.
MOST_KILLS = 2


@pytest.fixture(autouse=True)
def fewer_kills(monkeypatch) -> None:
    monkeypatch.setattr(work, "MOST_KILLS", MOST_KILLS)


def columns(rows: range, reason: str = "") -> dict[str, np.ndarray]:
    values = np.array(rows, np.float32)
    return {"score": np.nan * values if reason else values, "reason": np.full(len(rows), reason)}


def scorer(
    folder: Path,
    killer: int | None = None,
    hanging: int | None = None,
    slow: float = 0.0,
    error: Exception | None = None,
):
    """Returns what an actor does here: it adds each row's number, a batch at a time, dies of one
    row, and never ends with another."""
    if error:
        raise error

    def score(rows: range) -> dict[str, object]:
        ledger = Ledger(folder, RUN, rows)
        for start in range(rows.start, rows.stop, BATCH):
            batch = range(start, min(start + BATCH, rows.stop))
            if killer in batch:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000.0 if hanging in batch else slow)
            ledger.add(start, columns(batch))
            ledger.save()
        return {"step": {"batch_size": BATCH}, "images_per_second": 1.0, "waiting_share": 0.0}

    return score


def run(folder: Path, count: int, deadline: float = 900.0, actors: int = 2, **trouble):
    """Scores so many rows, and returns what they are and what the engine says."""
    ledger = Ledger(folder / "parts", RUN, range(count))
    done = ray_engine.score(
        functools.partial(scorer, folder / "parts", **trouble),
        ledger,
        lambda row, reason: columns(range(row, row + 1), reason),
        folder / "progress",
        actors=actors,
        deadline=deadline,
    )
    return ledger.columns(), done


def events(folder: Path) -> list[dict]:
    lines = (folder / "progress" / progress.LINES).read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_cutout_that_ends_actors_is_rejected_and_every_other_is_scored(tmp_path):
    found, done = run(tmp_path, 16, killer=13)
    expected = np.where(np.arange(16) == 13, np.nan, np.arange(16))
    np.testing.assert_array_equal(found["score"], expected)
    assert found["reason"][13] == ray_engine.KILLED
    assert done["scored_before"] == 0
    happened = Counter(event["event"] for event in events(tmp_path))
    assert happened["rejected"] == 1
    assert happened["died"] == done["actors_died"] > 2 * MOST_KILLS
    scored = [event for event in events(tmp_path) if event["event"] == "scored"]
    rows = [row for event in scored for row in range(*event["rows"])]
    assert sorted([*rows, 13]) == list(range(16))
    assert {"actor", "host", "process", "waiting_share", "host_memory_bytes"} <= scored[0].keys()
    assert list((tmp_path / "progress").glob("events.out.tfevents.*"))


def test_an_actor_that_hangs_is_ended(tmp_path):
    found, done = run(tmp_path, 1, actors=1, deadline=3.0, hanging=0)
    assert found["reason"].tolist() == [ray_engine.KILLED]
    assert done["actors_died"] >= MOST_KILLS


def test_what_an_actor_cannot_do_is_said_in_one_line(tmp_path):
    with pytest.raises(UsageError, match="^no members here$"):
        run(tmp_path, 2, actors=1, error=UsageError("no members here"))


DRIVER = """
import sys
from pathlib import Path
from lensjax import launch
from tests.cluster import test_ray_engine

def main(argv):
    test_ray_engine.run(Path(argv[0]), int(argv[1]), slow=0.05)

sys.exit(launch.run(main, sys.argv[1:]))
"""


def begun(folder: Path) -> subprocess.Popen:
    """Returns a process that scores ROWS rows, once it has scored some."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), str(ROWS)], stderr=subprocess.DEVNULL
    )
    until, before = time.monotonic() + LIMIT_SECONDS, parts_in(folder)
    while parts_in(folder) < before + 5:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    return process


def parts_in(folder: Path) -> int:
    return len(list(folder.glob("parts/*/*.parquet")))


def actors_of(process: subprocess.Popen) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if child.name().startswith("ray::_Remote")]


def test_killed_actors_and_drivers_lose_no_row_and_double_none(tmp_path):
    """Actors are killed, a driver is told to end, one is killed; the last one ends the work."""
    moments = random.Random(3)
    told = begun(tmp_path)
    for _ in range(3):
        time.sleep(moments.uniform(0.0, 1.0))
        for actor in actors_of(told)[:1]:
            actor.kill()
    told.terminate()
    assert told.wait(10.0) == Interrupted.status
    killed = begun(tmp_path)
    time.sleep(moments.uniform(0.0, 1.0))
    killed.kill()
    assert killed.wait(LIMIT_SECONDS) == -signal.SIGKILL
    found, done = run(tmp_path, ROWS)
    np.testing.assert_array_equal(found["score"], np.arange(ROWS))
    assert 0 < done["scored_before"] < ROWS
