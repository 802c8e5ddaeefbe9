"""lensjax as a benchmarked program: its compiled ensemble step, and one training step."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding

from benchmarks import workload
from benchmarks.worker import Outputs, Program
from lensjax import runtime
from lensjax.data.on_device import ImageSpec, Inputs, InputSpec, Transform
from lensjax.data.preprocess import Preprocessing, geometry
from lensjax.ensemble import sharding
from lensjax.ensemble.checkpoint import Member, MemberInfo, state_of
from lensjax.ensemble.stack import abstract_ensemble, stack
from lensjax.ensemble.step import Precision, StepOptions, ensemble_step, place_weights
from lensjax.models.torch_import import load_torch_weights, tensor_shapes
from lensjax.train.data import transforms_at
from lensjax.train.losses import binary_loss
from lensjax.train.member_step import ResolutionGroup, StepConfig, TrainBatch
from lensjax.train.setup import initial_state
from lensjax.train.step import train_step


def scoring(
    members: Sequence[str], size: int, batch: int, samples: int, precision: Precision
) -> Program:
    """Returns the ensemble step of infer.py on one device, all members and samples in one call."""
    mesh = sharding.mesh_of(jax.local_devices()[:1])
    infos = {name: _info(name, size) for name in members}
    abstract = abstract_ensemble(infos, dict.fromkeys(infos))
    options = StepOptions(mc_samples=samples, precision=precision)
    step = ensemble_step(abstract, mesh, options)
    ensemble = stack({name: member(name, size) for name in members})
    weights = place_weights(ensemble, mesh, options)
    del ensemble
    runtime.give_back_memory()
    given = inputs(workload.images(batch, size))

    def launch(_: int) -> jax.Array:
        images = jax.device_put(given, NamedSharding(mesh, sharding.BY_CUTOUT))
        return step(weights, images).member_logits

    def run(count: int) -> Outputs:
        for logits in runtime.one_ahead(launch, range(count)):
            values = np.asarray(logits)
        return Outputs(values)

    return Program(run, batch, device_peak_bytes)


def training(name: str, size: int, batch: int) -> Program:
    """Returns training steps (forward, backward, AdamW) of one network, without augmentation or
    dropout, of which each program would have its own."""
    graph, *learnt = nnx.split(network(name, size), nnx.Param, nnx.BatchStat)
    params, statistics = jax.tree.map(lambda leaf: leaf[None], learnt)
    given = inputs(workload.images(batch, size))
    loss = functools.partial(binary_loss, smoothing=0.0)
    optimizer = optax.adamw(1e-3, weight_decay=1e-2)
    mesh = sharding.mesh_of(jax.local_devices()[:1])
    config = StepConfig(graph, transforms_at(given.transforms[0], [size]), loss, optimizer, mesh)
    step = functools.partial(train_step, config, [ResolutionGroup((0,))])
    state = initial_state(config, params, statistics)
    labels = np.arange(batch, dtype=np.float32) % 2
    ones = np.ones((1, batch), np.float32)
    examples = TrainBatch(given.images[0], given.brightness[0], labels, ones)
    losses: list[float] = []

    def launch(_: int) -> jax.Array:
        nonlocal state
        state, loss = step(state, examples, None)
        return loss

    def run(count: int) -> Outputs:
        # A step late, as train.py does.
        losses.extend(float(loss.mean()) for loss in runtime.one_ahead(launch, range(count)))
        return Outputs(np.array([losses]))

    return Program(run, batch, device_peak_bytes)


def member(name: str, size: int) -> Member:
    """Returns the member called `name` with the weights drawn for it."""
    return Member(_info(name, size), jax.tree.map(np.asarray, state_of(network(name, size))))


def network(name: str, size: int) -> nnx.Module:
    """Returns the network of the member called `name` with the weights drawn for it."""
    model = _info(name, size).build(nnx.Rngs(0))
    load_torch_weights(model, workload.state_dict(name, tensor_shapes(model)))
    return model


def inputs(images: np.ndarray) -> Inputs:
    """Returns images (batch, S, S, band) as the step takes them, without any preprocessing."""
    size = images.shape[1]
    preprocessing, shape = _preprocessing(size), (size, size, workload.BANDS)
    bands = tuple(range(workload.BANDS))
    transform = Transform(preprocessing, 0, bands, geometry(shape[:2], None, preprocessing))
    made = InputSpec((ImageSpec(shape, "float32"),), (transform,)).blank(len(images))
    made.images[0][:] = images
    return made


def device_peak_bytes() -> int | None:
    """Returns the most memory that JAX has held on its device, None where it keeps no account."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _info(name: str, size: int) -> MemberInfo:
    architecture = workload.architecture_of(name)
    return MemberInfo(architecture, _preprocessing(size), workload.DROPOUT, weights_sha256=name)


def _preprocessing(size: int) -> Preprocessing:
    return Preprocessing.unnormalised(workload.BAND_NAMES, size, None, "none", 1.0)
