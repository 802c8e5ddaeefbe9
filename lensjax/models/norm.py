"""Convolution and batch normalisation (Ioffe & Szegedy 2015): one thing once they are trained.

Training passes over the images as seldom as it can, since that is what normalisation costs on a
CPU. Automatic differentiation keeps the centred images as well as the images and walks through both
several times; the gradient written out walks through images and cotangent once for the sums and
once for the result.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from lensjax.models.conv import Conv


class ConvNorm(nnx.Module):
    """Convolution and batch normalisation, (N, H, W, inputs) -> (N, Ho, Wo, outputs)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        initial_scale: float = 1.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = Conv(inputs, outputs, size, stride=stride, rngs=rngs)
        self.norm: BatchNorm | None = BatchNorm(
            outputs,
            momentum=0.9,
            epsilon=1e-5,
            scale_init=nnx.initializers.constant(initial_scale),
            rngs=rngs,
        )

    def __call__(self, images: Array, *, train: bool) -> Array:
        convolved = self.conv(images)
        return convolved if self.norm is None else self.norm(convolved, train=train)

    def fold(self) -> None:
        """Puts the normalisation by running statistics into the convolution's kernel and bias.

        Equal to rounding at inference; training is no longer possible. The arrays may be NumPy's,
        and may have leading axes (members).
        """
        if self.norm is None:
            return
        norm, kernel = self.norm, self.conv.kernel
        factor = norm.scale[...] / (norm.var[...] + norm.epsilon) ** 0.5
        bias = norm.bias[...] - norm.mean[...] * factor
        kernel.set_value(kernel[...] * factor[..., None, None, None, :])
        self.conv.bias = nnx.Param(bias[..., None, None, None, :])
        self.norm = None


def fold_norms(model: nnx.Module) -> None:
    """Folds every batch normalisation of `model` into the convolution before it."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, ConvNorm):
            module.fold()


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation of images (N, H, W, C), with the state and settings of Flax's own."""

    scale: nnx.Param
    bias: nnx.Param

    def __call__(self, images: Array, *, train: bool) -> Array:  # type: ignore[override]
        """Returns the images normalised by their own statistics, which then move the running ones,
        in training, and else by the running ones."""
        scale, bias = self.scale[...], self.bias[...]
        if not train:
            return _apply(images, scale, bias, self.mean[...], self.var[...], self.epsilon)
        normalised, mean, variance = normalise(images, scale, bias, self.epsilon)
        for running, batch in ((self.mean, mean), (self.var, variance)):
            running[...] = self.momentum * running[...] + (1 - self.momentum) * batch
        return normalised


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise(
    images: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, Array, Array]:
    """Returns images (N, H, W, C) normalised by their mean and variance, and these two, each (C,).

    Statistics are float32 whatever the images are. First-order reverse mode only, and none through
    the mean and the variance that are returned.
    """
    wide = images.astype(jnp.float32)
    mean = wide.mean((0, 1, 2))
    # Not below zero, which the difference may be by rounding.
    variance = jnp.maximum((wide * wide).mean((0, 1, 2)) - mean * mean, 0)
    return _apply(images, scale, bias, mean, variance, epsilon), mean, variance


def _forward(
    images: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    result = normalise(images, scale, bias, epsilon)
    return result, (images, scale, *result[1:])


def _backward(
    epsilon: float, kept: tuple[Array, ...], cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """Returns the gradients of images, scale and bias.

    With x the centred images over their deviation s, y = scale x + bias and d the cotangent of y:
    the gradient of the images is scale / s (d - mean(d) - x mean(d x)).
    """
    images, scale, mean, variance = kept
    cotangent = cotangents[0].astype(jnp.float32)
    inverse = lax.rsqrt(variance + epsilon)
    centred = images.astype(jnp.float32) - _per_channel(mean)
    bias_gradient = cotangent.sum((0, 1, 2))
    scale_gradient = (cotangent * centred).sum((0, 1, 2)) * inverse
    count = images.size / images.shape[-1]
    gradient = _per_channel(scale * inverse) * (
        cotangent
        - _per_channel(bias_gradient / count)
        - centred * _per_channel(scale_gradient * inverse / count)
    )
    narrow = scale.dtype  # and the bias's
    return (
        gradient.astype(images.dtype),
        scale_gradient.astype(narrow),
        bias_gradient.astype(narrow),
    )


normalise.defvjp(_forward, _backward)


def _apply(
    images: Array, scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float
) -> Array:
    factor = scale * lax.rsqrt(variance + epsilon)
    mean, factor, bias = (_per_channel(v).astype(images.dtype) for v in (mean, factor, bias))
    # Centred first: a mean far above the deviation would take the digits of a product with it.
    return (images - mean) * factor + bias


def _per_channel(values: Array) -> Array:
    return values.reshape(1, 1, 1, -1)
