"""Scores all cutouts of a source, batch by batch."""

import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lensjax import STARTED, runtime, trace
from lensjax.data import pipeline
from lensjax.data.on_device import Inputs
from lensjax.data.preprocess import Fit
from lensjax.data.source import Source
from lensjax.ensemble import sharding
from lensjax.ensemble.fusion import Scores
from lensjax.ensemble.plan import InferencePlan
from lensjax.ensemble.stack import Ensemble
from lensjax.ensemble.step import Step, Weights
from lensjax.errors import Interrupted, LensjaxError
from lensjax.memory import is_out_of_memory
from lensjax.resume import Columns, PartialRows


@dataclass(frozen=True)
class Timing:
    """How fast the scoring was.

    `images_per_second` leaves out the batch that compiled, `waiting_share` is of the same time, in
    which the run waited for cutouts to be read: the devices, a batch behind, waited less.
    `seconds_to_first_batch` counts from the start of the program to its scores.
    """

    compile_seconds: float | None
    images_per_second: float | None
    waiting_share: float | None
    seconds_to_first_batch: float | None
    scored_before: int
    """Rows that an earlier run had scored."""
    cutouts_at_once: int
    """Fewer than the batch size where the memory did not suffice."""


def score(
    plan: InferencePlan,
    weights: Weights,
    mesh: Mesh,
    ensemble: Ensemble,
    source: Source,
    parts: PartialRows,
    *,
    how: Fit,
    workers: int = 0,
    profile: Path | None = None,
) -> Timing:
    """Adds the scores of the cutouts that `parts` does not have yet, and returns the Timing.

    The scores of a batch are fetched when the next one is on the devices and under way; a batch of
    which nothing can be read stays on the host. `workers` are processes that read. `profile` is
    where to write a trace of some batches. Raises Interrupted where the process is told to end:
    what is scored is kept.
    """
    batch_size, missing, first = plan.size.cutouts, parts.missing(), source.first_row
    given = sum(map(len, missing))
    scorer = _Scorer(plan.step, weights, mesh, batch_size)
    batches = itertools.chain.from_iterable(
        pipeline.batches(
            source,
            ensemble.preprocessings,
            how=how,
            batch_size=batch_size,
            rows=range(rows.start - first, rows.stop - first),
            processes=workers,
        )
        for rows in missing
    )
    wait_seconds: list[float] = []
    launch_seconds: list[float] = []
    ends: list[float] = []
    counts: list[int] = []

    def launch(batch: pipeline.Batch) -> tuple[pipeline.Batch, _Started | None]:
        if not batch.readable.any():
            return batch, None
        began = time.perf_counter()
        with jax.profiler.StepTraceAnnotation("launch", step_num=len(launch_seconds)):
            started = scorer.start(batch.inputs)
        launch_seconds.append(time.perf_counter() - began)
        return batch, started

    scored = runtime.one_ahead(launch, trace.waits("load", batches, wait_seconds))
    with (
        runtime.asked_to_stop() as asked_to_stop,
        runtime.progress("scoring", given, "cutouts") as advance,
    ):
        try:
            for batch, started in trace.traced(scored, profile):
                with trace.stage("fetch"):
                    scores = None if started is None else scorer.finish(batch.inputs, started)
                with trace.stage("keep"):
                    parts.add(first + int(batch.rows[0]), _columns(ensemble, batch, scores))
                ends.append(time.perf_counter())
                counts.append(batch.count)
                advance(batch.count)
                if asked_to_stop():
                    break
        except LensjaxError:
            # Ctrl-C reaches the processes that read as well.
            if not asked_to_stop():
                raise
        parts.save()
        if asked_to_stop() and parts.missing():
            total = len(parts.rows)
            done = total - sum(map(len, parts.missing()))
            raise Interrupted(
                f"stopped after {done} of {total} rows; the same command goes on there"
            )
    steady = ends[-1] - ends[0] if counts[1:] else None
    return Timing(
        compile_seconds=plan.compile_seconds + launch_seconds[0] if launch_seconds else None,
        images_per_second=sum(counts[1:]) / steady if steady else None,
        # When the first batch ends, the second has arrived.
        waiting_share=sum(wait_seconds[2:]) / steady if steady else None,
        seconds_to_first_batch=ends[0] - STARTED if ends else None,
        scored_before=len(parts.rows) - given,
        cutouts_at_once=scorer.at_once,
    )


class _Started(NamedTuple):
    """Scores of a batch under way, `at_once` cutouts in each of `parts`; none, where the memory
    did not suffice to start them."""

    at_once: int
    parts: list[Scores] | None


class _Scorer:
    """The step, on as many cutouts at once as the devices turn out to have memory for."""

    def __init__(self, step: Step, weights: Weights, mesh: Mesh, at_once: int) -> None:
        self._step, self._weights, self._mesh = step, weights, mesh
        self.at_once = at_once

    def start(self, inputs: Inputs) -> _Started:
        """Returns the scores of a batch, under way."""
        try:
            return _Started(self.at_once, [self._launch(part) for part in self._split(inputs)])
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return _Started(self.at_once, None)

    def finish(self, inputs: Inputs, started: _Started) -> Scores:
        """Returns the scores of a batch on the host. Where the memory does not suffice, the batch
        is scored again with half as many cutouts at once, and so are those that follow.

        Raises LensjaxError where it does not even suffice for one cutout a device.
        """
        while True:
            scores = _fetch(started)
            if scores is not None:
                return scores
            # A batch that was under way already when the number was halved is not to halve it.
            if started.at_once == self.at_once:
                self._halve()
            started = self.start(inputs)

    def _launch(self, part: Inputs) -> Scores:
        on_devices = NamedSharding(self._mesh, sharding.BY_CUTOUT)
        return self._step(self._weights, jax.device_put(part, on_devices))

    def _split(self, inputs: Inputs) -> list[Inputs]:
        """Returns parts of a batch that are all full, the last one padded with its last cutout."""
        batch = len(inputs.bounds[0])
        if batch == self.at_once:
            return [inputs]
        rows = [np.arange(self.at_once) + first for first in range(0, batch, self.at_once)]
        return [
            jax.tree.map(lambda leaf, chosen=chosen: leaf[np.minimum(chosen, batch - 1)], inputs)
            for chosen in rows
        ]

    def _halve(self) -> None:
        half = sharding.divisible(self.at_once // 2, self._mesh)
        if not 0 < half < self.at_once:
            raise LensjaxError(
                f"the memory of {self._mesh.devices.flat[0]} does not suffice for a step with "
                f"{self.at_once} cutouts: score with fewer members"
            )
        print(f"out of memory: {half} cutouts at once instead of {self.at_once}", file=sys.stderr)
        self.at_once = half


def _fetch(started: _Started) -> Scores | None:
    """Returns the scores on the host, None where the memory did not suffice."""
    if started.parts is None:
        return None
    try:
        parts = jax.device_get(started.parts)
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=-1), *parts)


def _columns(ensemble: Ensemble, batch: pipeline.Batch, scores: Scores | None) -> Columns:
    """Returns the rows of a batch, one array (count,) per column, NaN where unreadable; without
    `scores` all are. A cutout whose score is not finite counts as unreadable."""
    if scores is None:
        unknown = np.full((len(ensemble.names), len(batch.readable)), np.nan, np.float32)
        of_members = {"member_logits": unknown, "member_probs": unknown}
        host: dict[str, Any] = dict.fromkeys(Scores._fields, unknown[0]) | of_members
    else:
        host = scores._asdict()
    member_logits, member_probs = host.pop("member_logits"), host.pop("member_probs")
    for index, name in enumerate(ensemble.names):
        host[f"{name}_logits"], host[f"{name}_probs"] = member_logits[index], member_probs[index]
    rows = slice(0, batch.count)
    finite = np.all([np.isfinite(values[rows]) for values in host.values()], axis=0)
    reasons = np.array(batch.reasons[rows], np.str_)
    reasons = np.where(batch.readable[rows] & ~finite, "the score is not finite", reasons)
    readable = batch.readable[rows] & finite
    columns = {name: np.where(readable, values[rows], np.nan) for name, values in host.items()}
    return columns | {
        "readable": readable,
        "reasons": reasons,
        "flags": np.where(readable, np.array(batch.flags[rows], np.str_), ""),
        "ra": batch.ra[rows],
        "dec": batch.dec[rows],
        "masked": batch.masked[rows],
        "action": np.array(batch.actions[0][rows], np.str_),
        "field": batch.field[rows],
    }
