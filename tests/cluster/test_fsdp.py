"""What is trained lies in parts on several devices: the same member from less memory of each, and a
state that any other devices go on from."""

import functools
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from lensjax.cluster import hosts
from lensjax.data.on_device import ImageSpec, Transform
from lensjax.data.preprocess import geometry
from lensjax.ensemble import checkpoint, sharding
from lensjax.errors import UsageError
from lensjax.train.config import Hyperparameters
from lensjax.train.member_step import ResolutionGroup
from lensjax.train.plan import abstract_batch, abstract_members
from lensjax.train.setup import TrainSetup, set_up
from lensjax.train.snapshots import Snapshot, Snapshots
from lensjax.train.state import TrainState
from lensjax.train.step import single_group_step, validation_logits
from tests import processes
from tests.cluster import test_hosts as several
from tests.cluster.test_hosts import WIDE

ALL_AT_ONCE = ResolutionGroup((0,))
# Devices along each axis: member, data and fsdp.
LAYOUTS = [(1, 8, 1), (1, 4, 2), (1, 2, 4), (2, 2, 2)]


@pytest.fixture(autouse=True)
def small_networks() -> Iterator[None]:
    with several.small_network():
        yield


def started(mesh: Mesh) -> tuple[TrainSetup, TrainState]:
    """Returns two members before their first step, the state not placed yet."""
    preprocessing = several.PREPROCESSING
    transform = Transform(preprocessing, 0, (0,), geometry((16, 16), None, preprocessing))
    hyperparameters = Hyperparameters(
        **several.HYPERPARAMETERS | {"dropout": 0.2, "block_dropout": 0.0, "average_decay": 0.9}
    )
    info = checkpoint.MemberInfo(WIDE, preprocessing, *hyperparameters.rates())
    labels = np.zeros(5 * several.BATCH, np.float32)
    return set_up(info, transform, labels, hyperparameters, (0, 1), mesh)


def trained(mesh: Mesh) -> tuple[TrainState, np.ndarray, str]:
    """Returns the state after six steps, the members' logits, and the program of a step."""
    setup, state = started(mesh)
    state = hosts.from_whole(state, sharding.places(state, mesh))
    rng = np.random.default_rng(0)
    batch = jax.tree.map(
        lambda leaf: hosts.from_whole(
            rng.normal(0.5, 1, leaf.shape).astype(leaf.dtype), leaf.sharding
        ),
        abstract_batch(setup, ImageSpec((16, 16, 1), "float32"), several.BATCH),
    )
    step = single_group_step.lower(setup.config, ALL_AT_ONCE, state, batch, setup.keys).compile()
    for _ in range(6):
        # Compiled for arrays that lie as these: as they come out they go in again.
        state, _ = step(state, batch, setup.keys)
    logits = validation_logits(setup.config, 0, *state.weights, batch._replace(weight=None))
    return state, np.asarray(logits), step.as_text()


def bytes_of_devices(state: TrainState) -> list[int]:
    """Returns the bytes of what is trained on each device."""
    found: dict[Any, int] = {}
    for leaf in jax.tree.leaves((state.params, state.opt_state, state.average)):
        for shard in leaf.addressable_shards:
            found[shard.device] = found.get(shard.device, 0) + shard.data.nbytes
    return list(found.values())


def gathered_shapes(program: str) -> set[tuple[int, ...]]:
    """Returns the shapes that devices gather in a compiled program."""
    results = re.findall(r"= (.*?) all-gather(?:-start)?\(", program)
    shapes = (shape for result in results for shape in re.findall(r"\[([\d,]*)\]", result))
    return {tuple(map(int, shape.split(","))) for shape in shapes}


def train_in_every_layout(arguments: Sequence[str]) -> None:
    """In a process of eight devices: the same logits, less on each device, and only weights are
    gathered."""
    first = None
    for members, data, fsdp in LAYOUTS:
        mesh = sharding.mesh_of(jax.devices(), members, fsdp)
        assert mesh.devices.shape == (members, data, fsdp)
        state, logits, program = trained(mesh)
        most = max(bytes_of_devices(state))
        if first is None:
            first = logits, most
            assert logits.std() > 0.01, logits.std()
        np.testing.assert_allclose(logits, first[0], atol=1e-5)
        share = 1 / (members * fsdp)
        assert share <= most / first[1] < share + 0.02
        # Of one device's members; of the wide layer alone, which the others are small beside.
        kernel = state.params["second"]["conv"]["kernel"]
        wanted = {(2 // members, *kernel.shape[1:])} if fsdp > 1 else set()
        assert gathered_shapes(program) == wanted
        assert not re.search("all-to-all|collective-permute", program)


@pytest.mark.slow
def test_only_weights_are_gathered_and_the_member_is_the_same(tmp_path):
    (process,) = several.begin(train_in_every_layout, tmp_path, 1, 8)
    assert several.ended(tmp_path, [process]) == [0]


def save_and_restore(arguments: Sequence[str]) -> None:
    """In a process of eight devices: a state saved by four along fsdp is restored, bit by bit, by
    fewer."""
    folder = Path(arguments[0])
    mesh, rng = sharding.mesh_of(jax.devices()[:4], 1, 4), np.random.default_rng(0)
    _, state = started(mesh)
    whole = jax.tree.map(lambda leaf: rng.integers(9, size=leaf.shape).astype(leaf.dtype), state)
    state = hosts.from_whole(whole, sharding.places(state, mesh))
    with closing(Snapshots(folder, {}, resume=True)) as snapshots:
        snapshots.save(Snapshot(3, state, {}))
    for devices, fsdp in [(8, 4), (4, 2), (1, 1)]:
        mesh = sharding.mesh_of(jax.devices()[:devices], 1, fsdp)
        like = abstract_members(state, mesh)
        with closing(Snapshots(folder, {}, resume=True)) as snapshots:
            _, found, _ = snapshots.newest(like)
        jax.tree.map(np.testing.assert_array_equal, found, whole)
        assert jax.tree.map(lambda leaf: leaf.sharding, found) == sharding.places(found, mesh)


def test_a_state_is_restored_by_any_number_of_devices(tmp_path):
    (process,) = several.begin(save_and_restore, tmp_path, 1, 8, tmp_path / "run")
    assert several.ended(tmp_path, [process]) == [0]


@pytest.mark.slow
def test_a_run_in_parts_goes_on_bit_by_bit(tmp_path):
    """Each of two processes writes its part, and goes on there when it was stopped or killed."""
    train = functools.partial(several.train_together, processes.write_cutouts(tmp_path), arch=WIDE)
    rarely, together = several.RARELY, {"fsdp": 4}
    one, whole, stopped = (tmp_path / name for name in ("one", "whole", "stopped"))
    assert train(one, 1, 4, **rarely) == [0]
    assert train(whole, 2, 2, **together, **rarely) == [0, 0]
    several.assert_same_member(whole, one)

    signals = {1: (3, signal.SIGTERM)}
    assert train(stopped, 2, 2, signals, **together, **rarely) == [3, 3]
    assert several.reached(stopped) == 4
    (arrays,) = stopped.glob("members/*/runs/0/steps/4/arrays")
    assert (arrays / "ocdbt.process_0").exists() and (arrays / "ocdbt.process_1").exists()
    signals = {1: (several.DIES, signal.SIGKILL)}
    assert train(stopped, 2, 2, signals, **together) == [hosts.START_AGAIN, -signal.SIGKILL]
    assert 4 < several.reached(stopped) < several.STEPS
    assert train(stopped, 2, 2, **together, **rarely) == [0, 0]
    assert weights_sha256(stopped) == weights_sha256(whole)


def weights_sha256(folder: Path) -> str:
    return checkpoint.read_info(folder / "members" / WIDE / "0").weights_sha256


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((2, 3, 3, 64, 128), (None, None, None, "fsdp")),
        ((2, 3, 3, 128, 64), (None, None, "fsdp")),
        ((2, 3, 3, 64, 127), (None, None, "fsdp")),  # the longest that four divide
        ((2, 81, 127), ()),  # none
        ((2, 64, 63), ()),  # a small one
        ((2, 64, 64), ("fsdp",)),
        ((8192,), ()),  # the members
    ],
)
def test_large_arrays_are_split_along_their_longest_axis(shape, spec):
    mesh = AbstractMesh((1, 2, 4), (sharding.MEMBER, sharding.DATA, sharding.FSDP))
    assert sharding.trained_spec(shape, mesh) == PartitionSpec(sharding.MEMBER, *spec)


def test_devices_that_fsdp_does_not_divide_are_wrong_use():
    with pytest.raises(UsageError, match="--fsdp 2 does not divide the 1 devices that share"):
        sharding.mesh_of(jax.devices()[:1], 1, 2)
