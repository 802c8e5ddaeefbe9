"""Scores all cutouts of a source, batch by batch."""

import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lensjax import STARTED, runtime, trace
from lensjax.data import loader
from lensjax.data.catalog import Source
from lensjax.data.preprocess import Fit
from lensjax.ensemble import placement
from lensjax.ensemble.fuse import Scores
from lensjax.ensemble.predict import Step, Weights
from lensjax.ensemble.stack import Ensemble
from lensjax.resume import Columns, PartialScores


@dataclass(frozen=True)
class Timing:
    """How fast the scoring was; `images_per_second` leaves out the batch that compiled,
    `seconds_to_first_batch` counts from the start of the program to its scores."""

    compile_seconds: float | None
    images_per_second: float | None
    seconds_to_first_batch: float | None
    resumed_from: int


def score(
    step: Step,
    weights: Weights,
    mesh: Mesh,
    ensemble: Ensemble,
    source: Source,
    parts: PartialScores,
    *,
    how: Fit,
    batch_size: int,
    compile_seconds: float = 0.0,
    profile: Path | None = None,
) -> Timing:
    """Adds the scores of the cutouts that `parts` does not have yet, and returns the Timing.

    The scores of a batch are fetched when the next one is on the devices and under way.
    `compile_seconds` is what the step has taken so far, its first launch may add to it. `profile`
    is where to write a trace of some batches.
    """
    on_devices = NamedSharding(mesh, placement.BY_CUTOUT)
    start = parts.rows
    batches = loader.batches(
        source, ensemble.preparations, how=how, batch_size=batch_size, start=start
    )
    launch_seconds: list[float] = []
    ends: list[float] = []

    def launch(batch: loader.Batch) -> tuple[loader.Batch, Scores]:
        began = time.perf_counter()
        with jax.profiler.StepTraceAnnotation("launch", step_num=len(launch_seconds)):
            scores = step(weights, jax.device_put(batch.inputs, on_devices))
        launch_seconds.append(time.perf_counter() - began)
        return batch, scores

    scored = runtime.one_ahead(launch, trace.waits("load", batches))
    with runtime.progress("scoring", len(source) - start, "cutouts") as advance:
        for batch, scores in trace.traced(scored, profile):
            with trace.stage("fetch"):
                columns = _columns(ensemble, batch, scores)
            with trace.stage("keep"):
                parts.add(columns)
            ends.append(time.perf_counter())
            advance(batch.count)
    steady = parts.rows - start - batch_size
    return Timing(
        compile_seconds=compile_seconds + launch_seconds[0] if launch_seconds else None,
        images_per_second=steady / (ends[-1] - ends[0]) if steady > 0 else None,
        seconds_to_first_batch=ends[0] - STARTED if ends else None,
        resumed_from=start,
    )


def _columns(ensemble: Ensemble, batch: loader.Batch, scores: Scores) -> Columns:
    """Returns the rows of a batch, one array (count,) per column, NaN where unreadable."""
    host = jax.device_get(scores)._asdict()
    member_logits, member_probs = host.pop("member_logits"), host.pop("member_probs")
    for index, name in enumerate(ensemble.names):
        host[f"{name}_logits"], host[f"{name}_probs"] = member_logits[index], member_probs[index]
    rows = slice(0, batch.count)
    readable = batch.readable[rows]
    columns = {name: np.where(readable, values[rows], np.nan) for name, values in host.items()}
    return columns | {
        "readable": readable,
        "reasons": np.array(batch.reasons[rows], np.str_),
        "ra": batch.ra[rows],
        "dec": batch.dec[rows],
        "masked": batch.masked[rows],
        "action": np.array(batch.actions[0][rows], np.str_),
    }
