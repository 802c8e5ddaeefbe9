"""Small members with random weights, for tests."""

import dataclasses

import numpy as np
from flax import nnx

from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble.checkpoint import Member, MemberInfo, arrays_sha256, state_of

PREPROCESSING = Preprocessing(
    bands=("g", "r"),
    input_size=32,
    pixel_scale=0.2,
    stretch="asinh",
    softening=2.0,
    mean=(0.3, 0.4),
    std=(1.5, 2.0),
)


def random_member(
    architecture: str,
    seed: int,
    preprocessing: Preprocessing = PREPROCESSING,
    block_dropout: float = 0.0,
) -> Member:
    """Returns a member with all its weights random, the last layer's too: logits differ from 0."""
    info = MemberInfo(architecture, preprocessing, dropout=0.2, block_dropout=block_dropout)
    shapes = nnx.eval_shape(lambda: info.build(nnx.Rngs(0)))
    rng = np.random.default_rng(seed)
    state = {name: _draw(rng, name, leaf.shape) for name, leaf in state_of(shapes).items()}
    return Member(dataclasses.replace(info, weights_sha256=arrays_sha256(state)), state)


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("kernel"):
        return noise * np.float32(np.sqrt(2.0 / np.prod(shape[:-1][-3:])))
    return 1 + 0.1 * np.abs(noise) if name.endswith(("scale", "var")) else 0.1 * noise


def blank_member(
    architecture: str, preprocessing: Preprocessing = PREPROCESSING, block_dropout: float = 0.0
) -> Member:
    """Returns a member of zeros, for what hangs on shapes alone."""
    info = MemberInfo(architecture, preprocessing, dropout=0.2, block_dropout=block_dropout)
    shapes = nnx.eval_shape(lambda: info.build(nnx.Rngs(0)))
    state = {
        name: np.broadcast_to(np.float32(0), leaf.shape) for name, leaf in state_of(shapes).items()
    }
    return Member(dataclasses.replace(info, weights_sha256=architecture), state)
