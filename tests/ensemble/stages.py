"""Stages whose members are sums over each cutout, for tests of what is computed when."""

from types import SimpleNamespace

import jax
import numpy as np

from lensjax.data.pixel_statistics import STATISTICS
from lensjax.ensemble import sharding
from lensjax.ensemble.plan import CompiledStep
from lensjax.ensemble.staged import Stage
from lensjax.predictions import Scores
from tests.ensemble.members import PREPROCESSING

BATCH, ROWS, SAMPLES = 4, 22, 3
FACTORS = {"a": 1.0, "b": -2.0, "c": 5.0}


def images(unreadable: int | None = None) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(9, 2, (ROWS, 32, 32, 2)).astype(np.float32)
    if unreadable is not None:
        drawn[unreadable] = np.nan
    return drawn


def logits_of(name: str, cutouts: np.ndarray) -> np.ndarray:
    """Returns the logits (sample, n) of a member: sums over each cutout."""
    total = np.asarray(cutouts).sum((1, 2, 3)) / 1000
    return (FACTORS[name] * total + np.arange(SAMPLES)[:, None]).astype(np.float32)


def fused(logits: np.ndarray) -> Scores:
    logits = np.ascontiguousarray(logits)
    total = logits.sum((0, 1))
    pixels = np.repeat(total[None], len(STATISTICS), 0)
    ensemble = (total + number for number in range(6))
    return Scores(*ensemble, logits.mean(1), logits.std(1), pixels)


def compiled(step, names) -> CompiledStep:
    ensemble = SimpleNamespace(names=names, preprocessings=(PREPROCESSING,))
    return CompiledStep(step, ensemble, sharding.mesh_of(jax.devices()[:1]), None, BATCH)


def stage(own: tuple[str, ...], along: tuple[str, ...], names: tuple[str, ...], computed) -> Stage:
    """Returns a stage that notes which of its members are given how many cutouts."""

    def step(_, inputs):
        found = {name: np.asarray(inputs.logits)[:, n].T for n, name in enumerate(along)}
        for name in own:
            found[name] = logits_of(name, inputs.images[0])
            computed.append((name, len(inputs.images[0])))
        logits = np.stack([found[name] for name in names])
        return fused(logits), logits

    return Stage(compiled(step, own), None, names)


def at_once(names: tuple[str, ...]) -> CompiledStep:
    """Returns the step of all members together, as it is without stages."""
    return compiled(
        lambda _, inputs: fused(np.stack([logits_of(name, inputs.images[0]) for name in names])),
        names,
    )


def assert_same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)
