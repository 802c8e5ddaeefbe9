"""A real process that trains with a teacher, killed at any moment: it ends where it would have
ended."""

import json
import random
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from lensjax import runtime
from lensjax.cli import train
from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble import checkpoint
from tests import processes
from tests.ensemble.members import random_member

ARCHITECTURE = "light_transformer"
STEPS = 40
KILLS = 1
# All changes of cutouts but one take long to compile.
AUGMENTATION = {f"--augment-{name}": 0 for name in ("shift", "zoom", "seeing", "flux", "colour")}


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory) -> Path:
    path = processes.write_cutouts(tmp_path_factory.mktemp("data"))
    preprocessing = Preprocessing(("g",), 16, None, "none", 1.0, (0.0,), (1.0,))
    teacher = random_member(ARCHITECTURE, 7, preprocessing)
    checkpoint.save_member(path.parent / "teachers" / ARCHITECTURE / "7", teacher)
    return path


def train_until(arguments: list[str], errors: Path, step: int, number: int, seconds: float) -> None:
    """Trains, and sends itself a signal so many seconds after a step of its own."""
    if step:
        runtime.progress = processes.progress_until(step, number, seconds)
    processes.run(train.main, arguments, errors)


def begin(
    cutouts: Path, output: Path, *more: str, step: int = 0, number: int = 0, seconds: float = 0.0
) -> BaseProcess:
    """Starts a training whose state is kept after every step, unless told otherwise."""
    options = AUGMENTATION | {
        "--data": cutouts,
        "--arch": ARCHITECTURE,
        "--members": 2,
        "--epochs": STEPS / 5,
        "--batch-size": 16,
        "--save-minutes": 0,
        "--output": output,
        "--teachers": cutouts.parent / "teachers",
    }
    arguments = [str(word) for pair in options.items() for word in pair] + [*more]
    return processes.begin(train_until, arguments, errors(output), step, number, seconds)


def errors(output: Path) -> Path:
    """Returns the file of what the last process wrote to its standard error."""
    return output.with_suffix(".err")


def reached(output: Path) -> int:
    """Returns the last step whose state is on disk."""
    states = output.glob(f"{ARCHITECTURE}/runs/0-1/steps/[0-9]*")
    return max((int(path.name) for path in states if path.name.isdigit()), default=0)


def weights(output: Path) -> list[str]:
    records = sorted(output.glob(f"{ARCHITECTURE}/[01]/member.json"))
    return [json.loads(path.read_text())["weights_sha256"] for path in records]


@pytest.mark.slow
def test_a_run_stopped_at_any_moment_ends_with_the_same_bits(cutouts, tmp_path):
    """Told to end once, and then killed: what is on disk is whole, and nothing is lost by it."""
    whole, stopped, rarely = tmp_path / "whole", tmp_path / "stopped", ("--save-minutes", "60")
    assert processes.ended(begin(cutouts, whole, *rarely)) == 0, errors(whole).read_text()
    process = begin(cutouts, stopped, *rarely, step=7, number=signal.SIGTERM)
    assert processes.ended(process) == 3, errors(stopped).read_text()
    assert f"stopped after 7 of {STEPS} steps" in errors(stopped).read_text()
    assert reached(stopped) == 7
    moments = random.Random(5)
    for _ in range(KILLS):
        before, moment = reached(stopped), moments.uniform(0.0, 0.1)
        process = begin(cutouts, stopped, step=4, number=signal.SIGKILL, seconds=moment)
        assert processes.ended(process) == -signal.SIGKILL, errors(stopped).read_text()
        assert before < reached(stopped) < STEPS
    assert processes.ended(begin(cutouts, stopped, *rarely)) == 0, errors(stopped).read_text()
    assert len(weights(stopped)) == 2 and weights(stopped) == weights(whole)
    tables = [
        [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()]  # all but the speed
        for output in (stopped, whole)
        for path in output.glob(f"{ARCHITECTURE}/runs/0-1/metrics.csv")
    ]
    assert len(tables) == 2 and tables[0] == tables[1]
