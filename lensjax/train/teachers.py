"""Teachers: trained members whose logits, and what they see on the way to them, are learnt beside
the labels.

Hinton et al. (2015), "Distilling the knowledge in a neural network"; Romero et al. (2015),
"FitNets". Teachers see each batch as it was augmented for the student, each by its own
preprocessing, in the same compiled step.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding

from lensjax.cluster import hosts
from lensjax.data.bands import Wanted, select
from lensjax.data.on_device import Transform
from lensjax.data.planes import Unreadable
from lensjax.data.preprocess import geometry
from lensjax.ensemble import checkpoint, sharding
from lensjax.ensemble.checkpoint import MemberInfo
from lensjax.errors import UsageError
from lensjax.models.network import Layers
from lensjax.train.config import Hyperparameters
from lensjax.train.losses import unlike


@dataclass(frozen=True, eq=False)
class Teacher:
    """What is static of a teacher: its network, what it sees of a batch, and its calibration."""

    graph: nnx.GraphDef
    transform: Transform
    slope: float
    intercept: float


class Taught(NamedTuple):
    """What teachers make of a batch: the mean of their calibrated logits, (batch,) float32, and the
    layers of each, every channel of mean 0 and spread 1 over the batch."""

    logits: Array
    layers: tuple[Layers, ...]


def taught_by(
    teachers: Sequence[Teacher], states: Sequence[Any], images: Callable[[Transform], Array]
) -> Taught:
    """Returns what teachers of these weights make of a batch, with running statistics and no
    dropout. `images` makes what each sees."""
    logits, layers = [], []
    for teacher, state in zip(teachers, states, strict=True):
        narrow = images(teacher.transform).astype(jax.tree.leaves(state)[0].dtype)
        network = nnx.merge(teacher.graph, state)
        found = network.layers(narrow)
        logits.append(teacher.slope * network.head(found.features, rngs=None) + teacher.intercept)
        layers.append(jax.tree.map(_standardised, found))
    return Taught(jnp.stack(logits).mean(0), tuple(layers))


def _standardised(features: Array) -> Array:
    return jax.nn.standardize(features.astype(jnp.float32), range(features.ndim - 1), epsilon=1e-6)


def unlike_teachers(layers: Layers, teachers: Sequence[Layers]) -> Array:
    """Returns how much the layers of a student differ from those of its teachers, from 0 to 1: the
    mean of `losses.unlike` over the maps, place by place, the features, and the teachers."""
    pairs = [(layers.features, teacher.features) for teacher in teachers]
    for teacher in teachers:
        pairs += map(_on_one_grid, layers.maps, teacher.maps)
    return jnp.stack([unlike(*map(_as_rows, pair)) for pair in pairs]).mean()


def _as_rows(features: Array) -> Array:
    return features.reshape(-1, features.shape[-1]).astype(jnp.float32)


def _on_one_grid(one: Array, other: Array) -> tuple[Array, Array]:
    """Returns two maps (batch, y, x, channel) on the coarser of their grids: of the finer one, the
    places within one of the coarser become channels. Raises UsageError where they do not fit."""
    sides = one.shape[1], other.shape[1]
    coarse = min(sides)
    if max(sides) % coarse:
        raise UsageError(
            f"--teacher-features: {sides[0]} x {sides[0]} places of the student cannot be compared "
            f"with {sides[1]} x {sides[1]} of a teacher: choose --scales that give a multiple"
        )
    return _folded(one, coarse), _folded(other, coarse)


def _folded(image: Array, grid: int) -> Array:
    batch, side, _, channels = image.shape
    inner = side // grid
    blocks = image.reshape(batch, grid, inner, grid, inner, channels).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, grid, grid, -1)


def folders(of: Hyperparameters) -> list[Path]:
    """Returns the folders of the members that `--teachers` names: that of one member, or those of
    a folder of members, of which `--teacher-ensemble` chooses. Raises UsageError without any."""
    if of.teachers is None:
        return []
    return checkpoint.members_at(Path(of.teachers), of.teacher_ensemble)


def record(of: Hyperparameters) -> list[dict[str, Any]]:
    """Returns what `member.json` says of the teachers: all that their logits depend on."""
    infos = map(checkpoint.read_info, folders(of))
    return [{"weights_sha256": i.weights_sha256, "identity": i.identity(None)} for i in infos]


def load(
    of: Hyperparameters, training: Transform, mesh: Mesh
) -> tuple[tuple[Teacher, ...], tuple[Any, ...]]:
    """Returns the teachers and their weights, on every device of `mesh`, for batches that students
    see by the `training` transform.

    Raises UsageError where a teacher cannot see the cutouts.
    """
    teachers, states = [], []
    for folder in folders(of):
        info = checkpoint.read_info(folder)
        model = info.abstract_model()
        state = checkpoint.nnx_state(model, checkpoint.read_weights(folder, info))
        try:
            transform = transform_of(info, training)
        except (Unreadable, UsageError) as error:
            raise UsageError(f"--teachers: {folder} cannot see these cutouts: {error}") from error
        slope, intercept = (info.calibration[name] for name in ("slope", "intercept"))
        teachers.append(Teacher(nnx.graphdef(model), transform, slope, intercept))
        states.append(jax.tree.map(lambda leaf: leaf.astype(of.precision), state))
    everywhere = NamedSharding(mesh, sharding.EVERYWHERE)
    return tuple(teachers), hosts.from_whole(tuple(states), everywhere)


def transform_of(info: MemberInfo, training: Transform) -> Transform:
    """Returns how a member sees the cutouts that are trained on by the `training` transform.

    Raises UsageError where it wants other bands, or limits of brightness that were not measured,
    Unreadable where it sees far more or less of the sky.
    """
    wanted, own = info.preprocessing, training.preprocessing
    if (wanted.stretch == "zscale") != (own.stretch == "zscale"):
        raise UsageError(f"its stretch is {wanted.stretch}, the student's {own.stretch}")
    channels = select(own.bands, Wanted(wanted.bands)).planes
    of_image = training.geometry
    scale = own.pixel_scale and own.pixel_scale / of_image.ratio
    return dataclasses.replace(
        training,
        preprocessing=wanted,
        channels=channels,
        geometry=geometry(of_image.shape, scale, wanted),
    )
