"""How parameters follow the gradient."""

from typing import Any

import jax
import optax

NOTHING = optax.identity()


def optimiser(
    *,
    learning_rate: float,
    weight_decay: float,
    steps: int,
    warmup: float,
    phases: int = 1,
    before: optax.GradientTransformation = NOTHING,
    after: optax.GradientTransformation = NOTHING,
) -> optax.GradientTransformation:
    """Returns AdamW with gradient clipping; the learning rate rises and falls in each phase.

    In the first `warmup` share of a phase it rises linearly, then it falls as a cosine to zero.
    Weight decay (Loshchilov & Hutter 2019) acts on kernels alone. `before` and `after` change
    gradients and updates.
    """
    length = -(-steps // phases)
    rise = max(1, round(warmup * length))
    phase = optax.warmup_cosine_decay_schedule(0.0, learning_rate, rise, max(length, rise + 1))
    starts = [-(-steps * number // phases) for number in range(1, phases)]  # as `active_at` has it
    schedule = optax.join_schedules([phase] * phases, starts)
    adamw = optax.adamw(schedule, b2=0.98, weight_decay=weight_decay, mask=decayed)
    return optax.chain(before, optax.clip_by_global_norm(1.0), adamw, after)


def decayed(params: Any) -> Any:
    """Returns which parameters weight decay acts on: kernels, not norms, biases or embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "kernel" in jax.tree_util.keystr(path), params
    )
