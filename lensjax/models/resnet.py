"""ResNet-18 and ResNet-34 (He et al. 2016, "Deep residual learning for image recognition").

The layers are torchvision's, with any number of bands, any image size and one logit.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lensjax.models.conv import Conv
from lensjax.models.head import Head


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
        self.norm = nnx.BatchNorm(
            outputs,
            momentum=0.9,
            epsilon=1e-5,
            scale_init=nnx.initializers.constant(initial_scale),
            rngs=rngs,
        )

    def __call__(self, images: Array, *, train: bool) -> Array:
        return self.norm(self.conv(images), use_running_average=not train)


class Stem(nnx.Module):
    """The first convolution and the pooling: (N, S, S, bands) -> (N, S/4, S/4, 64)."""

    def __init__(self, bands: int, *, rngs: nnx.Rngs) -> None:
        self.entry = ConvNorm(bands, 64, 7, stride=2, rngs=rngs)

    def __call__(self, images: Array, *, train: bool) -> Array:
        # The maximum and the rectifier commute; this way round the rectifier has a quarter to do.
        return nnx.relu(max_pool(self.entry(images, train=train)))


class Block(nnx.Module):
    """Two 3x3 convolutions beside a shortcut, (N, H, W, inputs) -> (N, Ho, Wo, outputs)."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.first = ConvNorm(inputs, outputs, 3, stride=stride, rngs=rngs)
        # From zero, each block starts as its shortcut (Goyal et al. 2017, "Accurate, large
        # minibatch SGD", section 5.1).
        self.second = ConvNorm(outputs, outputs, 3, initial_scale=0.0, rngs=rngs)
        self.shortcut = (
            ConvNorm(inputs, outputs, 1, stride=stride, rngs=rngs)
            if (inputs, stride) != (outputs, 1)
            else None
        )

    def __call__(self, images: Array, *, train: bool) -> Array:
        residual = self.second(nnx.relu(self.first(images, train=train)), train=train)
        if self.shortcut is not None:
            images = self.shortcut(images, train=train)
        return nnx.relu(images + residual)


class Stage(nnx.Module):
    """Blocks of one width, of which the first may halve the image."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, depth: int, *, rngs: nnx.Rngs
    ) -> None:
        first = Block(inputs, outputs, stride, rngs=rngs)
        rest = [Block(outputs, outputs, 1, rngs=rngs) for _ in range(depth - 1)]
        self.blocks = nnx.List([first, *rest])

    def __call__(self, images: Array, *, train: bool) -> Array:
        for block in self.blocks:
            images = block(images, train=train)
        return images


class ResNet(nnx.Module):
    """A residual network with basic blocks; `depths` holds the blocks of its four stages."""

    def __init__(
        self, depths: tuple[int, int, int, int], *, bands: int, dropout: float, rngs: nnx.Rngs
    ) -> None:
        self.stem = Stem(bands, rngs=rngs)
        self.stages = nnx.List(
            [
                Stage(inputs, outputs, stride, depth, rngs=rngs)
                for inputs, outputs, stride, depth in zip(
                    (64, 64, 128, 256), (64, 128, 256, 512), (1, 2, 2, 2), depths, strict=True
                )
            ]
        )
        self.head = Head(512, dropout, rngs=rngs)

    def __call__(
        self, images: Array, *, rngs: nnx.Rngs | None = None, train: bool = False
    ) -> Array:
        """Returns the logits (batch,) float32 of images (batch, S, S, band).

        `rngs` draws the dropout mask; None turns dropout off. `train` takes the batch's own
        statistics and updates the running ones; without it the running ones are used and kept.
        """
        features = self.stem(images, train=train)
        for stage in self.stages:
            features = stage(features, train=train)
        return self.head(features.mean(axis=(1, 2)), rngs=rngs)


def max_pool(images: Array) -> Array:
    """Returns the maxima (N, ceil(H/2), ceil(W/2), C) over 3x3 windows, stride 2, padding 1.

    Written as maxima of strided slices, one axis after the other: on the CPU the forward pass is
    up to 5 times faster than `reduce_window` and the gradient 4 to 7 times than its scatter.
    """
    for axis in (1, 2):
        padding = [(1, 1) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.moveaxis(jnp.pad(images, padding, constant_values=-jnp.inf), axis, 0)
        windows = (images.shape[axis] + 1) // 2
        first, second, third = (padded[i : i + 2 * windows - 1 : 2] for i in range(3))
        images = jnp.moveaxis(jnp.maximum(jnp.maximum(first, second), third), 0, axis)
    return images
