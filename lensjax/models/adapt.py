"""Adapts the first layer of a trained network to images with other bands."""

import numpy as np

# Where networks keep their first kernel: (..., band, output).
FIRST_KERNELS = ("stem.entry.conv.kernel", "embedding.patches.kernel")


def to_bands(kernel: np.ndarray, bands: int, axis: int) -> np.ndarray:
    """Returns a first kernel for so many bands along `axis`: the mean over those that it has,
    scaled so that an image alike in all bands gives the same response."""
    held = kernel.shape[axis]
    mean = kernel.astype(np.float32).mean(axis, keepdims=True)
    return np.repeat(mean * (held / bands), bands, axis)
