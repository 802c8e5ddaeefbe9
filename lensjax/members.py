"""Members on disk, and the step that is compiled for them."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jax.sharding import Mesh

from lensjax import runtime
from lensjax.data.on_device import InputSpec
from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble import checkpoint, plan, sharding
from lensjax.ensemble.checkpoint import MemberInfo, Validation
from lensjax.ensemble.plan import FULL_BATCH, SHARE_OF_HOST, CompiledStep, batch_sizes
from lensjax.ensemble.stack import Ensemble, abstract_ensemble, with_weights
from lensjax.ensemble.step import StepOptions, Weights, place_weights
from lensjax.errors import refuse
from lensjax.memory import memory_budget


@dataclass(frozen=True)
class ScoringOptions(StepOptions):
    """How scores are computed."""

    batch_size: int | Literal["auto"] = FULL_BATCH
    """Cutouts per step; auto, for accelerators: as many as fit into the memory."""
    batch_parallel: bool = True
    """Run all members and samples in one step, not one by one."""
    member_shards: int = 1
    """Distribute the weights over this many devices; the others share the cutouts."""
    workers: int | Literal["auto"] = "auto"
    """Processes that read files; 0: threads; auto: one per core if there are many files and an
    accelerator."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        super().__post_init__()
        one_by_one = not self.batch_parallel
        wrong = {
            "--batch-size must be at least 1": self.batch_size != "auto" and self.batch_size < 1,
            "--member-shards must be at least 1": self.member_shards < 1,
            "--workers must not be negative": self.workers != "auto" and self.workers < 0,
            "--batch-size auto is for members that run together: name a number": (
                self.batch_size == "auto" and one_by_one
            ),
            "--member-shards shares members that run together: drop --no-batch-parallel": (
                self.member_shards > 1 and one_by_one
            ),
        }
        refuse(wrong)


@dataclass(frozen=True)
class Members:
    """Members on disk, by column name: where they are and all that is known of them but weights."""

    folders: Mapping[str, Path]
    infos: Mapping[str, MemberInfo]
    validations: Mapping[str, Validation | None]
    preprocessings: tuple[Preprocessing, ...]
    """What members see and how, each once."""
    bands: tuple[str, ...]
    """Every band that some member sees, in the order in which members name them."""
    pixels: np.ndarray | None = None
    """(n, statistic), the pixels' statistics that calibration knew: those of a member that sees the
    first of the preprocessings. None where none of them keeps any."""
    left_out: tuple[str, ...] = ()
    """Further members in the folder, which nobody named and the stacked score does not need."""

    @functools.cached_property
    def ensemble(self) -> Ensemble:
        """Returns these members as an abstract ensemble, which takes a second or more to make: once
        for all that ask."""
        return abstract_ensemble(self.infos, self.validations)


def find_members(checkpoints: Path, ensemble: str | None) -> Members:
    """Returns the members that `ensemble` names in a folder, as `checkpoint.find_members` has it.

    Raises UsageError where there are none or too few, LensjaxError where one is damaged.
    """
    folders = checkpoint.find_members(checkpoints, ensemble)
    infos = {name: checkpoint.read_info(folder) for name, folder in folders.items()}
    validations = {name: checkpoint.read_validation(folder) for name, folder in folders.items()}
    preprocessings = tuple(dict.fromkeys(info.preprocessing for info in infos.values()))
    bands = dict.fromkeys(band for preprocessing in preprocessings for band in preprocessing.bands)
    alike = (n for n, info in infos.items() if info.preprocessing == preprocessings[0])
    known = (checkpoint.read_pixels(folders[name]) for name in alike)
    pixels = next((each for each in known if each is not None), None)
    everyone = () if ensemble else checkpoint.find_members(checkpoints, checkpoint.ALL)
    left_out = tuple(name for name in everyone if name not in folders)
    return Members(folders, infos, validations, preprocessings, tuple(bands), pixels, left_out)


def compile_step(
    members: Members,
    input_spec: InputSpec,
    rows: int,
    options: ScoringOptions,
    mesh: Mesh,
    one_by_one: bool = False,
) -> CompiledStep:
    """Returns the step for these members and so many cutouts, compiled for as many at once as fit
    the memory. No weights are read yet: what memory compiling takes is free again for them."""
    return compiled(members.ensemble, input_spec, rows, options, mesh, one_by_one=one_by_one)


def compiled(
    ensemble: Ensemble,
    input_spec: InputSpec,
    rows: int,
    options: ScoringOptions,
    mesh: Mesh,
    *,
    one_by_one: bool = False,
    order: Sequence[int] | None = None,
    taken: int = 0,
) -> CompiledStep:
    """Returns the step of an ensemble as `compile_step` does; with an `order` it is a `stage_step`,
    beside which others take so many bytes of each device."""
    if options.batch_size == "auto":
        batches = batch_sizes(rows, input_spec, mesh)
    else:
        batches = [sharding.divisible(options.batch_size, mesh)]
        if batches[0] != options.batch_size:
            print(f"batches of {batches[0]} cutouts, so that {mesh.size} devices can share them")
    compiled = plan.compile_step(
        ensemble,
        mesh,
        input_spec,
        batches,
        options,
        budget=memory_budget(mesh, SHARE_OF_HOST) - taken,
        one_by_one=one_by_one or not options.batch_parallel,
        order=order,
    )
    if options.batch_size == "auto" or compiled.samples_at_once:
        print(f"a step takes {compiled}", flush=True)
    runtime.give_back_memory()
    return compiled


def load_weights(members: Members, step: CompiledStep, options: ScoringOptions) -> Weights:
    """Returns the weights of the members on the devices, read and placed group by group."""
    ensemble = read_ensemble(members, step.ensemble)
    weights = place_weights(ensemble, step.mesh, options)
    del ensemble
    runtime.give_back_memory()
    return weights


def read_ensemble(members: Members, abstract: Ensemble) -> Ensemble:
    """Returns an abstract ensemble with the weights of its members, in the host's memory."""
    return with_weights(
        abstract,
        members.infos,
        lambda name: checkpoint.read_weights(members.folders[name], members.infos[name]),
    )
