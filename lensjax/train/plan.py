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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lensjax import results
from lensjax.cluster import hosts
from lensjax.data.on_device import ImageSpec
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
from lensjax.train.member_step import ResolutionGroup, TrainBatch
from lensjax.train.setup import TrainSetup
from lensjax.train.state import TrainState
from lensjax.train.step import add_group_gradient, single_group_step, train_step

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

    @property
    def argument_bytes(self) -> float:
        return math.inf if self.footprint is None else self.footprint.arguments

    def parts(self) -> list[str]:
        """Returns the columns of a table, in GiB."""
        found = self.footprint
        of_program = (
            (found.arguments, found.outputs, found.temporaries) if found else [math.inf] * 3
        )
        return [f"{part / 2**30:.3f}" for part in (*of_program, self.resident, self.peak)]

    def record(self, sizes: list[int]) -> dict[str, Any]:
        """Returns what plan.json says of a group of these input sizes."""
        found = self.footprint
        return dataclasses.asdict(self.group) | {
            "sizes": sizes,
            "arguments_bytes": found and found.arguments,
            "outputs_bytes": found and found.outputs,
            "temporaries_bytes": found and found.temporaries,
            "resident_bytes": self.resident,
            "peak_bytes": found and self.peak,
        }


@dataclass(frozen=True)
class TrainingPlan:
    """The groups of each kind of step, and the figures that they were chosen by.

    `together`: for each kind, all its scales in one program. `alone`: each scale in one of its own,
    where that was asked. `budget` in bytes on each device.
    """

    setup: TrainSetup
    batch_size: int
    device: str
    budget: int
    steps: Mapping[Scales, Sequence[GroupPlan]]
    together: Sequence[GroupPlan]
    alone: Sequence[GroupPlan]
    compile_seconds: float

    @property
    def groups(self) -> Groups:
        return {scales: [each.group for each in plans] for scales, plans in self.steps.items()}

    @property
    def chosen(self) -> list[GroupPlan]:
        return list(itertools.chain(*self.steps.values()))

    @property
    def peak(self) -> float:
        """Returns the bytes of the largest group: one is gone before the next begins."""
        return max(each.peak for each in self.chosen)

    @property
    def peak_at_once(self) -> float:
        return max(each.peak for each in self.together)

    def sizes(self, group: ResolutionGroup) -> list[int]:
        """Returns the input sizes of a group."""
        transforms = self.setup.config.transforms
        return [transforms[scale].preprocessing.input_size for scale in group.scales]

    def notes(self) -> list[str]:
        """Returns a line for each group that is not simply computed at once."""
        lines = []
        for group in (each.group for each in self.chosen):
            if group.micro_batches > 1:
                lines.append(
                    f"{self._name(group)}: in {group.micro_batches} micro-batches of "
                    f"{self.batch_size // group.micro_batches}; batch normalisation takes the "
                    "statistics of each, not of the batch"
                )
            if group.remat:
                lines.append(
                    f"{self._name(group)}: rematerialised; the forward pass is computed twice, "
                    "nothing else changes"
                )
        return lines

    def table(self) -> str:
        """Returns what each scale needs, the groups, and what they save."""
        setup, form = self.setup, "{:<28}{:>10}{:>10}{:>12}{:>10}{:>10}".format
        rows = {self._name(each.group): each for each in (*self.alone, *self.together)}
        rows |= {f"group {self._name(each.group)}": each for each in self.chosen}
        return "\n".join(
            [
                f"{setup.architecture}, {len(setup.keys)} members, batch {self.batch_size}, "
                f"{setup.config.precision}, {self.device}; budget {in_gib(self.budget)}",
                form("GiB", "arguments", "outputs", "temporaries", "resident", "peak"),
                *(form(name, *each.parts()) for name, each in rows.items()),
                f"peak {in_gib(self.peak)}, {1 - self.peak / self.peak_at_once:.0%} less than the "
                f"{in_gib(self.peak_at_once)} of all at once",
                *self.notes(),
            ]
        )

    def record(self) -> dict[str, Any]:
        """Returns what plan.json says."""
        return {
            "architecture": self.setup.architecture,
            "members": len(self.setup.keys),
            "batch_size": self.batch_size,
            "precision": self.setup.config.precision,
            "device": self.device,
            "memory_budget_bytes": self.budget,
            "resolutions": [each.record(self.sizes(each.group)) for each in self.alone],
            "groups": [each.record(self.sizes(each.group)) for each in self.chosen],
            "peak_bytes": self.peak,
            "all_at_once_peak_bytes": self.peak_at_once,
            "compile_seconds": self.compile_seconds,
        }

    def _name(self, group: ResolutionGroup) -> str:
        parts = f" / {group.micro_batches}" if group.micro_batches > 1 else ""
        return "+".join(map(str, self.sizes(group))) + parts + " remat" * group.remat


def budget_bytes(text: str, mesh: Mesh) -> int:
    """Returns the bytes that `--memory-budget` names: a size, or with `auto` what each device has,
    less what lives there, of all processes the least. Raises UsageError for anything else."""
    if text == "auto":
        in_use = (mesh.local_devices[0].memory_stats() or {}).get("bytes_in_use", 0)
        return hosts.least(memory_budget(mesh, SHARE_OF_HOST) - in_use)
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"--memory-budget {text}: {error}, nor auto") from error


def plan_training(
    setup: TrainSetup,
    state: TrainState,
    image_spec: ImageSpec,
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
    began, micro_batches = time.perf_counter(), setup.micro_batches
    steps: dict[Scales, Sequence[GroupPlan]] = {}
    together, alone = [], []
    for scales in setup.scale_sets:
        program_of = functools.partial(plan_group, setup, state, image_spec, target, len(scales))
        ask: Ask = functools.cache(program_of)
        together.append(ask(ResolutionGroup(scales, micro_batches), batch_size))
        steps[scales] = [together[-1]]
        fits = together[-1].peak <= budget
        if not fits:
            sizes = [transform.preprocessing.input_size for transform in setup.config.transforms]
            steps[scales] = choose_groups(ask, scales, sizes, micro_batches, batch_size, budget)
        if compare or not fits:
            each = (ResolutionGroup((scale,), micro_batches) for scale in scales)
            alone += [ask(group, batch_size) for group in each]
    device = (target.device if target else setup.config.mesh.devices.flat[0]).device_kind
    seconds = time.perf_counter() - began
    return TrainingPlan(setup, batch_size, device, budget, steps, together, alone, seconds)


Ask = Callable[[ResolutionGroup, int], GroupPlan]
"""From a group of a step and a batch size to what it needs."""


def choose_groups(
    ask: Ask,
    scales: Scales,
    sizes: Sequence[int],
    micro_batches: int,
    batch_size: int,
    budget: float,
) -> list[GroupPlan]:
    """Returns the fewest groups of neighbours that each fit the `budget`, for a step that does not
    fit as a whole.

    Each scale is treated as it must be to fit alone, the least change first: fewer micro-batches,
    no rematerialisation. Then, from the largest on, each group takes in the next smaller scale as
    long as it fits and both are treated alike. `sizes`: of all scales, in pixels. Raises UsageError
    where a scale cannot be made to fit.
    """

    def alone(scale: int) -> GroupPlan:
        found = choose(treatments(scale, micro_batches, batch_size), peak(batch_size), budget)
        if found is None:
            raise UsageError(
                f"scale {sizes[scale]} does not fit the memory budget of {in_gib(budget)}, whether "
                f"in parts of the batch or rematerialised: {advice(scale)}. Change --batch-size, "
                "--scales or --memory-budget"
            )
        return ask(found, batch_size)

    def peak(batch_size: int) -> Callable[[ResolutionGroup], float]:
        return lambda group: ask(group, batch_size).peak

    def advice(scale: int) -> str:
        def least_peak(smaller: int) -> float:
            return ask(treatments(scale, micro_batches, smaller)[-1][0], smaller).peak

        halves = [batch_size >> power for power in range(batch_size.bit_length() - 1, 0, -1)]
        smaller = choose([[n for n in halves if n % micro_batches == 0]], least_peak, budget)
        return f"a batch of {smaller} would" if smaller else "not even one cutout would"

    groups = [alone(scales[-1])]
    for smaller in map(alone, reversed(scales[:-1])):
        larger, fixed = groups[0], smaller.resident + smaller.argument_bytes
        joined = dataclasses.replace(
            larger.group, scales=(*smaller.group.scales, *larger.group.scales)
        )
        alike = dataclasses.replace(joined, scales=smaller.group.scales) == smaller.group
        # Activations add up: a sum beyond the budget need not be compiled to know.
        if alike and smaller.peak + larger.peak - fixed <= budget:
            both = ask(joined, batch_size)
            if both.peak <= budget:
                groups[0] = both
                continue
        groups.insert(0, smaller)
    return groups


def treatments(scale: int, micro_batches: int, batch_size: int) -> list[list[ResolutionGroup]]:
    """Returns the ways to compute a scale, as `memory.choose` takes them: at least so many
    micro-batches, then rematerialised."""
    counts = [micro_batches]
    while batch_size % (2 * counts[0]) == 0 and (
        batch_size // (2 * counts[0]) >= SMALLEST_MICRO_BATCH
    ):
        counts.insert(0, 2 * counts[0])
    return [
        [ResolutionGroup((scale,), count, remat) for count in counts] for remat in (False, True)
    ]


def plan_group(
    setup: TrainSetup,
    state: TrainState,
    image_spec: ImageSpec,
    target: Target | None,
    scale_count: int,
    group: ResolutionGroup,
    batch_size: int,
) -> GroupPlan:
    """Returns what a group takes whose program is the whole step, or one of several of a step of
    `scale_count` scales."""
    config = setup.config
    state, keys = abstract_members((state, setup.keys), config.mesh)
    batch = abstract_batch(setup, image_spec, batch_size)
    resident = BATCHES_AHEAD * bytes_per_device(batch.images)
    if len(group.scales) == scale_count:
        found = footprint(single_group_step, (config, group, state, batch, keys), target)
        return GroupPlan(group, found, resident)
    logit_gradient = ShapeDtypeStruct(
        (*batch.weight.shape, len(group.scales)), jnp.float32, sharding=batch.weight.sharding
    )
    batch = batch._replace(logit_gradient=logit_gradient)
    arguments = config, group, scale_count, state.params, state, batch, keys
    resident += bytes_per_device((state.opt_state, state.average))
    return GroupPlan(group, footprint(add_group_gradient, arguments, target), resident)


def abstract_members(tree: Any, mesh: Mesh) -> Any:
    """Returns shapes, types and sharding of arrays of what is trained, the members in front."""
    return jax.tree.map(
        lambda leaf, place: ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        *(tree, sharding.places(tree, mesh)),
    )


def abstract_batch(setup: TrainSetup, image_spec: ImageSpec, batch_size: int) -> TrainBatch:
    """Returns shapes, types and sharding of a batch of images, with the teachers' weights."""

    def placed(spec: PartitionSpec, *shape: int, dtype: str = "float32") -> ShapeDtypeStruct:
        place = NamedSharding(setup.config.mesh, spec)
        return ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=place)

    height, width, bands = image_spec.shape
    return TrainBatch(
        placed(sharding.BY_CUTOUT, batch_size, height, width, bands, dtype=image_spec.dtype),
        placed(sharding.BY_CUTOUT, batch_size, bands, 4),
        placed(sharding.BY_CUTOUT, batch_size),
        placed(sharding.BY_MEMBER_AND_CUTOUT, len(setup.keys), batch_size),
        teachers=jax.tree.map(
            lambda leaf: placed(sharding.EVERYWHERE, *leaf.shape, dtype=leaf.dtype), setup.teachers
        ),
        sky=placed(sharding.BY_CUTOUT, batch_size, bands, 3) if image_spec.noise_free else None,
    )


def groups_of_run(
    setup: TrainSetup,
    state: TrainState,
    image_spec: ImageSpec,
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
    plan = plan_training(setup, state, image_spec, batch_size=batch_size, budget=available)
    for note in plan.notes():
        print(f"{setup.architecture}, {note}", file=sys.stderr)
    if hosts.is_first():
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


def steps_per_second(plan: TrainingPlan, state: TrainState, image_spec: ImageSpec) -> float:
    """Returns the steps per second at the last set of scales, on the device at hand, of one step.

    The state is given away.
    """
    setup = plan.setup
    blank = abstract_batch(setup, image_spec, plan.batch_size)
    batch = jax.tree.map(
        lambda leaf: hosts.from_whole(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), blank
    )
    step = functools.partial(train_step, setup.config, plan.groups[setup.scale_sets[-1]])
    state, losses = step(state, batch, setup.keys)
    jax.block_until_ready(losses)
    began = time.perf_counter()
    jax.block_until_ready(step(state, batch, setup.keys))
    return 1 / (time.perf_counter() - began)
