"""Members in groups, each an array axis of one compiled step."""

import functools
import itertools
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, ShapeDtypeStruct
from jax.typing import ArrayLike

from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble import calibration
from lensjax.ensemble.checkpoint import (
    Member,
    MemberInfo,
    State,
    Validation,
    nnx_state,
    state_of,
)
from lensjax.ensemble.fusion import Fusion, FusionParams, fuse
from lensjax.memory import aligned_zeros
from lensjax.models.norm import fold_norms


@dataclass(frozen=True)
class MemberGroup:
    """Members of one structure: what is static in a compiled step. `preprocessing` is an index."""

    architecture: str
    graph: nnx.GraphDef
    members: int
    preprocessing: int


@dataclass(frozen=True)
class Ensemble:
    """Groups and their weights. `names` are the columns, in the order of the groups' members."""

    names: tuple[str, ...]
    groups: tuple[MemberGroup, ...]
    preprocessings: tuple[Preprocessing, ...]
    states: tuple[nnx.State, ...]
    """Per group, arrays with a leading member axis; their shapes and types where abstract."""
    identities: np.ndarray
    """(member,) uint32 from the hash of each member's weights: its dropout masks depend on it and
    on the seed, not on the other members."""
    fusion_params: FusionParams
    weights_origin: str
    """Where the weights of the stacked fusion come from, in words."""
    validated_on: tuple[int, int] | None = None
    """How many lenses and others logits are calibrated on: their odds are those of the logits. None
    where the members share no validation data."""


def stack(members: Mapping[str, Member]) -> Ensemble:
    """Returns the ensemble of `members`, by column name."""
    infos = {name: member.info for name, member in members.items()}
    validations = {name: member.validation for name, member in members.items()}
    return with_weights(
        abstract_ensemble(infos, validations), infos, lambda name: members[name].state
    )


def abstract_ensemble(
    infos: Mapping[str, MemberInfo], validations: Mapping[str, Validation | None]
) -> Ensemble:
    """Returns the ensemble of these members with `ShapeDtypeStruct` in place of their weights: all
    that a step is compiled for."""
    preprocessings = tuple(dict.fromkeys(info.preprocessing for info in infos.values()))
    names_of_groups = _by_structure(infos)
    groups, states = [], []
    for names in names_of_groups:
        info = infos[names[0]]
        shapes = {
            key: ShapeDtypeStruct((len(names), *leaf.shape), leaf.dtype)
            for key, leaf in state_of(info.abstract_model()).items()
        }
        graph, state = nnx.split(nnx.eval_shape(functools.partial(_network, info), shapes))
        place = preprocessings.index(info.preprocessing)
        groups.append(MemberGroup(info.architecture, graph, len(names), place))
        states.append(state)
    ordered = [name for names in names_of_groups for name in names]
    in_order = [validations[name] for name in ordered]
    fusion_params, weights_origin = fit_fusion_params([infos[name] for name in ordered], in_order)
    hashes = [infos[name].weights_sha256.encode() for name in ordered]
    return Ensemble(
        names=tuple(ordered),
        groups=tuple(groups),
        preprocessings=preprocessings,
        states=tuple(states),
        identities=np.array([zlib.crc32(each) for each in hashes], np.uint32),
        fusion_params=fusion_params,
        weights_origin=weights_origin,
        validated_on=_counts(in_order),
    )


def subset(ensemble: Ensemble, names: Collection[str], fusion_params: FusionParams) -> Ensemble:
    """Returns the members of an abstract ensemble that have these names, in its order, to be fused
    by `fusion_params`. What they see keeps its number among the preprocessings."""
    groups, states, kept, start = [], [], [], 0
    for group, state in zip(ensemble.groups, ensemble.states, strict=True):
        members = range(start, start + group.members)
        rows = np.array([n - start for n in members if ensemble.names[n] in names])
        if rows.size:
            of_state = functools.partial(jax.tree.map, lambda leaf, rows=rows: leaf[rows])
            groups.append(replace(group, members=rows.size))
            states.append(jax.eval_shape(of_state, state))
            kept += (start + rows).tolist()
        start = members.stop
    return replace(
        ensemble,
        names=tuple(ensemble.names[n] for n in kept),
        groups=tuple(groups),
        states=tuple(states),
        identities=ensemble.identities[kept],
        fusion_params=fusion_params,
    )


def with_weights(
    abstract: Ensemble, infos: Mapping[str, MemberInfo], read: Callable[[str], State]
) -> Ensemble:
    """Returns an abstract ensemble with the weights that `read` gives by name, of one group at a
    time."""
    names, states = iter(abstract.names), []
    for group in abstract.groups:
        members = list(itertools.islice(names, group.members))
        # Copies of the dicts, which are emptied as their arrays are stacked.
        arrays = _on_an_axis([dict(read(name)) for name in members])
        states.append(nnx.state(_network(infos[members[0]], arrays)))
    return replace(abstract, states=tuple(states))


def fit_fusion_params(
    infos: Sequence[MemberInfo], validations: Sequence[Validation | None]
) -> tuple[FusionParams, str]:
    """Returns what the members' validation data say, and where the stacking weights come from."""
    slope = [info.calibration["slope"] for info in infos]
    intercept = [info.calibration["intercept"] for info in infos]
    stacking, origin = calibration.member_stacking(slope, intercept, validations)
    error = [info.calibration["brier"] for info in infos]
    arrays = (slope, intercept, *stacking, error)
    return FusionParams(*(jnp.asarray(np.asarray(array, np.float32)) for array in arrays)), origin


def fused_validation(
    ensemble: Ensemble, validations: Mapping[str, Validation | None], fusion: Fusion
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the fused logits (n,), in float64, and the labels (n,) of the objects on which all
    members were validated; None where they share none."""
    in_order = [validations.get(name) for name in ensemble.names]
    labels = calibration.shared_labels(in_order)
    if labels is None:
        return None
    logits = np.stack([each["logit"].astype(np.float64) for each in in_order if each])
    with jax.enable_x64(True):
        # As one program of what is asked for alone: all of `fuse`, operation by operation, takes
        # seconds at first.
        fused = jax.jit(lambda raw, fusion_params: fuse(raw, fusion_params, fusion).logit)
        return np.asarray(fused(logits[:, None], ensemble.fusion_params)), labels


def _counts(validations: Sequence[Validation | None]) -> tuple[int, int] | None:
    labels = calibration.shared_labels(validations)
    return None if labels is None else (int((labels == 1).sum()), int((labels == 0).sum()))


@functools.partial(jax.jit, static_argnames="samples")
def member_keys(identities: ArrayLike, seed: int, samples: int) -> Array:
    """Returns the dropout keys (member, sample) of members with these identities."""
    root = jax.random.key(seed)
    keys = jax.vmap(lambda identity: jax.random.fold_in(root, identity))(jnp.asarray(identities))
    return jax.vmap(lambda key: jax.random.split(key, samples))(keys)


def _by_structure(infos: Mapping[str, MemberInfo]) -> list[list[str]]:
    """Returns the names of the members in groups that can be stacked."""
    groups: dict[tuple, list[str]] = {}
    for name, info in infos.items():
        key = info.architecture, info.preprocessing, info.dropout, info.block_dropout
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def _network(info: MemberInfo, stacked: State) -> nnx.Module:
    """Returns the network of a group, its batch normalisation folded, with weights that have a
    leading member axis."""
    model = info.abstract_model()
    # One mask a sample, shared by the batch: a score must not depend on the neighbours.
    model.set_attributes(nnx.Dropout, broadcast_dims=(0,), raise_if_not_found=False)
    network = nnx.merge(nnx.graphdef(model), nnx_state(model, stacked))
    fold_norms(network)
    return network


def _on_an_axis(states: Sequence[State]) -> State:
    """Returns the weights of members of one structure with a leading member axis, taken out of
    `states`: none is held twice."""
    stacked = {}
    for key in list(states[0]):
        arrays = [np.asarray(state.pop(key)) for state in states]
        if len(arrays) > 1:
            # Where a CPU's device takes them without a copy.
            room = aligned_zeros((len(arrays), *arrays[0].shape), arrays[0].dtype)
            stacked[key] = np.stack(arrays, out=room)
        else:
            stacked[key] = arrays[0][np.newaxis]
    return stacked
