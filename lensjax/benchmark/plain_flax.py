"""A resnet18 as one writes it with Flax's own layers, and `vmap` over stacked weights of it."""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lensjax.benchmark import drawn, ours
from lensjax.benchmark.contract import Loaded, Outputs, Program
from lensjax.models.torch_import import load_torch_weights, tensor_shapes


class ConvNorm(nnx.Module):
    """Convolution and batch normalisation, (N, H, W, inputs) -> (N, Ho, Wo, outputs)."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        rngs, window = nnx.Rngs(0), (size, size)
        self.conv = nnx.Conv(
            inputs, outputs, window, stride, padding=size // 2, use_bias=False, rngs=rngs
        )
        self.norm = nnx.BatchNorm(outputs, use_running_average=True, epsilon=1e-5, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.norm(self.conv(images))


class Block(nnx.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        self.first = ConvNorm(inputs, outputs, 3, stride)
        self.second = ConvNorm(outputs, outputs, 3)
        same = (inputs, stride) == (outputs, 1)
        self.shortcut = None if same else ConvNorm(inputs, outputs, 1, stride)

    def __call__(self, images: jax.Array) -> jax.Array:
        residual = self.second(nnx.relu(self.first(images)))
        return nnx.relu(residual + (self.shortcut(images) if self.shortcut else images))


class ResNet18(nnx.Module):
    """Images (batch, S, S, band) -> logits (batch,). Its arrays are called as lensjax's are."""

    def __init__(self) -> None:
        self.stem = nnx.Dict(entry=ConvNorm(drawn.BANDS, 64, 7, 2))
        widths = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        pairs = ([Block(i, o, stride), Block(o, o, 1)] for i, o, stride in widths)
        self.stages = nnx.List([nnx.Dict(blocks=nnx.List(pair)) for pair in pairs])
        self.head = nnx.Dict(linear=nnx.Linear(512, 1, rngs=nnx.Rngs(0)))

    def __call__(self, images: jax.Array) -> jax.Array:
        ends = ((1, 1), (1, 1))
        features = nnx.relu(self.stem.entry(images))
        features = nnx.max_pool(features, (3, 3), (2, 2), padding=ends)
        for stage in self.stages:
            for block in stage.blocks:
                features = block(features)
        return self.head.linear(features.mean(axis=(1, 2)))[:, 0]


def ensemble(members: Sequence[str], size: int, eigen: bool) -> Loaded:
    """Returns `vmap` over the stacked weights of `members`, all of them resnet18.

    Without `eigen` it runs as JAX does by default. The import of lensjax has asked XLA for Eigen,
    which JAX reads when it first meets a device: that is taken back.
    """
    if not eigen:
        flags = os.environ.get("XLA_FLAGS", "").split()
        os.environ["XLA_FLAGS"] = " ".join(flag for flag in flags if "ynn_fusion" not in flag)
    networks = [_network(name) for name in members]
    graph = nnx.graphdef(networks[0])
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(nnx.state, networks))

    def prepare(samples: int, batch: int) -> Program:
        if samples != 1:
            raise ValueError("the plain network has no dropout")
        images = drawn.images(batch, size)

        @jax.jit
        def step(states: nnx.State, images: jax.Array) -> jax.Array:
            return jax.vmap(lambda state: nnx.merge(graph, state)(images))(states)

        def run(count: int) -> Outputs:
            for _ in range(count):
                logits = jax.device_get(step(states, images))
            return Outputs(np.asarray(logits))

        return Program(run, batch)

    return Loaded(prepare, ours.device(), ours.device_peak_bytes)


def _network(name: str) -> nnx.Module:
    model = ResNet18()
    load_torch_weights(model, drawn.state_dict(name, tensor_shapes(model)))
    return model
