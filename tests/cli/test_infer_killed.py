"""A real process that scores, killed at any moment: its results are those of one left alone."""

import multiprocessing
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import numpy as np
import pytest

from lensjax import inference, launch, results, resume
from lensjax.cli import infer
from tests import networks

ROWS, BATCH, KILLS = 160, 4, 2
LIMIT_SECONDS = 120.0

# Processes begin as copies of one that has imported all there is to import.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["lensjax.cli.infer", __name__])


def score(arguments: list[str]) -> None:
    """Scores with small networks, every batch on disk at once. Nothing is drawn, which is not what
    is tested."""
    resume.SAVE_INTERVAL_SECONDS = -1.0
    inference.draw = lambda *_: None
    with networks.small():
        sys.exit(launch.run(infer.main, arguments))


@pytest.fixture
def begin(members, tmp_path) -> Callable[[str], BaseProcess]:
    """Returns a function that begins to score all cutouts into the folder of that name."""
    rng = np.random.default_rng(7)
    images = rng.normal(10.0, 3.0, (ROWS, 16, 16, 3)).astype(np.float32)
    images[::7] = np.nan
    bands = np.array(["g", "r", "i"])
    np.savez(tmp_path / "x.npz", images=images, bands=bands, pixel_scale=np.array(0.2))

    def begin_one(output: str) -> BaseProcess:
        options = {
            "--checkpoints": members,
            "--data": tmp_path / "x.npz",
            "--output": tmp_path / output,
            "--batch-size": BATCH,
            "--mc-samples": 2,
        }
        arguments = [str(word) for pair in options.items() for word in pair]
        process = PROCESSES.Process(target=score, args=(arguments,))
        process.start()
        return process

    return begin_one


def ended(process: BaseProcess) -> int | None:
    process.join(LIMIT_SECONDS)
    return process.exitcode


def wait_until(reached: Callable[[], bool], process: BaseProcess) -> None:
    began = time.monotonic()
    while not reached() and process.is_alive():
        assert time.monotonic() - began < LIMIT_SECONDS
        time.sleep(0.002)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(begin, tmp_path):
    assert ended(begin("alone")) == 0
    moments = random.Random(5)
    parts, kills = tmp_path / "killed" / inference.PARTS, 0

    def done() -> int:
        return len(list(parts.glob("*.npz")))

    for _ in range(KILLS):
        process, wanted = begin("killed"), done() + moments.randint(1, 12)
        wait_until(lambda wanted=wanted: done() >= wanted, process)
        time.sleep(moments.uniform(0.0, 0.01))
        process.kill()
        kills += ended(process) == -signal.SIGKILL
    assert kills == KILLS and 0 < done() < ROWS / BATCH
    # Once more, while the results are being written.
    process = begin("killed")
    wait_until((tmp_path / "killed" / "predictions.npz").exists, process)
    process.kill()
    ended(process)
    assert ended(begin("killed")) == 0
    names = {name for name in results.OUTPUTS if (tmp_path / "alone" / name).exists()}
    assert {"candidates.csv", "candidates.parquet", "predictions.npz"} <= names
    for name in names - {"run.json"}:
        first, second = ((tmp_path / run / name).read_bytes() for run in ("alone", "killed"))
        assert first == second, name
    assert {path.name for path in (tmp_path / "killed").iterdir()} == names
