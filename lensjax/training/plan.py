"""Which scales share a program, so that each program fits the memory, by the word of the compiler.

All scales at once are fastest, and taken where they fit. Else each scale is asked what it needs
alone, is cut into micro-batches and then rematerialised where that is too much, and neighbours are
put together as long as they fit: neighbours, because running statistics of batch normalisation
follow the scales in their order, whatever the groups.
"""

import dataclasses
import functools
import json
import math
import re
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

from lensjax.data.on_device import Canvas
from lensjax.ensemble import placement
from lensjax.errors import UsageError
from lensjax.files import replacing
from lensjax.footprint import Footprint, Target, footprint_for, memory_budget
from lensjax.training.step import Examples, Group, Programs, Setting, TrainState
from lensjax.training.team import Team

# Batch normalisation by the statistics of fewer cutouts is mostly noise.
SMALLEST_PART = 4

# On a CPU the next batches and other programs live in the same memory.
SHARE_OF_HOST = 0.8

Scales = tuple[int, ...]
"""Scales by their place, from the smallest: those of a step, or of a group of it."""


@dataclass(frozen=True)
class Outline:
    """The arguments of a step, of which there are only shapes and types."""

    state: TrainState
    examples: Examples
    keys: Any

    @property
    def batch(self) -> int:
        return self.examples.label.shape[0]

    def of_batch(self, batch: int) -> "Outline":
        """Returns the outline of the same step with another batch."""

        def cut(leaf: Any, axis: int) -> Any:
            shape = (*leaf.shape[:axis], batch, *leaf.shape[axis + 1 :])
            return ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

        axes = Examples(0, 0, 0, 1)
        return dataclasses.replace(self, examples=jax.tree.map(cut, self.examples, axes))


@dataclass(frozen=True)
class Need:
    """What the program of a group takes on each device, None where the compiler gives up.

    `resident`: bytes of what is no argument of the program, but there while it runs: the
    optimiser's state, the averaged parameters, and the next batch.
    """

    programs: Programs
    footprint: Footprint | None
    resident: int

    @property
    def group(self) -> Group:
        return self.programs.groups[0]

    @property
    def peak(self) -> float:
        return float("inf") if self.footprint is None else self.footprint.peak + self.resident


@dataclass(frozen=True)
class Plan:
    """The groups of a step, in their order, and the figures that they were chosen by.

    `together`: all scales in one program. `alone`: each scale in one of its own, empty where it
    was not asked.
    """

    needs: tuple[Need, ...]
    together: Need
    alone: tuple[Need, ...]
    compile_seconds: float

    @property
    def groups(self) -> tuple[Group, ...]:
        return tuple(need.group for need in self.needs)

    @property
    def peak(self) -> float:
        """Returns the bytes of the largest group: one is gone before the next begins."""
        return max(need.peak for need in self.needs)

    def programs(self, setting: Setting, mesh: Mesh) -> Programs:
        """Returns the programs of the step; that of all scales at once is compiled already."""
        if len(self.needs) == 1:
            return self.needs[0].programs
        return Programs(setting, self.groups, mesh)


Ask = Callable[[Group, bool, int], Need]
"""From a group, whether it is the only one, and a batch, to what it needs."""


def plan(
    setting: Setting,
    scales: tuple[int, ...],
    outline: Outline,
    mesh: Mesh,
    *,
    budget: float,
    micro_batches: int = 1,
    target: Target | None = None,
    compare: bool = False,
) -> Plan:
    """Returns the Plan with the fewest groups that fit the `budget`, in bytes on each device.

    Each group has at least so many `micro_batches`. With `compare` all scales are asked alone even
    where they fit together. Raises UsageError where a scale cannot be made to fit, naming the
    largest batch that would.
    """

    @functools.cache
    def ask(group: Group, sole: bool, batch: int) -> Need:
        count = None if sole else len(scales)
        return need(setting, group, outline.of_batch(batch), mesh, target, count)

    began = time.perf_counter()
    sizes = [view.preparation.input_size for view in setting.views]
    together = ask(Group(scales, micro_batches), True, outline.batch)
    plain = [Group((scale,), micro_batches) for scale in scales]
    fits = together.peak <= budget
    needs: tuple[Need, ...] = (together,)
    if not fits:
        needs = choose(ask, plain, sizes, outline.batch, budget)
    alone = tuple(ask(group, len(scales) == 1, outline.batch) for group in plain)
    if fits and not compare:
        alone = ()
    return Plan(needs, together, alone, time.perf_counter() - began)


def choose(
    ask: Ask, plain: Sequence[Group], sizes: Sequence[int], batch: int, budget: float
) -> tuple[Need, ...]:
    """Returns the fewest groups of neighbours that each fit the `budget`, for a step that does not
    fit as a whole.

    `plain` holds a group a scale, ascending. The largest scales begin: each group takes the next
    smaller scale in as long as it fits and both are treated alike.
    """
    sole = len(plain) == 1
    first, *others = (
        _fitted(ask, group, sizes, batch, budget, sole=sole) for group in reversed(plain)
    )
    groups = [first]
    for smaller in others:
        joined = _joined(smaller, groups[0])
        # Activations add up: a sum beyond the budget need not be compiled to know.
        if joined is not None and smaller.peak + groups[0].peak - _fixed(smaller) <= budget:
            both = ask(joined, False, batch)
            if both.peak <= budget:
                groups[0] = both
                continue
        groups.insert(0, smaller)
    return tuple(groups)


def need(
    setting: Setting,
    group: Group,
    outline: Outline,
    mesh: Mesh,
    target: Target | None = None,
    scale_count: int | None = None,
) -> Need:
    """Returns what a group takes whose program is the whole step, or one of several of a step of so
    many scales."""
    programs = Programs(setting, (group,), mesh, scale_count)
    state, examples, keys = outline.state, outline.examples, outline.keys
    arguments: tuple[Any, ...] = state, examples, keys
    program, elsewhere = programs.whole, _bytes(examples.images)
    if scale_count is not None:
        members, batch = examples.weight.shape
        pull = ShapeDtypeStruct(
            (members, batch, len(group.scales)), jnp.float32, sharding=examples.weight.sharding
        )
        program = programs.add[0]
        arguments = state.params, state.params, state.statistics, state.step, examples, keys, pull
        elsewhere += _bytes((state.optimizer, state.average))
    return Need(programs, footprint_for(program, arguments, target), elsewhere)


def outline_of(team: Team, state: TrainState, canvas: Canvas, batch: int) -> Outline:
    """Returns the outline of a team's steps on batches of a canvas."""

    def places(*axes: str | None) -> NamedSharding:
        return NamedSharding(team.mesh, jax.sharding.PartitionSpec(*axes))

    by_member, by_cutout = places(placement.MEMBER), places(placement.DATA)
    both = NamedSharding(team.mesh, placement.BY_MEMBER_AND_CUTOUT)

    def abstract(leaf: Any) -> ShapeDtypeStruct:
        return ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=by_member)

    examples = Examples(
        ShapeDtypeStruct((batch, *canvas.shape), jnp.dtype(canvas.dtype), sharding=by_cutout),
        ShapeDtypeStruct((batch, 4), jnp.int32, sharding=by_cutout),
        ShapeDtypeStruct((batch,), jnp.float32, sharding=by_cutout),
        ShapeDtypeStruct((len(state.step), batch), jnp.float32, sharding=both),
    )
    return Outline(jax.tree.map(abstract, state), examples, abstract(team.keys))


def _fitted(
    ask: Ask, plain: Group, sizes: Sequence[int], batch: int, budget: float, *, sole: bool
) -> Need:
    """Returns the first way to treat a scale that fits the budget, the least change first.

    Raises UsageError where none does.
    """
    for group in _ways(plain, batch):
        found = ask(group, sole, batch)
        if found.peak <= budget:
            return found
    smaller = batch // 2
    while smaller:
        if any(ask(way, sole, smaller).peak <= budget for way in _ways(plain, smaller)):
            break
        smaller //= 2
    size = sizes[plain.scales[0]]
    advice = f"a batch of {smaller} would" if smaller else "not even one cutout would"
    raise UsageError(
        f"scale {size} does not fit the memory budget of {in_gb(budget)}, whether in parts of the "
        f"batch or rematerialised: {advice}. Change --batch-size, --scales or --memory-budget"
    )


def _ways(plain: Group, batch: int) -> list[Group]:
    """Returns the ways to treat a scale, the least change first."""
    parts = [plain.micro_batches]
    while batch % (2 * parts[-1]) == 0 and batch // (2 * parts[-1]) >= SMALLEST_PART:
        parts.append(2 * parts[-1])
    return [
        dataclasses.replace(plain, micro_batches=number, remat=remat)
        for remat in (False, True)
        for number in parts
    ]


def _joined(smaller: Need, larger: Need) -> Group | None:
    """Returns the group of the scales of both, None where they are treated differently."""
    a, b = smaller.group, larger.group
    if (a.micro_batches, a.remat) != (b.micro_batches, b.remat):
        return None
    return dataclasses.replace(a, scales=(*a.scales, *b.scales))


def _fixed(need: Need) -> float:
    """Returns the bytes of a need that a group of several scales has once."""
    assert need.footprint is not None  # it fits
    return need.resident + need.footprint.arguments


def _bytes(tree: Any) -> int:
    """Returns the bytes of a tree of outlines on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def budget_bytes(text: str, mesh: Mesh) -> int:
    """Returns the bytes that `--memory-budget` names: a number of them, `16GiB`, or with `auto`
    what the device has, less what lives there.

    Raises UsageError for anything else.
    """
    if text == "auto":
        lives = (mesh.devices.flat[0].memory_stats() or {}).get("bytes_in_use", 0)
        return memory_budget(mesh, SHARE_OF_HOST) - lives
    match = re.fullmatch(r"(\d+\.?\d*) ?(?:([kMGT])(i?))?B?", text)
    if match is None:
        raise UsageError(f"--memory-budget {text}: give bytes, a size as 16GiB or 3.5GB, or auto")
    number, prefix, binary = match.groups()
    power = " kMGT".index(prefix) if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


@dataclass(frozen=True)
class TeamPlan:
    """The plans of all steps of a team, by the scales of a step; `budget` in bytes on each
    device."""

    team: Team
    batch: int
    device: str
    budget: int
    plans: Mapping[Scales, Plan]

    @property
    def peak(self) -> float:
        return max(plan.peak for plan in self.plans.values())

    @property
    def peak_at_once(self) -> float:
        return max(plan.together.peak for plan in self.plans.values())

    def programs(self) -> dict[Scales, Programs]:
        """Returns the programs of the steps."""
        setting, mesh = self.team.setting, self.team.mesh
        return {scales: plan.programs(setting, mesh) for scales, plan in self.plans.items()}

    def notes(self) -> list[str]:
        """Returns a line for each group that is not simply computed at once."""
        lines = []
        for group in (group for plan in self.plans.values() for group in plan.groups):
            sizes = self._sizes(group)
            if group.micro_batches > 1:
                lines.append(
                    f"{sizes}: in {group.micro_batches} micro-batches of "
                    f"{self.batch // group.micro_batches}; batch normalisation takes the "
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
        team, lines = self.team, []
        lines.append(
            f"{team.architecture}, {len(team.keys)} members, batch {self.batch}, "
            f"{team.setting.precision}, {self.device}; budget {in_gb(self.budget)}"
        )
        form = "{:<28}{:>10}{:>10}{:>12}{:>10}{:>10}".format
        lines.append(form("GB", "arguments", "outputs", "temporaries", "resident", "peak"))
        rows: dict[str, Need] = {}
        for plan in self.plans.values():
            rows |= {self._sizes(need.group): need for need in (*plan.alone, plan.together)}
            rows |= {f"group {self._sizes(need.group)}": need for need in plan.needs}
        for name, need in rows.items():
            found = need.footprint
            parts = (
                (found.arguments, found.outputs, found.temporaries) if found else (math.inf,) * 3
            )
            numbers = (*parts, need.resident, need.peak)
            lines.append(form(name, *(f"{number / 1e9:.3f}" for number in numbers)))
        saving = 1 - self.peak / self.peak_at_once
        lines.append(
            f"peak {in_gb(self.peak)}, {saving:.0%} less than the {in_gb(self.peak_at_once)} of "
            "all at once"
        )
        return "\n".join([*lines, *self.notes()])

    def record(self) -> dict[str, Any]:
        """Returns what plan.json says."""
        needs = [need for plan in self.plans.values() for need in plan.needs]
        alone = [need for plan in self.plans.values() for need in plan.alone]
        return {
            "architecture": self.team.architecture,
            "members": len(self.team.keys),
            "batch_size": self.batch,
            "precision": self.team.setting.precision,
            "device": self.device,
            "memory_budget_bytes": self.budget,
            "resolutions": [self._said(need) for need in alone],
            "groups": [self._said(need) for need in needs],
            "peak_bytes": self.peak,
            "all_at_once_peak_bytes": self.peak_at_once,
            "compile_seconds": sum(plan.compile_seconds for plan in self.plans.values()),
        }

    def _sizes(self, group: Group) -> str:
        views = self.team.setting.views
        sizes = "+".join(str(views[scale].preparation.input_size) for scale in group.scales)
        parts = f" / {group.micro_batches}" if group.micro_batches > 1 else ""
        return sizes + parts + (" remat" if group.remat else "")

    def _said(self, need: Need) -> dict[str, Any]:
        views, found = self.team.setting.views, need.footprint
        return dataclasses.asdict(need.group) | {
            "sizes": [views[scale].preparation.input_size for scale in need.group.scales],
            "arguments_bytes": found and found.arguments,
            "outputs_bytes": found and found.outputs,
            "temporaries_bytes": found and found.temporaries,
            "resident_bytes": need.resident,
            "peak_bytes": None if found is None else need.peak,
        }


def plan_team(
    team: Team,
    state: TrainState,
    canvas: Canvas,
    *,
    batch: int,
    budget: int,
    target: Target | None = None,
    compare: bool = False,
) -> TeamPlan:
    """Returns the plans of all steps of a team on batches of a canvas. Raises as `plan` does."""
    outline = outline_of(team, state, canvas, batch)
    device = target.device if target else team.mesh.devices.flat[0]
    plans = {
        scales: plan(
            *(team.setting, scales, outline, team.mesh),
            budget=budget,
            micro_batches=team.micro_batches,
            target=target,
            compare=compare,
        )
        for scales in team.scale_sets
    }
    return TeamPlan(team, batch, device.device_kind, budget, plans)


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Writes plan.json."""
    text = (json.dumps(record, indent=1) + "\n").encode()
    with replacing(path, len(text)) as file:
        file.write(text)


def recorded_groups(path: Path, budget: str) -> list[Group] | None:
    """Returns the groups in a plan.json that was made for this `--memory-budget`, None without."""
    try:
        record = json.loads(path.read_text())
        if record["memory_budget"] != budget:
            return None
        names = [field.name for field in dataclasses.fields(Group)]
        groups = [{name: group[name] for name in names} for group in record["groups"]]
        return [Group(**group | {"scales": tuple(group["scales"])}) for group in groups]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def speed(team: Team, programs: Programs, state: TrainState, outline: Outline) -> float:
    """Returns the steps a second of these programs on the device at hand, of one step.

    The state is given away.
    """

    def zeros(leaf: Any) -> Any:
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

    examples = jax.tree.map(zeros, outline.examples)
    state, losses = programs(state, examples, team.keys)
    jax.block_until_ready(losses)
    began = time.perf_counter()
    jax.block_until_ready(programs(state, examples, team.keys))
    return 1 / (time.perf_counter() - began)


def in_gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
