"""Which parameters decay, and how fast parameters move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lensjax.models import registry
from lensjax.train.optimiser import decayed, optimiser


@pytest.mark.parametrize("architecture", registry.ARCHITECTURES)
def test_weight_decay_spares_norms_biases_and_embeddings(architecture):
    def build():
        return registry.create(architecture, bands=1, input_size=32, rngs=nnx.Rngs(0))

    mask = nnx.to_pure_dict(decayed(nnx.state(nnx.eval_shape(build), nnx.Param)))
    for path, decays in jax.tree_util.tree_leaves_with_path(mask):
        name = jax.tree_util.keystr(path)
        assert decays == name.endswith("['kernel']"), name


def step_sizes(phases: int) -> np.ndarray:
    optimizer = optimiser(learning_rate=0.1, weight_decay=0.0, steps=40, warmup=0.25, phases=phases)
    params = {"kernel": jnp.ones(3)}
    state, sizes = optimizer.init(params), []
    for _ in range(40):
        updates, state = optimizer.update({"kernel": jnp.ones(3)}, state, params)
        sizes.append(float(optax.tree.norm(updates)))
    return np.array(sizes)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    sizes = step_sizes(1)
    assert sizes[0] == 0.0 and np.argmax(sizes) in (10, 11) and sizes[-1] < 0.02 * sizes.max()


def test_each_phase_warms_up_anew():
    sizes = step_sizes(2)
    assert sizes[0] == 0.0 and sizes[20] == 0.0
    np.testing.assert_allclose(sizes[5:20].max(), sizes[25:].max(), rtol=0.05)
    assert sizes[19] < 0.1 * sizes.max()
