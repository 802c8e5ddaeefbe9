"""Which size is trained when, how fast parameters move, and which of them decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lensjax.models import registry
from lensjax.train.schedule import active_scales, adamw, first_step_at_largest, kernels


@pytest.mark.parametrize("schedule", ["joint", "progressive", "alternating"])
@pytest.mark.parametrize(("steps", "scales"), [(10, 3), (9, 3), (7, 1), (40, 2)])
def test_the_largest_size_counts_from_its_first_step(schedule, steps, scales):
    first = first_step_at_largest(schedule, steps, scales)
    active = [scales - 1 in active_scales(schedule, step, steps, scales) for step in range(steps)]
    assert active[first] and not any(active[:first])


def test_where_the_largest_size_is_never_trained_the_last_step_counts():
    assert active_scales("progressive", 0, 1, 2) == (0,)
    assert first_step_at_largest("progressive", 1, 2) == 0


def moved(steps: int, **more) -> np.ndarray:
    """Returns how far each step moves a weight whose gradient stays the same."""
    optimizer = adamw(learning_rate=0.1, weight_decay=0.0, steps=steps, **more)
    params = {"kernel": jnp.ones(3)}

    @jax.jit
    def step(state, _):
        updates, state = optimizer.update({"kernel": jnp.ones(3)}, state, params)
        return state, optax.tree.norm(updates)

    return np.asarray(jax.lax.scan(step, optimizer.init(params), length=steps)[1])


def test_the_learning_rate_warms_up_and_falls_to_zero():
    sizes = moved(40, warmup=0.25)
    assert sizes[0] == 0.0 and np.argmax(sizes) in (10, 11) and sizes[-1] < 0.02 * sizes.max()


def test_the_learning_rate_rises_anew_when_the_size_changes():
    """With steps that the sizes cannot share evenly."""
    steps, scales = 20, 3
    sizes = moved(steps, warmup=0.5, phases=scales)
    size = [active_scales("progressive", step, steps, scales) for step in range(steps)]
    changes = [step for step in range(steps) if step == 0 or size[step] != size[step - 1]]
    assert np.flatnonzero(sizes == 0).tolist() == changes


@pytest.mark.parametrize("architecture", registry.ARCHITECTURES)
def test_weight_decay_spares_norms_biases_and_embeddings(architecture):
    def build():
        return registry.create(architecture, bands=1, input_size=32, rngs=nnx.Rngs(0))

    mask = nnx.to_pure_dict(kernels(nnx.state(nnx.eval_shape(build), nnx.Param)))
    for path, decays in jax.tree_util.tree_leaves_with_path(mask):
        name = jax.tree_util.keystr(path)
        assert decays == name.endswith("['kernel']"), name
