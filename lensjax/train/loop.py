"""Trains a team: members of one architecture, stacked, that see each batch together."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.typing import ArrayLike
from scipy.special import expit

from lensjax import metrics, runtime
from lensjax.ensemble import calibration, sharding
from lensjax.ensemble.checkpoint import Member, MemberInfo, state_of
from lensjax.errors import Interrupted, LensjaxError, UsageError
from lensjax.train.config import Hyperparameters
from lensjax.train.dataset import Labelled
from lensjax.train.metric_logger import MetricLogger
from lensjax.train.scales import active_at, first_step_at_largest
from lensjax.train.snapshots import Snapshot, Snapshots
from lensjax.train.step import Examples, Programs, ResolutionGroup, TrainState, validation_step
from lensjax.train.team import Team, Training, assemble, member_info, training_record

Validate = Callable[[Any, Any, Examples], Array]
StepPrograms = Mapping[tuple[int, ...], Programs]
"""The programs of a step by its scales."""


def at_once(team: Team, state: TrainState) -> StepPrograms:
    """Returns programs that take all scales of a step at once, whatever memory there is."""
    del state
    return {
        scales: Programs(team.setting, (ResolutionGroup(scales, team.micro_batches),), team.mesh)
        for scales in team.scale_sets
    }


class Best(NamedTuple):
    """The best epoch of each member by validation loss, on the host: `loss` and `stale_epochs`
    since then (member,), `logits` (member, n) of the validation data, and `weights`, the trees of
    parameters and of each scale's batch statistics, with the members in front."""

    loss: np.ndarray
    stale_epochs: np.ndarray
    logits: np.ndarray
    weights: tuple[Any, Any]

    @staticmethod
    def none(state: TrainState, rows: int) -> "Best":
        """Returns what is there before the first epoch has ended."""
        members = len(state.step)
        weights = jax.tree.map(np.array, _kept(state))
        logits = np.zeros((members, rows))
        return Best(np.full(members, np.inf), np.zeros(members, np.int64), logits, weights)

    def updated(
        self, loss: np.ndarray, logits: np.ndarray, state: TrainState, patience: float
    ) -> "Best":
        """Returns the best of this and of the epoch that has ended.

        A member out of patience stays as it is: it ends as it would without its company.
        """
        better = (loss < self.loss) & (self.stale_epochs < patience)

        def chosen(new: ArrayLike, old: np.ndarray) -> np.ndarray:
            new = np.asarray(new)
            return np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        weights = _kept(state)
        return Best(
            chosen(loss, self.loss),
            np.where(better, 0, self.stale_epochs + 1),
            chosen(logits, self.logits),
            jax.tree.map(chosen, weights, self.weights) if better.any() else self.weights,
        )


def _kept(state: TrainState) -> tuple[Any, Any]:
    """Returns what is kept of a state: parameters and each scale's statistics, averaged where there
    are averages."""
    found = state if state.average is None else state.average
    return found.params, found.statistics


class Run(NamedTuple):
    """All of a team that changes as it is trained, the members in front of every array."""

    state: TrainState
    best: Best


def train_team(
    training: Training,
    validation: Labelled,
    architecture: str,
    hyperparameters: Hyperparameters,
    seeds: Sequence[int],
    folder: Path,
    *,
    mesh: Mesh | None = None,
    programs_for: Callable[[Team, TrainState], StepPrograms] = at_once,
    resume: bool = True,
    save_seconds: float = 600.0,
) -> list[Member]:
    """Returns a member for each of the `seeds`, each the best of its epochs by validation loss
    from that on in which it is first trained at its own size.

    Each is what it would be if trained alone. The run lives in `folder`: metrics, and from time to
    time its state, from which it goes on if it was killed. Members and batches are shared among the
    devices of `mesh`, as a rule the first alone. Raises LensjaxError where a loss stops being
    finite, UsageError where the training data do not fill a batch, Interrupted where the process is
    told to end.
    """
    if len(training) < hyperparameters.batch_size:
        raise UsageError(
            f"{len(training)} training cutouts do not fill a batch of "
            f"{hyperparameters.batch_size}; lower --batch-size"
        )
    info = member_info(training, architecture, hyperparameters)
    mesh = sharding.mesh_of(jax.local_devices()[:1]) if mesh is None else mesh
    team, state = assemble(info, training.view, training.labels, hyperparameters, seeds, mesh)
    by_member = NamedSharding(mesh, sharding.BY_MEMBER)
    programs = programs_for(team, state)
    start, run = 0, Run(state, Best.none(state, len(validation)))
    settings = training_record(hyperparameters, training, architecture) | {
        "architecture": architecture,
        "seeds": list(seeds),
        "preprocessing": training.preprocessing.to_json(),
    }
    with closing(Snapshots(folder, settings, resume=resume)) as snapshots:
        batches = training.batches(hyperparameters.batch_size)
        found = snapshots.newest(run)
        if found is not None:
            start, run = found.step, found.arrays
            batches.set_state(found.record["batches"])
        run = run._replace(state=jax.device_put(run.state, by_member))
        best = _train(
            team,
            run,
            start,
            batches,
            training,
            validation,
            hyperparameters,
            programs,
            snapshots,
            save_seconds,
        )
    graph = team.setting.graph
    return [_finish(info, graph, best, index, seed, validation) for index, seed in enumerate(seeds)]


def _train(
    team: Team,
    run: Run,
    start: int,
    batches: grain.DatasetIterator,
    training: Training,
    validation: Labelled,
    hyperparameters: Hyperparameters,
    programs: StepPrograms,
    snapshots: Snapshots,
    save_seconds: float,
) -> Best:
    """Returns the best epochs of a team that goes on from `run` after `start` steps."""
    state, best = run
    size, patience = hyperparameters.batch_size, hyperparameters.patience or math.inf
    scale_count = len(team.setting.views)
    # Before it is trained at the largest scale, a member says nothing there: no epoch counts.
    counts_from = first_step_at_largest(hyperparameters.schedule, team.steps, scale_count)

    validates = [validation_step(team.setting, scale, team.mesh) for scale in range(scale_count)]
    pending: Pending | None = None
    shown: dict[str, float] = {}
    what = f"training {len(team.keys)} x {team.architecture}"
    saved = began = time.monotonic()
    with (
        closing(MetricLogger(snapshots.folder, start)) as metric_logger,
        runtime.asked_to_stop() as asked_to_stop,
        runtime.progress(what, (team.steps - start) * size, "images") as bar,
    ):
        for done in range(start + 1, team.steps + 1):
            scales = active_at(hyperparameters.schedule, done - 1, team.steps, scale_count)
            batch = next(batches)
            rows = batch.pop("row")
            examples = Examples(**batch, weight=team.weights[:, rows])
            state, losses = programs[scales](state, _placed(examples, team.mesh), team.keys)
            if pending is not None:
                # A step late: the device is never made to wait for it.
                shown["loss"] = pending.finite_losses(training).mean()
            pending = Pending(done, scales, rows, losses)
            bar(size, **shown)
            if done % team.steps_an_epoch == 0 or done == team.steps:
                rate = (done - start) * size / (time.monotonic() - began)
                found = pending.finite_losses(training)
                for scale, validate in enumerate(validates):
                    logits = predict(validate, state, validation, size)
                    of_scale = found[:, scales.index(scale)] if scale in scales else None
                    for row in _rows(done, team, scale, of_scale, validation, logits, rate):
                        metric_logger.write(row)
                # The largest scale is the one that the member will be used at.
                loss = calibration.object_loss(logits, validation.arrays["label"]).mean(-1)
                if done > counts_from:
                    best = best.updated(loss, logits, state, patience)
                shown["validation_loss"] = loss.mean()
            ends = asked_to_stop()
            if ends or time.monotonic() - saved > save_seconds or done == team.steps:
                pending.finite_losses(training)  # the last good state stays the last
                snapshots.save(Snapshot(done, Run(state, best), {"batches": batches.get_state()}))
                saved = time.monotonic()
            if ends:
                raise Interrupted(
                    f"stopped after {done} of {team.steps} steps; the same command goes on there"
                )
            if (best.stale_epochs >= patience).all():
                break
    return best


class Pending(NamedTuple):
    """A step under way: its number, its scales, the rows of its cutouts, and its losses
    (member, scale)."""

    step: int
    scales: tuple[int, ...]
    rows: np.ndarray
    losses: Array

    def finite_losses(self, training: Training) -> np.ndarray:
        """Returns the losses, or raises LensjaxError where one is not finite."""
        values = np.asarray(self.losses, np.float64)
        if not np.isfinite(values).all():
            ids = ", ".join(map(str, training.id[self.rows[:4]]))
            raise LensjaxError(
                f"the training loss is {values[~np.isfinite(values)][0]} at step {self.step}, on "
                f"{len(self.rows)} cutouts ({ids}, ...); lower --learning-rate or look for cutouts "
                "with extreme values. What was saved before it is kept"
            )
        return values


def _placed(examples: Examples, mesh: Mesh) -> Examples:
    """Returns a batch on the devices, shared among them."""
    by_cutout = NamedSharding(mesh, sharding.BY_CUTOUT)
    places = Examples(
        by_cutout, by_cutout, by_cutout, NamedSharding(mesh, sharding.BY_MEMBER_AND_CUTOUT)
    )
    return jax.device_put(examples, places)


def predict(validate: Validate, state: TrainState, data: Labelled, batch_size: int) -> np.ndarray:
    """Returns the logits (member, n) float64 of `data` by what is kept of a state, dropout off; the
    last batch is padded."""
    parts, (params, statistics) = [], _kept(state)
    ones = np.ones(batch_size, np.float32)
    for start in range(0, len(data), batch_size):
        stop = min(start + batch_size, len(data))
        rows = np.resize(np.arange(start, stop), batch_size)
        arrays = {name: values[rows] for name, values in data.arrays.items()}
        logits = validate(params, statistics, Examples(**arrays, weight=ones))
        parts.append(logits[..., : stop - start])
    return np.concatenate(jax.device_get(parts), axis=-1).astype(np.float64)


def _rows(
    step: int,
    team: Team,
    scale: int,
    losses: np.ndarray | None,
    data: Labelled,
    logits: np.ndarray,
    rate: float,
) -> Iterator[dict[str, float]]:
    """Yields the row of metrics of each member at a scale at the end of an epoch; the training
    `losses` (member,) are those of the last step, None where it had another scale."""
    label = data.arrays["label"]
    for member, values in enumerate(logits):
        found = metrics.values(expit(values), label)
        yield {
            "step": step,
            "epoch": step / team.steps_an_epoch,
            "member": member,
            "size": team.setting.views[scale].preprocessing.input_size,
            "training_loss": math.nan if losses is None else losses[member],
            "loss": calibration.object_loss(values, label).mean(),
            **{name: found[name] for name in ("auroc", "tpr0", "tpr10")},
            "ece": found["expected_calibration_error"],
            "images_per_second": rate,
        }


def _finish(
    info: MemberInfo, graph: nnx.GraphDef, best: Best, index: int, seed: int, validation: Labelled
) -> Member:
    """Returns a member at its best, with its calibration and metrics."""
    if not np.isfinite(best.loss[index]):
        raise LensjaxError(f"{info.architecture}: no epoch ended with a finite validation loss")
    params, statistics = jax.tree.map(lambda leaf: leaf[index], best.weights)
    label, logits = validation.arrays["label"], best.logits[index]
    slope, intercept = calibration.platt(logits, label)
    probability = expit(slope * logits + intercept)
    info = dataclasses.replace(
        info,
        training=info.training | {"seed": seed},
        calibration={
            "slope": slope,
            "intercept": intercept,
            "brier": float(np.mean((probability - label) ** 2)),
        },
        metrics=metrics.evaluate(probability, label).to_json(),
    )
    state = state_of(nnx.merge(graph, params, statistics[-1]))  # of the member's own size
    return Member(info, state, {"id": validation.id, "label": label, "logit": logits})
