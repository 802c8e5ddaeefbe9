"""Convolution of NHWC images that stays fast on small images and under `vmap`.

Three things are slow if XLA is left alone, and are put right here (a fourth, its choice of library
on the CPU, is told to it in `product.compiler_options`):

- On the CPU, convolutions with a very small output leave the fast path, and so do the weight
  gradients of 1x1 kernels. There they are written as patches times a matrix.
- On the CPU, 3x3 kernels of many channels take more multiplications than they need: see `winograd`.
- `vmap` over weights becomes one grouped convolution. A TPU takes that well; CPUs and NVIDIA's GPUs
  are faster with one convolution a member (several times; on an H200 a training step of four
  resnet18 at 224 pixels takes half of the time). On the CPU the other two forms need no such care:
  they are products of matrices, which stack well.

Forward, image gradient and kernel gradient are each linear in two arrays and get the same `vmap`
rule. `custom_vmap` has no reverse mode, hence the `custom_vjp` around the three; it also keeps what
the forms compute on the way out of what reverse mode stores.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.custom_batching import custom_vmap

from lensjax.models import initial
from lensjax.models.product import matmul
from lensjax.models.winograd import winograd

Bilinear = Callable[[Array, Array], Array]

# At 2x2 pixels patches are up to 100 times faster, at 3x3 as fast, and from 4x4 on slower, but for
# the image gradient, where they are still faster at 4x4.
LARGEST_PATCHED_OUTPUT = 9
LARGEST_PATCHED_COTANGENT = 16

# With 64 channels the transforms cost more than the multiplications that they save; with 128 a
# layer takes 0.6 of the time, with 256 or 512 hardly more than half, its kernel gradient 0.7.
FEWEST_WINOGRAD_CHANNELS = 128
# Pixels times channels in and out. Smaller layers do not repay the half second that the transforms
# take to compile.
LEAST_WINOGRAD_WORK = 2**20


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Returns the cross-correlation (N, Ho, Wo, O) of images (N, H, W, C) with (kh, kw, C, O).

    Both axes share the stride and are padded with `padding` zeros at either end, so that
    Ho = (H + 2 padding - kh) // stride + 1. First-order reverse mode only.
    """
    form, loops_on_cpu = _plan(images, kernel, stride, padding, LARGEST_PATCHED_OUTPUT)
    return _member_by_member(form, loops_on_cpu)(images, kernel)


def _forward(
    images: Array, kernel: Array, stride: int, padding: int
) -> tuple[Array, tuple[Array, Array]]:
    return conv2d(images, kernel, stride, padding), (images, kernel)


def _backward(
    stride: int, padding: int, operands: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    images, kernel = operands
    images_type, kernel_type = jax.typeof(images), jax.typeof(kernel)
    plan = partial(_plan, images, kernel, stride, padding)
    by_images, images_loop_on_cpu = plan(LARGEST_PATCHED_COTANGENT)
    by_kernel, kernels_loop_on_cpu = plan(LARGEST_PATCHED_OUTPUT)

    def image_gradient(cotangent: Array, kernel: Array) -> Array:
        return jax.linear_transpose(lambda x: by_images(x, kernel), images_type)(cotangent)[0]

    def kernel_gradient(images: Array, cotangent: Array) -> Array:
        return jax.linear_transpose(lambda w: by_kernel(images, w), kernel_type)(cotangent)[0]

    return (
        _member_by_member(image_gradient, images_loop_on_cpu)(cotangent, kernel),
        _member_by_member(kernel_gradient, kernels_loop_on_cpu)(images, cotangent),
    )


conv2d.defvjp(_forward, _backward)


def _plan(
    images: Array, kernel: Array, stride: int, padding: int, largest_patched: int
) -> tuple[Bilinear, bool]:
    """Returns how to compute this convolution, and whether a CPU does so member by member."""
    direct = partial(_direct, stride=stride, padding=padding)
    on_cpu: Bilinear = partial(_patches, stride=stride, padding=padding)
    height, width = _output_size(images, kernel, stride, padding)
    pixels = height * width
    if pixels > LARGEST_PATCHED_OUTPUT and _suits_winograd(kernel, stride, padding, pixels):
        on_cpu = winograd
    elif pixels > largest_patched and kernel.shape[:2] != (1, 1):
        return direct, True
    return partial(lax.platform_dependent, cpu=on_cpu, default=direct), False


def _suits_winograd(kernel: Array, stride: int, padding: int, pixels: int) -> bool:
    """Returns whether `winograd` computes this convolution, faster and to as many digits."""
    *window, channels, filters = kernel.shape
    return (
        (*window, stride, padding) == (3, 3, 1, 1)
        and min(channels, filters) >= FEWEST_WINOGRAD_CHANNELS
        and pixels * channels * filters >= LEAST_WINOGRAD_WORK
        and jnp.finfo(kernel.dtype).bits >= 32
    )


def _member_by_member(function: Bilinear, on_cpu: bool) -> Bilinear:
    """Returns `function` with a rule for `vmap`.

    Where both operands are batched an NVIDIA GPU and, if so said, a CPU run them one by one,
    unrolled: on a CPU a convolution in a loop body would leave the fast path. Where one alone is
    batched, JAX's own rule is right everywhere: images fold into the batch, kernels into the output
    channels. The results carry this rule again, so that an outer `vmap` finds it too.
    """
    wrapped = custom_vmap(function)

    @wrapped.def_vmap
    def rule(axis_size: int, batched: list[bool], a: Array, b: Array) -> tuple[Array, bool]:
        axes = [0 if is_batched else None for is_batched in batched]
        together = _member_by_member(jax.vmap(function, axes), on_cpu)
        if not all(batched):
            return together(a, b), True

        def one_by_one(a: Array, b: Array) -> Array:
            return jnp.stack([wrapped(a[i], b[i]) for i in range(axis_size)])

        cpu = one_by_one if on_cpu else together
        return lax.platform_dependent(a, b, cuda=one_by_one, cpu=cpu, default=together), True

    return wrapped


def _direct(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _patches(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    rows, columns, channels, filters = kernel.shape
    height, width = _output_size(images, kernel, stride, padding)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    # Columns first, then rows: six slices for a 3x3 kernel instead of nine, in the kernel's order.
    across, down = stride * (width - 1) + 1, stride * (height - 1) + 1
    shifted = [padded[:, :, j : j + across : stride] for j in range(columns)]
    lines = jnp.concatenate(shifted, axis=-1)
    shifted = [lines[:, i : i + down : stride] for i in range(rows)]
    patches = jnp.concatenate(shifted, axis=-1)
    return matmul(patches, kernel.reshape(rows * columns * channels, filters))


def _output_size(images: Array, kernel: Array, stride: int, padding: int) -> tuple[int, int]:
    height, width = (
        (images.shape[axis + 1] + 2 * padding - kernel.shape[axis]) // stride + 1 for axis in (0, 1)
    )
    return height, width


class Conv(nnx.Module):
    """Convolution with a square kernel, (N, H, W, inputs) -> (N, Ho, Wo, outputs).

    Weights are normal with variance 2 / fan_out (He et al. 2015, "Delving deep into rectifiers").
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        rngs: nnx.Rngs,
    ) -> None:
        # As for a layer whose gradient is to keep its variance (He et al. 2015, "Delving deep into
        # rectifiers", section 2.2).
        he = initial.normal((2 / (size**2 * outputs)) ** 0.5)
        self.kernel = nnx.Param(he(rngs.params(), (size, size, inputs, outputs)))
        # Only a folded normalisation gives it one.
        self.bias: nnx.Param | None = nnx.data(None)
        self.stride = stride
        self.padding = size // 2

    def __call__(self, images: Array) -> Array:
        kernel = self.kernel[...]
        convolved = conv2d(images.astype(kernel.dtype), kernel, self.stride, self.padding)
        return convolved if self.bias is None else convolved + self.bias[...]
