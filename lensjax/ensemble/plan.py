"""How much a step takes at once, so that it fits the memory of its devices."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
from jax import ShapeDtypeStruct
from jax.sharding import Mesh, NamedSharding

from lensjax.data.on_device import Inputs, Layout
from lensjax.ensemble import sharding
from lensjax.ensemble.step import Step, Weights
from lensjax.memory import Target, footprint_for, host_bytes_left

# Enough cutouts to keep a device busy in every layer.
FULL_BATCH = 64

# In a CPU's memory live also the batches that wait, the scores, the files' pages and other
# programs, and where it runs out there is no error to catch: the process is killed. Nothing is
# lost by less: 64 cutouts at once are as fast there as a thousand.
SHARE_OF_HOST = 0.25

# Batches on the host at once: two ready, one being read, one on its way, one being scored.
BATCHES_ON_HOST = 5


@dataclass(frozen=True)
class Size:
    """What a step takes at once: cutouts, and of each group so many samples and members."""

    cutouts: int
    samples: int
    members: int

    @property
    def passes(self) -> int:
        return self.cutouts * self.samples * self.members


@dataclass(frozen=True)
class Plan:
    """A step, the Size that it was made for, and the bytes that it takes of those it may take.

    Bytes are of each device, None where no compiler was asked.
    """

    step: Step
    size: Size
    takes_turns: bool
    step_bytes: float | None
    memory_limit_bytes: int | None
    compile_seconds: float

    def __str__(self) -> str:
        size, needed, limit = self.size, self.step_bytes, self.memory_limit_bytes
        turns = (
            f", {size.samples} samples and {size.members} members of an architecture at a time"
            if self.takes_turns
            else ""
        )
        memory = f": {_in_gib(needed)} of {_in_gib(limit)}" if needed and limit else ""
        return f"{size.cutouts} cutouts{turns}{memory}"

    def record(self) -> dict[str, float | None]:
        """Returns what run.json says of it."""
        return {
            "batch_size": self.size.cutouts,
            "samples_at_once": self.size.samples,
            "members_at_once": self.size.members,
            "step_bytes": self.step_bytes,
            "memory_limit_bytes": self.memory_limit_bytes,
        }


def unplanned(step: Step, cutouts: int) -> Plan:
    """Returns the Plan of a step that takes the members and their samples one by one."""
    return Plan(step, Size(cutouts, 1, 1), False, None, None, 0.0)


def plan(
    make: Callable[..., Step],
    weights: Weights,
    layout: Layout,
    mesh: Mesh,
    batches: Sequence[int],
    *,
    budget: int,
    target: Target | None = None,
) -> Plan:
    """Returns the Plan for the largest step that fits the `budget`, in bytes on each device.

    `make` is `ensemble_step`, all but what it takes at once; `batches` are the numbers of cutouts
    to choose from. The step of the Plan is compiled for its batch.
    """
    samples = weights.keys[0].shape[1]
    members = max(keys.shape[0] for keys in weights.keys)

    @functools.cache
    def step(samples_at_once: int, members_at_once: int) -> Step:
        return make(samples_at_once=samples_at_once, members_at_once=members_at_once)

    def needs(size: Size) -> float:
        inputs = abstract_inputs(layout, size.cutouts, mesh)
        return step_bytes(step(size.samples, size.members), weights, inputs, mesh, target)

    began = time.perf_counter()
    needs = functools.cache(needs)
    size = choose(needs, budget, batches, samples=samples, members=members)
    turns = (size.samples, size.members) != (samples, members)
    needed, seconds = needs(size), time.perf_counter() - began
    return Plan(step(size.samples, size.members), size, turns, needed, budget, seconds)


def choose(
    needs: Callable[[Size], float],
    budget: float,
    batches: Sequence[int],
    *,
    samples: int,
    members: int,
) -> Size:
    """Returns the largest Size that `needs` no more bytes than the `budget`.

    `batches`, ascending, are the numbers of cutouts to choose from. A large batch with all samples
    and members together is best. Where not even a full one fits, samples and then members take
    turns: that costs nothing as long as each turn keeps the device busy, which a smaller batch
    would not. Samples go first, because what precedes all dropout stays out of their loop. Only
    then is the batch made smaller. Where nothing fits, the smallest is left.
    """
    full = [batch for batch in batches if batch >= FULL_BATCH] or batches[-1:]
    for sizes in (
        [Size(batch, samples, members) for batch in full],
        [Size(full[0], number, members) for number in _divisors(samples)],
        [Size(full[0], 1, number) for number in _divisors(members)],
        [Size(batch, 1, 1) for batch in batches if batch < full[0]],
    ):
        found = _largest(sizes, needs, budget)
        if found is not None:
            return found
    return Size(batches[0], 1, 1)


def batch_sizes(rows: int, layout: Layout, mesh: Mesh) -> list[int]:
    """Returns the batches to choose from for so many rows: powers of two for each device.

    The last one holds all rows, or as many as the host has memory for.
    """
    cutout_bytes = sum(canvas.nbytes for canvas in layout.canvases)
    room = SHARE_OF_HOST * host_bytes_left() / (BATCHES_ON_HOST * cutout_bytes)
    sizes = [mesh.size]
    while sizes[-1] < rows and 2 * sizes[-1] <= room:
        sizes.append(2 * sizes[-1])
    return sizes


def abstract_inputs(layout: Layout, cutouts: int, mesh: Mesh) -> Inputs:
    """Returns a batch on the devices of `mesh`, of which there are only shapes and types."""
    place = NamedSharding(mesh, sharding.BY_CUTOUT)
    return jax.tree.map(
        lambda leaf: ShapeDtypeStruct((cutouts, *leaf.shape[1:]), leaf.dtype, sharding=place),
        layout.blank(1),
    )


def step_bytes(
    step: Step, weights: Weights, inputs: Inputs, mesh: Mesh, target: Target | None = None
) -> float:
    """Returns the bytes that a step takes on each device, infinity where the compiler gives up.

    The next batch is on its way while a step computes: its inputs and outputs are there too.
    """
    figure = footprint_for(step, (weights, inputs), target)
    if figure is None:
        return math.inf
    next_inputs = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(inputs))
    return figure.peak + next_inputs // mesh.size + figure.outputs


def _largest(sizes: Sequence[Size], needs: Callable[[Size], float], budget: float) -> Size | None:
    """Returns the largest of ascending `sizes` that fits the budget, None where none does.

    What is needed is near linear in the size: two small ones are compiled, and then only those
    that a line through these two lets fit.
    """
    if not sizes or needs(sizes[0]) > budget:
        return None
    start, probe = sizes[0], sizes[min(2, len(sizes) - 1)]
    slope = (needs(probe) - needs(start)) / max(probe.passes - start.passes, 1)
    fitting = [
        size
        for size in sizes
        if size.passes < probe.passes
        or needs(start) + slope * (size.passes - start.passes) <= budget
    ]
    while needs(fitting[-1]) > budget:
        fitting.pop()
    return fitting[-1]


def _divisors(number: int) -> list[int]:
    """Returns the divisors of `number`, ascending: turns of one length compile once."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _in_gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
