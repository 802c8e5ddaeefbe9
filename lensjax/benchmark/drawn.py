"""The work that is the same for all contenders: weights, images, and what they cost.

Everything is drawn by NumPy from seeds, so that each process has the same without any file.
"""

import hashlib
from collections.abc import Mapping

import numpy as np

BANDS = 3
BAND_NAMES = tuple(f"band{index}" for index in range(BANDS))
SOFTENING = 2.0
DROPOUT = 0.2
PATCH = 16
WIDTH, DEPTH = 768, 12
HEADS = {"resnet18": ("fc", 512), "vit_b16": ("heads.head", WIDTH)}


def architecture_of(member: str) -> str:
    """Returns `resnet18` for the member `resnet18.1`."""
    return member.split(".")[0]


def state_dict(member: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns the weights of `member` under torchvision's names and shapes.

    Each tensor has its own generator, seeded by its name. Variances keep signals of order one
    through the depth of the network, so that differences of arithmetic show in the logits.
    """
    gain = 2 if architecture_of(member) == "resnet18" else 1
    return {name: tensor(f"{member}/{name}", shape, gain) for name, shape in shapes.items()}


def head(member: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weight (1, feature) and the bias (1,) of the last layer of `member`."""
    layer, width = HEADS[architecture_of(member)]
    weights = state_dict(member, {f"{layer}.weight": (1, width), f"{layer}.bias": (1,)})
    return weights[f"{layer}.weight"], weights[f"{layer}.bias"]


def tensor(name: str, shape: tuple[int, ...], gain: int) -> np.ndarray:
    """Returns the float32 tensor of this name; `gain` over the inputs is a kernel's variance."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    z = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 1 + np.float32(0.5) * np.abs(z)
    if name.endswith("running_mean"):
        return np.float32(0.1) * z
    if len(shape) == 1:
        return 1 + np.float32(0.1) * z if name.endswith("weight") else np.float32(0.05) * z
    if name.endswith(("class_token", "pos_embedding")):
        return np.float32(0.02) * z
    return z * np.float32(np.sqrt(gain / np.prod(shape[1:])))


def images(count: int, size: int) -> np.ndarray:
    """Returns images (count, size, size, band) float32; a smaller count gives the first of them."""
    shape = (count, size, size, BANDS)
    return np.random.default_rng(20240229).standard_normal(shape, np.float32)


def flops(member: str, size: int) -> float:
    """Returns the multiplications and additions in the matrix products of one image's logit.

    The least that gives the logit: in the last block of a transformer all but keys and values is
    counted for the class token alone, and a backbone counts once however many samples its head
    draws. A contender that computes more than that has the smaller share of the machine.
    """
    return _resnet18_flops(size) if architecture_of(member) == "resnet18" else _vit_flops(size)


def _resnet18_flops(size: int) -> float:
    side = (size + 1) // 2
    total = side**2 * 49 * BANDS * 64
    side = (side + 1) // 2
    inputs = 64
    for outputs in (64, 128, 256, 512):
        if outputs != inputs:
            side = (side + 1) // 2
            total += side**2 * inputs * outputs
        total += side**2 * 9 * outputs * (inputs + 3 * outputs)
        inputs = outputs
    return 2.0 * (total + inputs)


def _vit_flops(size: int) -> float:
    patches = (size // PATCH) ** 2

    def block(queries: int, tokens: int) -> int:
        key_value, per_query = 2 * tokens * WIDTH, queries * (WIDTH + WIDTH + 8 * WIDTH)
        return WIDTH * (key_value + per_query) + 2 * queries * tokens * WIDTH

    tokens = patches + 1
    blocks = (DEPTH - 1) * block(tokens, tokens) + block(1, tokens)
    return 2.0 * (patches * PATCH**2 * BANDS * WIDTH + blocks + WIDTH)
