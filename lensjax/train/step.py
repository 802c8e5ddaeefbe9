"""One training step: the gradient of the joint loss, by groups of resolutions, and the update.

The joint loss is the mean of the losses at all scales and, weighted, their `consistency`. The
scales of a group share a program; its activations are freed when it ends, and the gradients of the
groups are added. The sum is exact: only the consistency ties the groups, and it depends on nothing
but their logits. So all logits are computed first, without gradients, and the gradient of the
consistency with respect to them enters the backward pass of each group as a linear term.

Functions of one member are pure; `over_members` maps them over the leading axis of all arrays of
members; what runs is jitted once for a group.
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

from lensjax.data.on_device import Transform, seen
from lensjax.ensemble.sharding import MEMBER, gathered, scattered
from lensjax.ensemble.step import Precision
from lensjax.models.product import compiler_options
from lensjax.train.augment import Augmentation, augmented, flip_bits, flipped
from lensjax.train.losses import consistency, distillation_loss
from lensjax.train.state import Average, TrainState
from lensjax.train.teachers import Teacher, mean_logits


class TrainBatch(NamedTuple):
    """A training batch.

    Images and brightness are as `on_device.seen` takes them, labels (batch,) float32. `weight`:
    that of each example in the loss, (batch,) float32, one as a rule, of a member; (member, batch)
    of all. `flips` (batch, 3): how each image is turned. `logit_gradient` (batch, scale): of what
    the loss depends on beside a group's own scales. `teachers`: the weights of each teacher;
    `teacher_logits` (batch,): what they say of the augmented images. `sky` (batch, band, 3): the
    noise that noise-free images are to get, as `noise_free.noise_of` has it. Each is None where
    there is none.
    """

    images: Any
    brightness: Any
    label: Any
    weight: Any
    flips: Any = None
    logit_gradient: Any = None
    teachers: Any = ()
    teacher_logits: Any = None
    sky: Any = None


# What of a batch has the members in front.
MEMBER_AXES = TrainBatch(None, None, None, 0, None, 0, None)


@dataclass(frozen=True, eq=False)
class StepConfig:
    """What all steps of a training share: static.

    `transforms`: what each scale takes of a batch, from the smallest to the largest. `loss`: from
    logits (..., batch) and labels (batch,) to losses in the logits' shape. `average_decay`: of the
    moving average. `augmentation`: of each batch, for all scales alike. `teacher_weight`: of what
    the `teachers` say, that of the labels being the rest. Parameters are float32 whatever the
    `precision` of the rest.
    """

    graph: nnx.GraphDef
    transforms: tuple[Transform, ...]
    loss: Callable[[Array, Array], Array]
    optimizer: optax.GradientTransformation
    mesh: Mesh
    consistency_weight: float = 0.0
    precision: Precision = "float32"
    average_decay: float | None = None
    augmentation: Augmentation = Augmentation()
    teachers: tuple[Teacher, ...] = ()
    teacher_weight: float = 0.0

    def model(self, params: Any, batch_stats: Any) -> nnx.Module:
        """Returns a network of these weights, in the precision of the computation."""
        narrow = jax.tree.map(lambda leaf: leaf.astype(self.precision), params)
        return nnx.merge(self.graph, narrow, batch_stats, copy=True)

    def images(self, scale: int, batch: TrainBatch) -> Array:
        """Returns what the network sees of a batch at a scale."""
        return shown(self.transforms[scale], batch)


def shown(transform: Transform, batch: TrainBatch) -> Array:
    """Returns what a network sees of a batch, (batch, S, S, band)."""
    brightness = jnp.asarray(batch.brightness)[:, np.array(transform.channels)]
    images = seen(transform, batch.images, brightness)
    return images if batch.flips is None else flipped(images, batch.flips)


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
    config: StepConfig, step: Array, batch: TrainBatch, key: Array | None
) -> tuple[TrainBatch, Array | None]:
    """Returns what step number `step` shows of a batch to the member with this `key`, with what its
    teachers say of that, and the key of its dropout. Without a key the batch is as it is, and there
    is no dropout."""
    batch, dropout_key = jax.tree.map(jnp.asarray, batch), None
    if key is not None:
        look, dropout_key = jax.random.split(jax.random.fold_in(key, step))
        keys = jax.random.split(look, len(batch.label))
        images, brightness = augmented(
            config.augmentation,
            *(keys, batch.images, batch.brightness, batch.sky),
            config.transforms[-1].geometry,
        )
        flips = flip_bits(keys)
        batch = batch._replace(images=images, brightness=brightness, flips=flips, sky=None)
    if config.teachers:
        look_at = functools.partial(shown, batch=batch)
        said = mean_logits(config.teachers, batch.teachers, look_at)
        batch = batch._replace(teachers=(), teacher_logits=said)
    return batch, dropout_key


def forward(
    config: StepConfig,
    group: ResolutionGroup,
    state: TrainState,
    batch: TrainBatch,
    dropout_key: Array | None,
) -> tuple[Array, tuple[Any, ...]]:
    """Returns the logits (batch, scale) of a training pass at the scales of a group, and the batch
    statistics of all scales, new for those of the group."""

    def run(scale: int, params: Any, batch_stats: Any, images: Array) -> tuple[Array, Any]:
        model, rngs = config.model(params, batch_stats), None
        if dropout_key is not None:
            rngs = nnx.Rngs(dropout=jax.random.fold_in(dropout_key, scale))
        logits = model(images.astype(config.precision), rngs=rngs, train=True)
        return logits, nnx.state(model, nnx.BatchStat)

    if group.remat:
        keep = jax.checkpoint_policies.save_only_these_names("block")
        run = jax.checkpoint(run, policy=keep, static_argnums=0)
    logits, batch_stats = [], list(state.batch_stats)
    for scale in group.scales:
        images = config.images(scale, batch)
        found, batch_stats[scale] = run(scale, state.params, batch_stats[scale], images)
        logits.append(found)
    return jnp.stack(logits, axis=1), tuple(batch_stats)


def example_losses(config: StepConfig, logits: Array, batch: TrainBatch) -> Array:
    """Returns the weighted losses (scale, batch) of logits (batch, scale)."""
    losses = config.loss(logits.T, batch.label)
    if batch.teacher_logits is not None:
        taught = distillation_loss(logits.T, batch.teacher_logits)
        losses += config.teacher_weight * (taught - losses)
    return losses * batch.weight[None]


def group_loss(
    config: StepConfig, group: ResolutionGroup, scale_count: int, logits: Array, batch: TrainBatch
) -> Array:
    """Returns a group's part of the joint loss of `scale_count` scales, summed over the batch."""
    loss = example_losses(config, logits, batch).sum() / scale_count
    if batch.logit_gradient is not None:
        loss += (logits * batch.logit_gradient).sum()
    elif config.consistency_weight and len(group.scales) == scale_count:
        loss += config.consistency_weight * consistency(logits.T).sum()
    return loss


def over_micro_batches(
    count: int,
    function: Callable[..., tuple[Any, Array, Any]],
    like: Any,
    state: TrainState,
    batch: TrainBatch,
    dropout_key: Array | None,
) -> tuple[Any, Array, Any]:
    """Returns what a function of state, batch and key returns: a sum over the examples, shaped as
    `like`, their logits (batch, scale), and the batch statistics. It is called for one micro-batch
    after the other."""
    if count == 1:
        return function(state, batch, dropout_key)

    def body(carry: tuple[Any, Any], part: tuple[Array, TrainBatch]) -> Any:
        (total, batch_stats), (number, micro_batch) = carry, part
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
        current = state._replace(batch_stats=batch_stats)
        found, logits, batch_stats = function(current, micro_batch, key)
        return (jax.tree.map(jnp.add, total, found), batch_stats), logits

    parts = jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), batch)
    start = jax.tree.map(jnp.zeros_like, like), state.batch_stats
    (total, batch_stats), logits = jax.lax.scan(body, start, (jnp.arange(count), parts))
    return total, logits.reshape(-1, logits.shape[-1]), batch_stats


def group_gradient(
    config: StepConfig,
    group: ResolutionGroup,
    scale_count: int,
    state: TrainState,
    batch: TrainBatch,
    key: Array | None,
) -> tuple[Any, tuple[Any, ...], Array]:
    """Returns a group's part of the gradient of the joint loss, the batch statistics, and the
    losses (scale,)."""
    batch, dropout_key = augment_batch(config, state.step, batch, key)
    examples = len(batch.label)

    def gradient(state: TrainState, batch: TrainBatch, key: Array | None) -> Any:
        def loss(params: Any) -> Any:
            logits, new = forward(config, group, state._replace(params=params), batch, key)
            return group_loss(config, group, scale_count, logits, batch) / examples, (logits, new)

        found, (logits, new) = jax.grad(loss, has_aux=True)(state.params)
        return found, logits, new

    found, logits, batch_stats = over_micro_batches(
        group.micro_batches, gradient, state.params, state, batch, dropout_key
    )
    return found, batch_stats, example_losses(config, logits, batch).mean(-1)


def group_logits(
    config: StepConfig,
    group: ResolutionGroup,
    state: TrainState,
    batch: TrainBatch,
    key: Array | None,
) -> Array:
    """Returns the logits (batch, scale) that `group_gradient` will have."""

    def logits(state: TrainState, batch: TrainBatch, key: Array | None) -> Any:
        return (), *forward(config, group, state, batch, key)

    augmented_batch = augment_batch(config, state.step, batch, key)
    return over_micro_batches(group.micro_batches, logits, (), state, *augmented_batch)[1]


def consistency_gradient(config: StepConfig, logits: tuple[Array, ...]) -> tuple[Array, ...]:
    """Returns the gradient of the consistency with respect to the groups' logits (batch, scale), of
    the sum over the batch."""

    def loss(logits: tuple[Array, ...]) -> Array:
        return config.consistency_weight * consistency(jnp.concatenate(logits, axis=1).T).sum()

    return jax.grad(loss)(logits)


def update(
    config: StepConfig, scales: Sequence[int], state: TrainState, gradient: Any
) -> TrainState:
    """Returns the state after a step down the gradient, at these scales."""
    updates, opt_state = config.optimizer.update(gradient, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    state = state._replace(params=params, opt_state=opt_state)
    if config.average_decay is not None:
        state = state._replace(average=averaged(config.average_decay, scales, state))
    return state._replace(step=state.step + 1)


def averaged(decay: float, scales: Sequence[int], state: TrainState) -> Average:
    """Returns the average with the new parameters and batch statistics of a step at these scales.

    Both are averaged alike, so that they fit each other. The average forgets faster at first, as by
    min(decay, (1 + step) / (10 + step)) in TensorFlow's `ExponentialMovingAverage`: the start is
    not in it for long.
    """

    def moved(new: Any, old: Any, steps: Array) -> Any:
        share = 1 - jnp.minimum(decay, (1 + steps) / (10 + steps))
        return optax.incremental_update(new, old, share)

    before, of_scales = state.average, list(state.average.batch_stats)
    for scale in scales:
        of_scales[scale] = moved(state.batch_stats[scale], of_scales[scale], before.steps[scale])
    params = moved(state.params, before.params, state.step)
    return Average(params, tuple(of_scales), before.steps.at[np.array(scales)].add(1))


# --- of all members ---


def over_members(
    function: Callable, in_axes: tuple, mesh: Mesh, *, plain_alone: bool = True
) -> Callable:
    """Returns `function` of one member mapped over the leading axis of its arguments, as `jax.vmap`
    has `in_axes`, of which each device along the mesh's member axis takes its own.

    The batch may be split over the mesh's other axis: what depends on all of it, such as the
    statistics of batch normalisation, the devices exchange. With `plain_alone` a sole member is not
    mapped: XLA would copy a transformer's layers, which stand behind the axis, in every step.
    """

    def is_none(axis: Any) -> bool:
        return axis is None

    def first(axis: int | None, part: Any) -> Any:
        return part if axis is None else jax.tree.map(lambda leaf: leaf[0], part)

    def mapped(*arguments: Any) -> Any:
        if not plain_alone or len(jax.tree.leaves(arguments)[0]) > 1:
            return jax.vmap(function, in_axes)(*arguments)
        alone = jax.tree.map(first, in_axes, arguments, is_leaf=is_none)
        return jax.tree.map(lambda leaf: leaf[None], function(*alone))

    if mesh.shape[MEMBER] == 1:
        return mapped
    in_specs = jax.tree.map(
        lambda axis: PartitionSpec() if axis is None else PartitionSpec(MEMBER),
        in_axes,
        is_leaf=is_none,
    )
    return jax.shard_map(
        mapped,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=PartitionSpec(MEMBER),
        axis_names={MEMBER},
        check_vma=False,
    )


def _gradients(
    config: StepConfig, group: ResolutionGroup, scale_count: int, state: TrainState, *others: Any
) -> tuple[Any, Any, Array]:
    mesh, function = config.mesh, functools.partial(group_gradient, config, group, scale_count)
    of_all = over_members(function, (0, MEMBER_AXES, 0), mesh)
    *found, losses = of_all(_with_weights(state, mesh), *others)
    return *scattered(found, mesh), losses


def _updates(config: StepConfig, scales: Sequence[int], *arguments: Any) -> TrainState:
    function = functools.partial(update, config, scales)
    # Without the axis the state would be another array, and copied where it is given away.
    of_all = over_members(function, (0, 0), config.mesh, plain_alone=False)
    return scattered(of_all(*arguments), config.mesh)


def _with_weights(state: TrainState, mesh: Mesh) -> TrainState:
    """Returns a state with its parameters whole on each device. Left to choose, XLA gathers what
    layers make of the cutouts instead of the weights of some."""
    return state._replace(params=gathered(state.params, mesh))


# --- what runs ---


class jit_for_mesh:
    """`jax.jit` for a function of a StepConfig and more, with the compiler options of a network on
    the platform of its mesh. `without_options` is what other platforms compile."""

    def __init__(self, function: Callable[..., Any], **how: Any) -> None:
        functools.update_wrapper(self, function)
        self.without_options = jax.jit(function, **how)

        @functools.cache
        def jitted(precision: Precision, platform: str) -> Any:
            options = compiler_options(precision, platform)
            return jax.jit(function, compiler_options=options, **how)

        self._jitted = jitted

    def _of(self, config: StepConfig) -> Any:
        return self._jitted(config.precision, config.mesh.devices.flat[0].platform)

    def __call__(self, config: StepConfig, *arguments: Any) -> Any:
        return self._of(config)(config, *arguments)

    def lower(self, config: StepConfig, *arguments: Any) -> Any:
        """Returns what `lower` of the jitted function does."""
        return self._of(config).lower(config, *arguments)


@functools.partial(jit_for_mesh, static_argnums=(0, 1), donate_argnums=2)
def single_group_step(
    config: StepConfig,
    group: ResolutionGroup,
    state: TrainState,
    batch: TrainBatch,
    keys: Array | None,
) -> tuple[TrainState, Array]:
    """Returns the state after a step whose scales all stand in one group, and the losses (member,
    scale)."""
    gradient, batch_stats, losses = _gradients(config, group, len(group.scales), state, batch, keys)
    state = state._replace(batch_stats=batch_stats)
    return _updates(config, group.scales, state, gradient), losses


@functools.partial(jit_for_mesh, static_argnums=(0, 1, 2), donate_argnums=3)
def add_group_gradient(
    config: StepConfig, group: ResolutionGroup, scale_count: int, total: Any, *arguments: Any
) -> tuple[Any, Any, Array]:
    """Returns `total`, None for nothing, with a group's part of the gradient, the batch statistics,
    and the losses (member, scale)."""
    gradient, batch_stats, losses = _gradients(config, group, scale_count, *arguments)
    total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
    return total, batch_stats, losses


@functools.partial(jit_for_mesh, static_argnums=(0, 1))
def logits_of_members(
    config: StepConfig, group: ResolutionGroup, state: TrainState, *others: Any
) -> Array:
    """Returns the logits (member, batch, scale) of a group."""
    of_all = over_members(
        functools.partial(group_logits, config, group), (0, MEMBER_AXES, 0), config.mesh
    )
    return of_all(_with_weights(state, config.mesh), *others)


@functools.partial(jax.jit, static_argnums=0)
def consistency_gradients(config: StepConfig, logits: tuple[Array, ...]) -> tuple[Array, ...]:
    """Returns the gradients of the consistency for all members."""
    function = functools.partial(consistency_gradient, config)
    return over_members(function, (0,), config.mesh)(logits)


apply_gradient = jax.jit(_updates, static_argnums=(0, 1), donate_argnums=2)


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
    scales, total, losses = tuple(scale for group in groups for scale in group.scales), None, []
    logit_gradients: Sequence[Array | None] = [None] * len(groups)
    if config.consistency_weight:
        logits = (logits_of_members(config, group, state, batch, keys) for group in groups)
        logit_gradients = consistency_gradients(config, tuple(logits))
    for group, logit_gradient in zip(groups, logit_gradients, strict=True):
        batch = batch._replace(logit_gradient=logit_gradient)
        total, batch_stats, found = add_group_gradient(
            config, group, len(scales), total, state, batch, keys
        )
        state = state._replace(batch_stats=batch_stats)
        losses.append(found)
    return apply_gradient(config, scales, state, total), jnp.concatenate(losses, axis=1)


@functools.partial(jit_for_mesh, static_argnums=(0, 1))
def validation_logits(
    config: StepConfig, scale: int, params: Any, batch_stats: tuple[Any, ...], batch: TrainBatch
) -> Array:
    """Returns the logits (member, batch) at a scale, without augmentation or dropout."""

    def logits(params: Any, batch_stats: tuple[Any, ...], batch: TrainBatch) -> Array:
        images = config.images(scale, batch).astype(config.precision)
        return config.model(params, batch_stats[scale])(images)

    params = gathered(params, config.mesh)
    return over_members(logits, (0, 0, None), config.mesh)(params, batch_stats, batch)
