"""The architectures by name."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from flax import nnx

from lensjax.errors import UsageError
from lensjax.models.hybrid import HybridTransformer
from lensjax.models.resnet import ResNet
from lensjax.models.vit import VisionTransformer


@dataclass(frozen=True)
class Architecture:
    """What is known of an architecture before it is built.

    `parameters` is the number of weights at 3 bands, 224 pixels and one logit; `build` takes the
    keywords of `create`. `depths` orders the parts of the network from the images to the logit.
    """

    name: str
    aliases: tuple[str, ...]
    parameters: int
    default_input_size: int
    depths: Mapping[str, int]
    build: Callable[..., nnx.Module]


def _resnet(
    depths: tuple[int, int, int, int],
    *,
    bands: int,
    input_size: int,
    dropout: float,
    block_dropout: float,
    width: int = 64,
    rngs: nnx.Rngs,
) -> ResNet:
    """Returns a residual network. It takes every input size and has no dropout in its blocks."""
    del input_size
    if block_dropout:
        raise UsageError("a residual network has no dropout in its blocks: set block_dropout to 0")
    return ResNet(depths, bands=bands, dropout=dropout, width=width, rngs=rngs)


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("resnet18", (), 11_177_025, 64, ResNet.DEPTHS, partial(_resnet, (2, 2, 2, 2))),
        # A quarter of the width costs a sixth of the time on a CPU: the first member of a cascade.
        Architecture(
            "resnet18_x0_25",
            (),
            702_225,
            64,
            ResNet.DEPTHS,
            partial(_resnet, (2, 2, 2, 2), width=16),
        ),
        Architecture("resnet34", (), 21_285_185, 64, ResNet.DEPTHS, partial(_resnet, (3, 4, 6, 3))),
        Architecture(
            "vit_ti16",
            ("vit_tiny_patch16_224", "deit_tiny_patch16_224"),
            5_524_609,
            64,
            VisionTransformer.DEPTHS,
            partial(VisionTransformer, width=192, depth=12, heads=3),
        ),
        Architecture(
            "vit_s16",
            ("vit_small_patch16_224",),
            21_666_049,
            64,
            VisionTransformer.DEPTHS,
            partial(VisionTransformer, width=384, depth=12, heads=6),
        ),
        Architecture(
            "vit_b16",
            ("vit_base_patch16_224",),
            85_799_425,
            64,
            VisionTransformer.DEPTHS,
            partial(VisionTransformer, width=768, depth=12, heads=12),
        ),
        Architecture(
            "light_transformer",
            (),
            1_989_361,
            64,
            HybridTransformer.DEPTHS,
            partial(HybridTransformer, width=192, depth=4, heads=6),
        ),
        Architecture(
            "trans_enc_s",
            (),
            15_030_241,
            64,
            HybridTransformer.DEPTHS,
            partial(HybridTransformer, width=384, depth=8, heads=6, stochastic_depth=0.1),
        ),
    )
}


def resolve(name: str) -> Architecture:
    """Returns the architecture called `name`, whatever its case and punctuation.

    Raises UsageError for an unknown name, listing the known and naming the nearest.
    """
    spellings = {
        _plain(spelling): architecture
        for architecture in ARCHITECTURES.values()
        for spelling in (architecture.name, *architecture.aliases)
    }
    plain = _plain(name)
    if plain in spellings:
        return spellings[plain]
    nearest = difflib.get_close_matches(plain, spellings, n=1)
    hint = f"; did you mean {spellings[nearest[0]].name}?" if nearest else ""
    raise UsageError(f"unknown architecture {name!r}: choose from {', '.join(ARCHITECTURES)}{hint}")


def create(
    name: str,
    *,
    bands: int,
    input_size: int,
    dropout: float = 0.2,
    block_dropout: float = 0.0,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Returns a freshly initialised network, images (batch, S, S, band) -> logits (batch,).

    `dropout` is the rate before the head, `block_dropout` the rate inside transformer blocks.
    Raises UsageError where the name is unknown or the architecture cannot take the settings.
    """
    return resolve(name).build(
        bands=bands, input_size=input_size, dropout=dropout, block_dropout=block_dropout, rngs=rngs
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
