"""One training step: the gradient of the joint loss, by groups of resolutions, and the update.

The joint loss is the mean of the losses at all scales and, weighted, their `consistency`. The
scales of a group share a program; its activations are freed when it ends, and the gradients of the
groups are added. The sum is exact: only the consistency ties the groups, and it depends on nothing
but their logits. So all logits are computed first, without gradients, and what the gradient of the
consistency is with respect to them enters the backward pass of each group as a linear term.

Functions named `..._of_members` map pure functions of one member over the leading axis of its
arrays; the jitted ones are what runs.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from lensjax.data.on_device import View, seen
from lensjax.ensemble.sharding import MEMBER
from lensjax.ensemble.step import Precision
from lensjax.train.augment import Augmentation, augmented, flip_bits, flipped
from lensjax.train.losses import consistency
from lensjax.train.state import Average, TrainState


class TrainBatch(NamedTuple):
    """A training batch: images and brightness, as `on_device.seen` takes them, labels (batch,)
    float32, and the weight of each example in the loss, (batch,) float32, one on average,
    of a member; (member, batch) of all."""

    images: Any
    brightness: Any
    label: Any
    weight: Any


class AugmentedBatch(NamedTuple):
    """What a member is shown of a batch. `flips`: (batch, 3), None for none. `logit_gradient`:
    (batch, scale), that of what the loss depends on beside the scales of a group, None for none."""

    images: Array
    brightness: Array
    label: Array
    weight: Array
    flips: Array | None
    logit_gradient: Array | None


@dataclass(frozen=True, eq=False)
class StepConfig:
    """What all steps of a training share: static.

    `views`: what each scale takes of a batch, from the smallest to the largest. `loss`: from
    logits (..., batch) and labels (batch,) to losses in the logits' shape. `average_decay`: of the
    moving average. `augmentation`: of each batch, for all scales alike. Parameters are float32
    whatever the `precision` of the rest.
    """

    graph: nnx.GraphDef
    views: tuple[View, ...]
    loss: Callable[[Array, Array], Array]
    optimizer: optax.GradientTransformation
    mesh: Mesh
    consistency_weight: float = 0.0
    precision: Precision = "float32"
    average_decay: float | None = None
    augmentation: Augmentation = Augmentation()


@dataclass(frozen=True)
class ResolutionGroup:
    """Scales that share a program, and what is done to make it smaller.

    `micro_batches` are computed one after the other: batch normalisation then takes the statistics
    of each. `remat`: of the forward pass only the outputs of the blocks are kept, and the rest is
    computed once more in the backward pass.
    """

    scales: tuple[int, ...]
    micro_batches: int = 1
    remat: bool = False


# --- of one member ---


def augment_batch(
    config: StepConfig, batch: TrainBatch, key: Array | None, step: Array
) -> tuple[AugmentedBatch, Array | None]:
    """Returns what step number `step` shows of a batch to the member with this `key`, and the key
    of its dropout. Without a key the batch is as it is, and there is no dropout."""
    if key is None:
        return AugmentedBatch(*batch, flips=None, logit_gradient=None), None
    look, dropout = jax.random.split(jax.random.fold_in(key, step))
    keys = jax.random.split(look, len(batch.label))
    images, brightness = augmented(config.augmentation, keys, batch.images, batch.brightness)
    shown = AugmentedBatch(images, brightness, batch.label, batch.weight, flip_bits(keys), None)
    return shown, dropout


def forward(
    config: StepConfig,
    scale: int,
    remat: bool,
    params: Any,
    batch_stats: Any,
    batch: AugmentedBatch,
    dropout_key: Array | None,
) -> tuple[Array, Any]:
    """Returns the logits (batch,) of a training pass at a scale, and its new batch statistics."""
    images = seen(config.views[scale], batch.images, batch.brightness)
    if batch.flips is not None:
        images = flipped(images, batch.flips)
    rngs = None if dropout_key is None else jax.random.fold_in(dropout_key, scale)

    def run(params: Any, images: Array) -> tuple[Array, Any]:
        narrow = jax.tree.map(lambda leaf: leaf.astype(config.precision), params)
        model = nnx.merge(config.graph, narrow, batch_stats, copy=True)
        logits = model(
            images.astype(config.precision),
            rngs=None if rngs is None else nnx.Rngs(dropout=rngs),
            train=True,
        )
        return logits, nnx.state(model, nnx.BatchStat)

    if remat:
        run = jax.checkpoint(run, policy=jax.checkpoint_policies.save_only_these_names("block"))
    return run(params, images)


def group_logits(
    config: StepConfig,
    group: ResolutionGroup,
    params: Any,
    batch_stats: tuple[Any, ...],
    batch: AugmentedBatch,
    dropout_key: Array | None,
) -> tuple[Array, tuple[Any, ...]]:
    """Returns the logits (batch, scale) of a group, and the batch statistics of all scales, new for
    those of the group."""
    logits, new = [], list(batch_stats)
    for scale in group.scales:
        found, new[scale] = forward(
            config, scale, group.remat, params, new[scale], batch, dropout_key
        )
        logits.append(found)
    return jnp.stack(logits, axis=1), tuple(new)


def example_losses(config: StepConfig, logits: Array, batch: Any) -> Array:
    """Returns the weighted losses (scale, batch) of logits (batch, scale)."""
    return config.loss(logits.T, jnp.asarray(batch.label)) * jnp.asarray(batch.weight)[None]


def group_loss(
    params: Any,
    config: StepConfig,
    group: ResolutionGroup,
    scale_count: int,
    examples: int,
    batch_stats: tuple[Any, ...],
    batch: AugmentedBatch,
    dropout_key: Array | None,
) -> tuple[Array, tuple[Array, tuple[Any, ...]]]:
    """Returns a group's part of the joint loss of `scale_count` scales over so many `examples`, of
    which these are all or a micro-batch; its logits (batch, scale); and the batch statistics."""
    logits, new = group_logits(config, group, params, batch_stats, batch, dropout_key)
    loss = example_losses(config, logits, batch).sum() / (scale_count * examples)
    if batch.logit_gradient is not None:
        loss += (logits * batch.logit_gradient).sum()
    elif config.consistency_weight and len(group.scales) == scale_count:
        loss += config.consistency_weight * consistency(logits.T).sum() / examples
    return loss, (logits, new)


def over_micro_batches(
    count: int,
    function: Callable[..., tuple[Any, Array, Any]],
    like: Any,
    batch_stats: tuple[Any, ...],
    batch: AugmentedBatch,
    dropout_key: Array | None,
) -> tuple[Any, Array, Any]:
    """Returns what a function of batch statistics, batch and key returns: a sum over the examples,
    shaped as `like`, their logits (batch, scale), and the batch statistics. It is called for one
    micro-batch after the other."""
    if count == 1:
        return function(batch_stats, batch, dropout_key)

    def body(carry: tuple[Any, Any], part: tuple[Array, AugmentedBatch]) -> Any:
        (total, batch_stats), (number, micro_batch) = carry, part
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
        found, logits, batch_stats = function(batch_stats, micro_batch, key)
        return (jax.tree.map(jnp.add, total, found), batch_stats), logits

    parts = jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), batch)
    start = jax.tree.map(jnp.zeros_like, like), batch_stats
    (total, batch_stats), logits = jax.lax.scan(body, start, (jnp.arange(count), parts))
    return total, logits.reshape(-1, logits.shape[-1]), batch_stats


def group_gradient(
    config: StepConfig,
    group: ResolutionGroup,
    scale_count: int,
    params: Any,
    batch_stats: tuple[Any, ...],
    step: Array,
    batch: TrainBatch,
    key: Array | None,
    logit_gradient: Array | None,
) -> tuple[Any, tuple[Any, ...], Array]:
    """Returns a group's part of the gradient of the joint loss, the batch statistics, and the
    losses (scale,)."""
    shown, dropout_key = augment_batch(config, batch, key, step)
    shown = shown._replace(logit_gradient=logit_gradient)
    examples = len(batch.label)

    def gradient(batch_stats: Any, batch: AugmentedBatch, key: Array | None) -> Any:
        found, (logits, batch_stats) = jax.grad(group_loss, has_aux=True)(
            params, config, group, scale_count, examples, batch_stats, batch, key
        )
        return found, logits, batch_stats

    found, logits, batch_stats = over_micro_batches(
        group.micro_batches, gradient, params, batch_stats, shown, dropout_key
    )
    return found, batch_stats, example_losses(config, logits, batch).mean(-1)


def logits_without_gradient(
    config: StepConfig,
    group: ResolutionGroup,
    params: Any,
    batch_stats: tuple[Any, ...],
    step: Array,
    batch: TrainBatch,
    key: Array | None,
) -> Array:
    """Returns the logits (batch, scale) that `group_gradient` will have."""
    shown, dropout_key = augment_batch(config, batch, key, step)

    def logits(batch_stats: Any, batch: AugmentedBatch, key: Array | None) -> Any:
        return (), *group_logits(config, group, params, batch_stats, batch, key)

    return over_micro_batches(group.micro_batches, logits, (), batch_stats, shown, dropout_key)[1]


def consistency_gradient(config: StepConfig, logits: tuple[Array, ...]) -> tuple[Array, ...]:
    """Returns the gradient of the consistency with respect to the groups' logits (batch, scale)."""

    def loss(logits: tuple[Array, ...]) -> Array:
        together = jnp.concatenate(logits, axis=1).T
        return config.consistency_weight * consistency(together).mean()

    return jax.grad(loss)(logits)


def update(
    config: StepConfig, scales: Sequence[int], state: TrainState, gradient: Any, batch_stats: Any
) -> TrainState:
    """Returns the state after a step down the gradient, at these scales."""
    updates, opt_state = config.optimizer.update(gradient, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    average = state.average
    if config.average_decay is not None:
        average = averaged(config.average_decay, scales, state, params, batch_stats)
    return TrainState(params, batch_stats, opt_state, average, state.step + 1)


def averaged(
    decay: float, scales: Sequence[int], state: TrainState, params: Any, batch_stats: Any
) -> Average:
    """Returns the average after a step at these scales, from what the step has made.

    Weights and batch statistics are averaged alike, so that they fit each other. The average
    forgets faster at first, as by min(decay, (1 + step) / (10 + step)) in TensorFlow's
    `ExponentialMovingAverage`: the start is not in it for long.
    """

    def moved(new: Any, old: Any, steps: Array) -> Any:
        share = 1 - jnp.minimum(decay, (1 + steps) / (10 + steps))
        return optax.incremental_update(new, old, share)

    before, of_scales = state.average, list(state.average.batch_stats)
    for scale in scales:
        of_scales[scale] = moved(batch_stats[scale], of_scales[scale], before.steps[scale])
    return Average(
        moved(params, before.params, state.step),
        tuple(of_scales),
        before.steps.at[np.array(scales)].add(1),
    )


# --- of all members ---

# Members share all of a batch but the weights of its examples.
BATCH_AXES = TrainBatch(None, None, None, 0)


def over_members(function: Callable, in_axes: tuple, mesh: Mesh) -> Callable:
    """Returns `function` of one member mapped over the leading axis of its arguments, as `jax.vmap`
    has `in_axes`, of which each device along the mesh's member axis takes its own.

    The batch may be split over the mesh's other axis: what depends on all of it, such as the
    statistics of batch normalisation, the devices exchange.
    """
    mapped = jax.vmap(function, in_axes)
    if mesh.shape[MEMBER] == 1:
        return mapped
    in_specs = jax.tree.map(
        lambda axis: PartitionSpec() if axis is None else PartitionSpec(MEMBER),
        in_axes,
        is_leaf=lambda axis: axis is None,
    )
    return jax.shard_map(
        mapped,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=PartitionSpec(MEMBER),
        axis_names={MEMBER},
        check_vma=False,
    )


def gradients_of_members(
    config: StepConfig, group: ResolutionGroup, scale_count: int, *arguments: Any
) -> tuple[Any, Any, Array]:
    """Returns what `group_gradient` returns of its other `arguments`, for all members."""
    function = functools.partial(group_gradient, config, group, scale_count)
    return over_members(function, (0, 0, 0, BATCH_AXES, 0, 0), config.mesh)(*arguments)


def updates_of_members(
    config: StepConfig, scales: Sequence[int], state: TrainState, gradient: Any, batch_stats: Any
) -> TrainState:
    """Returns what `update` returns for all members."""
    function = functools.partial(update, config, scales)
    return over_members(function, (0, 0, 0), config.mesh)(state, gradient, batch_stats)


# --- what runs: each compiled once for a group, the state given away ---


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def single_group_step(
    config: StepConfig,
    group: ResolutionGroup,
    state: TrainState,
    batch: TrainBatch,
    keys: Array | None,
) -> tuple[TrainState, Array]:
    """Returns the state after a step whose scales all stand in one group, and the losses (member,
    scale)."""
    gradient, batch_stats, losses = gradients_of_members(
        *(config, group, len(group.scales), state.params, state.batch_stats, state.step),
        *(batch, keys, None),
    )
    return updates_of_members(config, group.scales, state, gradient, batch_stats), losses


@functools.partial(jax.jit, static_argnums=(0, 1))
def logits_of_members(config: StepConfig, group: ResolutionGroup, *arguments: Any) -> Array:
    """Returns the logits (member, batch, scale) of a group before its gradient is computed."""
    function = functools.partial(logits_without_gradient, config, group)
    return over_members(function, (0, 0, 0, BATCH_AXES, 0), config.mesh)(*arguments)


@functools.partial(jax.jit, static_argnums=0)
def consistency_gradients(config: StepConfig, logits: tuple[Array, ...]) -> tuple[Array, ...]:
    """Returns what `consistency_gradient` returns for all members."""
    function = functools.partial(consistency_gradient, config)
    return over_members(function, (0,), config.mesh)(logits)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def add_group_gradient(
    config: StepConfig, group: ResolutionGroup, scale_count: int, total: Any, *arguments: Any
) -> tuple[Any, Any, Array]:
    """Returns `total`, None for nothing, with a group's part of the gradient, the batch statistics,
    and the losses (member, scale)."""
    gradient, batch_stats, losses = gradients_of_members(config, group, scale_count, *arguments)
    total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
    return total, batch_stats, losses


apply_gradient = jax.jit(updates_of_members, static_argnums=(0, 1), donate_argnums=2)


def train_step(
    config: StepConfig,
    groups: Sequence[ResolutionGroup],
    state: TrainState,
    batch: TrainBatch,
    keys: Array | None,
) -> tuple[TrainState, Array]:
    """Returns the state after a step at the scales of the groups, and the losses (member, scale).

    Of all arrays but images, brightness and labels the members stand in front. The state is given
    away.
    """
    if len(groups) == 1:
        return single_group_step(config, groups[0], state, batch, keys)
    scales = tuple(scale for group in groups for scale in group.scales)
    given = state.step, batch, keys
    logit_gradients: Sequence[Array | None] = [None] * len(groups)
    if config.consistency_weight:
        start = state.params, state.batch_stats
        logits = (logits_of_members(config, group, *start, *given) for group in groups)
        logit_gradients = consistency_gradients(config, tuple(logits))
    total, batch_stats, losses = None, state.batch_stats, []
    for group, logit_gradient in zip(groups, logit_gradients, strict=True):
        total, batch_stats, found = add_group_gradient(
            *(config, group, len(scales), total, state.params, batch_stats, *given, logit_gradient)
        )
        losses.append(found)
    return apply_gradient(config, scales, state, total, batch_stats), jnp.concatenate(losses, 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def validation_logits(
    config: StepConfig, scale: int, params: Any, batch_stats: tuple[Any, ...], batch: TrainBatch
) -> Array:
    """Returns the logits (member, batch) at a scale, without augmentation or dropout."""

    def logits(params: Any, batch_stats: tuple[Any, ...], batch: TrainBatch) -> Array:
        narrow = jax.tree.map(lambda leaf: leaf.astype(config.precision), params)
        model = nnx.merge(config.graph, narrow, batch_stats[scale])
        images = seen(config.views[scale], batch.images, batch.brightness)
        return model(images.astype(config.precision))

    return over_members(logits, (0, 0, None), config.mesh)(params, batch_stats, batch)
