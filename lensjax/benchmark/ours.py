"""lensjax as a contender: its compiled step in each mode, one training step, and JAX's product."""

import functools
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding

from lensjax import runtime
from lensjax.benchmark import drawn
from lensjax.benchmark.contract import Loaded, Outputs, Program
from lensjax.data.on_device import Canvas, Inputs, Layout, View
from lensjax.data.preprocess import Preprocessing, geometry
from lensjax.ensemble import sharding
from lensjax.ensemble.checkpoint import (
    Member,
    MemberInfo,
    State,
    nnx_state,
    read_weights,
    save_member,
    state_of,
)
from lensjax.ensemble.plan import InferencePlan, plan, unplanned
from lensjax.ensemble.stack import Ensemble, filled, outline
from lensjax.ensemble.step import (
    Precision,
    Weights,
    ensemble_step,
    one_by_one_step,
    outline_weights,
    place_weights,
)
from lensjax.models.torch_import import load_torch_weights, tensor_shapes
from lensjax.train.losses import binary_loss
from lensjax.train.scales import views_at
from lensjax.train.step import Examples, Programs, ResolutionGroup, Setting, TrainState


def ensemble(members: Sequence[str], size: int, precision: Precision, how: str) -> Loaded:
    """Returns the ensemble of `members`, computed as `how` says.

    `one step`: all members and samples in one program, as infer.py has it on this device; `stacked`
    or `apart`: with or without an array axis of members. `one by one`: as --no-batch-parallel does.
    `singly`: one step a member.
    """
    # One device, as the peers have.
    mesh = sharding.mesh_of(jax.local_devices()[:1])
    stacked = {"stacked": True, "apart": False}.get(how, sharding.stacks_members(mesh))
    teams = [[name] for name in members] if how == "singly" else [list(members)]
    scratch = tempfile.TemporaryDirectory()
    infos = {name: save_member(Path(scratch.name, name), member(name, size)) for name in members}
    outlines = [
        outline({name: infos[name] for name in team}, dict.fromkeys(team), stacked=stacked)
        for team in teams
    ]
    in_place = NamedSharding(mesh, sharding.BY_CUTOUT)

    def prepare(samples: int, batch: int) -> Program:
        jax.clear_caches()  # no run has the programs of another number of samples
        runtime.give_back_memory()
        settings: dict[str, Any] = {"samples": samples, "precision": precision}

        def planned(outlined: Ensemble) -> InferencePlan:
            if how == "one by one":
                step = one_by_one_step(outlined, mesh, fusion="stacked", **settings)
                return unplanned(step, batch)
            make = functools.partial(ensemble_step, outlined, mesh, fusion="stacked", **settings)
            abstract = outline_weights(outlined, mesh, seed=0, **settings)
            return plan(make, abstract, _layout(size), mesh, [batch], budget=sys.maxsize)

        def placed(outlined: Ensemble) -> Weights:
            def read(name: str) -> State:
                return read_weights(Path(scratch.name, name), infos[name])

            return place_weights(filled(outlined, infos, read), mesh, seed=0, **settings)

        # In this order, as infer.py does, what compiling takes is not there beside the weights.
        plans = [planned(each) for each in outlines]
        runtime.give_back_memory()
        weights = [placed(each) for each in outlines]
        runtime.give_back_memory()
        given = inputs(drawn.images(batch, size))

        def launch(_: int) -> list[jax.Array]:
            images = jax.device_put(given, in_place)
            scores = [each.step(w, images) for each, w in zip(plans, weights, strict=True)]
            return [each.member_logits for each in scores]

        def run(count: int) -> Outputs:
            for logits in runtime.one_ahead(launch, range(count)):
                values = np.concatenate(jax.device_get(logits))
            return Outputs(values)

        return Program(run, batch, sum(each.compile_seconds for each in plans))

    return Loaded(prepare, device(), device_peak_bytes)


def training(
    members: Sequence[str],
    size: int,
    sizes: Sequence[int] = (),
    consistency: float = 0.0,
    grouped: bool = False,
) -> Loaded:
    """Returns training steps (forward, backward, AdamW) of the one network in `members`, on images
    of `size` pixels: at this size, or jointly at several `sizes`, all in one program or `grouped`,
    each in one of its own."""
    (name,) = members
    step, start = training_step(name, size, sizes, consistency, grouped)

    def prepare(batch: int) -> Program:
        return trained(step, start, batch, itertools.repeat(examples(batch, size)))

    return Loaded(prepare, device(), device_peak_bytes)


def training_step(
    name: str, size: int, sizes: Sequence[int] = (), consistency: float = 0.0, grouped: bool = False
) -> tuple[Programs, TrainState]:
    """Returns the step that `training` describes, and the state to start from."""
    graph, *learnt = nnx.split(network(name, size), nnx.Param, nnx.BatchStat)
    params, statistics = jax.tree.map(lambda leaf: leaf[None], learnt)
    (view,) = inputs(drawn.images(1, size)).views
    setting = Setting(
        graph,
        views_at(view, sizes or [size]),
        functools.partial(binary_loss, smoothing=0.0),
        optax.adamw(1e-3, weight_decay=1e-2),
        consistency,
    )
    optimizer = jax.vmap(setting.optimizer.init)(params)
    of_scales = (statistics,) * len(setting.views)
    start = TrainState(params, of_scales, optimizer, None, jnp.zeros(1, jnp.int32))
    mesh = sharding.mesh_of(jax.local_devices()[:1])
    scales = tuple(range(len(setting.views)))
    groups = (
        [ResolutionGroup((scale,)) for scale in scales] if grouped else [ResolutionGroup(scales)]
    )
    return Programs(setting, groups, mesh), start


def trained(step: Programs, start: TrainState, batch: int, endless: Iterator[Examples]) -> Program:
    """Returns steps from `start` over `endless` batches of so many images."""
    # Copies: the step gives away what it was given.
    state = jax.tree.map(jnp.copy, start)
    losses: list[float] = []

    def launch(_: int) -> jax.Array:
        nonlocal state
        # No key: neither turned images nor dropout, of which each contender has its own.
        state, loss = step(state, next(endless), None)
        return loss

    def run(count: int) -> Outputs:
        # A step late, as train.py does.
        losses.extend(float(loss.mean()) for loss in runtime.one_ahead(launch, range(count)))
        return Outputs(np.array([losses]))

    return Program(run, batch)


def examples(batch: int, size: int) -> Examples:
    """Returns images to learn from, every other one a lens."""
    given = inputs(drawn.images(batch, size))
    labels = np.arange(batch, dtype=np.float32) % 2
    return Examples(given.images[0], given.bounds[0], labels, np.ones((1, batch), np.float32))


def matrix_product() -> Loaded:
    """Returns float32 products of square matrices, in operations."""
    side = 2048 if jax.default_backend() == "cpu" else 8192

    def prepare() -> Program:
        matrix = jnp.full((side, side), 1.0 / side)
        product = jax.jit(lambda a: a @ a)

        def run(count: int) -> Outputs:
            for _ in range(count):
                result = product(matrix)
            return Outputs(np.asarray(result[:1, :1]))

        return Program(run, 2.0 * side**3)

    return Loaded(prepare, device(), device_peak_bytes)


def member(name: str, size: int) -> Member:
    """Returns the member called `name`, its weights drawn as a torchvision file and imported."""
    model = network(name, size)
    return Member(_info(name, size), jax.tree.map(np.asarray, state_of(model)))


def network(name: str, size: int) -> nnx.Module:
    """Returns the network of the member called `name` with the weights drawn for it."""
    abstract = nnx.eval_shape(lambda: _info(name, size).build(nnx.Rngs(0)))
    blank = {path: jnp.zeros(leaf.shape) for path, leaf in state_of(abstract).items()}
    model = nnx.merge(nnx.graphdef(abstract), nnx_state(abstract, blank))
    load_torch_weights(model, drawn.state_dict(name, tensor_shapes(model)))
    return model


def inputs(images: np.ndarray) -> Inputs:
    """Returns images (batch, S, S, band) as the step takes them: as they are, all of it sky."""
    made = _layout(images.shape[1]).blank(len(images))
    made.images[0][:] = images
    return made


def device() -> str:
    """Returns where JAX computes, in words."""
    return f"JAX on {runtime.devices()[0]}"


def device_peak_bytes() -> int | None:
    """Returns the most memory that JAX has held on its device, None where it keeps no account."""
    statistics = jax.devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use")


def _info(name: str, size: int) -> MemberInfo:
    architecture = drawn.architecture_of(name)
    return MemberInfo(architecture, _preparation(size), drawn.DROPOUT, weights_sha256=name)


def _preparation(size: int) -> Preprocessing:
    return Preprocessing.unnormalised(drawn.BAND_NAMES, size, None, "none", 1.0)


def _layout(size: int) -> Layout:
    """Returns how images of `size` pixels travel: as they are."""
    preprocessing, shape = _preparation(size), (size, size, drawn.BANDS)
    view = View(
        preprocessing, 0, tuple(range(drawn.BANDS)), geometry(shape[:2], None, preprocessing)
    )
    return Layout((Canvas(shape, "float32"),), (view,))
