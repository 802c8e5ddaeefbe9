"""Scores all cutouts of a source, batch by batch."""

import functools
import itertools
import operator
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lensjax import runtime, trace
from lensjax.data import pipeline
from lensjax.data.on_device import Inputs, InputSpec
from lensjax.data.preprocess import Fit, Preprocessing
from lensjax.data.source import Source
from lensjax.ensemble import plan, sharding
from lensjax.ensemble.plan import CompiledStep
from lensjax.ensemble.staged import REST, Incomplete, Stage, Staged
from lensjax.ensemble.step import StageStep, Step, Weights
from lensjax.errors import Interrupted, LensjaxError
from lensjax.ledger import Ledger
from lensjax.memory import is_out_of_memory
from lensjax.predictions import Predictions, Scores

Result = TypeVar("Result")


# Processes that read take seconds to start, and on a CPU the networks are slower than one reader.
MANY_FILES, MOST_WORKERS = 20_000, 16

ROUNDS = 3


def score(
    step: CompiledStep,
    weights: Weights,
    source: Source,
    ledger: Ledger,
    fit: Fit,
    workers: int | Literal["auto"] = 0,
    profile: Path | None = None,
    staged: Staged | None = None,
) -> dict[str, float | None]:
    """Adds the scores of the cutouts that `ledger` does not have yet, and returns how fast it was.

    The scores of a batch are fetched when the next one is on the devices and under way. `workers`
    are processes that read. `profile` is where to write a trace of some batches. Where members are
    computed in stages, `staged` says how, and `step` is that of the first stage there is. Raises
    Interrupted where the process is asked to stop: what is scored is kept.

    `images_per_second` leaves out the first batch, `waiting_share` is of the same time, in which
    the run waited for cutouts to be read: the devices, a batch behind, waited less.
    `seconds_to_first_batch` counts from the start of the program to its scores. An earlier run had
    scored `scored_before` rows. `cutouts_at_once` is less than the batch size where the memory did
    not suffice.
    """
    missing, total = sum(map(len, ledger.missing())), len(ledger.rows)
    ledger.device = runtime.device()
    names = staged.names if staged else step.ensemble.names
    stages = staged.stages if staged else {REST: Stage(step, weights, names)}
    scorers = {number: _Scorer(stage.step, stage.weights) for number, stage in stages.items()}
    waits: list[float] = []
    fetched: list[float] = []
    counts: list[int] = []
    to_first = None
    batches = trace.waits("load", _batches(ledger, source, step, fit, workers), waits)
    with (
        runtime.asked_to_stop() as asked_to_stop,
        runtime.progress("scoring", missing, "cutouts") as advance,
    ):
        try:
            # In stages nothing more comes in, but what has come, and may have waited long, is kept.
            wanted = itertools.takewhile(lambda _: not asked_to_stop(), batches)
            for batch, scores in _scored(wanted, scorers, profile, staged, fetched):
                with trace.stage("keep"):
                    predictions = _predictions(names, batch, scores)
                    ledger.add(source.first_row + int(batch.rows[0]), predictions.columns())
                to_first = to_first or runtime.seconds_since_start()
                ended = time.perf_counter()
                counts.append(batch.count)
                advance(batch.count)
                if asked_to_stop() and not staged:
                    break
        except LensjaxError:
            # Ctrl-C reaches the processes that read as well.
            if not asked_to_stop():
                raise
        ledger.save()
        if staged:
            staged.knows.end()
        left = sum(map(len, ledger.missing()))
        if asked_to_stop() and left:
            raise Interrupted(
                f"stopped after {total - left} of {total} rows; the same command goes on there"
            )
    steady = ended - fetched[0] if counts[1:] and fetched else None
    return {
        "images_per_second": sum(counts[1:]) / steady if steady else None,
        # When the first batch ends, the second has arrived.
        "waiting_share": sum(waits[2:]) / steady if steady else None,
        "seconds_to_first_batch": to_first,
        "scored_before": total - missing,
        "cutouts_at_once": min(scorer.at_once for scorer in scorers.values()),
        **(staged.knows.counts() if staged else {}),
    }


def _scored(
    batches: Iterable[pipeline.Batch],
    scorers: Mapping[int, "_Scorer"],
    profile: Path | None,
    staged: Staged | None,
    fetched: list[float],
) -> Iterator[tuple[pipeline.Batch, Scores]]:
    """Yields the batches and their scores, in order, and appends to `fetched` when those of a step
    came."""
    incomplete = Incomplete(staged) if staged else None
    work = incomplete.work(batches) if incomplete else ((REST, batch) for batch in batches)

    def launch(item: tuple[int, pipeline.Batch] | None) -> tuple[int, pipeline.Batch, Any] | None:
        return item and (*item, scorers[item[0]].launch(item[1]))

    for launched in trace.traced(runtime.one_ahead(launch, work), profile):
        if launched is None:
            yield from incomplete.ready() if incomplete else ()
            continue
        stage, batch, started = launched
        with trace.stage("fetch"):
            found = scorers[stage].fetch(batch, started)
        fetched.append(time.perf_counter())
        if incomplete:
            yield from incomplete.completed(stage, batch, *found)
        else:
            yield batch, found


def _batches(
    ledger: Ledger,
    source: Source,
    step: CompiledStep,
    fit: Fit,
    workers: int | Literal["auto"],
) -> Iterator[pipeline.Batch]:
    """Yields the rows that `ledger` does not have yet, in order."""
    if workers == "auto":
        outrun = len(source) >= MANY_FILES and jax.default_backend() != "cpu"
        processes = min(MOST_WORKERS, os.cpu_count() or 1) if outrun else 0
    else:
        processes = workers
    preprocessings = step.ensemble.preprocessings
    of = _feeder(source, preprocessings)
    options: dict[str, Any] = {"processes": processes}
    if of is not pipeline:
        put = functools.partial(on_devices, mesh=step.mesh)
        options = {"put": put} if step.input_spec.sheets else {"as_images": True}
    for rows in ledger.missing():
        yield from of.batches(
            source,
            preprocessings,
            how=fit,
            batch_size=step.cutouts,
            rows=range(rows.start - source.first_row, rows.stop - source.first_row),
            **options,
        )


def input_spec(source: Source, preprocessings: Sequence[Preprocessing], fit: Fit) -> InputSpec:
    """Returns the form of the batches that are scored, without reading any."""
    return _feeder(source, preprocessings).input_spec(source, preprocessings, fit)


def _feeder(source: Source, preprocessings: Sequence[Preprocessing]) -> Any:
    """Returns the module that makes batches of the cutouts of a source."""
    if source.tiles is None:
        return pipeline
    from lensjax.data import tile_batches  # slow to import

    return tile_batches if tile_batches.takes(source, preprocessings) else pipeline


class _Scorer:
    """The step, on as many cutouts at once as the devices turn out to have memory for."""

    def __init__(self, step: CompiledStep, weights: Weights) -> None:
        self._step, self._mesh, self._weights = step.step, step.mesh, weights
        self._input_spec, self.at_once = step.input_spec, step.cutouts

    @trace.is_stage("launch")
    def launch(self, batch: pipeline.Batch) -> list[Any] | None:
        """Returns what the step makes of a batch, under way; None where the memory does not
        suffice. Where no cutout can be read nothing is computed: objects off all tiles may be
        many."""
        if not batch.readable.any():
            return []
        return _unless_out_of_memory(lambda: self._start(batch.inputs))

    def fetch(self, batch: pipeline.Batch, started: list[Any] | None) -> Any:
        """Returns what the step makes of a batch, on the host. Where the memory does not suffice,
        it is computed again, alone, and then with half as many cutouts at once, as those that
        follow.

        Raises LensjaxError where it does not even suffice for one cutout a device.
        """
        if started == []:
            inputs = plan.abstract_inputs(self._input_spec, len(batch.rows), self._mesh)
            form = jax.eval_shape(self._step, self._weights, inputs)
            return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), form)
        parts = _unless_out_of_memory(lambda: jax.device_get(started))
        while parts is None:
            parts = _unless_out_of_memory(lambda: jax.device_get(self._start(batch.inputs)))
            if parts is None:
                self._halve()
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=-1), *parts)

    def _start(self, inputs: Inputs) -> list[Any]:
        """Returns what the step makes of a batch, under way, in parts of `at_once` cutouts."""
        return [
            self._step(self._weights, on_devices(part, self._mesh))
            for part in _split(inputs, self.at_once)
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


def on_devices(inputs: Inputs, mesh: Mesh) -> Inputs:
    """Returns a batch on the devices, each its part of the cutouts; tiles are whole on each."""
    by_cutout, everywhere = (
        NamedSharding(mesh, spec) for spec in (sharding.BY_CUTOUT, sharding.EVERYWHERE)
    )
    return jax.device_put(inputs, inputs.mapped(lambda _: by_cutout, lambda _: everywhere))


def _split(inputs: Inputs, count: int) -> Iterator[Inputs]:
    """Yields a batch in parts of `count` cutouts, the last one padded with the batch's last."""
    batch = len(jax.tree.leaves(inputs)[0])
    if batch == count:
        yield inputs
        return
    for first in range(0, batch, count):
        rows = np.minimum(np.arange(first, first + count), batch - 1)
        yield inputs.mapped(operator.itemgetter(rows))


def _unless_out_of_memory(compute: Callable[[], Result]) -> Result | None:
    """Returns what is computed, None where the memory does not suffice."""
    try:
        return compute()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def side_by_side(
    steps: Mapping[str, Step | StageStep], weights: Weights, inputs: Inputs, mesh: Mesh
) -> dict[str, float]:
    """Returns the cutouts per second of each of the `steps`, from the median of its runs.

    They alternate, so that what slows the machine for a while slows all of them; a first run,
    in which they are compiled, does not count.
    """
    placed = on_devices(inputs, mesh)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 + ROUNDS):
        for name, step in steps.items():
            began = time.perf_counter()
            jax.block_until_ready(step(weights, placed))
            seconds[name].append(time.perf_counter() - began)
    batch = len(inputs.images[0])
    return {name: batch / float(np.median(turns[1:])) for name, turns in seconds.items()}


def _predictions(members: tuple[str, ...], batch: pipeline.Batch, scores: Scores) -> Predictions:
    """Returns the rows of a batch. A cutout whose score is not finite counts as unreadable; members
    that have not seen it have NaN."""
    rows = slice(0, batch.count)
    scores = Scores(*(values[..., rows] for values in scores))
    # What is not finite of a member that is fused is not finite in the fused spread.
    finite = np.isfinite(np.vstack([s for s in scores if s.ndim == 1])).all(axis=0)
    read = batch.readable[rows]
    readable = read & finite
    reasons = np.array(batch.reasons[rows], np.str_)
    return Predictions(
        members=members,
        scores=Scores(*(np.where(readable, values, np.nan) for values in scores)),
        readable=readable,
        reason=np.where(read & ~finite, "the score is not finite", reasons),
        flag=np.where(readable, np.array(batch.flags[rows], np.str_), ""),
        ra=batch.ra[rows],
        dec=batch.dec[rows],
        masked=batch.masked[rows].astype(np.int32),
        action=np.array(batch.actions[0][rows], np.str_),
        field=batch.field[rows].astype(np.float32),
    )
