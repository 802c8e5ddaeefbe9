"""Trains one member: labelled cutouts in, a member with its validation record out."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from scipy.special import expit

from lensjax import metrics, runtime
from lensjax.checkpoint import Member, MemberInfo, State, state_of
from lensjax.data import loader
from lensjax.ensemble import calibrate
from lensjax.errors import LensjaxError, UsageError
from lensjax.training.dataset import Labelled
from lensjax.training.step import (
    Examples,
    TrainState,
    optimiser,
    train_step,
    validation_step,
)

Validation = Callable[[TrainState, Examples], Array]


@dataclass(frozen=True)
class Recipe:
    """How a member is trained; durations in epochs of the training data."""

    batch_size: Annotated[int, "cutouts a step"] = 32
    epochs: Annotated[float, "passes over the training data; may be a fraction"] = 20.0
    learning_rate: Annotated[float, "peak of the learning rate"] = 1e-3
    warmup: Annotated[float, "share of the steps in which the learning rate rises"] = 0.1
    weight_decay: Annotated[float, "decoupled weight decay of the kernels"] = 0.05
    label_smoothing: Annotated[float, "share of the labels spread over both classes"] = 0.0
    dropout: Annotated[float, "dropout rate before the last layer"] = 0.2
    block_dropout: Annotated[float, "dropout rate inside transformer blocks"] = 0.0


def train_member(
    training: Labelled, validation: Labelled, architecture: str, recipe: Recipe, seed: int
) -> Member:
    """Returns a member trained from `seed`, the best of its epochs by validation loss.

    Raises LensjaxError where the loss stops being finite, UsageError where the training data do
    not fill a batch.
    """
    if len(training) < recipe.batch_size:
        raise UsageError(
            f"{len(training)} training cutouts do not fill a batch of {recipe.batch_size}; "
            "lower --batch-size"
        )
    info = MemberInfo(
        architecture,
        training.preparation,
        recipe.dropout,
        recipe.block_dropout,
        training=training_record(recipe, training, seed),
        versions=runtime.versions(),
    )
    root = jax.random.key(seed)
    graph, params, statistics = initialise(info, jax.random.fold_in(root, 0))
    per_epoch = len(training) // recipe.batch_size
    steps = max(1, round(recipe.epochs * per_epoch))
    optimizer = optimiser(
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        steps=steps,
        warmup_steps=max(1, round(recipe.warmup * steps)),
    )
    state = TrainState(params, statistics, optimizer.init(params), jnp.zeros((), jnp.int32))
    step = train_step(graph, optimizer, training.view, recipe.label_smoothing)
    validate = validation_step(graph, training.view)
    key = jax.random.fold_in(root, 1)
    batches = iter(loader.shuffled(training.arrays, recipe.batch_size, seed))
    best_loss, best, best_logits = math.inf, None, np.zeros(len(validation))
    loss: Array | None = None
    shown: dict[str, float] = {}
    with runtime.progress(f"training {architecture}", steps * recipe.batch_size, "images") as bar:
        for index in range(steps):
            batch = next(batches)
            state, new_loss = step(state, Examples(**batch), key)
            if loss is not None:
                shown["loss"] = _finite(loss, index)
            loss = new_loss
            bar(recipe.batch_size, **shown)
            if (index + 1) % per_epoch == 0 or index + 1 == steps:
                logits = predict(validate, state, validation, recipe.batch_size)
                validation_loss = calibrate.object_loss(logits, validation.arrays["label"]).mean()
                shown["validation_loss"] = float(validation_loss)
                if validation_loss < best_loss:
                    best_loss, best_logits = validation_loss, logits
                    trained = nnx.merge(graph, state.params, state.statistics)
                    best = jax.tree.map(np.array, state_of(trained))
    if best is None:
        raise LensjaxError(f"{architecture}: no epoch ended with a finite validation loss")
    return _finish(info, best, validation, best_logits)


def initialise(info: MemberInfo, key: Array) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Returns the graph, the parameters and the batch statistics of a new network.

    The weights are drawn in one compiled program, which the compilation cache keeps.
    """

    def build(key: Array) -> nnx.Module:
        return info.build(nnx.Rngs(key))

    def draw(key: Array) -> list[nnx.State]:
        return list(nnx.split(build(key), nnx.Param, nnx.BatchStat)[1:])

    return nnx.graphdef(nnx.eval_shape(build, key)), *jax.jit(draw)(key)


def training_record(recipe: Recipe, training: Labelled, seed: int) -> dict[str, Any]:
    """Returns what `member.json` says of the training; the same record means the same member."""
    return dataclasses.asdict(recipe) | {
        "seed": seed,
        "cutouts": len(training),
        "lenses": int(training.arrays["label"].sum()),
        "first_id": str(training.id[0]),
    }


def predict(validate: Validation, state: TrainState, data: Labelled, batch_size: int) -> np.ndarray:
    """Returns the logits (n,) float64 of `data`, dropout off; the last batch is padded."""
    parts = []
    for start in range(0, len(data), batch_size):
        stop = min(start + batch_size, len(data))
        rows = np.resize(np.arange(start, stop), batch_size)
        examples = Examples(**{name: values[rows] for name, values in data.arrays.items()})
        parts.append(np.asarray(validate(state, examples))[: stop - start])
    return np.concatenate(parts).astype(np.float64)


def _finite(loss: Array, step: int) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise LensjaxError(
            f"the training loss is {value} at step {step}; lower --learning-rate or look for "
            "cutouts with extreme values"
        )
    return value


def _finish(info: MemberInfo, state: State, validation: Labelled, logits: np.ndarray) -> Member:
    """Returns the member with its calibration and metrics, from its validation `logits` (n,)."""
    label = validation.arrays["label"]
    slope, intercept = calibrate.platt(logits, label)
    probability = expit(slope * logits + intercept)
    info = dataclasses.replace(
        info,
        calibration={
            "slope": slope,
            "intercept": intercept,
            "brier": float(np.mean((probability - label) ** 2)),
        },
        metrics=metrics.evaluate(probability, label).to_json(),
    )
    return Member(info, state, {"id": validation.id, "label": label, "logit": logits})
