"""Members that are computed in stages: the first of a cascade before the others, or those whose
logits are kept before those that are new."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lensjax import __version__
from lensjax.data.on_device import InputSpec
from lensjax.ensemble import plan, sharding
from lensjax.ensemble.checkpoint import MemberInfo
from lensjax.ensemble.plan import CompiledStep
from lensjax.ensemble.reuse import LogitStore, Reused
from lensjax.ensemble.stack import Ensemble, fit_fusion_params, fused_validation, subset
from lensjax.ensemble.staged import FIRST, FUSED, REST, Cascaded, Stage, Staged
from lensjax.ensemble.step import StepOptions, abstract_weights, ensemble_step, stage_step
from lensjax.errors import UsageError, refuse
from lensjax.members import Members, ScoringOptions, compiled, load_weights
from lensjax.memory import bytes_per_device
from lensjax.trust import cascade as trust
from lensjax.trust.cascade import Cascade, CascadeOptions
from lensjax.trust.run import PromiseOptions


@dataclass(frozen=True)
class StagedOptions(ScoringOptions, PromiseOptions, CascadeOptions):
    """How scores are computed, and in which stages."""

    reuse: Path | None = None
    """Folder of logits that are kept: a member computes no cutout of the same content again."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        for options in (ScoringOptions, PromiseOptions, CascadeOptions):
            options.__post_init__(self)
        wrong = {
            "--cascade and --reuse exclude each other": self.cascade is not None
            and self.reuse is not None,
            "--cascade and --reuse compute members in stages: drop --no-batch-parallel": (
                self.in_stages and not self.batch_parallel
            ),
        }
        refuse(wrong)

    @property
    def in_stages(self) -> bool:
        """Returns whether members are computed in stages."""
        return self.cascade is not None or self.reuse is not None


def find_cascade(config: StagedOptions, members: Members, input_spec: InputSpec) -> Cascade:
    """Returns the cascade of the members whose first one `config.cascade` names.

    Raises UsageError where that is none of them, or where validation data do not
    say what it would lose.
    """
    infos = members.infos
    if len(infos) == 1:
        raise UsageError("--cascade needs at least two members: the ensemble has one")
    wanted, architectures = config.cascade or "auto", {n: i.architecture for n, i in infos.items()}
    member = "" if wanted == "auto" else trust.named(wanted, architectures)
    cost = _operations(members, input_spec, config)
    cheapest = min(cost, key=lambda name: (cost[name], infos[name].calibration["brier"]))
    member = member or cheapest
    cut, lenses, prevalence = _cut(config, members, member)
    return Cascade(
        *(member, cut, lenses, config.cascade_loss, config.confidence),
        *(config.cascade_listed, prevalence, cost[member] / sum(cost.values())),
    )


def _cut(config: StagedOptions, members: Members, member: str) -> tuple[float, int, float]:
    """Returns the cut of a cascade whose first member this is, the number of lenses that it was set
    on, and the share of lenses at which the fused probability holds that lists them."""
    validated = fused_validation(members.ensemble, members.validations, config.fusion)
    if validated is None:
        raise UsageError(
            "--cascade needs members that share validation data: how many lenses it would lose is "
            "not known"
        )
    (fused, labels), validation = validated, members.validations[member] or {}
    calibration = members.infos[member].calibration
    cheap = calibration["slope"] * validation["logit"].astype(np.float64)
    cheap += calibration["intercept"]
    return *trust.cut(cheap, fused, labels, config, config.confidence), float(labels.mean())


def _operations(members: Members, input_spec: InputSpec, options: StepOptions) -> dict[str, float]:
    """Returns the floating-point operations of a cutout by member."""
    from lensjax.cluster.cost import work_of

    mesh, names = sharding.mesh_of(jax.local_devices()[:1]), iter(members.ensemble.names)
    found: dict[str, float] = {}
    inputs = plan.abstract_inputs(input_spec, 1, mesh)
    for group in members.ensemble.groups:
        of_group = [next(names) for _ in range(group.members)]
        alone = _subset(members, of_group[:1])
        step: Any = ensemble_step(alone, mesh, options)
        weights = abstract_weights(alone, mesh, options)
        found |= dict.fromkeys(of_group, work_of(step.trace(weights, inputs).jaxpr.jaxpr).flops)
    return found


def _subset(members: Members, names: Sequence[str]) -> Ensemble:
    """Returns the members of these names, fused as an ensemble of their own."""
    infos = [members.infos[name] for name in names]
    fitted, _ = fit_fusion_params(infos, [members.validations[name] for name in names])
    return subset(members.ensemble, names, fitted)


def cascaded(
    config: StagedOptions, members: Members, input_spec: InputSpec, rows: int, mesh: Mesh
) -> Staged:
    """Returns the stages of a cascade: its first member, then the others."""
    member = str(config.cascade)
    (cut, *_), calibration = _cut(config, members, member), members.infos[member].calibration
    knows = Cascaded(calibration["slope"], calibration["intercept"], cut)
    stages = _stages(config, members, [member], input_spec, rows, mesh)
    return Staged(stages[REST].names, stages, knows, alone=f"scored by {member} alone")


def reused(
    config: StagedOptions, members: Members, input_spec: InputSpec, rows: int, mesh: Mesh
) -> Staged:
    """Returns the stages of members whose logits are kept in `config.reuse`: first those that have
    seen the most cutouts, then the others."""
    infos = members.infos
    settings = {name: _logit_settings(config, info) for name, info in infos.items()}
    seen = {name: members.preprocessings.index(i.preprocessing) for name, i in infos.items()}
    store = LogitStore(config.reuse or Path(), settings, seen)
    names = members.ensemble.names
    # What is known of a cutout is found by its pixels: tiles are cut, and all measured, before.
    input_spec = replace(input_spec, sheets=None, measured=True)
    knows = Reused(store, names, config.mc_samples)
    stages = _stages(config, members, knows.before, input_spec, rows, mesh)
    return Staged(names, stages, knows)


def _stages(
    options: ScoringOptions,
    members: Members,
    first: Sequence[str],
    input_spec: InputSpec,
    rows: int,
    mesh: Mesh,
) -> dict[int, Stage]:
    """Returns the stages of all members: `first` are those of the first one, which is left out
    where there are none. All are compiled before weights are read. Tiles are cut by the first stage
    alone: what goes on comes to the others as images."""
    whole = members.ensemble
    known = tuple(name for name in whole.names if name in first)
    last = tuple(name for name in whole.names if name not in first)
    parts = {REST: subset(whole, last, whole.fusion_params)}
    if known:
        parts = {FIRST: _subset(members, known), **parts}
    taken = {n: bytes_per_device(abstract_weights(p, mesh, options)) for n, p in parts.items()}
    of_images = replace(input_spec, sheets=None)
    # Those that the first stage cuts, and the next ones.
    sheets = 2 * bytes_per_device(plan.abstract_inputs(input_spec, 1, mesh).sheets)
    steps = {}
    for number, part in parts.items():
        fused, along = (known, ()) if number == FIRST else (whole.names, known)
        with_logits = replace(of_images, logits=(len(along), options.mc_samples))
        steps[number] = compiled(
            part,
            with_logits if along else input_spec,
            rows,
            options,
            mesh,
            order=_order(fused, (*along, *part.names)),
            taken=sum(taken.values()) - taken[number] + (sheets if along else 0),
        )
    none = subset(whole, (), whole.fusion_params)
    only_fuse = stage_step(none, mesh, options, _order(whole.names, whole.names))
    spec = replace(of_images, logits=(len(whole.names), options.mc_samples))
    steps[FUSED] = CompiledStep(only_fuse, none, mesh, spec, steps[REST].cutouts)
    return {
        number: Stage(
            step, load_weights(members, step, options), known if number == FIRST else whole.names
        )
        for number, step in steps.items()
    }


def _order(wanted: Sequence[str], given: Sequence[str]) -> list[int]:
    """Returns where each of the members that are wanted is among those that are given."""
    return [given.index(name) for name in wanted]


def _logit_settings(options: StepOptions, info: MemberInfo) -> dict[str, Any]:
    """Returns all that the logits of a member depend on besides the cutout and the device."""
    settings = options.of_step() | {"member": info.identity_of_logits(), "version": __version__}
    del settings["fusion"]
    return settings
