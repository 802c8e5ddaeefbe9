"""Training members, from the options to members on disk."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lensjax import results
from lensjax.cluster import hosts
from lensjax.ensemble import checkpoint, sharding
from lensjax.errors import UsageError
from lensjax.files import standing_folders
from lensjax.train import finetune, snapshots
from lensjax.train.data import Labelled
from lensjax.train.head import learn_head
from lensjax.train.loop import train_members
from lensjax.train.replay import Replayed
from lensjax.train.setup import TrainingData, member_info, training_record
from lensjax.train.verdict import judged, sentence
from lensjax.training_config import TrainConfig, check
from lensjax.training_data import training_and_validation
from lensjax.training_start import hyperparameters_of


@dataclass(frozen=True)
class Trained:
    """A member that is there now. `is_new` is False where an earlier run had trained it."""

    folder: Path
    info: checkpoint.MemberInfo
    is_new: bool
    counts: str

    def summary(self) -> str:
        """Returns where the member is and how it did on its validation data, and a second line on
        held-back grades where it learned from others."""
        found = {name: self.info.metrics[name]["value"] for name in ("auroc", "tpr0", "tpr10")}
        shown = ", ".join(f"{name.upper()} {value:.4f}" for name, value in found.items())
        how = "trained" if self.is_new else "was there"
        said = [f"{self.folder}: {how}; validation {shown}; {self.counts}"]
        if self.info.verdict:
            said.append(f"{self.folder} {sentence(self.info.verdict)}")
        return "\n".join(said)


def train(options: TrainConfig) -> Iterator[Trained]:
    """Yields each member as soon as it is on disk, `OUTPUT/<architecture>/<seed>/`.

    Raises UsageError for data without labels, unknown architectures, and a folder that holds
    another member.
    """
    if options.target is not None:
        raise UsageError("--target is for --plan: a run is planned for the devices that it is on")
    check(options)
    architectures = list(checkpoint.parse_ensemble(options.arch))
    training, validation, counts = training_and_validation(options)
    for architecture in architectures:
        yield from _team(options, training, validation, architecture, counts)


def _team(
    options: TrainConfig,
    training: TrainingData,
    validation: Labelled,
    architecture: str,
    counts: str,
) -> Iterator[Trained]:
    """Yields the members of an architecture, those that were there and those trained now.

    Raises UsageError where a folder holds a member that was trained otherwise.
    """
    hyperparameters = hyperparameters_of(options)
    folder, missing = options.output / architecture, []
    wanted = range(options.seed, options.seed + options.members)
    record = training_record(hyperparameters, training, architecture)
    for seed in wanted:
        info = _kept(folder / str(seed), options, record, training)
        if info is None:
            missing.append(seed)
        else:
            yield Trained(folder / str(seed), info, False, counts)
    if not missing:
        return
    folders = finetune.origins(hyperparameters, architecture)
    new = member_info(training, architecture, hyperparameters)
    if folders:
        print(finetune.account(folders, new), file=sys.stderr)
    seeds = _seeds_of_run(folder / "runs", wanted, missing) if options.resume else missing
    run = folder / "runs" / "-".join(map(str, seeds))
    if options.head_only:
        assert isinstance(training, Replayed)
        members = [learn_head(folders[s % len(folders)], new, s, training) for s in seeds]
    else:
        members = train_members(
            *(training, validation, architecture, hyperparameters, seeds, run),
            mesh=sharding.mesh_of(jax.devices(), options.member_shards, options.fsdp),
            memory_budget=options.memory_budget,
            resume=options.resume,
            save_seconds=60 * options.save_minutes,
        )
    for seed, member in zip(seeds, members, strict=True):
        if seed in missing:
            if isinstance(validation, Replayed):
                member = judged(member, folders[seed % len(folders)], validation)
            info = member.info
            if hosts.is_first():
                info = checkpoint.save_member(folder / str(seed), member, options.store)
            if info.verdict and hosts.is_first():
                results.write_json(run / f"verdict-{seed}.json", info.verdict)
            yield Trained(folder / str(seed), info, True, counts)
    if hosts.is_first():
        snapshots.discard(run)
    hosts.wait_for_all(f"members in {folder}")


def _seeds_of_run(runs: Path, wanted: Sequence[int], missing: list[int]) -> list[int]:
    """Returns the seeds to train together: those of a run that was stopped and has all that are
    missing, else the missing.

    Raises UsageError where a run was stopped that shares but some of them.
    """
    for folder in sorted(runs.glob("*")):
        seeds = snapshots.seeds_under_way(folder)
        if set(seeds).isdisjoint(missing):
            continue
        if set(missing) <= set(seeds) <= set(wanted):
            return seeds
        raise UsageError(
            f"{folder} holds a stopped training of the seeds {', '.join(map(str, seeds))}: "
            f"--seed {min(seeds)} --members {len(seeds)} goes on with it; delete that folder to "
            "train others"
        )
    return missing


def _kept(
    folder: Path, options: TrainConfig, record: dict[str, Any], training: TrainingData
) -> checkpoint.MemberInfo | None:
    """Returns the member in `folder`, None where there is none or it is to be trained anew."""
    there = standing_folders(folder.parent).get(folder.name)
    if there is None or not ((there / "member.json").exists() and options.resume):
        return None
    info = checkpoint.read_info(there)
    wanted = record | {"seed": int(folder.name)}
    if info.training == wanted and info.preprocessing == training.preprocessing:
        return info
    raise UsageError(
        f"{folder} holds a member trained otherwise; give another --seed or --output, or "
        "--no-resume to replace it"
    )
