"""Small networks, two members of each, and the settings that they train with."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree

from lensjax.data.on_device import Transform
from lensjax.data.preprocess import Preprocessing, geometry
from lensjax.ensemble import sharding
from lensjax.models.vit import VisionTransformer
from lensjax.train.augment import Augmentation
from lensjax.train.data import transforms_at
from lensjax.train.losses import binary_loss
from lensjax.train.member_step import StepConfig
from lensjax.train.setup import initial_state
from lensjax.train.state import TrainState

BATCH, SIZES, WEIGHT, MEMBERS = 4, (16, 32, 48), 0.7, 2
MESH = sharding.mesh_of(jax.devices()[:1])
PREPROCESSING = Preprocessing(("g", "r"), 48, None, "none", 1.0, (0.0, 0.0), (1.0, 1.0))
# No augmentation, which takes long to compile and is tested apart: as hyperparameters, as options.
UNCHANGED_VALUES = {
    field.name: 0.0 for field in dataclasses.fields(Augmentation) if field.name != "pictures"
}
UNCHANGED = tuple(
    word for name in UNCHANGED_VALUES for word in (f"--{name.replace('_', '-')}", "0")
)
# Each member sees changes of its own.
AUGMENTATION = Augmentation(**UNCHANGED_VALUES | {"augment_noise": 0.5})
TRANSFORM = Transform(PREPROCESSING, 0, (0, 1), geometry((48, 48), None, PREPROCESSING))


def transformer(rngs: nnx.Rngs) -> nnx.Module:
    return VisionTransformer(
        **{"width": 24, "depth": 2, "heads": 2, "bands": 2, "input_size": 48},
        **{"dropout": 0.2, "block_dropout": 0.0, "rngs": rngs},
    )


@functools.cache
def config_and_state(build, **more) -> tuple[StepConfig, TrainState]:
    """Returns two members with weights that are nowhere zero; what they share compiles once."""

    def draw(seed: int) -> tuple:
        parts = nnx.split(build(nnx.Rngs(seed)), nnx.Param, nnx.BatchStat)
        flat, unravel = ravel_pytree(parts[1])
        noise = 0.1 * np.random.default_rng(seed).normal(size=flat.shape).astype(np.float32)
        return parts[0], unravel(flat + noise), parts[2]

    (graph, *first), (_, *second) = draw(1), draw(2)
    params, statistics = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    config = StepConfig(
        graph,
        transforms_at(TRANSFORM, SIZES),
        functools.partial(binary_loss, smoothing=0.1),
        optax.sgd(1.0),
        MESH,
        **{"consistency_weight": WEIGHT, "augmentation": AUGMENTATION, **more},
    )
    state = initial_state(config, params, statistics)
    return config, state._replace(step=jnp.array([3, 3]))
