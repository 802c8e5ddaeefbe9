"""The compiled ensemble step: prepared cutouts in, fused scores out, one dispatch a batch."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, ShapeDtypeStruct, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lensjax.data import on_device
from lensjax.data.on_device import Inputs
from lensjax.data.pixel_statistics import pixel_statistics
from lensjax.ensemble import sharding
from lensjax.ensemble.fusion import Fusion, FusionParams, fuse
from lensjax.ensemble.stack import Ensemble, MemberGroup, member_keys
from lensjax.errors import refuse
from lensjax.models import product
from lensjax.predictions import Scores

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class StepOptions:
    """What a step computes."""

    mc_samples: int = 10
    """Monte Carlo dropout samples; 1: dropout off."""
    fusion: Fusion = "stacked"
    """How the members' scores are combined."""
    precision: Precision = "float32"
    """Precision of the networks' arithmetic."""
    seed: int = 0
    """Seed of the dropout masks."""
    symmetries: Literal[1, 8] = 1
    """8: the logit is the mean over the four rotations of a cutout and of its mirror image."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        refuse({"--mc-samples must be at least 1": self.mc_samples < 1})

    def of_step(self) -> dict[str, Any]:
        """Returns these options by name, without those that a subclass adds."""
        return {field.name: getattr(self, field.name) for field in fields(StepOptions)}


class Weights(NamedTuple):
    """Everything that stays on the devices for the run: per group the `states` of its parts, arrays
    with a leading member axis (see `parts`), and the `keys` (member, sample)."""

    states: tuple[tuple[Any, ...], ...]
    keys: tuple[Array, ...]
    fusion_params: FusionParams


Step = Callable[[Weights, Inputs], Scores]

StageStep = Callable[[Weights, Inputs], tuple[Scores, Array]]
"""A step that also returns the logits (member, sample, batch), before calibration."""


def place_weights(ensemble: Ensemble, mesh: Mesh, options: StepOptions) -> Weights:
    """Returns the weights of `ensemble` on the devices, in the precision of the computation."""
    # Rounded on the host, so that no device ever holds more than its part.
    arrays = weights_of(ensemble, mesh, options, ensemble.states)
    places = _places(ensemble, mesh)
    return jax.tree.map(lambda place, tree: jax.device_put(tree, place), places, arrays)


def abstract_weights(ensemble: Ensemble, mesh: Mesh, options: StepOptions) -> Weights:
    """Returns the shapes, types and shardings of what `place_weights` makes of `ensemble`, abstract
    or not."""
    arrays = functools.partial(weights_of, ensemble, mesh, options)

    def placed(place: NamedSharding, tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
        )

    return jax.tree.map(placed, _places(ensemble, mesh), jax.eval_shape(arrays, ensemble.states))


def weights_of(
    ensemble: Ensemble, mesh: Mesh, options: StepOptions, states: Sequence[Any]
) -> Weights:
    """Returns the Weights of an ensemble whose groups have these `states`, of NumPy or traced."""

    def of_part(state: Any, rows: slice) -> Any:
        return jax.tree.map(lambda leaf: leaf[rows].astype(options.precision, copy=False), state)

    keys, start = [], 0
    for group in ensemble.groups:
        identities = ensemble.identities[start : start + group.members]
        keys.append(member_keys(identities, options.seed, options.mc_samples))
        start += group.members
    return Weights(
        tuple(
            tuple(of_part(state, rows) for rows in parts(group.members, mesh))
            for group, state in zip(ensemble.groups, states, strict=True)
        ),
        tuple(keys),
        ensemble.fusion_params,
    )


def _places(ensemble: Ensemble, mesh: Mesh) -> Any:
    """Returns where the Weights of an ensemble live, one sharding for the arrays of a group."""
    specs = [sharding.weights_spec(group.members, mesh) for group in ensemble.groups]
    # With every axis named, as JAX 0.11 has it for keys: with another sharding than that of the
    # abstract weights the step would be compiled anew.
    of_keys = [PartitionSpec(*spec, *[None] * (2 - len(spec))) for spec in specs]
    specs_of_all = (tuple(specs), tuple(of_keys), sharding.EVERYWHERE)
    return Weights(*jax.tree.map(functools.partial(NamedSharding, mesh), specs_of_all))


def parts(members: int, mesh: Mesh) -> list[slice]:
    """Returns which members of a group are computed together, as a `vmap`: all on a TPU and where
    several devices share them, one after another elsewhere.

    One member's batch fills a CPU or a GPU. With vmap a CPU would first copy out the weights of
    each, and a GPU has no grouped convolution that adds the bias and applies the activation on the
    way (measured on an H200: 0.78 of the time of stacked resnet18 at 224 pixels, a third of the
    memory).
    """
    if mesh.devices.flat[0].platform == "tpu" or mesh.shape[sharding.MEMBER] > 1:
        return [slice(0, members)]
    return [slice(index, index + 1) for index in range(members)]


def _map_members(
    function: Callable[[Any, Array], Array], states: Sequence[Any], keys: Array, mesh: Mesh
) -> Array:
    """Returns `function` of the state and the keys of each member of a group, on a leading axis."""
    results = []
    for state, members in zip(states, parts(len(keys), mesh), strict=True):
        own = state, keys[members]
        if len(keys[members]) == 1:
            # Under vmap XLA would move the layer axis of a transformer to the front in every step.
            results.append(function(*_member(own, 0))[None])
        else:
            results.append(jax.vmap(function)(*own))
    return jnp.concatenate(results)


def _member(members: Any, index: int) -> Any:
    """Returns one of stacked members, arrays (member, ...)."""
    return jax.tree.map(lambda leaf: leaf[index], members)


def ensemble_step(
    ensemble: Ensemble, mesh: Mesh, options: StepOptions, samples_at_once: int | None = None
) -> Step:
    """Returns the jitted step in which all members and samples see a batch together.

    Members are a mapped axis, dropout keys a second one inside it. With one sample dropout is off.
    `samples_at_once` computes the samples in chunks of so many, for the same numbers from less
    memory. Each device of `mesh` does its part, see `sharding`.
    """
    logits_of = _logits_on_mesh(ensemble, mesh, options, samples_at_once)

    @functools.partial(jax.jit, compiler_options=_compiler_options(options.precision, mesh))
    def step(weights: Weights, inputs: Inputs) -> Scores:
        inputs = _completed(inputs, mesh)
        logits = logits_of(weights, inputs)
        with jax.named_scope("fuse"):
            scores = fuse(jnp.concatenate(logits), weights.fusion_params, options.fusion)
        return _with_pixels(scores, inputs)

    return step


def stage_step(
    ensemble: Ensemble,
    mesh: Mesh,
    options: StepOptions,
    order: Sequence[int],
    samples_at_once: int | None = None,
) -> StageStep:
    """Returns the jitted step that computes some of the members that are fused, those of
    `ensemble`: the logits of the others come with the cutouts.

    `order` (member,) says where each is among those that come along and, after them, those that are
    computed. `ensemble.fusion_params` are those of all. Where none is computed the step only fuses.
    """
    logits_of = _logits_on_mesh(ensemble, mesh, options, samples_at_once)

    @functools.partial(jax.jit, compiler_options=_compiler_options(options.precision, mesh))
    def step(weights: Weights, inputs: Inputs) -> tuple[Scores, Array]:
        inputs = _completed(inputs, mesh)
        computed = logits_of(weights, inputs) if ensemble.groups else ()
        known = () if inputs.logits is None else (jnp.moveaxis(inputs.logits, 0, -1),)
        with jax.named_scope("fuse"):
            logits = jnp.concatenate([*known, *computed])[np.array(order)]
            scores = fuse(logits, weights.fusion_params, options.fusion)
        return _with_pixels(scores, inputs), logits

    return step


def _logits_on_mesh(
    ensemble: Ensemble, mesh: Mesh, options: StepOptions, samples_at_once: int | None
) -> Callable[[Weights, Inputs], tuple[Array, ...]]:
    """Returns the function to the logits (member, sample, batch) of each group."""

    def all_logits(states: tuple, keys: tuple[Array, ...], inputs: Inputs) -> tuple[Array, ...]:
        prepared = _prepare(inputs, options.precision)
        logits = []
        for group, of_parts, group_keys in zip(ensemble.groups, states, keys, strict=True):
            with jax.named_scope(f"member/{group.architecture}"):
                images = sharding.own_part(prepared[group.preprocessing], group.members, mesh)
                of_member = functools.partial(
                    _member_logits, group, images, options, samples_at_once
                )
                logits.append(_map_members(of_member, of_parts, group_keys, mesh))
        return tuple(logits)

    in_groups = tuple(sharding.weights_spec(group.members, mesh) for group in ensemble.groups)
    out_groups = tuple(sharding.logits_spec(group.members, mesh) for group in ensemble.groups)

    on_mesh = sharding.shard_map(
        all_logits, mesh, (in_groups, in_groups, sharding.BY_CUTOUT), out_groups
    )
    return lambda weights, inputs: on_mesh(weights.states, weights.keys, inputs)


def _completed(inputs: Inputs, mesh: Mesh) -> Inputs:
    """Returns `on_device.completed` inputs; each device cuts its own part of the cutouts."""
    by_device = inputs.mapped(lambda _: sharding.BY_CUTOUT, lambda _: sharding.EVERYWHERE)
    cut = sharding.shard_map(on_device.completed, mesh, (by_device,), sharding.BY_CUTOUT)
    return cut(inputs)


def one_by_one_step(ensemble: Ensemble, mesh: Mesh, options: StepOptions) -> Step:
    """Returns a step that walks the members one by one, each sample a full pass of its own.

    The way of older systems, kept to compare with: the scores are those of `ensemble_step`. The
    weights must be whole on each device of `mesh`.
    """
    compiler_options = _compiler_options(options.precision, mesh)

    @functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=compiler_options)
    def one_pass(group: MemberGroup, row: int, part: Any, key: Array, inputs: Inputs) -> Array:
        images = _prepare(inputs, options.precision)[group.preprocessing]
        return _member_logits(group, images, options, None, _member(part, row), key[None])[0]

    @jax.jit
    def fuse_all(logits: list[list[Array]], params: FusionParams, inputs: Inputs) -> Scores:
        return _with_pixels(fuse(jnp.array(logits), params, options.fusion), inputs)

    def step(weights: Weights, inputs: Inputs) -> Scores:
        logits = []
        for group, of_parts, keys in zip(
            ensemble.groups, weights.states, weights.keys, strict=True
        ):
            rows = [(p, n) for p in of_parts for n in range(len(jax.tree.leaves(p)[0]))]
            for (part, row), own_keys in zip(rows, keys, strict=True):
                logits.append([one_pass(group, row, part, key, inputs) for key in own_keys])
        return fuse_all(logits, weights.fusion_params, inputs)

    return step


def _with_pixels(scores: Scores, inputs: Inputs) -> Scores:
    """Returns scores with the statistics of the pixels that they are about."""
    with jax.named_scope("pixels"):
        return scores._replace(pixels=pixel_statistics(inputs))


def _compiler_options(precision: Precision, mesh: Mesh) -> dict[str, str]:
    """Returns the compiler options of a step for the devices of `mesh`.

    On a CPU it would order operations so that many could run at the same time, each with memory of
    its own. But each fills all cores with its batch: in the order that takes the least memory four
    resnet18 need 65 MiB instead of 224 (128 cutouts of 64 pixels), and no more time.
    """
    platform = mesh.devices.flat[0].platform
    options = product.compiler_options(precision, platform)
    if platform == "cpu" and options:
        options["xla_cpu_scheduler_type"] = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    return options


def _prepare(inputs: Inputs, precision: Precision) -> list[Array]:
    """Returns, per preprocessing, the stretched and normalised images (batch, S, S, band)."""
    with jax.named_scope("preprocess"):
        return [images.astype(precision) for images in on_device.prepare(inputs)]


def _member_logits(
    group: MemberGroup,
    images: Array,
    options: StepOptions,
    samples_at_once: int | None,
    state: Any,
    keys: Array,
) -> Array:
    """Returns the logits (sample, batch) float32 of a member, its state and the keys of its
    samples; one sample has no dropout."""
    turned = _turned(images) if options.symmetries > 1 else images
    logits = _sample_logits(
        nnx.merge(group.graph, state), turned, options.mc_samples, samples_at_once, keys
    )
    by_symmetry = logits.shape[0], options.symmetries, images.shape[0]
    return logits.reshape(by_symmetry).mean(1)


def _turned(images: Array) -> Array:
    """Returns images (batch, S, S, band) in the eight symmetries of the square, one after the
    other: (8 batch, S, S, band)."""
    mirrored = images, images[:, :, ::-1]
    return jnp.concatenate(
        [jnp.rot90(image, turns, axes=(1, 2)) for image in mirrored for turns in range(4)]
    )


def _sample_logits(
    network: Any, images: Array, samples: int, samples_at_once: int | None, keys: Array
) -> Array:
    """Returns the logits (sample, batch) of a network. Samples share the features where all dropout
    is in the head."""
    if samples == 1:
        return network(images)[None]
    features = None if network.block_dropout else network.features(images)

    def sample_logits(key: Array) -> Array:
        rngs = nnx.Rngs(dropout=key)
        if features is None:
            return network(images, rngs=rngs)
        return network.head(features, rngs=rngs)

    if samples_at_once in (None, samples):
        return jax.vmap(sample_logits)(keys)
    return lax.map(sample_logits, keys, batch_size=samples_at_once)
