"""The start of a training: its static settings and its initial state."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding

from lensjax import runtime
from lensjax.cluster import hosts
from lensjax.data.on_device import Transform
from lensjax.ensemble import sharding
from lensjax.ensemble.checkpoint import MemberInfo
from lensjax.errors import UsageError
from lensjax.models import registry
from lensjax.train import teachers
from lensjax.train.config import Hyperparameters
from lensjax.train.data import Labelled, transforms_at
from lensjax.train.finetune import frozen_names, hashes, layerwise, origins, starts
from lensjax.train.losses import binary_loss
from lensjax.train.member_step import StepConfig
from lensjax.train.schedule import adamw, scale_sets
from lensjax.train.simulated import Simulated
from lensjax.train.state import Average, TrainState

TrainingData = Labelled | Simulated


class TrainSetup(NamedTuple):
    """What the members of one architecture, stacked, are trained with; nothing of it changes.

    `scale_sets`: the sets of scales that steps train at. `micro_batches`: of each batch, at least.
    `keys` (member,) draw augmentation and dropout. `weights` (member, cutout) are those of the
    training cutouts in the loss. `teachers`: the weights of each teacher.
    """

    architecture: str
    config: StepConfig
    scale_sets: tuple[tuple[int, ...], ...]
    micro_batches: int
    keys: Array
    weights: np.ndarray
    steps: int
    steps_per_epoch: int
    teachers: tuple[Any, ...] = ()


def set_up(
    info: MemberInfo,
    transform: Transform,
    labels: np.ndarray,
    hyperparameters: Hyperparameters,
    seeds: Sequence[int],
    mesh: Mesh,
    *,
    weight: np.ndarray | None = None,
    epoch_length: int | None = None,
) -> tuple[TrainSetup, TrainState]:
    """Returns the setup of members of these seeds and their state before the first step.

    `labels` and `weight` (cutout,) are of the training cutouts (None: all count alike), of which
    an epoch shows so many (None: each once).
    Raises UsageError where members, batches and micro-batches cannot be shared evenly.
    """
    _check_shares(hyperparameters, len(seeds), mesh)
    roots = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    fold_in = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    graph, params, batch_stats = initialise(info, fold_in(roots, 0))
    folders = origins(hyperparameters, info.architecture)
    if folders:
        params, batch_stats = starts(folders, info, seeds)
    transforms = transforms_at(
        transform, hyperparameters.sizes() or [transform.preprocessing.input_size]
    )
    # A few graded cutouts may be less than a batch.
    length = epoch_length or len(labels)
    steps_per_epoch = max(1, length // hyperparameters.batch_size)
    steps = max(1, round(hyperparameters.epochs * steps_per_epoch))
    before, after = layerwise(
        registry.resolve(info.architecture).depths,
        hyperparameters.layer_decay,
        frozen_names(hyperparameters.freeze, params),
    )
    taught_by, weights_of_teachers = teachers.load(hyperparameters, transform, mesh)
    config = StepConfig(
        graph=graph,
        transforms=transforms,
        loss=functools.partial(
            binary_loss,
            smoothing=hyperparameters.label_smoothing,
            focusing=hyperparameters.focusing,
        ),
        optimizer=adamw(
            learning_rate=hyperparameters.learning_rate,
            weight_decay=hyperparameters.weight_decay,
            steps=steps,
            warmup=hyperparameters.warmup,
            phases=len(transforms) if hyperparameters.schedule == "progressive" else 1,
            before=before,
            after=after,
        ),
        mesh=mesh,
        consistency_weight=hyperparameters.consistency_weight,
        precision=hyperparameters.precision,
        average_decay=hyperparameters.average_decay,
        augmentation=hyperparameters.augmentation(),
        teachers=taught_by,
        teacher_weight=hyperparameters.teacher_weight,
        teacher_features=hyperparameters.teacher_features,
    )
    setup = TrainSetup(
        info.architecture,
        config,
        scale_sets(hyperparameters.schedule, len(transforms)),
        hyperparameters.micro_batches,
        hosts.from_whole(fold_in(roots, 1), NamedSharding(mesh, sharding.BY_MEMBER)),
        example_weights(seeds, labels, hyperparameters, weight),
        steps,
        steps_per_epoch,
        weights_of_teachers,
    )
    return setup, initial_state(config, params, batch_stats)


def initial_state(config: StepConfig, params: Any, batch_stats: Any) -> TrainState:
    """Returns the state before the first step, from trees with the members in front."""
    # Copies: a state is given away, and no array can be given twice.
    of_scales = tuple(jax.tree.map(jnp.copy, batch_stats) for _ in config.transforms)
    members, average = len(jax.tree.leaves(params)[0]), None
    if config.average_decay is not None:
        steps = jnp.zeros((members, len(config.transforms)), jnp.int32)
        average = jax.tree.map(jnp.copy, Average(params, of_scales, steps))
    opt_state = jax.jit(jax.vmap(config.optimizer.init))(params)
    return TrainState(params, of_scales, opt_state, average, jnp.zeros(members, jnp.int32))


def example_weights(
    seeds: Sequence[int],
    labels: np.ndarray,
    hyperparameters: Hyperparameters,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the weight of each cutout in the loss of each member, (member, cutout) float32:
    its own `weight` (cutout,), 1 without.

    Balanced, each class has half of all. With bootstrap a cutout counts as often as it stands in a
    resample: Poisson(1), which the count of draws with replacement tends to (Oza & Russell 2001,
    "Online bagging and boosting").
    """
    count = len(labels)
    weight = np.ones(count) if weight is None else weight.astype(np.float64)
    weights = np.tile(weight, (len(seeds), 1))
    if hyperparameters.bootstrap:
        weights *= [np.random.default_rng([seed, count]).poisson(1.0, count) for seed in seeds]
    if hyperparameters.balanced:
        share = np.average(labels, weights=weight)
        weights *= np.where(labels == 1, 0.5 / max(share, 1e-9), 0.5 / max(1 - share, 1e-9))
    return weights.astype(np.float32)


def _check_shares(hyperparameters: Hyperparameters, members: int, mesh: Mesh) -> None:
    """Raises UsageError where members, batches and micro-batches cannot be shared evenly."""
    shards = mesh.shape[sharding.MEMBER]
    parts = mesh.size // shards
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
    params, batch_stats = (
        jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *states)
        for states in zip(*(states for _, *states in drawn), strict=True)
    )
    return drawn[0][0], params, batch_stats


def member_info(
    training: TrainingData, architecture: str, hyperparameters: Hyperparameters
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
    hyperparameters: Hyperparameters, training: TrainingData, architecture: str
) -> dict[str, Any]:
    """Returns what `member.json` says of the training, all but the seed; the same record and the
    same seed mean the same member."""
    dropout, block_dropout = hyperparameters.rates()
    return (
        dataclasses.asdict(hyperparameters)
        | {
            "dropout": dropout,
            "block_dropout": block_dropout,
            "started_from_sha256": hashes(origins(hyperparameters, architecture)),
            "taught_by": teachers.record(hyperparameters),
        }
        | training.record
    )
