"""The memory plan of a training: which resolutions share a program, so that each program fits.

All resolutions of a step in one program is fastest, and taken where it fits. Else each is cut into
micro-batches, and then rematerialised, as far as it must be to fit alone, and neighbours share a
program as long as that fits.
"""

import dataclasses
import functools
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct
from jax.sharding import Mesh, NamedSharding

from lensjax import results
from lensjax.data.on_device import Canvas
from lensjax.ensemble import sharding
from lensjax.errors import UsageError
from lensjax.files import make_folder
from lensjax.memory import (
    Footprint,
    Target,
    bytes_per_device,
    choose,
    footprint,
    in_gib,
    memory_budget,
    parse_bytes,
)
from lensjax.train.setup import TrainSetup
from lensjax.train.state import TrainState
from lensjax.train.step import (
    ResolutionGroup,
    TrainBatch,
    add_group_gradient,
    single_group_step,
    train_step,
)

# Batch normalisation by the statistics of fewer cutouts is mostly noise.
SMALLEST_MICRO_BATCH = 4

# On a CPU the next batches and other programs live in the same memory.
SHARE_OF_HOST = 0.8

# Batches that `data.prefetched` holds on the device beside the one in use.
BATCHES_AHEAD = 2

Scales = tuple[int, ...]
"""Scales by their place, from the smallest: those of a step, or of a group of it."""

Groups = Mapping[Scales, Sequence[ResolutionGroup]]
"""The groups of each kind of step, by its scales."""


@dataclass(frozen=True)
class GroupPlan:
    """What the program of a group takes on each device, `footprint` None where the compiler gives
    up.

    `resident`: bytes of what is no argument of the program, but there while it runs: the next
    batches, the optimizer's state, and the averaged parameters.
    """

    group: ResolutionGroup
    footprint: Footprint | None
    resident: int

    @property
    def peak(self) -> float:
        return math.inf if self.footprint is None else self.footprint.peak + self.resident


@dataclass(frozen=True)
class StepPlan:
    """The groups of a step, and the figures that they were chosen by.

    `together`: all scales in one program. `alone`: each scale in one of its own, empty where it
    was not asked.
    """

    groups: tuple[GroupPlan, ...]
    together: GroupPlan
    alone: tuple[GroupPlan, ...]

    @property
    def peak(self) -> float:
        """Returns the bytes of the largest group: one is gone before the next begins."""
        return max(group.peak for group in self.groups)


@dataclass(frozen=True)
class TrainingPlan:
    """The plans of all kinds of steps of a training; `budget` in bytes on each device."""

    setup: TrainSetup
    batch_size: int
    device: str
    budget: int
    steps: Mapping[Scales, StepPlan]
    compile_seconds: float

    @property
    def groups(self) -> Groups:
        return {scales: [each.group for each in plan.groups] for scales, plan in self.steps.items()}

    @property
    def peak(self) -> float:
        return max(plan.peak for plan in self.steps.values())

    @property
    def peak_at_once(self) -> float:
        return max(plan.together.peak for plan in self.steps.values())

    def notes(self) -> list[str]:
        """Returns a line for each group that is not simply computed at once."""
        lines = []
        for group in itertools.chain(*self.groups.values()):
            sizes = self._sizes(group)
            if group.micro_batches > 1:
                lines.append(
                    f"{sizes}: in {group.micro_batches} micro-batches of "
                    f"{self.batch_size // group.micro_batches}; batch normalisation takes the "
                    "statistics of each, not of the batch"
                )
            if group.remat:
                lines.append(
                    f"{sizes}: rematerialised; the forward pass is computed twice, nothing else "
                    "changes"
                )
        return lines

    def table(self) -> str:
        """Returns what each scale needs, the groups, and what they save."""
        setup, form = self.setup, "{:<28}{:>10}{:>10}{:>12}{:>10}{:>10}".format
        lines = [
            f"{setup.architecture}, {len(setup.keys)} members, batch {self.batch_size}, "
            f"{setup.config.precision}, {self.device}; budget {in_gib(self.budget)}",
            form("GiB", "arguments", "outputs", "temporaries", "resident", "peak"),
        ]
        rows: dict[str, GroupPlan] = {}
        for plan in self.steps.values():
            rows |= {self._sizes(each.group): each for each in (*plan.alone, plan.together)}
            rows |= {f"group {self._sizes(each.group)}": each for each in plan.groups}
        for name, row in rows.items():
            found = row.footprint
            parts = (found.arguments, found.outputs, found.temporaries) if found else [math.inf] * 3
            parts = *parts, row.resident, row.peak
            lines.append(form(name, *(f"{part / 2**30:.3f}" for part in parts)))
        saving = 1 - self.peak / self.peak_at_once
        lines.append(
            f"peak {in_gib(self.peak)}, {saving:.0%} less than the {in_gib(self.peak_at_once)} of "
            "all at once"
        )
        return "\n".join([*lines, *self.notes()])

    def record(self) -> dict[str, Any]:
        """Returns what plan.json says."""
        steps = self.steps.values()
        return {
            "architecture": self.setup.architecture,
            "members": len(self.setup.keys),
            "batch_size": self.batch_size,
            "precision": self.setup.config.precision,
            "device": self.device,
            "memory_budget_bytes": self.budget,
            "resolutions": [self._record(each) for plan in steps for each in plan.alone],
            "groups": [self._record(each) for plan in steps for each in plan.groups],
            "peak_bytes": self.peak,
            "all_at_once_peak_bytes": self.peak_at_once,
            "compile_seconds": self.compile_seconds,
        }

    def _input_sizes(self, group: ResolutionGroup) -> list[int]:
        views = self.setup.config.views
        return [views[scale].preprocessing.input_size for scale in group.scales]

    def _sizes(self, group: ResolutionGroup) -> str:
        """Returns the sizes of a group and how it is treated, in a few characters."""
        parts = f" / {group.micro_batches}" if group.micro_batches > 1 else ""
        return "+".join(map(str, self._input_sizes(group))) + parts + " remat" * group.remat

    def _record(self, plan: GroupPlan) -> dict[str, Any]:
        found = plan.footprint
        return dataclasses.asdict(plan.group) | {
            "sizes": self._input_sizes(plan.group),
            "arguments_bytes": found and found.arguments,
            "outputs_bytes": found and found.outputs,
            "temporaries_bytes": found and found.temporaries,
            "resident_bytes": plan.resident,
            "peak_bytes": None if found is None else plan.peak,
        }


def budget_bytes(text: str, mesh: Mesh) -> int:
    """Returns the bytes that `--memory-budget` names: a size, or with `auto` what each device has,
    less what lives there. Raises UsageError for anything else."""
    if text == "auto":
        in_use = (mesh.devices.flat[0].memory_stats() or {}).get("bytes_in_use", 0)
        return memory_budget(mesh, SHARE_OF_HOST) - in_use
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"--memory-budget {text}: {error}, nor auto") from error


def plan_training(
    setup: TrainSetup,
    state: TrainState,
    canvas: Canvas,
    *,
    batch_size: int,
    budget: int,
    target: Target | None = None,
    compare: bool = False,
) -> TrainingPlan:
    """Returns the plan with the fewest groups that fit the `budget`, in bytes on each device.

    With `compare` all scales are asked alone even where they fit together. Raises UsageError where
    a scale cannot be made to fit, naming the largest batch that would.
    """
    began = time.perf_counter()
    ask: Ask = functools.cache(functools.partial(plan_group, setup, state, canvas, target))
    micro_batches, steps = setup.micro_batches, {}
    for scales in setup.scale_sets:
        together = ask(ResolutionGroup(scales, micro_batches), len(scales), batch_size)
        groups: tuple[GroupPlan, ...] = (together,)
        alone: tuple[GroupPlan, ...] = ()
        fits = together.peak <= budget
        if not fits:
            sizes = [view.preprocessing.input_size for view in setup.config.views]
            groups = choose_groups(ask, scales, sizes, micro_batches, batch_size, budget)
        if compare or not fits:
            each = (ResolutionGroup((scale,), micro_batches) for scale in scales)
            alone = tuple(ask(group, len(scales), batch_size) for group in each)
        steps[scales] = StepPlan(groups, together, alone)
    device = target.device if target else setup.config.mesh.devices.flat[0]
    seconds = time.perf_counter() - began
    return TrainingPlan(setup, batch_size, device.device_kind, budget, steps, seconds)


Ask = Callable[[ResolutionGroup, int, int], GroupPlan]
"""From a group, the number of scales of its step, and a batch size, to what it needs."""


def choose_groups(
    ask: Ask,
    scales: Scales,
    sizes: Sequence[int],
    micro_batches: int,
    batch_size: int,
    budget: float,
) -> tuple[GroupPlan, ...]:
    """Returns the fewest groups of neighbours that each fit the `budget`, for a step that does not
    fit as a whole.

    The largest scales begin: each group takes in the next smaller scale as long as it fits and both
    are treated alike. `sizes`: of all scales, in pixels.
    """

    def alone(scale: int) -> GroupPlan:
        return fit_scale(ask, scale, sizes, len(scales), micro_batches, batch_size, budget)

    groups = [alone(scales[-1])]
    for smaller in map(alone, reversed(scales[:-1])):
        joined = _joined(smaller.group, groups[0].group)
        # Activations add up: a sum beyond the budget need not be compiled to know.
        if joined and smaller.peak + groups[0].peak - _shared(smaller) <= budget:
            both = ask(joined, len(scales), batch_size)
            if both.peak <= budget:
                groups[0] = both
                continue
        groups.insert(0, smaller)
    return tuple(groups)


def fit_scale(
    ask: Ask,
    scale: int,
    sizes: Sequence[int],
    scale_count: int,
    micro_batches: int,
    batch_size: int,
    budget: float,
) -> GroupPlan:
    """Returns the first way to treat a scale that fits the budget, the least change first: fewer
    micro-batches, no rematerialisation. Raises UsageError where none does."""

    def ladders(batch_size: int) -> list[list[ResolutionGroup]]:
        counts = [micro_batches]
        while batch_size % (2 * counts[0]) == 0 and (
            batch_size // (2 * counts[0]) >= SMALLEST_MICRO_BATCH
        ):
            counts.insert(0, 2 * counts[0])
        return [
            [ResolutionGroup((scale,), count, remat) for count in counts] for remat in (False, True)
        ]

    def peak(group: ResolutionGroup) -> float:
        return ask(group, scale_count, batch_size).peak

    found = choose(ladders(batch_size), peak, budget)
    if found:
        return ask(found, scale_count, batch_size)

    def least_peak(smaller: int) -> float:
        return ask(ladders(smaller)[-1][0], scale_count, smaller).peak

    halves = [batch_size >> power for power in range(batch_size.bit_length() - 1, 0, -1)]
    smaller = choose([[n for n in halves if n % micro_batches == 0]], least_peak, budget)
    advice = f"a batch of {smaller} would" if smaller else "not even one cutout would"
    raise UsageError(
        f"scale {sizes[scale]} does not fit the memory budget of {in_gib(budget)}, whether in "
        f"parts of the batch or rematerialised: {advice}. Change --batch-size, --scales or "
        "--memory-budget"
    )


def _joined(smaller: ResolutionGroup, larger: ResolutionGroup) -> ResolutionGroup | None:
    """Returns the group of the scales of both, None where they are treated differently."""
    joined = dataclasses.replace(larger, scales=(*smaller.scales, *larger.scales))
    return joined if dataclasses.replace(joined, scales=smaller.scales) == smaller else None


def _shared(plan: GroupPlan) -> float:
    """Returns the bytes that a group of several scales has once."""
    assert plan.footprint is not None  # it fits
    return plan.resident + plan.footprint.arguments


def plan_group(
    setup: TrainSetup,
    state: TrainState,
    canvas: Canvas,
    target: Target | None,
    group: ResolutionGroup,
    scale_count: int,
    batch_size: int,
) -> GroupPlan:
    """Returns what a group takes whose program is the whole step, or one of several of a step of
    `scale_count` scales."""
    config = setup.config
    state, keys = abstract_members((state, setup.keys), config.mesh)
    batch = abstract_batch(len(setup.keys), canvas, batch_size, config.mesh)
    resident = BATCHES_AHEAD * bytes_per_device(batch.images)
    if len(group.scales) == scale_count:
        arguments = config, group, state, batch, keys
        return GroupPlan(group, footprint(single_group_step, arguments, target), resident)
    logit_gradient = ShapeDtypeStruct(
        (*batch.weight.shape, len(group.scales)), jnp.float32, sharding=batch.weight.sharding
    )
    found = footprint(
        add_group_gradient,
        (
            *(config, group, scale_count, state.params, state.params, state.batch_stats),
            *(state.step, batch, keys, logit_gradient),
        ),
        target,
    )
    resident += bytes_per_device((state.opt_state, state.average))
    return GroupPlan(group, found, resident)


def abstract_members(tree: Any, mesh: Mesh) -> Any:
    """Returns shapes, types and sharding of arrays with the members in front."""
    place = NamedSharding(mesh, sharding.BY_MEMBER)
    return jax.tree.map(lambda leaf: ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


def abstract_batch(members: int, canvas: Canvas, batch_size: int, mesh: Mesh) -> TrainBatch:
    """Returns shapes, types and sharding of a batch of a canvas."""
    by_cutout = NamedSharding(mesh, sharding.BY_CUTOUT)
    both = NamedSharding(mesh, sharding.BY_MEMBER_AND_CUTOUT)
    return TrainBatch(
        ShapeDtypeStruct((batch_size, *canvas.shape), jnp.dtype(canvas.dtype), sharding=by_cutout),
        ShapeDtypeStruct((batch_size, canvas.shape[2], 4), jnp.float32, sharding=by_cutout),
        ShapeDtypeStruct((batch_size,), jnp.float32, sharding=by_cutout),
        ShapeDtypeStruct((members, batch_size), jnp.float32, sharding=both),
    )


def groups_of_run(
    setup: TrainSetup,
    state: TrainState,
    canvas: Canvas,
    *,
    batch_size: int,
    budget: str | None,
    folder: Path,
    resumed: bool,
) -> Groups:
    """Returns the groups of a run that lives in `folder`: all scales at once where there is no
    `--memory-budget`, those that a resumed run had, else those that fit.

    The plan is written to plan.json, and what is not simply computed at once goes to standard
    error.
    """
    if budget is None:
        return {
            scales: [ResolutionGroup(scales, setup.micro_batches)] for scales in setup.scale_sets
        }
    before = recorded_groups(folder / "plan.json", budget) if resumed else None
    if before is not None:
        return {
            scales: [group for group in before if set(group.scales) <= set(scales)]
            for scales in setup.scale_sets
        }
    available = budget_bytes(budget, setup.config.mesh)
    plan = plan_training(setup, state, canvas, batch_size=batch_size, budget=available)
    for note in plan.notes():
        print(f"{setup.architecture}, {note}", file=sys.stderr)
    make_folder(folder)
    results.write_json(folder / "plan.json", plan.record() | {"memory_budget": budget})
    return plan.groups


def recorded_groups(path: Path, budget: str) -> list[ResolutionGroup] | None:
    """Returns the groups in a plan.json that was made for this `--memory-budget`, None without."""
    try:
        record = json.loads(path.read_text())
        if record["memory_budget"] != budget:
            return None
        return [
            ResolutionGroup(tuple(group["scales"]), group["micro_batches"], group["remat"])
            for group in record["groups"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def steps_per_second(plan: TrainingPlan, state: TrainState, canvas: Canvas) -> float:
    """Returns the steps a second at the last set of scales, on the device at hand, of one step.

    The state is given away.
    """
    setup, mesh = plan.setup, plan.setup.config.mesh
    blank = abstract_batch(len(setup.keys), canvas, plan.batch_size, mesh)
    batch = jax.tree.map(
        lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), blank
    )
    step = functools.partial(train_step, setup.config, plan.groups[setup.scale_sets[-1]])
    state, losses = step(state, batch, setup.keys)
    jax.block_until_ready(losses)
    began = time.perf_counter()
    jax.block_until_ready(step(state, batch, setup.keys))
    return 1 / (time.perf_counter() - began)
