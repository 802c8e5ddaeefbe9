"""Trains members of one architecture, stacked, that see each batch together."""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from scipy.special import expit

from lensjax import metrics, runtime
from lensjax.cluster import hosts
from lensjax.ensemble import calibration, sharding
from lensjax.ensemble.checkpoint import Member, MemberInfo, state_of
from lensjax.errors import Interrupted, LensjaxError
from lensjax.train import snapshots as on_disk
from lensjax.train.config import Hyperparameters
from lensjax.train.data import Labelled, on_devices, prefetched
from lensjax.train.finish import as_member
from lensjax.train.known_pixels import known_pixels
from lensjax.train.member_step import StepConfig, TrainBatch
from lensjax.train.metric_logger import MetricLogger
from lensjax.train.plan import abstract_members, groups_of_run
from lensjax.train.replay import Replayed
from lensjax.train.schedule import active_scales, first_step_at_largest
from lensjax.train.setup import TrainingData, TrainSetup, member_info, set_up, training_record
from lensjax.train.snapshots import Snapshot, Snapshots
from lensjax.train.state import BestEpoch, Run, TrainState
from lensjax.train.step import train_step, validation_logits


def train_members(
    training: TrainingData,
    validation: Labelled,
    architecture: str,
    hyperparameters: Hyperparameters,
    seeds: Sequence[int],
    folder: Path,
    *,
    mesh: Mesh | None = None,
    memory_budget: str | None = None,
    resume: bool = True,
    save_seconds: float = 600.0,
) -> list[Member]:
    """Returns a member for each of the `seeds`, each the best of its epochs by validation loss from
    that on in which it is first trained at its own size, and the last where a sky is replayed.

    Each is what it would be if trained alone. The run lives in `folder`: metrics, and from time to
    time its state, from which it is resumed if it was killed. Members and batches are shared among
    the devices of `mesh`, by default the first alone. A step takes all that it needs unless there
    is a `memory_budget`, as `--memory-budget` has it. Raises LensjaxError where a loss stops being
    finite, UsageError where the training data do not fill a batch, Interrupted where the process is
    asked to stop.
    """
    mesh = sharding.mesh_of(jax.local_devices()[:1]) if mesh is None else mesh
    batch_size, patience = hyperparameters.batch_size, hyperparameters.patience or math.inf
    info = member_info(training, architecture, hyperparameters)
    setup, state = set_up(
        *(info, training.transform, training.labels, hyperparameters, seeds, mesh),
        weight=training.weights,
        epoch_length=training.epoch_length,
    )
    batches = training.batches(batch_size, hosts.own_rows(batch_size, mesh))
    share = hyperparameters.keep_start
    origin = jax.tree.map(np.array, state.weights) if share else None  # state is given away
    groups = groups_of_run(
        *(setup, state, training.image_spec),
        batch_size=batch_size,
        budget=memory_budget,
        folder=folder,
        resumed=resume and bool(on_disk.seeds_under_way(folder)),
    )
    schedule, scale_count = hyperparameters.schedule, len(setup.config.transforms)
    # Before it is trained at the largest scale, a member says nothing there: no epoch counts.
    counts_from = first_step_at_largest(schedule, setup.steps, scale_count)
    if isinstance(training, Replayed):
        # The grades that are held back say whether the member is better: they choose no epoch.
        counts_from = setup.steps - 1
    settings = training_record(hyperparameters, training, architecture) | {
        "architecture": architecture,
        "seeds": list(seeds),
        "preprocessing": dataclasses.asdict(training.preprocessing),
    }
    with (
        closing(Snapshots(folder, settings, resume=resume)) as snapshots,
        closing(prefetched(batches, setup.weights, mesh)) as iterator,
    ):
        start, best = 0, BestEpoch.none(state, len(validation))
        found = snapshots.newest(Run(abstract_members(state, mesh), best))
        if found is None:
            state = hosts.from_whole(state, sharding.places(state, mesh))
        else:
            start, (state, best) = found.step, found.arrays
            iterator.set_state(found.record["batches"])
        losses, agreed = None, hosts.Agreement(mesh)
        shown: dict[str, float] = {}
        saved = began = time.monotonic()
        images = (setup.steps - start) * batch_size
        with (
            closing(MetricLogger(folder, start)) if hosts.is_first() else nullcontext() as logger,
            runtime.asked_to_stop() as asked_to_stop,
            runtime.progress(f"training {len(seeds)} x {architecture}", images, "images") as bar,
        ):
            for step in range(start + 1, setup.steps + 1):
                scales = active_scales(schedule, step - 1, setup.steps, scale_count)
                rows, arrays = next(iterator)
                batch = TrainBatch(**arrays, teachers=setup.teachers)
                state, new = train_step(setup.config, groups[scales], state, batch, setup.keys)
                if losses is not None:
                    # A step late, so that the device never waits for the host.
                    shown["loss"] = losses.on_host(training).mean()
                losses = StepLosses(step, scales, rows, new)
                bar(batch_size, **shown)
                is_last = step == setup.steps
                if step % setup.steps_per_epoch == 0 or is_last:
                    rate = (step - start) * batch_size / (time.monotonic() - began)
                    judged = state if origin is None else state.mixed(origin, share)
                    logits = [
                        predict(setup.config, scale, judged, validation, batch_size)
                        for scale in range(scale_count)
                    ]
                    for row in _metric_rows(setup, losses, training, validation, logits):
                        if logger is not None:
                            logger.write(row | {"images_per_second": rate})
                    # The largest scale is the one that the member will be used at.
                    loss = calibration.object_loss(logits[-1], validation.labels).mean(-1)
                    if step > counts_from:
                        best = best.updated(loss, logits[-1], judged, patience)
                    shown["validation_loss"] = loss.mean()
                is_due = time.monotonic() - saved > save_seconds
                ends, is_due = agreed(asked_to_stop(), is_due)
                if ends or is_last or is_due:
                    losses.on_host(training)  # the last good state stays the last
                    record = {"batches": iterator.get_state()}
                    snapshots.save(Snapshot(step, Run(state, best), record))
                    saved = time.monotonic()
                if ends:
                    raise Interrupted(
                        f"stopped after {step} of {setup.steps} steps; the same command goes on "
                        "there"
                    )
                if (best.stale_epochs >= patience).all():
                    break
    graph = setup.config.graph
    pixels = known_pixels(validation, hyperparameters.pictures)
    return [
        _finish(info, graph, best, index, seed, validation, pixels)
        for index, seed in enumerate(seeds)
    ]


class StepLosses(NamedTuple):
    """The losses (member, scale) of a step, maybe under way, at these scales and rows."""

    step: int
    scales: tuple[int, ...]
    rows: np.ndarray
    losses: Array

    def on_host(self, training: TrainingData) -> np.ndarray:
        """Returns the losses, or raises LensjaxError where one is not finite."""
        values = hosts.on_host(self.losses).astype(np.float64)
        if not np.isfinite(values).all():
            ids = ", ".join(map(str, training.id[self.rows[:4]]))
            raise LensjaxError(
                f"the training loss is {values[~np.isfinite(values)][0]} at step {self.step}, on "
                f"{len(self.rows)} cutouts ({ids}, ...); lower --learning-rate or look for cutouts "
                "with extreme values. What was saved before it is kept"
            )
        return values


def predict(
    config: StepConfig, scale: int, state: TrainState, data: Labelled, batch_size: int
) -> np.ndarray:
    """Returns the logits (member, n) float64 of `data` at a scale by the weights of a state,
    dropout off; the last batch is padded."""
    batches = data.in_order(batch_size, hosts.own_rows(batch_size, config.mesh))
    parts = []
    for arrays in batches:
        batch = TrainBatch(**on_devices(arrays, batch_size, config.mesh), weight=None)
        parts.append(validation_logits(config, scale, *state.weights, batch))
    return np.concatenate(hosts.on_host(parts), -1)[:, : len(data)].astype(np.float64)


def _metric_rows(
    setup: TrainSetup,
    losses: StepLosses,
    training: TrainingData,
    data: Labelled,
    logits: Sequence[np.ndarray],
) -> Iterator[dict[str, float]]:
    """Yields the row of metrics of each scale and member at the end of an epoch, from the `logits`
    (member, n) at each scale and the losses of the last step, NaN where it had another scale."""
    values, label = losses.on_host(training), data.labels
    for scale, of_scale in enumerate(logits):
        for member, logit in enumerate(of_scale):
            found, is_trained = metrics.values(expit(logit), label), scale in losses.scales
            yield {
                "step": losses.step,
                "epoch": losses.step / setup.steps_per_epoch,
                "member": member,
                "size": setup.config.transforms[scale].preprocessing.input_size,
                "training_loss": (
                    values[member, losses.scales.index(scale)] if is_trained else math.nan
                ),
                "loss": calibration.object_loss(logit, label).mean(),
                **{name: found[name] for name in ("auroc", "tpr0", "tpr10")},
                "ece": found["expected_calibration_error"],
            }


def _finish(
    info: MemberInfo,
    graph: nnx.GraphDef,
    best: BestEpoch,
    index: int,
    seed: int,
    data: Labelled,
    pixels: np.ndarray | None,
) -> Member:
    """Returns a member at its best."""
    if not np.isfinite(best.loss[index]):
        raise LensjaxError(f"{info.architecture}: no epoch ended with a finite validation loss")
    params, batch_stats = jax.tree.map(lambda leaf: leaf[index], best.weights)
    state = state_of(nnx.merge(graph, params, batch_stats[-1]))  # of the member's own size
    return as_member(info, state, best.logits[index], seed, data, pixels)
