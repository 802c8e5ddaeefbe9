"""The weights and images behind tests/reference/reference_outputs.npz, drawn by its rule.

Every tensor has its own generator, seeded by its name, so that the numbers do not depend on the
order of drawing.
"""

import json
from pathlib import Path

import numpy as np

from benchmarks.workload import tensor

SIZES = {"resnet18": (64, 101, 224), "vit_b_16": (224,)}


def state_dict(reference: str, architecture: str) -> dict[str, np.ndarray]:
    """Returns weights under torchvision's names and shapes, for `resnet18` or `vit_b_16`."""
    shapes = json.loads((Path(reference) / "state_dict_shapes.json").read_text())[architecture]
    gain = 2 if architecture == "resnet18" else 1
    return {name: _drawn(name, tuple(shape), gain) for name, shape in shapes.items()}


def images(architecture: str, size: int) -> np.ndarray:
    """Returns the two images (2, size, size, 3) that the reference was computed on."""
    rng = np.random.default_rng(20240229)
    for other, sizes in SIZES.items():
        for other_size in sizes:
            drawn = rng.standard_normal((2, 3, other_size, other_size)).astype(np.float32)
            if (other, other_size) == (architecture, size):
                return drawn.transpose(0, 2, 3, 1)
    raise KeyError((architecture, size))


def _drawn(name: str, shape: tuple[int, ...], gain: int) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    return tensor(name, shape, gain)
