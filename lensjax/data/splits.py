"""Which objects are held back: whole groups, by a hash of their name."""

from hashlib import sha256

import numpy as np


def held_back(groups: np.ndarray, fraction: float, purpose: str) -> np.ndarray:
    """Returns whether each object is held back for `purpose`, (n,) bool, about `fraction` of them.

    Objects of one group (the same galaxy turned, re-injected or left as it was) stay together. A
    group's side depends on its name alone, so a catalogue that grows keeps the sides it had; draws
    for different purposes are independent.
    """
    names, index = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    drawn = np.array([_uniform(f"{purpose}:{name}") for name in names])
    return drawn[index] < fraction


def _uniform(text: str) -> float:
    """Returns a number in [0, 1) that looks random. (Checksums such as CRC are linear: with them
    the draws for two purposes would not be independent.)"""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") / 2.0**64
