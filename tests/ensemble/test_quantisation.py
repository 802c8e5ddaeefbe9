"""Kernels in int8 against float64, channel by channel."""

import numpy as np
import pytest

from lensjax.ensemble.quantisation import quantised, quantised_form

KERNELS = {"conv": (3, 3, 5, 7), "matrix": (20, 6), "blocks": (4, 20, 6)}


@pytest.mark.parametrize("kind", KERNELS)
def test_int8_moves_no_weight_by_more_than_half_a_step_of_its_channel(kind):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal(KERNELS[kind]) * 10.0 ** rng.uniform(-6, 6, KERNELS[kind][-1])
    kernel[..., 0] = 0
    kernel = kernel.astype(np.float32)
    bias = rng.standard_normal(7).astype(np.float32)
    stored = quantised({"a.kernel": kernel, "a.bias": bias})
    assert stored["a.bias"] is bias
    levels, scales = stored["a.kernel"], stored["a.kernel.scales"]
    assert (levels.dtype, scales.dtype) == (np.int8, np.float32) and levels.min() >= -127
    again = levels.astype(np.float64) * scales
    blocks = range(4) if kind == "blocks" else [...]
    for block in blocks:
        for channel in range(kernel.shape[-1]):
            exact = kernel[block][..., channel].astype(np.float64)
            step = np.abs(exact).max() / 127
            error = np.abs(again[block][..., channel] - exact).max()
            assert error <= step / 2 * (1 + 1e-5)
            assert np.abs(levels[block][..., channel]).max() == (127 if step else 0)
    assert scales.size == len(blocks) * kernel.shape[-1]
    form = quantised_form({"a.kernel": kernel, "a.bias": bias})
    assert {name: (each.shape, each.dtype) for name, each in form.items()} == {
        name: (array.shape, array.dtype) for name, array in stored.items()
    }
