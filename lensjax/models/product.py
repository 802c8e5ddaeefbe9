"""Products of matrices in the narrow types that processors have units for."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import jaxlib
from flax import nnx
from jax import Array, lax


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
    """Returns what a jitted network of this precision tells the compiler of a platform.

    XLA on the CPU computes sums, products and convolutions with its library YNN unless told
    otherwise. With Eigen products and convolutions in float32 take a tenth less time, sums more:
    those of batch normalisation would cost a training step 5 %. But Eigen widens bfloat16 on a CPU
    that could multiply it: there YNN keeps the products.
    """
    # An option that XLA does not know is an error.
    if platform != "cpu" or not jaxlib.__version__.startswith("0.10."):
        return {}
    by_ynn = ["LIBRARY_FUSION_TYPE_REDUCE"]
    if precision == "bfloat16":
        by_ynn.append("LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT")
    return {"xla_cpu_experimental_ynn_fusion_type": ",".join(by_ynn)}
