"""Winograd's form against the sum written out, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.models.winograd import winograd

sizes = st.integers(1, 9)


def summed(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The cross-correlation by its definition."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("nhwcij,ijco->nhwo", windows, kernel)


@settings(max_examples=8)  # each compiles anew
@given(sizes, sizes, st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
@pytest.mark.slow
def test_equals_the_definition_at_any_size(height, width, channels, filters, seed):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((2, height, width, channels)).astype("f4")
    kernel = rng.standard_normal((3, 3, channels, filters)).astype("f4")
    expected = summed(images.astype(float), kernel.astype(float))
    result = jax.jit(winograd)(images, kernel)
    np.testing.assert_allclose(result, expected, rtol=0, atol=3e-6 * np.abs(expected).max() + 1e-6)


def test_keeps_the_digits_of_a_plain_sum():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 8, 8, 512)).astype("f4")
    kernel = (rng.standard_normal((3, 3, 512, 8)) / np.sqrt(9 * 512)).astype("f4")
    expected = summed(images.astype(float), kernel.astype(float))
    result = np.asarray(winograd(jnp.asarray(images), jnp.asarray(kernel)))
    assert np.abs(result - expected).max() < 4e-6
