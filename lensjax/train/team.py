"""A team before its first step: members of one architecture, stacked, that train together."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding

from lensjax import runtime
from lensjax.data.on_device import View
from lensjax.ensemble import sharding
from lensjax.ensemble.checkpoint import MemberInfo
from lensjax.errors import UsageError
from lensjax.models import registry
from lensjax.train.config import Hyperparameters
from lensjax.train.dataset import Labelled
from lensjax.train.finetune import frozen_names, paced, start_hashes, starts
from lensjax.train.losses import binary_loss
from lensjax.train.optimiser import optimiser
from lensjax.train.scales import scale_sets, views_at
from lensjax.train.step import Average, Setting, TrainState
from lensjax.train.stream import Stream

Training = Labelled | Stream


class Team(NamedTuple):
    """What a team is trained with; nothing of it changes.

    `scale_sets`: the scales of a step, all that there are. Of each batch at least so many
    `micro_batches`. `keys` (member,) draw augmentation and dropout. `weights` (member, cutout) is
    what each training cutout counts.
    """

    architecture: str
    setting: Setting
    mesh: Mesh
    scale_sets: tuple[tuple[int, ...], ...]
    micro_batches: int
    keys: Array
    weights: np.ndarray
    steps: int
    steps_an_epoch: int


def assemble(
    info: MemberInfo,
    view: View,
    labels: np.ndarray,
    hyperparameters: Hyperparameters,
    seeds: Sequence[int],
    mesh: Mesh,
) -> tuple[Team, TrainState]:
    """Returns the team of these seeds and its state before the first step.

    Raises UsageError where members, batches and parts of batches cannot be shared evenly.
    """
    _check_shares(hyperparameters, len(seeds), mesh)
    roots = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    fold_in = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    graph, params, statistics = initialise(info, fold_in(roots, 0))
    if hyperparameters.start_from is not None:
        params, statistics = starts(Path(hyperparameters.start_from), info, seeds)
    depths = registry.resolve(info.architecture).depths
    before, after = paced(
        depths, hyperparameters.layer_decay, frozen_names(hyperparameters.freeze, params)
    )
    views = views_at(view, hyperparameters.sizes() or [view.preprocessing.input_size])
    per_epoch = len(labels) // hyperparameters.batch_size
    steps = max(1, round(hyperparameters.epochs * per_epoch))
    setting = Setting(
        graph,
        views,
        functools.partial(
            binary_loss,
            smoothing=hyperparameters.label_smoothing,
            focusing=hyperparameters.focusing,
        ),
        optimiser(
            learning_rate=hyperparameters.learning_rate,
            weight_decay=hyperparameters.weight_decay,
            steps=steps,
            warmup=hyperparameters.warmup,
            phases=len(views) if hyperparameters.schedule == "progressive" else 1,
            before=before,
            after=after,
        ),
        hyperparameters.consistency_weight,
        hyperparameters.precision,
        hyperparameters.average_decay,
        hyperparameters.augmentation(),
    )
    team = Team(
        info.architecture,
        setting,
        mesh,
        scale_sets(hyperparameters.schedule, len(views)),
        hyperparameters.micro_batches,
        jax.device_put(fold_in(roots, 1), NamedSharding(mesh, sharding.BY_MEMBER)),
        weigh(seeds, labels, hyperparameters),
        steps,
        per_epoch,
    )
    # Copies: a state is given away, and no array can be given twice.
    of_scales = tuple(jax.tree.map(jnp.copy, statistics) for _ in views)
    average = Average(params, of_scales, jnp.zeros((len(seeds), len(views)), jnp.int32))
    return team, TrainState(
        params,
        of_scales,
        jax.jit(jax.vmap(setting.optimizer.init))(params),
        jax.tree.map(jnp.copy, average) if hyperparameters.average_decay is not None else None,
        jnp.zeros(len(seeds), jnp.int32),
    )


def weigh(seeds: Sequence[int], labels: np.ndarray, hyperparameters: Hyperparameters) -> np.ndarray:
    """Returns what each cutout counts for each member, (member, cutout) float32.

    Balanced, each class counts half of all. With bootstrap a cutout counts as often as it stands in
    a resample: Poisson(1), which the count of draws with replacement tends to (Oza & Russell 2001,
    "Online bagging and boosting").
    """
    count = len(labels)
    weights = np.ones((len(seeds), count))
    if hyperparameters.bootstrap:
        weights *= [np.random.default_rng([seed, count]).poisson(1.0, count) for seed in seeds]
    if hyperparameters.balanced:
        share = labels.mean()
        weights *= np.where(labels == 1, 0.5 / max(share, 1e-9), 0.5 / max(1 - share, 1e-9))
    return weights.astype(np.float32)


def _check_shares(hyperparameters: Hyperparameters, members: int, mesh: Mesh) -> None:
    """Raises UsageError where members, batches and parts of batches cannot be shared evenly."""
    shards, parts = mesh.shape[sharding.MEMBER], mesh.shape[sharding.DATA]
    batch_size = hyperparameters.batch_size
    if batch_size % hyperparameters.micro_batches:
        raise UsageError(
            f"--micro-batches {hyperparameters.micro_batches} does not divide "
            f"--batch-size {batch_size}"
        )
    if members % shards:
        raise UsageError(f"--member-shards {shards} does not divide the {members} members to train")
    if batch_size % parts:
        raise UsageError(
            f"{parts} devices cannot share --batch-size {batch_size}: take a multiple of {parts}"
        )


def initialise(info: MemberInfo, keys: Array) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Returns the graph of new networks, their parameters and their batch statistics, both with
    the `keys` (member,) in front."""
    drawn = [nnx.split(info.build(nnx.Rngs(key)), nnx.Param, nnx.BatchStat) for key in keys]
    # Stacked by NumPy, which has nothing to compile.
    params, statistics = (
        jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *states)
        for states in zip(*(states for _, *states in drawn), strict=True)
    )
    return drawn[0][0], params, statistics


def member_info(
    training: Training, architecture: str, hyperparameters: Hyperparameters
) -> MemberInfo:
    """Returns what is known of a member before it is trained."""
    return MemberInfo(
        architecture,
        training.preprocessing,
        *hyperparameters.rates(),
        training=training_record(hyperparameters, training, architecture),
        versions=runtime.versions(),
    )


def training_record(
    hyperparameters: Hyperparameters, training: Training, architecture: str
) -> dict[str, Any]:
    """Returns what `member.json` says of the training, all but the seed; the same record and the
    same seed mean the same member."""
    dropout, block_dropout = hyperparameters.rates()
    return (
        dataclasses.asdict(hyperparameters)
        | {
            "dropout": dropout,
            "block_dropout": block_dropout,
            "started_from_sha256": start_hashes(hyperparameters.start_from, architecture),
        }
        | training.record
    )
