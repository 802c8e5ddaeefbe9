"""`conv2d` against XLA's own convolution, under every transformation that the models use."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array, lax

from lensjax.models.conv import Conv, conv2d
from lensjax.models.product import compiler_options

# size, kernel, stride, padding, channels in and out: outputs of one pixel, patched outputs, outputs
# beyond them, and those of layers that take Winograd's form.
SHAPES = [
    (1, 3, 1, 1, 3, 4),
    (2, 3, 1, 1, 3, 4),
    (3, 3, 2, 1, 3, 4),
    (6, 3, 1, 1, 3, 4),
    (9, 3, 2, 1, 3, 4),
    (4, 1, 2, 0, 3, 4),
    (9, 1, 1, 0, 3, 4),
    (1, 7, 2, 3, 3, 4),
    (3, 7, 2, 3, 3, 4),
    (9, 7, 2, 3, 3, 4),
    (8, 3, 1, 1, 130, 128),
    (9, 3, 1, 1, 128, 130),
]
PATCHED, DIRECT, WINOGRAD = SHAPES[1], SHAPES[3], SHAPES[-2]
Shape = tuple[int, int, int, int, int, int]
each_form = pytest.mark.parametrize("shape", [PATCHED, DIRECT, WINOGRAD], ids=str)
both_dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


def xla(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def operands(
    shape: Shape, leading: tuple[tuple[int, ...], tuple[int, ...]], dtype: type
) -> tuple[Array, Array]:
    """Random images (..., 2, size, size, in) and kernels (..., kernel, kernel, in, out)."""
    size, window, _, _, inputs, outputs = shape
    rng = np.random.default_rng(0)
    images = rng.standard_normal((*leading[0], 2, size, size, inputs))
    kernel = rng.standard_normal((*leading[1], window, window, inputs, outputs))
    kernel /= window * np.sqrt(inputs)
    return jnp.asarray(images, dtype), jnp.asarray(kernel, dtype)


def check(transform: Callable, shape: Shape, *args: Array) -> None:
    """Asserts that `transform` of `conv2d` and of XLA's convolution agree to rounding."""
    _, _, stride, padding, _, _ = shape
    ours, expected = (
        jax.jit(transform(lambda images, kernel, f=f: f(images, kernel, stride, padding)))(*args)
        for f in (conv2d, xla)
    )
    tolerance = 0.06 if args[0].dtype == jnp.bfloat16 else 2e-5
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


def with_gradients(function: Callable) -> Callable:
    """The output, and both gradients of a sum that weighs every output pixel differently."""

    def weighted_sum(images: Array, kernel: Array) -> tuple[Array, Array]:
        output = function(images, kernel)
        weights = jnp.cos(jnp.arange(output.size)).reshape(output.shape)
        return jnp.sum(output.astype(jnp.float32) * weights), output

    return jax.grad(weighted_sum, argnums=(0, 1), has_aux=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@both_dtypes
def test_output_and_gradients_equal_xla(shape, dtype):
    check(with_gradients, shape, *operands(shape, ((), ()), dtype))


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)], ids=str)
@pytest.mark.parametrize("shape", [PATCHED, DIRECT, SHAPES[4], WINOGRAD], ids=str)
def test_vmap_and_its_gradients_equal_xla(shape, axes):
    leading = tuple(() if axis is None else (3,) for axis in axes)
    args = operands(shape, leading, jnp.float32)
    check(lambda f: jax.vmap(with_gradients(f), axes), shape, *args)
    check(lambda f: with_gradients(jax.vmap(f, axes)), shape, *args)


@pytest.mark.slow
@pytest.mark.optimised
@each_form
def test_optimised_programs_equal_xla(shape):
    args = operands(shape, ((3,), (3,)), jnp.float32)
    check(lambda f: jax.vmap(with_gradients(f)), shape, *args)


@each_form
def test_vmap_keeps_the_precision(shape):
    check(jax.vmap, shape, *operands(shape, ((3,), (3,)), jnp.bfloat16))


@each_form
@pytest.mark.parametrize(
    ("outer", "inner"),
    [((0, 0), (0, None)), ((None, 0), (0, None)), ((None, 0), (0, 0)), ((0, 0), (0, 0))],
    ids=str,
)
def test_nested_vmap_equals_xla(shape, outer, inner):
    leading = tuple(
        tuple(size for size, axis in ((2, o), (3, i)) if axis is not None)
        for o, i in zip(outer, inner, strict=True)
    )
    args = operands(shape, leading, jnp.float32)
    check(lambda f: jax.vmap(jax.vmap(with_gradients(f), inner), outer), shape, *args)


@each_form
def test_scan_and_checkpoint_equal_xla(shape):
    def scanned(f: Callable) -> Callable:
        def run(images: Array, kernels: Array) -> Array:
            step = jax.checkpoint(lambda total, kernel: (total + f(images, kernel), None))
            return lax.scan(step, f(images, kernels[0]), kernels)[0]

        return run

    check(lambda f: with_gradients(scanned(f)), shape, *operands(shape, ((), (3,)), jnp.float32))


@each_form
@pytest.mark.parametrize("split", ["members", "images"])
def test_shard_map_takes_gradients(shape, split):
    """One device is enough to have the types checked that say what differs between devices."""
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    over, nowhere = jax.sharding.PartitionSpec("d"), jax.sharding.PartitionSpec()

    def kernel_gradient(f: Callable) -> Callable:
        members = jax.vmap(
            jax.grad(lambda kernel, images: (f(images, kernel) ** 2).sum()), (0, None)
        )
        specs = (over, nowhere) if split == "members" else (nowhere, over)
        out = over if split == "members" else nowhere
        sharded = jax.shard_map(members, mesh=mesh, in_specs=specs, out_specs=out)
        return lambda images, kernels: sharded(kernels, images)

    check(kernel_gradient, shape, *operands(shape, ((), (3,)), jnp.float32))


def test_without_jit():
    images, kernel = operands(PATCHED, ((), ()), jnp.float32)
    np.testing.assert_allclose(
        conv2d(images, kernel, 1, 1), xla(images, kernel, 1, 1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("shape", "convolutions"), [(DIRECT, 3), (PATCHED, 0), (WINOGRAD, 0)], ids=str
)
def test_no_grouped_convolution_on_the_cpu(shape, convolutions):
    images, kernels = operands(shape, ((3,), (3,)), jnp.float32)

    def members(images: Array, kernels: Array) -> Array:
        return jax.vmap(lambda x, w: conv2d(x, w, 1, 1))(images, kernels)

    text = jax.jit(members).lower(images, kernels).as_text()
    assert text.count("stablehlo.convolution") == convolutions
    assert "feature_group_count = 3" not in text


@pytest.mark.optimised
def test_convolutions_take_the_fast_path_of_the_cpu():
    """Neither YNN, nor the naive loop that every other convolution becomes."""
    images, kernel = operands((16, 3, 1, 1, 3, 4), ((), ()), jnp.float32)
    options = compiler_options("float32", "cpu")
    jitted = jax.jit(partial(conv2d, stride=1, padding=1), compiler_options=options)
    text = jitted.lower(images, kernel).compile().as_text()
    assert " convolution(" in text and "__ynn_fusion" not in text


@each_form
def test_a_tpu_gets_one_convolution_for_all_members_and_a_gpu_one_for_each(shape):
    images, kernels = operands(shape, ((3,), (3,)), jnp.float32)
    squares = jax.grad(lambda x, w: jnp.sum(conv2d(x, w, 1, 1) ** 2), argnums=(0, 1))
    members = jax.jit(jax.vmap(squares))
    for platform, convolutions in (("cuda", 9), ("tpu", 3)):
        text = members.trace(images, kernels).lower(lowering_platforms=(platform,)).as_text()
        # Forward and the two gradients.
        assert text.count("stablehlo.convolution") == convolutions


def test_layer_adds_its_bias_and_draws_he_weights():
    layer = Conv(16, 64, 3, rngs=nnx.Rngs(0))
    images = jnp.ones((1, 5, 5, 16))
    without = layer(images)
    layer.bias = nnx.Param(jnp.full((1, 1, 1, 64), 0.5))
    np.testing.assert_allclose(layer(images), without + 0.5, rtol=1e-6)
    assert layer.kernel[...].std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
