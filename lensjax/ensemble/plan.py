"""How much an inference step takes at a time, so that it fits the memory of its devices."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
from jax import ShapeDtypeStruct
from jax.sharding import Mesh, NamedSharding

from lensjax.data.on_device import Inputs, InputSpec
from lensjax.ensemble import sharding
from lensjax.ensemble.step import Step, Weights
from lensjax.memory import Target, bytes_per_device, choose, footprint, host_bytes_left, in_gib

# Enough cutouts to keep a device busy in every layer.
FULL_BATCH = 64

# A CPU's memory also holds the batches that wait, the scores, the page cache and other programs,
# and where it runs out there is no error to catch: the process is killed. Nothing is lost by less:
# 64 cutouts at a time are as fast there as a thousand.
SHARE_OF_HOST = 0.25

# Batches on the host at a time: two ready, one being read, one on its way, one being scored.
BATCHES_ON_HOST = 5


@dataclass(frozen=True)
class Size:
    """What a step takes at a time: cutouts, and samples of each member."""

    cutouts: int
    samples: int


@dataclass(frozen=True)
class InferencePlan:
    """A step, the Size that it was made for, and the bytes that it takes of those it may take.

    `is_chunked`: whether samples are computed some at a time. Bytes are of each device,
    None where no compiler was asked.
    """

    step: Step
    size: Size
    is_chunked: bool
    step_bytes: float | None
    memory_limit_bytes: int | None
    compile_seconds: float

    def __str__(self) -> str:
        size, needed, limit = self.size, self.step_bytes, self.memory_limit_bytes
        chunks = f", {size.samples} samples at a time" if self.is_chunked else ""
        memory = f": {in_gib(needed)} of {in_gib(limit)}" if needed and limit else ""
        return f"{size.cutouts} cutouts{chunks}{memory}"

    def record(self) -> dict[str, float | None]:
        """Returns what run.json says of it."""
        return {
            "batch_size": self.size.cutouts,
            "samples_at_once": self.size.samples,
            "step_bytes": self.step_bytes,
            # Members one by one are compiled as they are first called.
            "compile_seconds": self.compile_seconds or None,
            "memory_limit_bytes": self.memory_limit_bytes,
        }


def unplanned(step: Step, cutouts: int) -> InferencePlan:
    """Returns the plan of a step that takes the members and their samples one by one."""
    return InferencePlan(step, Size(cutouts, 1), False, None, None, 0.0)


def plan(
    make: Callable[..., Step],
    weights: Weights,
    input_spec: InputSpec,
    mesh: Mesh,
    batches: Sequence[int],
    *,
    budget: int,
    target: Target | None = None,
) -> InferencePlan:
    """Returns the plan of the largest step that fits the `budget`, in bytes on each device.

    `make` is `ensemble_step`, all but what it takes at a time; `batches`, ascending, are the
    numbers of cutouts to choose from. The step is compiled for its batch. Where nothing fits, the
    smallest is left.
    """
    samples = weights.keys[0].shape[1]

    @functools.cache
    def step(samples_at_once: int) -> Step:
        return make(samples_at_once=samples_at_once)

    @functools.cache
    def peak_bytes(size: Size) -> float:
        inputs = abstract_inputs(input_spec, size.cutouts, mesh)
        found = footprint(step(size.samples), (weights, inputs), target)
        # While a step computes, the next batch arrives and its outputs need a place.
        return found.peak + bytes_per_device(inputs) + found.outputs if found else math.inf

    began = time.perf_counter()
    size = choose(ladders(batches, samples), peak_bytes, budget)
    size = size or Size(batches[0], 1)
    is_chunked = size.samples != samples
    needed, seconds = peak_bytes(size), time.perf_counter() - began
    return InferencePlan(step(size.samples), size, is_chunked, needed, budget, seconds)


def ladders(batches: Sequence[int], samples: int) -> list[list[Size]]:
    """Returns the sizes to choose from, as `memory.choose` takes them.

    A large batch with all samples together is best. Where not even a full one fits, samples are
    computed some at a time: that costs nothing as long as each part keeps the device busy, which a
    smaller batch would not. Only then is the batch made smaller.
    """
    full = [batch for batch in batches if batch >= FULL_BATCH] or [batches[-1]]
    return [
        [Size(batch, samples) for batch in full],
        [Size(full[0], number) for number in _divisors(samples)],
        [Size(batch, 1) for batch in batches if batch < full[0]],
    ]


def batch_sizes(rows: int, input_spec: InputSpec, mesh: Mesh) -> list[int]:
    """Returns the batches to choose from for so many rows: powers of two for each device.

    The last one holds all rows, or as many as the host has memory for.
    """
    cutout_bytes = sum(image_spec.nbytes for image_spec in input_spec.image_specs)
    most = SHARE_OF_HOST * host_bytes_left() / (BATCHES_ON_HOST * cutout_bytes)
    sizes = [mesh.size]
    while sizes[-1] < rows and 2 * sizes[-1] <= most:
        sizes.append(2 * sizes[-1])
    return sizes


def abstract_inputs(input_spec: InputSpec, cutouts: int, mesh: Mesh) -> Inputs:
    """Returns the shapes, types and sharding of a batch."""
    place = NamedSharding(mesh, sharding.BY_CUTOUT)
    return jax.tree.map(
        lambda leaf: ShapeDtypeStruct((cutouts, *leaf.shape[1:]), leaf.dtype, sharding=place),
        input_spec.blank(1),
    )


def _divisors(number: int) -> list[int]:
    """Returns the divisors of `number`, ascending: parts of one length compile once."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
