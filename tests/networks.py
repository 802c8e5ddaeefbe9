"""The registered architectures by their names, of the same layers, but few and narrow ones."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from unittest import mock

from flax import nnx

from lensjax.ensemble import checkpoint
from lensjax.models import registry
from lensjax.models.hybrid import HybridTransformer
from lensjax.models.network import Head, Layers, Network
from lensjax.models.norm import ConvNorm
from lensjax.models.vit import VisionTransformer

SMALL = {
    "resnet18": partial(registry._resnet, (1, 1, 1, 1), width=8),
    "resnet18_x0_25": partial(registry._resnet, (1, 1, 1, 1), width=4),
    "resnet34": partial(registry._resnet, (1, 2, 1, 1), width=8),
    "vit_ti16": partial(VisionTransformer, width=16, depth=2, heads=1),
    "vit_s16": partial(VisionTransformer, width=32, depth=2, heads=2),
    "vit_b16": partial(VisionTransformer, width=48, depth=3, heads=3),
    "light_transformer": partial(HybridTransformer, width=32, depth=2, heads=2),
    "trans_enc_s": partial(HybridTransformer, width=48, depth=3, heads=3, stochastic_depth=0.1),
}


REAL = {name: architecture.build for name, architecture in registry.ARCHITECTURES.items()}


def small() -> AbstractContextManager[None]:
    """Has every architecture be small: tests of other things spend no time on networks."""
    return _built(SMALL)


def real() -> AbstractContextManager[None]:
    """Has every architecture be as it is again."""
    return _built(REAL)


@contextlib.contextmanager
def _built(builds: Mapping[str, Callable[..., nnx.Module]]) -> Iterator[None]:
    built = {
        name: dataclasses.replace(registry.ARCHITECTURES[name], build=build)
        for name, build in builds.items()
    }
    with mock.patch.dict(registry.ARCHITECTURES, built):
        checkpoint._abstract_model.cache_clear()  # kept by name
        yield
    checkpoint._abstract_model.cache_clear()


class Convolutional(Network):
    """Two convolutions with batch normalisation, and a head with dropout."""

    DEPTHS = {"first": 0, "second": 1, "head": 2}

    def __init__(
        self, rngs: nnx.Rngs, bands: int = 2, dropout: float = 0.3, width: int = 8, **_: object
    ) -> None:
        self.first = ConvNorm(bands, width, 3, stride=2, rngs=rngs)
        self.second = ConvNorm(width, 2 * width, 3, stride=2, rngs=rngs)
        self.head = Head(2 * width, dropout, rngs=rngs)

    def layers(self, images, *, rngs=None, train=False):
        first = nnx.relu(self.first(images, train=train))
        second = nnx.relu(self.second(first, train=train))
        return Layers(second.mean((1, 2)), (first, second))
