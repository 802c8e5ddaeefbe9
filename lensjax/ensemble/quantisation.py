"""Kernels in int8, a quarter of the space: symmetric, with a float32 scale for each output channel.

A kernel is its int8 levels times its scales, so no weight moves by more than half of its scale. The
scales of `a.kernel` are called `a.kernel.scales` and broadcast against it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax import ShapeDtypeStruct

SCALES = ".scales"


def quantised(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of `state`, by dotted name, with levels and scales in place of kernels."""
    stored = dict(state)
    for name in filter(_is_kernel, state):
        kernel = state[name]
        scales = np.abs(kernel).max(_inputs(kernel.ndim), keepdims=True) / np.float32(127)
        levels = np.rint(kernel / np.where(scales > 0, scales, 1))
        stored |= {name: levels.astype(np.int8), name + SCALES: scales}
    return stored


def quantised_form(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the shapes and types of what `quantised` makes of arrays of these shapes."""
    form = dict(state)
    for name in filter(_is_kernel, state):
        shape, inputs = state[name].shape, _inputs(len(state[name].shape))
        scales = tuple(1 if axis in inputs else size for axis, size in enumerate(shape))
        form[name] = ShapeDtypeStruct(shape, np.int8)
        form[name + SCALES] = ShapeDtypeStruct(scales, np.float32)
    return form


def _is_kernel(name: str) -> bool:
    return name.endswith("kernel")


def _inputs(axes: int) -> tuple[int, ...]:
    """Returns the axes of a kernel that are summed over: of a convolution (height, width, input,
    output), a matrix (input, output), or one of each transformer block (block, input, output)."""
    return tuple(range(1 if axes == 3 else 0, axes - 1))
