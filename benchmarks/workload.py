"""The same weights and images for every program, drawn by NumPy from seeds."""

import hashlib
from collections.abc import Mapping

import numpy as np

BANDS = 3
BAND_NAMES = tuple(f"band{index}" for index in range(BANDS))
SOFTENING = 2.0
DROPOUT = 0.2


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
