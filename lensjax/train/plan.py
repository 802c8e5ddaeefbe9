"""Which scales share a program, so that each program fits the memory, by the word of the compiler.

All scales at once are fastest, and taken where they fit. Else each scale is asked what it needs
alone, is cut into micro-batches and then rematerialised where that is too much, and neighbours are
put together as long as they fit.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct
from jax.sharding import Mesh, NamedSharding

from lensjax.data.on_device import Canvas
from lensjax.ensemble import sharding
from lensjax.errors import UsageError
from lensjax.memory import Footprint, Target, footprint
from lensjax.train.step import Examples, Programs, ResolutionGroup, Setting, TrainState
from lensjax.train.team import Team

# Batch normalisation by the statistics of fewer cutouts is mostly noise.
SMALLEST_PART = 4

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
    def group(self) -> ResolutionGroup:
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
    def groups(self) -> tuple[ResolutionGroup, ...]:
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


Ask = Callable[[ResolutionGroup, bool, int], Need]
"""From a group, whether it is the only one, and a batch, to what it needs."""


def plan_step(
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
    def ask(group: ResolutionGroup, sole: bool, batch: int) -> Need:
        count = None if sole else len(scales)
        return need(setting, group, outline.of_batch(batch), mesh, target, count)

    began = time.perf_counter()
    sizes = [view.preprocessing.input_size for view in setting.views]
    together = ask(ResolutionGroup(scales, micro_batches), True, outline.batch)
    plain = [ResolutionGroup((scale,), micro_batches) for scale in scales]
    fits = together.peak <= budget
    needs: tuple[Need, ...] = (together,)
    if not fits:
        needs = choose(ask, plain, sizes, outline.batch, budget)
    alone: tuple[Need, ...] = ()
    if compare or not fits:
        alone = tuple(ask(group, len(scales) == 1, outline.batch) for group in plain)
    return Plan(needs, together, alone, time.perf_counter() - began)


def choose(
    ask: Ask, plain: Sequence[ResolutionGroup], sizes: Sequence[int], batch: int, budget: float
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
    group: ResolutionGroup,
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
    return Need(programs, footprint(program, arguments, target), elsewhere)


def outline_of(team: Team, state: TrainState, canvas: Canvas, batch: int) -> Outline:
    """Returns the outline of a team's steps on batches of a canvas."""

    def places(*axes: str | None) -> NamedSharding:
        return NamedSharding(team.mesh, jax.sharding.PartitionSpec(*axes))

    by_member, by_cutout = places(sharding.MEMBER), places(sharding.DATA)
    both = NamedSharding(team.mesh, sharding.BY_MEMBER_AND_CUTOUT)

    def abstract(leaf: Any) -> ShapeDtypeStruct:
        return ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=by_member)

    examples = Examples(
        ShapeDtypeStruct((batch, *canvas.shape), jnp.dtype(canvas.dtype), sharding=by_cutout),
        ShapeDtypeStruct((batch, canvas.shape[2], 4), jnp.float32, sharding=by_cutout),
        ShapeDtypeStruct((batch,), jnp.float32, sharding=by_cutout),
        ShapeDtypeStruct((len(state.step), batch), jnp.float32, sharding=both),
    )
    return Outline(jax.tree.map(abstract, state), examples, abstract(team.keys))


def _fitted(
    ask: Ask, plain: ResolutionGroup, sizes: Sequence[int], batch: int, budget: float, *, sole: bool
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


def _ways(plain: ResolutionGroup, batch: int) -> list[ResolutionGroup]:
    """Returns the ways to treat a scale, the least change first."""
    parts = [plain.micro_batches]
    while batch % (2 * parts[-1]) == 0 and batch // (2 * parts[-1]) >= SMALLEST_PART:
        parts.append(2 * parts[-1])
    return [
        dataclasses.replace(plain, micro_batches=number, remat=remat)
        for remat in (False, True)
        for number in parts
    ]


def _joined(smaller: Need, larger: Need) -> ResolutionGroup | None:
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


def in_gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
