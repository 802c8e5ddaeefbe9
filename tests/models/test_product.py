"""Products of narrow types against float64, and what they compile to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lensjax.models.product import Linear, compiler_options, matmul

rng = np.random.default_rng(3)


def factors(kind):
    return (jnp.asarray(rng.normal(size=shape), kind) for shape in ((2, 5, 300), (300, 7)))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_the_sum_is_rounded_once(kind):
    a, b = factors(kind)
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    found = jax.jit(matmul)(a, b)
    assert found.dtype == kind
    # Half a unit in the last place, and what the float32 sum of 300 terms loses.
    half_a_unit = float(jnp.finfo(kind).eps) / 2
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=half_a_unit, atol=1e-4)


def test_gradients_are_those_of_a_plain_product():
    a, b = factors("bfloat16")
    found = jax.grad(lambda a, b: matmul(a, b).sum(dtype=jnp.float32), (0, 1))(a, b)
    expected = jax.grad(lambda a, b: (a @ b).sum(), (0, 1))(
        *(x.astype(jnp.float32) for x in (a, b))
    )
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(jnp.float32), other, rtol=2**-8, atol=2**-6)


@pytest.mark.parametrize(
    "platform, sums", [("cpu", "xf32>"), ("cuda", "xbf16>"), ("tpu", "xbf16>")]
)
def test_a_cpu_is_told_of_the_wide_sum(platform, sums):
    layer = Linear(300, 7, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    images = jnp.zeros((5, 300), jnp.bfloat16)
    text = jax.jit(layer).trace(images).lower(lowering_platforms=(platform,)).as_text()
    (product,) = [line for line in text.splitlines() if "dot_general" in line]
    assert "xbf16>" in product.split("->")[0] and sums in product.split("->")[1]


@pytest.mark.parametrize("kind, library", [("float32", "eigen"), ("bfloat16", "ynn")])
def test_a_cpu_multiplies_each_type_with_the_library_that_is_fast(kind, library):
    a, b = (jnp.zeros((64, 64), kind) for _ in range(2))
    compiled = jax.jit(matmul, compiler_options=compiler_options(kind, "cpu")).lower(a, b).compile()
    # Eigen would be given float32 factors.
    assert ("ynn_fusion" in compiled.as_text()) == (library == "ynn")
    assert compiler_options(kind, "cuda") == {}
