"""One training step: the gradient of the joint loss, by groups of scales.

A group's activations are gone before the next group begins, because its program has ended. The
sum is exact. The joint loss is the mean of the scales' losses and, weighed, their `consistency`,
which ties the groups together: so their logits are computed first, without gradients, and what
the consistency asks of each logit goes into the backward pass of its group as a linear term.

`Programs` maps over members and compiles; what it maps is pure and of one member.
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
from jax.typing import ArrayLike

from lensjax.data.on_device import View, seen
from lensjax.ensemble.sharding import MEMBER
from lensjax.ensemble.step import Precision
from lensjax.train.augment import Augmentation, augmented, turned, turns
from lensjax.train.losses import consistency


class Average(NamedTuple):
    """Moving averages of the parameters and of each scale's statistics, and the steps (scale,) that
    trained at each: before the first its statistics say nothing."""

    params: Any
    statistics: tuple[Any, ...]
    steps: Array


class TrainState(NamedTuple):
    """All that a step changes. `average` is an `Average`, or None.

    `statistics`: of batch normalisation, one tree a scale: a lens of 64 pixels has other channel
    means than the same lens of 224, and a mean of both is that of neither.
    """

    params: Any
    statistics: tuple[Any, ...]
    optimizer: Any
    average: Any
    step: Array


class Examples(NamedTuple):
    """A training batch: images and brightness as `on_device.seen` takes them, labels (batch,)
    float32, and what each example counts in the loss, (batch,) float32, one on average."""

    images: Any
    brightness: Any
    label: Any
    weight: Any


@dataclass(frozen=True)
class Setting:
    """What all programs of a training share: static.

    `views`: what each scale takes of a batch, from the smallest to the largest. `loss`: from
    logits (..., batch) and labels (batch,) to losses in the logits' shape. `average_decay`: of the
    moving average. `augmentation`: of each batch, for all scales alike. Parameters are float32
    whatever the `precision` of the rest.
    """

    graph: nnx.GraphDef
    views: tuple[View, ...]
    loss: Callable[[Array, Array], Array]
    optimizer: optax.GradientTransformation
    consistency_weight: float = 0.0
    precision: Precision = "float32"
    average_decay: float | None = None
    augmentation: Augmentation = Augmentation()


@dataclass(frozen=True)
class ResolutionGroup:
    """Scales that share a program, and what is done to make it smaller.

    Of `micro_batches` one is computed after the other: batch normalisation then takes the
    statistics of each. `remat`: of the forward pass only the outputs of the blocks are kept, and
    the rest is computed once more on the way back.
    """

    scales: tuple[int, ...]
    micro_batches: int = 1
    remat: bool = False


class Shown(NamedTuple):
    """What a step shows a member of a batch: the examples, augmented, how each is turned (batch,
    3), the key of dropout, and what the other groups ask of the logits (batch, scale).

    Without turns and key the examples are shown as they are, to a network without dropout.
    """

    examples: Examples
    turns: Array | None
    key: Array | None
    pull: Array | None = None


def draw(setting: Setting, examples: Examples, key: Array | None, step: Array) -> Shown:
    """Returns what step number `step` shows of a batch to the member with this `key`."""
    if key is None:
        return Shown(examples, None, None)
    look, rest = jax.random.split(jax.random.fold_in(key, step))
    keys = jax.random.split(look, len(jnp.asarray(examples.label)))
    images, brightness = augmented(setting.augmentation, keys, examples.images, examples.brightness)
    return Shown(examples._replace(images=images, brightness=brightness), turns(keys), rest)


def logits_at(
    setting: Setting, scale: int, remat: bool, params: Any, statistics: Any, shown: Shown
) -> tuple[Array, Any]:
    """Returns the logits (batch,) of a training pass at a scale, and its new statistics."""
    images = seen(setting.views[scale], shown.examples.images, shown.examples.brightness)
    if shown.turns is not None:
        images = turned(images, shown.turns)
    dropout = None if shown.key is None else jax.random.fold_in(shown.key, scale)

    def run(params: Any, images: Array) -> tuple[Array, Any]:
        narrow = jax.tree.map(lambda leaf: leaf.astype(setting.precision), params)
        model = nnx.merge(setting.graph, narrow, statistics, copy=True)
        rngs = None if dropout is None else nnx.Rngs(dropout=dropout)
        logits = model(images.astype(setting.precision), rngs=rngs, train=True)
        return logits, nnx.state(model, nnx.BatchStat)

    if remat:
        run = jax.checkpoint(run, policy=jax.checkpoint_policies.save_only_these_names("block"))
    return run(params, images)


def group_logits(
    setting: Setting, group: ResolutionGroup, params: Any, statistics: tuple[Any, ...], shown: Shown
) -> tuple[Array, tuple[Any, ...]]:
    """Returns the logits (batch, scale) of a group, one scale after the other, and the statistics
    of all scales, new for those of the group."""
    logits, new = [], list(statistics)
    for scale in group.scales:
        found, new[scale] = logits_at(setting, scale, group.remat, params, new[scale], shown)
        logits.append(found)
    return jnp.stack(logits, axis=1), tuple(new)


def group_gradient(
    setting: Setting,
    group: ResolutionGroup,
    scale_count: int,
    params: Any,
    statistics: Any,
    shown: Shown,
) -> tuple[Any, tuple[Array, Any]]:
    """Returns a group's part of the gradient of the joint loss of `scale_count` scales, its logits
    (batch, scale), and the new statistics."""
    batch = len(jnp.asarray(shown.examples.label))

    def gradient(statistics: Any, shown: Shown) -> tuple[Any, tuple[Array, Any]]:
        def objective(params: Any) -> tuple[Array, tuple[Array, Any]]:
            logits, new = group_logits(setting, group, params, statistics, shown)
            value = example_losses(setting, logits, shown.examples).sum() / (scale_count * batch)
            if shown.pull is not None:
                value += (logits * shown.pull).sum()
            elif len(group.scales) > 1:
                value += setting.consistency_weight * consistency(logits.T).sum() / batch
            return value, (logits, new)

        return jax.grad(objective, has_aux=True)(params)

    return in_turn(group.micro_batches, gradient, params, statistics, shown)


def in_turn(
    count: int,
    function: Callable[[Any, Shown], tuple[Any, tuple[Array, Any]]],
    like: Any,
    statistics: Any,
    shown: Shown,
) -> tuple[Any, tuple[Array, Any]]:
    """Returns the sum, the logits (batch, scale) and the statistics of a function of so many parts
    of a batch, one part after the other. The sum is as `like`."""
    if count == 1:
        return function(statistics, shown)

    def body(carry: tuple[Any, Any], part: tuple[Array, Shown]) -> tuple[tuple[Any, Any], Array]:
        total, statistics = carry
        number, of_part = part
        if shown.key is not None:
            of_part = of_part._replace(key=jax.random.fold_in(shown.key, number))
        found, (logits, statistics) = function(statistics, of_part)
        return (jax.tree.map(jnp.add, total, found), statistics), logits

    def split(leaf: ArrayLike) -> Array:
        leaf = jnp.asarray(leaf)
        return leaf.reshape(count, -1, *leaf.shape[1:])

    parts = jax.tree.map(split, shown._replace(key=None))
    start = jax.tree.map(jnp.zeros_like, like), statistics
    (total, statistics), logits = jax.lax.scan(body, start, (jnp.arange(count), parts))
    return total, (logits.reshape(-1, logits.shape[-1]), statistics)


def example_losses(setting: Setting, logits: Array, examples: Examples) -> Array:
    """Returns the weighed losses (scale, batch) of logits (batch, scale)."""
    return setting.loss(logits.T, jnp.asarray(examples.label)) * jnp.asarray(examples.weight)[None]


def update(
    setting: Setting, scales: Sequence[int], state: TrainState, gradient: Any, statistics: Any
) -> TrainState:
    """Returns the state after a step down the gradient, at these scales.

    Weights and statistics are averaged alike, so that they fit each other. The average forgets
    faster at first, as by min(decay, (1 + step) / (10 + step)) in TensorFlow's
    `ExponentialMovingAverage`: the start is not in it for long.
    """
    updates, optimizer = setting.optimizer.update(gradient, state.optimizer, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    average = state.average
    if setting.average_decay is not None:
        average = averaged(setting.average_decay, scales, state, params, statistics)
    return TrainState(params, statistics, optimizer, average, state.step + 1)


def averaged(
    decay: float, scales: Sequence[int], state: TrainState, params: Any, statistics: Any
) -> Average:
    """Returns the average after a step at these scales, from what the step has made."""

    def joined(new: Any, old: Any, steps: Array) -> Any:
        share = 1 - jnp.minimum(decay, (1 + steps) / (10 + steps))
        return optax.incremental_update(new, old, share)

    before, of_scales = state.average, list(state.average.statistics)
    for scale in scales:
        of_scales[scale] = joined(statistics[scale], of_scales[scale], before.steps[scale])
    return Average(
        joined(params, before.params, state.step),
        tuple(of_scales),
        before.steps.at[np.array(scales)].add(1),
    )


class Programs:
    """The compiled programs of a step that trains at the scales of some groups.

    Called with state, examples and keys, of which all but images, brightness and labels have the
    members in front, returns the new state and the losses (member, scale). The state is given away.
    `scale_count`: of the step, where the groups are only some of it.
    """

    def __init__(
        self,
        setting: Setting,
        groups: Sequence[ResolutionGroup],
        mesh: Mesh,
        scale_count: int | None = None,
    ) -> None:
        self.groups = tuple(groups)
        count = scale_count or sum(len(group.scales) for group in groups)
        examples = Examples(None, None, None, 0)

        def gradients(group: ResolutionGroup) -> Callable[..., tuple[Any, Any, Array]]:
            def of_member(
                params: Any,
                statistics: Any,
                step: Array,
                examples: Examples,
                key: Array | None,
                pull: Array | None,
            ) -> tuple[Any, Any, Array]:
                shown = draw(setting, examples, key, step)._replace(pull=pull)
                gradient, (logits, statistics) = group_gradient(
                    setting, group, count, params, statistics, shown
                )
                return gradient, statistics, example_losses(setting, logits, examples).mean(-1)

            return over_members(of_member, (0, 0, 0, examples, 0, 0), mesh)

        def look(group: ResolutionGroup) -> Callable[..., Array]:
            def logits(
                params: Any, statistics: Any, step: Array, examples: Examples, key: Array | None
            ) -> Array:
                def part(statistics: Any, shown: Shown) -> tuple[Any, tuple[Array, Any]]:
                    return (), group_logits(setting, group, params, statistics, shown)

                shown = draw(setting, examples, key, step)
                return in_turn(group.micro_batches, part, (), statistics, shown)[1][0]

            return logits

        def pulls(logits: tuple[Array, ...]) -> tuple[Array, ...]:
            def total(logits: tuple[Array, ...]) -> Array:
                together = jnp.concatenate(logits, axis=1).T
                return setting.consistency_weight * consistency(together).mean()

            return jax.grad(total)(logits)

        def compiled(function: Callable, axes: tuple) -> Any:
            return jax.jit(over_members(function, axes, mesh))

        scales = sorted(scale for group in groups for scale in group.scales)
        change = functools.partial(update, setting, scales)
        updates = over_members(change, (0, 0, 0), mesh, plain_alone=False)

        def whole(
            state: TrainState, examples: Examples, keys: Array | None
        ) -> tuple[TrainState, Array]:
            gradient, statistics, losses = gradients(groups[0])(
                state.params, state.statistics, state.step, examples, keys, None
            )
            return updates(state, gradient, statistics), losses

        def add(group: ResolutionGroup, total: Any, *given: Any) -> tuple[Any, Any, Array]:
            gradient, statistics, losses = gradients(group)(*given)
            total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
            return total, statistics, losses

        self.whole = jax.jit(whole, donate_argnums=0)
        self.look = [compiled(look(group), (0, 0, 0, examples, 0)) for group in groups]
        self.pulls = compiled(pulls, (0,))
        self.add = [
            jax.jit(functools.partial(add, group), donate_argnums=0) for group in self.groups
        ]
        self.finish = jax.jit(updates, donate_argnums=0)
        self._ties = setting.consistency_weight != 0 and count > 1

    def __call__(
        self, state: TrainState, examples: Examples, keys: Array | None
    ) -> tuple[TrainState, Array]:
        if len(self.groups) == 1:
            return self.whole(state, examples, keys)
        given = state.params, state.statistics, state.step, examples, keys
        pulls: Sequence[Array | None] = [None] * len(self.groups)
        if self._ties:
            pulls = self.pulls(tuple(look(*given) for look in self.look))
        total, statistics, losses = None, state.statistics, []
        for add, pull in zip(self.add, pulls, strict=True):
            total, statistics, found = add(
                total, state.params, statistics, state.step, examples, keys, pull
            )
            losses.append(found)
        return self.finish(state, total, statistics), jnp.concatenate(losses, axis=1)


def over_members(
    function: Callable, axes: tuple, mesh: Mesh, *, plain_alone: bool = True
) -> Callable:
    """Returns `function` of one member mapped over those in front of its arguments, of which each
    device along the mesh's axis of members takes its own; `axes` are as `jax.vmap` has them.

    The batch may be split over the mesh's other axis: what depends on all of it, as the statistics
    of batch normalisation do, the devices exchange. With `plain_alone` a sole member is not mapped:
    its layers would stand behind the axis, and be copied. (What is written over its arguments is
    mapped all the same: without the axis it would be another array, and copied too.)
    """

    def each(*arguments: Any) -> Any:
        mapped = [part for axis, part in zip(axes, arguments, strict=True) if axis == 0]
        if not plain_alone or len(jax.tree.leaves(mapped)[0]) > 1:
            return jax.vmap(function, axes)(*arguments)
        alone = (_first(axis, part) for axis, part in zip(axes, arguments, strict=True))
        return jax.tree.map(lambda leaf: leaf[None], function(*alone))

    if mesh.shape[MEMBER] == 1:
        return each
    in_specs = jax.tree.map(
        lambda axis: PartitionSpec() if axis is None else PartitionSpec(MEMBER),
        axes,
        is_leaf=lambda axis: axis is None,
    )
    return jax.shard_map(
        each,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=PartitionSpec(MEMBER),
        axis_names={MEMBER},
        check_vma=False,
    )


def _first(axis: Any, argument: Any) -> Any:
    """Returns an argument without its axis of one member."""
    if isinstance(axis, tuple):
        return type(argument)(*map(_first, axis, argument))
    return argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)


def validation_step(
    setting: Setting, scale: int, mesh: Mesh
) -> Callable[[Any, Any, Examples], Array]:
    """Returns the jitted function from parameters, statistics and examples to the logits
    (member, batch) at a scale, without turns, noise or dropout."""

    def logits(params: Any, statistics: tuple[Any, ...], examples: Examples) -> Array:
        narrow = jax.tree.map(lambda leaf: leaf.astype(setting.precision), params)
        model = nnx.merge(setting.graph, narrow, statistics[scale])
        images = seen(setting.views[scale], examples.images, examples.brightness)
        return model(images.astype(setting.precision))

    return jax.jit(over_members(logits, (0, 0, None), mesh))
