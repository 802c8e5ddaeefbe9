"""Processes that train together, as real processes on this machine: they do what one would do, and
end together."""

import atexit
import contextlib
import functools
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lensjax import launch, runtime
from lensjax.cli import train
from lensjax.cluster import hosts
from lensjax.data.on_device import ImageSpec, Transform
from lensjax.data.preprocess import Preprocessing, geometry
from lensjax.ensemble import checkpoint, sharding
from lensjax.errors import UsageError
from lensjax.models import registry
from lensjax.train.config import Hyperparameters
from lensjax.train.member_step import ResolutionGroup
from lensjax.train.plan import abstract_batch, abstract_members
from lensjax.train.setup import set_up
from lensjax.train.step import single_group_step
from tests import networks, processes
from tests.networks import Convolutional

ARCHITECTURE, WIDE, BATCH, STEPS = "conv_tiny", "conv_wide", 16, 30
# Changes of cutouts take long to compile.
UNCHANGED = {f"augment_{name}": 0.0 for name in ("shift", "zoom", "seeing", "flux", "colour")}
HYPERPARAMETERS = UNCHANGED | {
    "augment_noise": 0.0,
    "epochs": 6,
    "batch_size": BATCH,
    "learning_rate": 0.03,
}
PREPROCESSING = Preprocessing(("g",), 16, None, "none", 1.0, (0.0,), (1.0,))


@contextlib.contextmanager
def small_network() -> Iterator[None]:
    builds = {ARCHITECTURE: Convolutional, WIDE: functools.partial(Convolutional, width=64)}
    known = {
        name: registry.Architecture(name, (), 0, 32, Convolutional.DEPTHS, build)
        for name, build in builds.items()
    }
    with networks.small(), mock.patch.dict(registry.ARCHITECTURES, known):
        yield


@pytest.fixture(autouse=True)
def small_networks() -> Iterator[None]:
    with small_network():
        yield


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory) -> Path:
    return processes.write_cutouts(tmp_path_factory.mktemp("data"))


# --- real processes ---


def work(
    devices: int, main: Callable, arguments: Sequence[str], errors: Path, step: int, number: int
) -> None:
    """Runs a command as its script would, on so many devices of this process, which sends itself a
    signal after a `step` of its own."""
    if step:
        runtime.progress = processes.progress_until(step, number)
    jax.config.update("jax_num_cpu_devices", devices)
    with errors.open("w") as file:
        os.dup2(file.fileno(), 2)
    runtime.set_up()
    with small_network():
        status = launch.run(main, arguments)

    atexit._run_exitfuncs()  # as Python does where it ends, but not in a copy of a process
    sys.exit(status)


def begin(
    main: Callable,
    folder: Path,
    count: int,
    devices: int,
    *words: object,
    signals: dict[int, tuple[int, int]] | None = None,
) -> list[BaseProcess]:
    """Starts `count` processes of so many devices that run a command together; `signals`: the step
    and the signal, by process."""
    folder.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = [*map(str, words), "--coordinator", address, "--processes", str(count), "--process"]
    return [
        processes.begin(
            *(work, devices, main, [*together, str(process)], errors(folder, process)),
            *(signals or {}).get(process, (0, 0)),
        )
        for process in range(count)
    ]


def errors(folder: Path, process: int) -> Path:
    """Returns the file of what a process wrote to its standard error."""
    return folder / f"{process}.err"


def ended(folder: Path, started: Sequence[BaseProcess]) -> list[int]:
    """Returns the exit statuses of processes, which have ended, and shows what they wrote."""
    found = [processes.ended(process) for process in started]
    for process in range(len(started)):
        print(errors(folder, process).read_text())
    return found


# Two processes keep every second state, and one is whole when the next is begun: a process
# that dies at this step leaves at least the first.
DIES = 8

# The state is kept at the end alone: thirty times cost as much as half the rest.
RARELY = {"save_minutes": 60}


def options(cutouts: Path, folder: Path, **more: object) -> list[str]:
    """Returns the options of a training whose state is kept after every step, unless told
    otherwise."""
    given = HYPERPARAMETERS | {"arch": ARCHITECTURE, "save_minutes": 0, "data": cutouts}
    given |= {"output": folder / "members"} | more
    return [
        str(word)
        for name, value in given.items()
        for word in (f"--{name.replace('_', '-')}", value)
    ]


def train_together(
    cutouts: Path,
    folder: Path,
    count: int,
    devices: int,
    signals: dict[int, tuple[int, int]] | None = None,
    **more: object,
) -> list[int]:
    """Returns the exit statuses of processes that train together, with `more` options."""
    words = options(cutouts, folder, **more)
    return ended(folder, begin(train.main, folder, count, devices, *words, signals=signals))


def reached(folder: Path) -> int:
    """Returns the last step whose state is on disk."""
    states = folder.glob("members/*/runs/*/steps/[0-9]*")
    return max((int(path.name) for path in states if path.name.isdigit()), default=0)


@pytest.fixture(scope="module")
def one(cutouts, tmp_path_factory) -> Path:
    """The folder of what one process of four devices has trained."""
    folder = tmp_path_factory.mktemp("one")
    assert train_together(cutouts, folder, 1, 4, **RARELY) == [0]
    return folder


def assert_same_member(folder: Path, other: Path) -> None:
    """As far as sums in another order allow: Adam makes whole steps also where a gradient is all
    rounding."""
    mine, its = (checkpoint.load_member(next(each.glob("members/*/0"))) for each in (folder, other))
    logits = its.validation["logit"]
    assert logits.std() > 0.1
    np.testing.assert_array_equal(mine.validation["id"], its.validation["id"])
    np.testing.assert_allclose(mine.validation["logit"], logits, atol=1e-5)
    for name, leaf in its.state.items():
        np.testing.assert_allclose(mine.state[name], leaf, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_processes_train_the_member_of_one(cutouts, one, tmp_path):
    """Four of one device; two of two are stopped, and go on, below."""
    assert train_together(cutouts, tmp_path, 4, 1, **RARELY) == [0] * 4
    assert_same_member(tmp_path, one)
    (metrics,) = tmp_path.glob(f"members/{ARCHITECTURE}/runs/0/metrics.csv")
    assert len(metrics.read_text().splitlines()) == 1 + 6  # the first process alone writes them
    assert "training" in errors(tmp_path, 0).read_text()
    assert "training" not in errors(tmp_path, 1).read_text()


def assert_told(folder: Path, process: int, killed: int) -> None:
    """That a process says in one line which other is gone."""
    said = errors(folder, process).read_text()
    (line,) = re.findall("^error: .*", said, re.MULTILINE)
    assert line.startswith(f"error: process {killed} (") and "is gone" in line


@pytest.mark.slow
def test_a_run_that_is_stopped_and_then_loses_a_process_goes_on(cutouts, one, tmp_path):
    """Told to end, all stop at the same step; killed, one takes the others with it; another number
    of processes ends the run."""
    told = {1: (3, signal.SIGTERM)}
    statuses = train_together(cutouts, tmp_path, 2, 2, told, **RARELY)
    assert statuses == [3, 3] and reached(tmp_path) == 4  # all learn of it a step later
    for process in (0, 1):
        said = errors(tmp_path, process).read_text()
        assert f"stopped after 4 of {STEPS} steps" in said
    statuses = train_together(cutouts, tmp_path, 2, 2, signals={1: (DIES, signal.SIGKILL)})
    assert statuses == [hosts.START_AGAIN, -signal.SIGKILL]
    assert_told(tmp_path, 0, killed=1)
    assert 4 < reached(tmp_path) < STEPS
    assert train_together(cutouts, tmp_path, 1, 4, **RARELY) == [0]
    assert_same_member(tmp_path, one)


@pytest.mark.slow
def test_all_end_where_the_first_is_killed(cutouts, tmp_path):
    """Which JAX makes the others' end, unless they do it first."""
    statuses = train_together(cutouts, tmp_path, 2, 2, signals={0: (6, signal.SIGKILL)})
    assert statuses == [-signal.SIGKILL, hosts.START_AGAIN]
    assert_told(tmp_path, 1, killed=0)


def compare_all(arguments: Sequence[str]) -> None:
    """In each of two processes of two devices: what they tell each other, and their rows."""
    _, address, _, count, _, process = arguments
    with hosts.joined(address, int(count), int(process)):
        index = jax.process_index()
        assert (jax.process_count(), index) == (2, int(process))
        assert hosts.is_first() == (index == 0)
        assert hosts.least(2**40 + 7 + index) == 2**40 + 7
        hosts.check_alike("options", {"seed": 0})
        with pytest.raises(UsageError, match="process 1 has other options than process 0"):
            hosts.check_alike("options", {"seed": index})
        shared, split = (sharding.mesh_of(jax.devices(), shards) for shards in (1, 2))
        own = hosts.own_rows(12, shared)
        np.testing.assert_array_equal(own, range(12 * index // 2, 12 * (index + 1) // 2))
        # Each has other members here, and shows them all cutouts.
        np.testing.assert_array_equal(hosts.own_rows(12, split), range(12))
        whole = np.arange(24.0, dtype=np.float32).reshape(12, 2)
        by_cutout = NamedSharding(shared, sharding.BY_CUTOUT)
        array = hosts.from_own_rows(whole[own], by_cutout, 12, 2)
        by_member = hosts.from_whole(whole, NamedSharding(split, sharding.BY_MEMBER))
        for found in hosts.on_host((array, by_member, whole)):
            np.testing.assert_array_equal(found, whole)
        agreed = hosts.Agreement(shared)
        wishes = [(False, index == 1), (False, True), (index == 0, False), (False, False)]
        found = [agreed(*wish).tolist() for wish in wishes]
        # What is known already is not told once more.
        assert found == [[False, False], [False, True], [False, False], [True, False]]


def test_processes_tell_each_other_and_take_their_rows(tmp_path):
    assert ended(tmp_path, begin(compare_all, tmp_path, 2, 2)) == [0, 0]


def compile_step(arguments: Sequence[str]) -> None:
    """In a process of four devices: what they move in a step of one member and of two."""
    mesh = sharding.mesh_of(jax.devices())
    transform = Transform(PREPROCESSING, 0, (0,), geometry((16, 16), None, PREPROCESSING))
    hyperparameters = Hyperparameters(**HYPERPARAMETERS, dropout=0.2, block_dropout=0.0)
    info = checkpoint.MemberInfo(ARCHITECTURE, PREPROCESSING, *hyperparameters.rates())
    for seeds in ((0,), (0, 1)):
        labels = np.zeros(5 * BATCH, np.float32)
        setup, state = set_up(info, transform, labels, hyperparameters, seeds, mesh)
        state, keys = abstract_members((state, setup.keys), mesh)
        batch = abstract_batch(setup, ImageSpec((16, 16, 1), "float32"), BATCH)
        step = single_group_step.lower(setup.config, ResolutionGroup((0,)), state, batch, keys)
        text = step.compile().as_text()
        print(re.findall(r"\S+ = \S+ (?:all-gather|all-to-all)\S*", text), file=sys.stderr)
        assert "all-reduce" in text and "all-gather" not in text


@pytest.mark.slow
def test_no_device_gathers_the_batch(tmp_path):
    (process,) = begin(compile_step, tmp_path, 1, 4)
    assert ended(tmp_path, [process]) == [0]


# --- options and environments ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((None, 2, None), "--processes 2 wants --coordinator HOST:PORT"),
        ((None, None, 1), "--process 1 wants --coordinator HOST:PORT and --processes"),
        ((None, 0, None), "--processes must be at least 1"),
        (("node1:8476", 2, 2), "--process 2 is none of 0 to 1, as --processes 2 has them"),
        (("node1:8476", 2, -1), "--process -1 is none of 0 to 1"),
        (("node1:8476", None, None), "wants --processes N and --process I too"),
        (("node1", 2, 0), "--coordinator node1 must be HOST:PORT"),
        (("auto", 2, 0), "--coordinator auto finds --processes and --process itself"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(UsageError, match=re.escape(message)), hosts.joined(*options):
        raise AssertionError("joined")


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        # The shell of `salloc -n 4`, and a script of `sbatch -n 4`.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_several_processes_are_found_in_the_environment(environment, several, monkeypatch):
    begun = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: begun.append(True))
    assert hosts._are_several(environment) == several
    monkeypatch.setattr(os, "environ", environment)
    with hosts.joined(None, 1, None):
        assert not begun  # a run of its own


def test_a_sole_process_takes_all_rows_and_learns_at_once():
    mesh = sharding.mesh_of(jax.local_devices()[:1])
    np.testing.assert_array_equal(hosts.own_rows(5, mesh), range(5))
    assert hosts.Agreement(mesh)(True, False).tolist() == [True, False]
    assert hosts.least(2**35 + 1) == 2**35 + 1


def test_what_cuts_a_process_off_is_told_from_errors_of_its_own():
    own, cut = ValueError("a bad pixel"), ValueError("UNKNOWN: Gloo all-reduce failed: closed")
    wrapped = UsageError("cannot write the state")
    wrapped.__cause__ = cut
    assert hosts._is_cut_off(cut) and hosts._is_cut_off(wrapped)
    assert not hosts._is_cut_off(own) and not hosts._is_cut_off(UsageError("no gloo here"))
