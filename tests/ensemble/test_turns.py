"""Turns against one `vmap` over everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lensjax.ensemble.turns import vmap_in_turns

X = jnp.linspace(-1.0, 1.0, 6)


def drawn(argument):
    """Uses an argument with two leaves, a constant, a nested jit, and what depends on neither."""
    key, shift = argument
    noise = jax.jit(jax.random.uniform, static_argnums=1)(key, (6,))
    return jnp.sin(X) * noise + shift["by"] * jnp.cos(X[::-1])


def arguments(count: int):
    keys = jax.random.split(jax.random.key(0), count)
    return keys, {"by": jnp.arange(count, dtype=jnp.float32)}


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 7, None])
def test_turns_give_the_numbers_of_vmap(at_once):
    expected = jax.vmap(drawn)(arguments(5))
    np.testing.assert_allclose(vmap_in_turns(drawn, arguments(5), at_once), expected, rtol=1e-6)
    jitted = jax.jit(lambda arguments: vmap_in_turns(drawn, arguments, at_once))
    np.testing.assert_allclose(jitted(arguments(5)), expected, rtol=1e-6)


def test_turns_within_a_vmap_and_within_turns():
    stacked = jax.tree.map(lambda leaf: leaf.reshape(3, 2), arguments(6))
    expected = jax.vmap(jax.vmap(drawn))(stacked)

    def inner(arguments):
        return vmap_in_turns(drawn, arguments, 1)

    np.testing.assert_allclose(jax.vmap(inner)(stacked), expected, rtol=1e-6)
    np.testing.assert_allclose(vmap_in_turns(inner, stacked, 2), expected, rtol=1e-6)


def test_what_depends_on_no_argument_is_computed_before_the_turns():
    outer = X * 2

    def function(shift):
        return lax.tanh(outer).sum() * jnp.exp(shift)

    def sums(scale):
        return vmap_in_turns(lambda shift: function(shift) * scale, jnp.arange(4.0), 1)

    program = jax.make_jaxpr(sums)(2.0).jaxpr
    (loop,) = [e for e in program.eqns if e.primitive.name == "scan"]
    bounds = str(loop.params["jaxpr"])
    assert "exp" in bounds and "tanh" not in bounds


def test_a_function_that_ignores_its_argument():
    np.testing.assert_array_equal(vmap_in_turns(lambda _: X, jnp.zeros(3), 1), jnp.stack([X] * 3))
