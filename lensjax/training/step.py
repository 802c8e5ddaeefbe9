"""One training step and one validation step, each compiled once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from lensjax.data.on_device import View, seen
from lensjax.training.objective import binary_loss


class TrainState(NamedTuple):
    """All that a step changes."""

    params: Any
    statistics: Any
    optimizer: Any
    step: Array


class Examples(NamedTuple):
    """A training batch: images and `inside` of a canvas, as `on_device.seen` takes them, and
    labels (batch,) float32."""

    images: ArrayLike
    inside: ArrayLike
    label: ArrayLike


def optimiser(
    *, learning_rate: float, weight_decay: float, steps: int, warmup_steps: int
) -> optax.GradientTransformation:
    """Returns AdamW with gradient clipping, linear warm-up and cosine decay to zero.

    Weight decay leaves out all that is one-dimensional: norms and biases.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps, max(steps, warmup_steps + 1)
    )
    adamw = optax.adamw(schedule, b2=0.98, weight_decay=weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def decayed(params: Any) -> Any:
    """Returns which parameters weight decay acts on: kernels, not norms, biases or embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "kernel" in jax.tree_util.keystr(path), params
    )


def train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    view: View,
    smoothing: float,
) -> Callable[[TrainState, Examples, Array], tuple[TrainState, Array]]:
    """Returns the jitted step (state, examples, key) -> (state, loss); `key` is the run's own."""

    def step(state: TrainState, examples: Examples, key: Array) -> tuple[TrainState, Array]:
        orient, drop = jax.random.split(jax.random.fold_in(key, state.step))
        images = random_orientation(orient, seen(view, examples.images, examples.inside))

        def loss(logits: Array) -> Array:
            return binary_loss(logits, jnp.asarray(examples.label), smoothing)

        return descend(graph, optimizer, state, images, loss, drop)

    return jax.jit(step, donate_argnums=0)


def descend(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    images: Array,
    loss_of: Callable[[Array], Array],
    key: Array | None,
) -> tuple[TrainState, Array]:
    """Returns the state after one step down the gradient of the loss, and the loss before it.

    `images` (batch, S, S, band) are as the network sees them, `loss_of` takes the logits (batch,),
    `key` draws the dropout masks; None turns dropout off.
    """

    def objective(params: Any) -> tuple[Array, Any]:
        model = nnx.merge(graph, params, state.statistics, copy=True)
        rngs = None if key is None else nnx.Rngs(dropout=key)
        loss = loss_of(model(images, rngs=rngs, train=True))
        return loss, nnx.state(model, nnx.BatchStat)

    (loss, statistics), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, statistics, optimizer_state, state.step + 1), loss


def validation_step(graph: nnx.GraphDef, view: View) -> Callable[[TrainState, Examples], Array]:
    """Returns the jitted function from (state, examples) to logits (batch,), dropout off."""

    @jax.jit
    def step(state: TrainState, examples: Examples) -> Array:
        model = nnx.merge(graph, state.params, state.statistics)
        return model(seen(view, examples.images, examples.inside))

    return step


def random_orientation(key: Array, images: Array) -> Array:
    """Returns images (batch, S, S, band), each in one of the eight symmetries of the square."""
    choice = jax.random.bernoulli(key, shape=(3, images.shape[0], 1, 1, 1))
    images = jnp.where(choice[0], images[:, ::-1], images)
    images = jnp.where(choice[1], images[:, :, ::-1], images)
    return jnp.where(choice[2], images.swapaxes(1, 2), images)
