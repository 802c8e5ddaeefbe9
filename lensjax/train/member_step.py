"""A training step of one member, in pure functions: the gradient of the joint loss, by groups of
resolutions, and the update.

The joint loss is the mean of the losses at all scales and, weighted, their `consistency`. The
scales of a group share a program; its activations are freed when it ends, and the gradients of the
groups are added. The sum is exact: only the consistency ties the groups, and it depends on nothing
but their logits. So all logits are computed first, without gradients, and the gradient of the
consistency with respect to them enters the backward pass of each group as a linear term.
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
from jax.sharding import Mesh
from jax.typing import ArrayLike

from lensjax.data.on_device import Transform, seen
from lensjax.ensemble.step import Precision
from lensjax.models.network import Network
from lensjax.train.augment import Augmentation, augmented, flip_bits, flipped
from lensjax.train.losses import consistency, distillation_loss
from lensjax.train.state import Average, TrainState
from lensjax.train.teachers import Teacher, taught_by, unlike_teachers


class TrainBatch(NamedTuple):
    """A training batch.

    Images and brightness are as `on_device.seen` takes them, labels (batch,) float32. `weight`:
    that of each example in the loss, (batch,) float32, one as a rule, of a member; (member, batch)
    of all. `flips` (batch, 3): how each image is turned. `logit_gradient` (batch, scale): of what
    the loss depends on beside a group's own scales. `teachers`: the weights of each teacher;
    `taught`: what they make of the augmented images. `sky` (batch, band, 3): the noise that
    noise-free images are to get, as `noise_free.noise_of` has it. Each is None where there is none.
    """

    images: Any
    brightness: Any
    label: Any
    weight: Any
    flips: Any = None
    logit_gradient: Any = None
    teachers: Any = ()
    taught: Any = None
    sky: Any = None


@dataclass(frozen=True, eq=False)
class StepConfig:
    """What all steps of a training share: static.

    `transforms`: what each scale takes of a batch, from the smallest to the largest. `loss`: from
    logits (..., batch) and labels (batch,) to losses in the logits' shape. `average_decay`: of the
    moving average. `augmentation`: of each batch, for all scales alike. `teacher_weight`: of what
    the `teachers` say, that of the labels being the rest; `teacher_features`: of how unlike theirs
    its layers are, beside both. Parameters are float32 whatever the `precision` of the rest.
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
    teacher_features: float = 0.0

    def model(self, params: Any, batch_stats: Any) -> Network:
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
        taught = taught_by(config.teachers, batch.teachers, look_at)
        batch = batch._replace(teachers=(), taught=taught)
    return batch, dropout_key


class Passed(NamedTuple):
    """A training pass at the scales of a group: logits (batch, scale), the batch statistics of all
    scales, new for those of the group, and how unlike its teachers' layers those of the network
    are, summed over the scales; 0 where this does not count."""

    logits: Array
    batch_stats: tuple[Any, ...]
    unlike: ArrayLike


def forward(
    config: StepConfig,
    group: ResolutionGroup,
    state: TrainState,
    batch: TrainBatch,
    dropout_key: Array | None,
) -> Passed:
    """Returns a training pass at the scales of a group."""

    def run(scale: int, params: Any, batch_stats: Any, images: Array) -> tuple[Array, Any, Any]:
        model, rngs = config.model(params, batch_stats), None
        if dropout_key is not None:
            rngs = nnx.Rngs(dropout=jax.random.fold_in(dropout_key, scale))
        layers = model.layers(images.astype(config.precision), rngs=rngs, train=True)
        logits = model.head(layers.features, rngs=rngs)
        unlike = unlike_teachers(layers, batch.taught.layers) if config.teacher_features else 0.0
        return logits, nnx.state(model, nnx.BatchStat), unlike

    if group.remat:
        keep = jax.checkpoint_policies.save_only_these_names("block")
        run = jax.checkpoint(run, policy=keep, static_argnums=0)
    logits, batch_stats, unlike = [], list(state.batch_stats), 0.0
    for scale in group.scales:
        images = config.images(scale, batch)
        found, batch_stats[scale], differs = run(scale, state.params, batch_stats[scale], images)
        logits.append(found)
        unlike += differs
    return Passed(jnp.stack(logits, axis=1), tuple(batch_stats), unlike)


def example_losses(config: StepConfig, logits: Array, batch: TrainBatch) -> Array:
    """Returns the weighted losses (scale, batch) of logits (batch, scale)."""
    losses = config.loss(logits.T, batch.label)
    if batch.taught is not None:
        taught = distillation_loss(logits.T, batch.taught.logits)
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
            logits, new, unlike = forward(config, group, state._replace(params=params), batch, key)
            found = group_loss(config, group, scale_count, logits, batch) / examples
            found += config.teacher_features * unlike / (scale_count * group.micro_batches)
            return found, (logits, new)

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
        return (), *forward(config, group, state, batch, key)[:2]

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
