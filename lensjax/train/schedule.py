"""The schedules of resolution and learning rate, and the optimiser."""

from typing import Any, Literal

import jax
import numpy as np
import optax

Schedule = Literal["joint", "progressive", "alternating"]

IDENTITY = optax.identity()


def active_scales(schedule: Schedule, step: int, steps: int, scales: int) -> tuple[int, ...]:
    """Returns the scales, counted from the smallest, that step number `step` of `steps` trains at.

    `joint`: all. `progressive`: one after the other, an equal share of the steps each.
    `alternating`: one, drawn from the step's number, so that a resumed run draws the same.
    """
    if schedule == "joint":
        return tuple(range(scales))
    if schedule == "progressive":
        return (min(step * scales // steps, scales - 1),)
    return (int(np.random.default_rng(step).integers(scales)),)


def first_step_at_largest(schedule: Schedule, steps: int, scales: int) -> int:
    """Returns the number of the first step that trains at the largest scale, the member's own; of
    the last step where none does."""
    active = (active_scales(schedule, step, steps, scales) for step in range(steps))
    return next((step for step, found in enumerate(active) if scales - 1 in found), steps - 1)


def scale_sets(schedule: Schedule, scales: int) -> tuple[tuple[int, ...], ...]:
    """Returns the sets of scales that steps train at."""
    every = tuple(range(scales))
    return (every,) if schedule == "joint" else tuple((scale,) for scale in every)


def adamw(
    *,
    learning_rate: float,
    weight_decay: float,
    steps: int,
    warmup: float,
    phases: int = 1,
    before: optax.GradientTransformation = IDENTITY,
    after: optax.GradientTransformation = IDENTITY,
) -> optax.GradientTransformation:
    """Returns AdamW with gradient clipping; the learning rate rises and falls in each phase.

    In the first `warmup` share of a phase it rises linearly, then it falls as a cosine to zero.
    Weight decay (Loshchilov & Hutter 2019) acts on kernels alone. `before` and `after` change
    gradients and updates.
    """
    length = -(-steps // phases)
    rise = max(1, round(warmup * length))
    phase = optax.warmup_cosine_decay_schedule(0.0, learning_rate, rise, max(length, rise + 1))
    starts = [-(-steps * number // phases) for number in range(1, phases)]  # as `active_scales`
    schedule = optax.join_schedules([phase] * phases, starts)
    adam = optax.adamw(schedule, b2=0.98, weight_decay=weight_decay, mask=kernels)
    return optax.chain(before, optax.clip_by_global_norm(1.0), adam, after)


def kernels(params: Any) -> Any:
    """Returns which parameters are kernels, not norms, biases or embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "kernel" in jax.tree_util.keystr(path), params
    )
