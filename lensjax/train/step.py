"""The training step of all members: that of each, mapped over the leading axis of their arrays, and
jitted once for a group of resolutions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from lensjax.ensemble.sharding import MEMBER, gathered, scattered
from lensjax.ensemble.step import Precision
from lensjax.models.product import compiler_options
from lensjax.train.member_step import (
    ResolutionGroup,
    StepConfig,
    TrainBatch,
    consistency_gradient,
    group_gradient,
    group_logits,
    update,
)
from lensjax.train.state import TrainState

# What of a batch has the members in front.
MEMBER_AXES = TrainBatch(None, None, None, 0, None, 0, None)


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
