"""Sharding: a mesh of devices with the axes `member` and `data`.

Cutouts are split over `data`, stacked weights and dropout keys over `member`. A device computes
the logits of its members on its cutouts; these few numbers are all that devices exchange. Where
the member axis does not divide the members of a group, each device along it keeps all of the
group's weights and takes a part of the cutouts instead, so that none computes what another does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from lensjax.errors import UsageError

MEMBER, DATA = "member", "data"

EVERYWHERE = PartitionSpec()
BY_MEMBER = PartitionSpec(MEMBER)
BY_CUTOUT = PartitionSpec(DATA)
BY_MEMBER_AND_CUTOUT = PartitionSpec(MEMBER, DATA)


def mesh_of(devices: Sequence[jax.Device], member_shards: int = 1) -> Mesh:
    """Returns the mesh (member, data) of all `devices`, `member_shards` of them along `member`.

    Raises UsageError where they are no rectangle.
    """
    if len(devices) % member_shards:
        raise UsageError(
            f"--member-shards {member_shards} does not divide the {len(devices)} devices of this "
            "machine"
        )
    return Mesh(np.array(devices).reshape(member_shards, -1), (MEMBER, DATA))


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
        return PartitionSpec(MEMBER, None, DATA)
    return PartitionSpec(None, None, (DATA, MEMBER))


def own_part(images: Array, members: int, mesh: Mesh) -> Array:
    """Returns those of a device's `images` that it shows to its weights of a group, inside
    `shard_map`: all where the members are split, else its part along the member axis."""
    if weights_spec(members, mesh) == BY_MEMBER:
        return images
    size = images.shape[0] // mesh.shape[MEMBER]
    return lax.dynamic_slice_in_dim(images, lax.axis_index(MEMBER) * size, size)
