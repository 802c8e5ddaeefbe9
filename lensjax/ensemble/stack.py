"""Members as an array axis: those of one architecture stacked, ready for one compiled step."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from lensjax.checkpoint import Member, nnx_state
from lensjax.data.preprocess import Preparation
from lensjax.ensemble import calibrate
from lensjax.ensemble.fuse import Knowledge
from lensjax.models.norm import fold_norms


@dataclass(frozen=True)
class Group:
    """Members of one structure: what is static in a compiled step. `preparation` is an index."""

    architecture: str
    graph: nnx.GraphDef
    members: int
    preparation: int


@dataclass(frozen=True)
class Ensemble:
    """Groups and their weights. `names` are the columns, in the order of the groups' members."""

    names: tuple[str, ...]
    groups: tuple[Group, ...]
    preparations: tuple[Preparation, ...]
    states: tuple[nnx.State, ...]
    """Per group, arrays with a leading member axis."""
    identities: np.ndarray
    """(member,) uint32 from the hash of each member's weights: its dropout masks depend on it and
    on the seed, not on the place or the company that the member has."""
    knowledge: Knowledge
    knowledge_from: str
    """Where the weights of the stacked fusion come from, in words."""


def stack(members: Mapping[str, Member]) -> Ensemble:
    """Returns the ensemble of `members`, by column name."""
    preparations = tuple(dict.fromkeys(m.info.preparation for m in members.values()))
    by_structure: dict[tuple, list[str]] = {}
    for name, member in members.items():
        by_structure.setdefault(_structure(member), []).append(name)
    groups, states = [], []
    for names in by_structure.values():
        info = members[names[0]].info
        model = nnx.eval_shape(lambda info=info: info.build(nnx.Rngs(0)))
        # One mask a sample, shared by the batch: a score must not depend on the neighbours.
        model.set_attributes(nnx.Dropout, broadcast_dims=(0,), raise_if_not_found=False)
        stacked = {
            key: np.stack([members[name].state[key] for name in names])
            for key in members[names[0]].state
        }
        network = nnx.merge(nnx.graphdef(model), nnx_state(model, stacked))
        fold_norms(network)
        graph, state = nnx.split(network)
        states.append(state)
        place = preparations.index(info.preparation)
        groups.append(Group(info.architecture, graph, len(names), place))
    ordered = {name: members[name] for names in by_structure.values() for name in names}
    knowledge, knowledge_from = learn_weights(ordered)
    return Ensemble(
        names=tuple(ordered),
        groups=tuple(groups),
        preparations=preparations,
        states=tuple(states),
        identities=np.array(
            [zlib.crc32(m.info.weights_sha256.encode()) for m in ordered.values()], np.uint32
        ),
        knowledge=knowledge,
        knowledge_from=knowledge_from,
    )


def learn_weights(members: Mapping[str, Member]) -> tuple[Knowledge, str]:
    """Returns what the members' validation data say, and where the stacking weights come from."""
    infos = [member.info for member in members.values()]
    slope = np.array([info.calibration["slope"] for info in infos])
    intercept = np.array([info.calibration["intercept"] for info in infos])
    validations = [m.validation for m in members.values() if m.validation is not None]
    labels = calibrate.shared_labels(validations) if len(validations) == len(infos) else None
    if labels is not None:
        logits = np.stack([validation["logit"] for validation in validations])
        calibrated = slope[:, None] * logits + intercept[:, None]
        stacking = calibrate.stacking(calibrated, labels)
        origin = f"stacking on {labels.size} validation objects"
    else:
        stacking = calibrate.equal_stacking(len(infos))
        origin = "equal weights: the members share no validation data"
    error = np.array([info.calibration["brier"] for info in infos])
    arrays = (slope, intercept, *stacking, error)
    return Knowledge(*(jnp.asarray(array, jnp.float32) for array in arrays)), origin


def member_keys(identities: ArrayLike, seed: int, samples: int) -> Array:
    """Returns the dropout keys (member, sample) of members with these identities."""
    root = jax.random.key(seed)
    keys = jax.vmap(lambda identity: jax.random.fold_in(root, identity))(jnp.asarray(identities))
    return jax.vmap(lambda key: jax.random.split(key, samples))(keys)


def _structure(member: Member) -> tuple:
    """Returns what members must share to be stacked."""
    info = member.info
    return info.architecture, info.preparation, info.dropout, info.block_dropout
