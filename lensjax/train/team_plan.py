"""The plan of a team's whole training, as a user asks for it, sees it and finds it on disk."""

import dataclasses
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lensjax.data.on_device import Canvas
from lensjax.errors import UsageError
from lensjax.memory import Target, memory_budget
from lensjax.train.plan import Need, Outline, Plan, Scales, in_gb, outline_of, plan_step
from lensjax.train.step import Programs, ResolutionGroup, TrainState
from lensjax.train.team import Team

# On a CPU the next batches and other programs live in the same memory.
SHARE_OF_HOST = 0.8


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

    def _sizes(self, group: ResolutionGroup) -> str:
        views = self.team.setting.views
        sizes = "+".join(str(views[scale].preprocessing.input_size) for scale in group.scales)
        parts = f" / {group.micro_batches}" if group.micro_batches > 1 else ""
        return sizes + parts + (" remat" if group.remat else "")

    def _said(self, need: Need) -> dict[str, Any]:
        views, found = self.team.setting.views, need.footprint
        return dataclasses.asdict(need.group) | {
            "sizes": [views[scale].preprocessing.input_size for scale in need.group.scales],
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
    """Returns the plans of all steps of a team on batches of a canvas. Raises as `plan_step`."""
    outline = outline_of(team, state, canvas, batch)
    device = target.device if target else team.mesh.devices.flat[0]
    plans = {
        scales: plan_step(
            *(team.setting, scales, outline, team.mesh),
            budget=budget,
            micro_batches=team.micro_batches,
            target=target,
            compare=compare,
        )
        for scales in team.scale_sets
    }
    return TeamPlan(team, batch, device.device_kind, budget, plans)


def recorded_groups(path: Path, budget: str) -> list[ResolutionGroup] | None:
    """Returns the groups in a plan.json that was made for this `--memory-budget`, None without."""
    try:
        record = json.loads(path.read_text())
        if record["memory_budget"] != budget:
            return None
        names = [field.name for field in dataclasses.fields(ResolutionGroup)]
        groups = [{name: group[name] for name in names} for group in record["groups"]]
        return [ResolutionGroup(**group | {"scales": tuple(group["scales"])}) for group in groups]
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
