"""A real process that trains with a teacher, killed at any moment: it ends where it would have
ended."""

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

from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble import checkpoint
from tests import networks
from tests.ensemble.members import random_member

ARCHITECTURE = "light_transformer"
STEPS = 60
KILLS = 2


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    label = np.arange(96) % 2
    images = rng.normal(0, 1, (96, 16, 16, 1)).astype(np.float32)
    images[label == 1, 6:10, 6:10] += 2.0
    path = tmp_path_factory.mktemp("data") / "cutouts.npz"
    np.savez(path, images=images, label=label, id=np.arange(96), bands=np.array(["g"]))
    preprocessing = Preprocessing(("g",), 16, None, "none", 1.0, (0.0,), (1.0,))
    with networks.real():
        teacher = random_member(ARCHITECTURE, 7, preprocessing)
    checkpoint.save_member(path.parent / "teachers" / ARCHITECTURE / "7", teacher)
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
        "--teachers": cutouts.parent / "teachers",
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


def ended(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate()
    return process.returncode, errors


@pytest.mark.slow
def test_a_run_stopped_at_any_moment_ends_with_the_same_bits(cutouts, tmp_path):
    """Told to end once, and then killed: what is on disk is whole, and nothing is lost by it."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert ended(begin(cutouts, whole))[0] == 0
    process = begin(cutouts, stopped, "--save-minutes", "60")
    table = stopped / ARCHITECTURE / "runs" / "0-1" / "metrics.csv"
    wait_until(lambda: table.exists() and len(table.read_text().splitlines()) > 1, process)
    process.send_signal(signal.SIGTERM)
    status, errors = ended(process)
    assert status == 3 and f"stopped after {reached(stopped)} of {STEPS} steps" in errors
    moments = random.Random(5)
    for _ in range(KILLS):
        before, process = reached(stopped), begin(cutouts, stopped)
        wait_until(lambda before=before: reached(stopped) >= before + 3, process)
        time.sleep(moments.uniform(0.0, 0.5))
        process.kill()
        assert ended(process)[0] == -signal.SIGKILL
    assert 0 < reached(stopped) < STEPS
    assert ended(begin(cutouts, stopped))[0] == 0
    assert len(weights(stopped)) == 2 and weights(stopped) == weights(whole)
    tables = [
        [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()]  # all but the speed
        for output in (stopped, whole)
        for path in output.glob(f"{ARCHITECTURE}/runs/0-1/metrics.csv")
    ]
    assert len(tables) == 2 and tables[0] == tables[1]
