"""Products of matrices in the narrow types that processors have units for."""

import os
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from lensjax import EIGEN, YNN_SETTING


def dot_general(a: Array, b: Array, dimension_numbers: Any, **options: Any) -> Array:
    """Returns `lax.dot_general` of two arrays of one type, in that type.

    Sums are float32 on their way. That is said to XLA on the CPU, which else would widen both
    factors of a bfloat16 product first and take twice the time.
    """

    def wide(a: Array, b: Array) -> Array:
        product = lax.dot_general(
            a, b, dimension_numbers, **{**options, "preferred_element_type": jnp.float32}
        )
        return product.astype(a.dtype)

    def plain(a: Array, b: Array) -> Array:
        return lax.dot_general(a, b, dimension_numbers, **options)

    if a.dtype != jnp.bfloat16:
        return plain(a, b)
    return lax.platform_dependent(a, b, cpu=wide, default=plain)


def matmul(a: Array, b: Array) -> Array:
    """Returns (..., m, n) of a (..., m, k) and b (k, n), as `dot_general` has it."""
    return dot_general(a, b, (((a.ndim - 1,), (0,)), ((), ())))


Linear = partial(nnx.Linear, dot_general=dot_general)
"""Flax's layer with this product."""


def compiler_options(precision: str, platform: str) -> dict[str, str]:
    """Returns what a jitted function whose products are of this precision tells the compiler.

    Eigen widens bfloat16 on a CPU that could multiply it: there YNN is given those products back.
    """
    uses_eigen = EIGEN in os.environ.get("XLA_FLAGS", "")
    if (precision, platform, uses_eigen) != ("bfloat16", "cpu", True):
        return {}
    return {YNN_SETTING: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
