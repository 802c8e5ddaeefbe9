"""The inference step, compiled for as much at a time as fits the memory of its devices."""

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax import ShapeDtypeStruct
from jax.sharding import Mesh, NamedSharding

from lensjax.data.on_device import Inputs, InputSpec
from lensjax.ensemble import sharding
from lensjax.ensemble.stack import Ensemble
from lensjax.ensemble.step import (
    StageStep,
    Step,
    StepOptions,
    abstract_weights,
    ensemble_step,
    one_by_one_step,
    stage_step,
)
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
class CompiledStep:
    """A step for batches of one form: all that scoring needs but the weights and the pixels.

    `samples_at_once`: None where all samples are computed together. Bytes, those that it takes and
    may take, are of each device, None where no compiler was asked.
    """

    step: Step | StageStep
    ensemble: Ensemble
    mesh: Mesh
    input_spec: InputSpec
    cutouts: int
    samples_at_once: int | None = None
    step_bytes: float | None = None
    memory_limit_bytes: int | None = None
    compile_seconds: float | None = None

    def __str__(self) -> str:
        needed, limit, samples = self.step_bytes, self.memory_limit_bytes, self.samples_at_once
        chunks = f", {samples} samples at a time" if samples else ""
        memory = f": {in_gib(needed)} of {in_gib(limit)}" if needed and limit else ""
        return f"{self.cutouts} cutouts{chunks}{memory}"

    def record(self) -> dict[str, Any]:
        """Returns what run.json says of it."""
        return {
            "batch_size": self.cutouts,
            "samples_at_once": self.samples_at_once,
            "step_bytes": self.step_bytes,
            "compile_seconds": self.compile_seconds,
            "memory_limit_bytes": self.memory_limit_bytes,
            "mesh": dict(self.mesh.shape),
        }


def compile_step(
    ensemble: Ensemble,
    mesh: Mesh,
    input_spec: InputSpec,
    batches: Sequence[int],
    options: StepOptions,
    *,
    budget: int,
    target: Target | None = None,
    one_by_one: bool = False,
    order: Sequence[int] | None = None,
) -> CompiledStep:
    """Returns the largest step that fits the `budget`, in bytes on each device.

    `batches`, ascending, are the numbers of cutouts to choose from. Where nothing fits, the
    smallest is left. Without a `target` the step can be called at once. `one_by_one`: members and
    samples are computed one after another, and compiled as they are first called. With an `order`
    it is that of `stage_step`.
    """
    if one_by_one:
        step = one_by_one_step(ensemble, mesh, options)
        return CompiledStep(step, ensemble, mesh, input_spec, batches[0])
    samples, weights = options.mc_samples, abstract_weights(ensemble, mesh, options)

    @functools.cache
    def together(samples_at_once: int) -> Step | StageStep:
        if order is None:
            return ensemble_step(ensemble, mesh, options, samples_at_once)
        return stage_step(ensemble, mesh, options, order, samples_at_once)

    @functools.cache
    def peak_bytes(size: Size) -> float:
        inputs = abstract_inputs(input_spec, size.cutouts, mesh)
        found = footprint(together(size.samples), (weights, inputs), target)
        # While a step computes, the next batch arrives and its outputs need a place.
        return found.peak + bytes_per_device(inputs) + found.outputs if found else math.inf

    began = time.perf_counter()
    size = choose(ladders(batches, samples), peak_bytes, budget) or Size(batches[0], 1)
    return CompiledStep(
        together(size.samples),
        ensemble,
        mesh,
        input_spec,
        cutouts=size.cutouts,
        samples_at_once=size.samples if size.samples != samples else None,
        step_bytes=peak_bytes(size),
        memory_limit_bytes=budget,
        compile_seconds=time.perf_counter() - began,
    )


def ladders(batches: Sequence[int], samples: int) -> list[list[Size]]:
    """Returns the sizes to choose from, as `memory.choose` takes them.

    A large batch with all samples together is best. Where not even a full one fits, samples are
    computed some at a time: that costs nothing as long as each part keeps the device busy, which a
    smaller batch would not. Only then is the batch made smaller.
    """
    full = [batch for batch in batches if batch >= FULL_BATCH] or [batches[-1]]
    return [
        [Size(batch, samples) for batch in full],
        # Parts of one length compile once.
        [Size(full[0], part) for part in range(1, samples + 1) if samples % part == 0],
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
    by_cutout, everywhere = (
        NamedSharding(mesh, spec) for spec in (sharding.BY_CUTOUT, sharding.EVERYWHERE)
    )
    return input_spec.blank(1).mapped(
        lambda leaf: ShapeDtypeStruct((cutouts, *leaf.shape[1:]), leaf.dtype, sharding=by_cutout),
        lambda leaf: ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
    )
