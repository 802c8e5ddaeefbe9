"""Teachers: trained members whose logits are learnt beside the labels.

Hinton et al. (2015), "Distilling the knowledge in a neural network". Teachers see each batch as it
was augmented for the student, each by its own preprocessing, in the same compiled step.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from lensjax.train.config import Hyperparameters


@dataclass(frozen=True, eq=False)
class Teacher:
    """What is static of a teacher: its network, what it sees of a batch, and its calibration."""

    graph: nnx.GraphDef
    transform: Transform
    slope: float
    intercept: float


def mean_logits(
    teachers: Sequence[Teacher], states: Sequence[Any], images: Callable[[Transform], Array]
) -> Array:
    """Returns the mean of the teachers' calibrated logits, (batch,) float32, by their weights, with
    running statistics and no dropout. `images` makes what each sees."""
    logits = []
    for teacher, state in zip(teachers, states, strict=True):
        narrow = images(teacher.transform).astype(jax.tree.leaves(state)[0].dtype)
        logit = nnx.merge(teacher.graph, state)(narrow).astype(jnp.float32)
        logits.append(teacher.slope * logit + teacher.intercept)
    return jnp.stack(logits).mean(0)


def folders(of: Hyperparameters) -> list[Path]:
    """Returns the folders of the members that `--teachers` names: that of one member, or those of
    a folder of members, of which `--teacher-ensemble` chooses. Raises UsageError without any."""
    if of.teachers is None:
        return []
    folder = Path(of.teachers)
    if (folder / "member.json").is_file():
        return [folder]
    return list(checkpoint.find_members(folder, of.teacher_ensemble).values())


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
