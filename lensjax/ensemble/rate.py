"""Compares how many cutouts per second different steps score."""

import time
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lensjax.data.on_device import Inputs
from lensjax.ensemble import sharding
from lensjax.ensemble.step import Step, Weights

ROUNDS = 3


def side_by_side(
    steps: Mapping[str, Step], weights: Weights, inputs: Inputs, mesh: Mesh
) -> dict[str, float]:
    """Returns the cutouts per second of each of the `steps`, from the median of its runs.

    They alternate, so that what slows the machine for a while slows all of them; a first run,
    in which they are compiled, does not count.
    """
    placed = jax.device_put(inputs, NamedSharding(mesh, sharding.BY_CUTOUT))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 + ROUNDS):
        for name, step in steps.items():
            began = time.perf_counter()
            jax.block_until_ready(step(weights, placed))
            seconds[name].append(time.perf_counter() - began)
    batch = len(inputs.images[0])
    return {name: batch / float(np.median(turns[1:])) for name, turns in seconds.items()}
