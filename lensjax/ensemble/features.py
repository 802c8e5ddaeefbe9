"""What the members make of cutouts before their last layer: features, a vector a cutout."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from lensjax import runtime
from lensjax.data import on_device, pipeline
from lensjax.data.on_device import Inputs
from lensjax.data.preprocess import Fit
from lensjax.data.source import Source
from lensjax.ensemble.stack import Ensemble

AT_ONCE = 64

Features = Callable[[tuple[Any, ...], Inputs], list[Array]]


def features_step(ensemble: Ensemble) -> Features:
    """Returns the jitted function from the states of the groups and a batch to the features
    (batch, feature) of each member, in the order of `ensemble.names`; dropout is off."""

    @jax.jit
    def step(states: tuple[Any, ...], inputs: Inputs) -> list[Array]:
        prepared, found = on_device.prepare(inputs), []
        for group, state in zip(ensemble.groups, states, strict=True):
            for row in range(group.members):
                own = jax.tree.map(lambda leaf, row=row: leaf[row], state)
                network = nnx.merge(group.graph, own)
                found.append(network.features(prepared[group.preprocessing]))
        return found

    return step


def member_features(ensemble: Ensemble, source: Source, fit: Fit = "auto") -> dict[str, np.ndarray]:
    """Returns the features (n, feature) float32 of all cutouts of a source, by member; NaN where a
    cutout cannot be read.

    Raises UsageError where the source lacks a band that a member sees.
    """
    step = functools.partial(features_step(ensemble), jax.device_put(ensemble.states))
    batches = pipeline.batches(source, ensemble.preprocessings, how=fit, batch_size=AT_ONCE)
    parts: list[list[np.ndarray]] = []
    with runtime.progress("computing features", len(source), "cutouts") as advance:
        for batch, found in runtime.one_ahead(lambda batch: (batch, step(batch.inputs)), batches):
            count = batch.count
            readable = batch.readable[:count, None]
            parts.append([np.where(readable, np.asarray(f)[:count], np.nan) for f in found])
            advance(count)
    columns = [np.concatenate(of_member) for of_member in zip(*parts, strict=True)]
    return dict(zip(ensemble.names, columns, strict=True))
