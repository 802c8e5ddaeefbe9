"""Sharding: a mesh of devices with the axes `member`, `data` and `fsdp`.

Cutouts are split over `data` and `fsdp`, stacked weights and dropout keys over `member`. A device
computes the logits of its members on its cutouts; in scoring these few numbers are all that devices
exchange. Where the member axis does not divide the members of a group, each device along it keeps
all of the group's weights and takes a part of the cutouts instead, so that none computes what
another does.

In training, each device along `fsdp` keeps a part of what is trained, and weights are gathered for
each step ("fully sharded data parallel": Rajbhandari et al. 2020, "ZeRO", arXiv:1910.02054).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lensjax.errors import UsageError

MEMBER, DATA, FSDP = "member", "data", "fsdp"

EVERYWHERE = PartitionSpec()
BY_MEMBER = PartitionSpec(MEMBER)
BY_CUTOUT = PartitionSpec((DATA, FSDP))
BY_MEMBER_AND_CUTOUT = PartitionSpec(MEMBER, (DATA, FSDP))

# Numbers of an array, of one member, below which each device keeps all of it: to gather it would
# take longer than it is worth.
LEAST_SPLIT = 4096


def mesh_of(devices: Sequence[jax.Device], member_shards: int = 1, fsdp: int = 1) -> Mesh:
    """Returns the mesh (member, data, fsdp) of all `devices`, `member_shards` of them along
    `member`, and `fsdp`, neighbours, along that axis.

    Raises UsageError where they are no box.
    """
    if len(devices) % member_shards:
        raise UsageError(
            f"--member-shards {member_shards} does not divide the {len(devices)} devices of this "
            "machine"
        )
    if len(devices) // member_shards % fsdp:
        raise UsageError(
            f"--fsdp {fsdp} does not divide the {len(devices) // member_shards} devices that share "
            "the cutouts"
        )
    return Mesh(np.array(devices).reshape(member_shards, -1, fsdp), (MEMBER, DATA, FSDP))


def divisible(batch_size: int, mesh: Mesh) -> int:
    """Returns the smallest batch that is no smaller and that all devices can share evenly."""
    return -(-batch_size // mesh.size) * mesh.size


def shard_map(function: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    """Returns `function` run by each device of `mesh` on its part of the arguments.

    Left to itself, XLA gathers the whole batch on every device for a grouped convolution. JAX's
    check of what varies along which axis is off: it refuses loops that start from constants, and
    could find nothing where each result is split along every axis that it varies along.
    """
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def weights_spec(members: int, mesh: Mesh) -> PartitionSpec:
    """Returns how arrays with a leading axis of the `members` of a group are split."""
    return EVERYWHERE if members % mesh.shape[MEMBER] else BY_MEMBER


def logits_spec(members: int, mesh: Mesh) -> PartitionSpec:
    """Returns how a group's logits (member, sample, batch) are split when they are computed."""
    if weights_spec(members, mesh) == BY_MEMBER:
        return PartitionSpec(MEMBER, None, (DATA, FSDP))
    return PartitionSpec(None, None, (DATA, FSDP, MEMBER))


def own_part(images: Array, members: int, mesh: Mesh) -> Array:
    """Returns those of a device's `images` that it shows to its weights of a group, inside
    `shard_map`: all where the members are split, else its part along the member axis."""
    if weights_spec(members, mesh) == BY_MEMBER:
        return images
    size = images.shape[0] // mesh.shape[MEMBER]
    return lax.dynamic_slice_in_dim(images, lax.axis_index(MEMBER) * size, size)


def trained_spec(shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Returns how an array of what is trained, of this shape with the members in front, is split.

    Along the longest axis that the devices along `fsdp` divide, if there is one and the array is no
    small one; else only over `member`.
    """
    parts, (_, *of_member) = mesh.shape[FSDP], shape
    axes = [axis for axis, size in enumerate(of_member) if size % parts == 0]
    if parts == 1 or not axes or math.prod(of_member) < LEAST_SPLIT:
        return BY_MEMBER
    return PartitionSpec(MEMBER, *[None] * max(axes, key=of_member.__getitem__), FSDP)


def places(tree: Any, mesh: Mesh) -> Any:
    """Returns where the arrays in a tree of what is trained are kept, by `trained_spec`."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, trained_spec(leaf.shape, mesh)), tree)


def scattered(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays of what is trained, inside a program, where they are kept."""
    if mesh.shape[FSDP] == 1:
        return tree
    return lax.with_sharding_constraint(tree, places(tree, mesh))


def gathered(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays of what is trained, inside a program, whole on each device along `fsdp`."""
    if mesh.shape[FSDP] == 1:
        return tree
    return lax.with_sharding_constraint(tree, NamedSharding(mesh, BY_MEMBER))
