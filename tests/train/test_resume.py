"""A real process that trains, killed at any moment: it ends where it would have ended."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# In one process, which makes once what the tests share.
pytestmark = pytest.mark.xdist_group("resume")

ARCHITECTURE = "light_transformer"
STEPS = 24
KILLS = 3


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    label = np.arange(96) % 2
    images = rng.normal(0, 1, (96, 16, 16, 1)).astype(np.float32)
    images[label == 1, 6:10, 6:10] += 2.0
    path = tmp_path_factory.mktemp("data") / "cutouts.npz"
    np.savez(path, images=images, label=label, id=np.arange(96), bands=np.array(["g"]))
    return path


def begin(cutouts: Path, output: Path, *more: str) -> subprocess.Popen:
    """Starts a training whose state is kept after every step."""
    options = {
        "--data": cutouts,
        "--arch": ARCHITECTURE,
        "--members": 2,
        "--epochs": STEPS / 5,
        "--batch-size": 16,
        "--save-minutes": 0,
        "--output": output,
    }
    command = [
        sys.executable,
        "scripts/train.py",
        *(str(x) for pair in options.items() for x in pair),
    ]
    return subprocess.Popen(
        [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def reached(output: Path) -> int:
    """Returns the last step whose state is on disk."""
    states = output.glob(f"{ARCHITECTURE}/runs/0-1/steps/[0-9]*")
    return max((int(path.name) for path in states if path.name.isdigit()), default=0)


def wait_until(there: Callable[[], bool], process: subprocess.Popen) -> None:
    """Waits for what `process` does, ten minutes at most."""
    began = time.monotonic()
    while not there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - began < 600
        time.sleep(0.02)


def weights(output: Path) -> list[str]:
    records = sorted(output.glob(f"{ARCHITECTURE}/[01]/member.json"))
    return [json.loads(path.read_text())["weights_sha256"] for path in records]


@pytest.fixture(scope="module")
def undisturbed(cutouts, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    process = begin(cutouts, output)
    assert process.wait() == 0, process.communicate()[1]
    return output


@pytest.mark.slow
@pytest.mark.optimised
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(cutouts, undisturbed, tmp_path):
    moments = random.Random(5)
    for kill in range(KILLS):
        process = begin(cutouts, tmp_path)
        wanted = reached(tmp_path) + 1 + 3 * kill
        wait_until(lambda wanted=wanted: reached(tmp_path) >= wanted, process)
        time.sleep(moments.uniform(0.0, 0.5))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert 0 < reached(tmp_path) < STEPS
    process = begin(cutouts, tmp_path)
    assert process.wait() == 0, process.communicate()[1]
    assert len(weights(tmp_path)) == 2 and weights(tmp_path) == weights(undisturbed)
    tables = [
        [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()]  # all but the speed
        for output in (tmp_path, undisturbed)
        for path in output.glob(f"{ARCHITECTURE}/runs/0-1/metrics.csv")
    ]
    assert len(tables) == 2 and tables[0] == tables[1]


@pytest.mark.slow
def test_a_run_told_to_end_keeps_its_state_and_says_so(cutouts, tmp_path):
    process = begin(cutouts, tmp_path, "--save-minutes", "60", "--epochs", "200")
    table = tmp_path / ARCHITECTURE / "runs" / "0-1" / "metrics.csv"
    wait_until(lambda: table.exists() and len(table.read_text().splitlines()) > 1, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 3, errors
    assert f"stopped after {reached(tmp_path)} of 1000 steps" in errors
