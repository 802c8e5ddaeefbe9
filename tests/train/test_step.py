"""The gradient by groups of scales against that of the whole joint loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring
from jax.flatten_util import ravel_pytree

from lensjax.data.brightness import measure
from lensjax.train import member_step
from lensjax.train.losses import consistency
from lensjax.train.member_step import ResolutionGroup, TrainBatch
from lensjax.train.state import TrainState
from lensjax.train.step import train_step
from tests.networks import Convolutional
from tests.train.small import BATCH, MEMBERS, TRANSFORM, WEIGHT, config_and_state, transformer

# Each compiles several steps.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    rng = np.random.default_rng(5)
    images = rng.normal(0, 1, (BATCH, 48, 48, 2)).astype(np.float32)
    weight = rng.poisson(1.0, (MEMBERS, BATCH)).astype(np.float32)
    brightness = measure(images, *TRANSFORM.measured)
    return TrainBatch(images, brightness, (np.arange(BATCH) % 2).astype(np.float32), weight)


KEYS = jax.vmap(jax.random.key)(jnp.arange(MEMBERS))


def stepped(config, state, groups, batch, keys=KEYS):
    copies = jax.tree.map(jnp.copy, state)  # a step gives its state away
    return train_step(config, groups, copies, batch, keys)


def gradient(before: TrainState, after: TrainState) -> np.ndarray:
    """Returns what stochastic gradient descent at rate one went down, flat."""
    return np.asarray(ravel_pytree(before.params)[0] - ravel_pytree(after.params)[0])


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """`tolerance` is relative to the largest value."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


GROUPINGS = {
    "two": [ResolutionGroup((0, 1)), ResolutionGroup((2,))],
    "apart": [ResolutionGroup((0,)), ResolutionGroup((1,))],
    "rematerialised": [ResolutionGroup((0,), remat=True), ResolutionGroup((1,), remat=True)],
}


@pytest.mark.parametrize(
    ("build", "grouping", "weight"),
    [
        (Convolutional, "two", WEIGHT),
        (transformer, "rematerialised", WEIGHT),
        (Convolutional, "apart", 0.0),
    ],
)
def test_groups_give_the_gradient_of_the_whole_loss(build, grouping, weight, batch):
    config, state = config_and_state(build, consistency_weight=weight)
    groups = GROUPINGS[grouping]
    scales = tuple(scale for group in groups for scale in group.scales)
    whole, losses = stepped(config, state, [ResolutionGroup(scales)], batch)
    grouped, found = stepped(config, state, groups, batch)
    assert_close(gradient(state, grouped), gradient(state, whole), 1e-5)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    for mine, theirs in zip(
        jax.tree.leaves(grouped.batch_stats), jax.tree.leaves(whole.batch_stats), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_the_whole_loss_is_what_it_says(batch):
    """Against its definition, member by member, written out without groups."""
    config, state = config_and_state(Convolutional)
    after, losses = stepped(config, state, [ResolutionGroup((0, 1, 2))], batch)

    @jax.jit
    def defined(own, weight, member_key):
        shown, key = member_step.augment_batch(
            config, own.step, batch._replace(weight=weight), member_key
        )

        def loss(params):
            given = config, ResolutionGroup((0, 1, 2)), own._replace(params=params), shown, key
            logits, statistics, _ = member_step.forward(*given)
            logits = logits.T
            entropies = jnp.stack(
                [(weight * config.loss(each, batch.label)).mean() for each in logits]
            )
            tie = WEIGHT * consistency(jnp.stack(logits)).mean()
            return entropies.mean() + tie, (entropies, statistics)

        return jax.grad(loss, has_aux=True)(own.params)

    for member in range(MEMBERS):
        own = jax.tree.map(lambda leaf, m=member: leaf[m], state)
        expected, (entropies, statistics) = defined(own, batch.weight[member], KEYS[member])
        moved = jax.tree.map(lambda a, b, m=member: a[m] - b[m], state.params, after.params)
        assert_close(ravel_pytree(moved)[0], ravel_pytree(expected)[0], 1e-5)
        np.testing.assert_allclose(losses[member], entropies, rtol=1e-5)
        new = jax.tree.map(lambda leaf, m=member: leaf[m], after.batch_stats)
        assert_close(ravel_pytree(new)[0], ravel_pytree(statistics)[0], 1e-5)


def test_micro_batches_add_up_without_batch_normalisation(batch):
    config, state = config_and_state(transformer)
    expected = stepped(config, state, [ResolutionGroup((0, 1))], batch, None)
    groups = [ResolutionGroup((0,)), ResolutionGroup((1,), 2)]
    found = stepped(config, state, groups, batch, None)
    assert_close(gradient(state, found[0]), gradient(state, expected[0]), 1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


def test_with_dropout_micro_batches_of_tied_groups_draw_the_same_in_both_passes(batch):
    """The same parts, as two groups and as one: only so does the consistency fit the logits."""
    config, state = config_and_state(Convolutional)
    together, _ = stepped(config, state, [ResolutionGroup((0, 1), 2)], batch)
    apart, _ = stepped(config, state, [ResolutionGroup((0,), 2), ResolutionGroup((1,), 2)], batch)
    assert_close(gradient(state, apart), gradient(state, together), 1e-5)


def test_each_program_is_compiled_once(batch):
    compiled = []

    def on_compilation(event, _, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about["fun_name"])

    # A weight of its own: none of the programs is there yet.
    config, state = config_and_state(Convolutional, consistency_weight=0.6)
    state = jax.tree.map(jnp.copy, state)
    monitoring.register_event_duration_secs_listener(on_compilation)
    try:
        for _ in range(3):
            state, _ = train_step(config, GROUPINGS["apart"], state, batch, KEYS)
    finally:
        monitoring.unregister_event_duration_listener(on_compilation)
    # Per group logits and gradient, then the consistency, the update, and one concatenation.
    assert 2 + 2 <= len(compiled) <= 2 + 2 + 1 + 1 + 1, compiled


def test_weights_and_statistics_are_averaged_alike(batch):
    """Against a loop in float64. The averages forget their start, that of a scale from its first
    step on, and one that is not trained stays."""

    def wide(tree):
        return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]

    def joined(old, new, steps):
        decay = min(0.4, (1 + steps) / (10 + steps))
        return [decay * a + (1 - decay) * b for a, b in zip(old, new, strict=True)]

    config, state = config_and_state(Convolutional, average_decay=0.4)
    weights, statistics = wide(state.average.params), [wide(s) for s in state.average.batch_stats]
    trained, state = [0, 0, 0], jax.tree.map(jnp.copy, state)
    for number, scales in ((3, (0, 1)), (4, (1,)), (5, (0, 1))):
        state, _ = train_step(config, [ResolutionGroup(scales)], state, batch, KEYS)
        weights = joined(weights, wide(state.params), number)
        for scale in scales:
            new = wide(state.batch_stats[scale])
            statistics[scale] = joined(statistics[scale], new, trained[scale])
            trained[scale] += 1
    expected = [*weights, *(leaf for of_scale in statistics for leaf in of_scale)]
    found = wide((state.average.params, state.average.batch_stats))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert trained == [2, 3, 0] == state.average.steps[1].tolist()


@pytest.mark.parametrize("build", [Convolutional, transformer])
def test_bfloat16_keeps_float32_parameters_and_nearly_the_gradient(build, batch):
    config, state = config_and_state(build)
    narrow, _ = config_and_state(build, precision="bfloat16")
    expected, _ = stepped(config, state, [ResolutionGroup((0,))], batch)
    found, _ = stepped(narrow, state, [ResolutionGroup((0,))], batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found.params))
    mine, theirs = gradient(state, found), gradient(state, expected)
    assert np.linalg.norm(mine - theirs) < 0.1 * np.linalg.norm(theirs)
    assert np.abs(mine - theirs).max() > 0


def test_a_member_gets_the_gradient_that_it_would_get_alone(batch):
    config, state = config_and_state(Convolutional)
    together, _ = stepped(config, state, [ResolutionGroup((0,))], batch)
    sole = jax.tree.map(lambda leaf: leaf[1:], state)
    alone, _ = stepped(
        config,
        sole,
        [ResolutionGroup((0,))],
        batch._replace(weight=batch.weight[1:]),
        KEYS[1:],
    )
    expected = gradient(sole, jax.tree.map(lambda leaf: leaf[1:], together))
    assert_close(gradient(sole, alone), expected, 1e-5)
