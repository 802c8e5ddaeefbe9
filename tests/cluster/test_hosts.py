"""Processes that train together, as real processes on this machine: they do what one would do, and
end together."""

import atexit
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import numpy as np
import pytest

from lensjax import launch, runtime
from lensjax.cli import train
from lensjax.cluster import hosts
from lensjax.ensemble import checkpoint, sharding
from lensjax.errors import UsageError
from tests import networks, processes

ARCHITECTURE, BATCH = "resnet18", 16
# All changes of cutouts but one take long to compile.
AUGMENTATION = {f"--augment-{name}": 0 for name in ("shift", "zoom", "seeing", "flux", "colour")}
OPTIONS = AUGMENTATION | {
    "--arch": ARCHITECTURE,
    "--epochs": 2,
    "--batch-size": BATCH,
    "--weight-decay": 0,
    "--save-minutes": 0,
}


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    label = np.arange(96) % 2
    images = rng.normal(0, 1, (96, 16, 16, 1)).astype(np.float32)
    images[label == 1, 6:10, 6:10] += 2.0
    path = tmp_path_factory.mktemp("data") / "cutouts.npz"
    np.savez(path, images=images, label=label, id=np.arange(96), bands=np.array(["g"]))
    return path


def work(devices: int, arguments: Sequence[str], errors: Path) -> None:
    """Runs a training as its script would, on so many devices of this process."""
    jax.config.update("jax_num_cpu_devices", devices)
    with errors.open("w") as file:
        os.dup2(file.fileno(), 2)
    runtime.set_up()
    with networks.small():
        status = launch.run(train.main, arguments)
    atexit._run_exitfuncs()  # as Python does when it ends, but not for a copy of a process
    sys.exit(status)


def begin(
    cutouts: Path, output: Path, count: int, devices: int, *more: object
) -> list[BaseProcess]:
    """Starts `count` processes that train together."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = "127.0.0.1:{}".format(free.getsockname()[1])
    options = OPTIONS | {"--data": cutouts, "--output": output}
    words = [str(word) for pair in options.items() for word in pair] + [*map(str, more)]
    together = ["--coordinator", address, "--processes", str(count), "--process"]
    return [
        processes.begin(work, devices, [*words, *together, str(number)], errors(output, number))
        for number in range(count)
    ]


def errors(output: Path, number: int) -> Path:
    """Returns the file of what a process wrote to its standard error."""
    return output.with_suffix(f".{number}.err")


def ended(output: Path, started: Sequence[BaseProcess]) -> list[int]:
    """Returns the exit statuses of processes, which have ended."""
    found = [processes.ended(process) for process in started]
    for number in range(len(started)):
        print(errors(output, number).read_text())  # for what fails
    return found


def reached(output: Path) -> int:
    """Returns the last step whose state is on disk."""
    states = output.glob(f"{ARCHITECTURE}/runs/*/steps/[0-9]*")
    return max((int(path.name) for path in states if path.name.isdigit()), default=0)


def member(output: Path) -> checkpoint.Member:
    return checkpoint.load_member(output / ARCHITECTURE / "0")


@pytest.fixture(scope="module")
def one(cutouts, tmp_path_factory) -> Path:
    """What one process of four devices has trained."""
    output = tmp_path_factory.mktemp("one") / "out"
    assert ended(output, begin(cutouts, output, 1, 4)) == [0]
    return output


def assert_same_member(output: Path, one: Path) -> None:
    with networks.small():
        mine, other = member(output), member(one)
    np.testing.assert_array_equal(mine.validation["id"], other.validation["id"])
    worst = max(np.abs(mine.state[n] - other.state[n]).max() for n in other.state)
    print("logits", np.abs(mine.validation["logit"] - other.validation["logit"]).max())
    print("weights", worst)
    np.testing.assert_allclose(mine.validation["logit"], other.validation["logit"], atol=1e-5)
    assert worst < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 1)])
def test_processes_train_the_member_of_one(cutouts, one, tmp_path, count, devices):
    output = tmp_path / "out"
    assert ended(output, begin(cutouts, output, count, devices)) == [0] * count
    assert_same_member(output, one)
