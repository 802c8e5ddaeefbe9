"""Predictions that no network has made."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lensjax.data.pixel_statistics import STATISTICS
from lensjax.predictions import Predictions, Scores

OF_MEMBERS = ("member_logits", "member_probs")


def scored(
    count: int,
    unreadable: Sequence[int] = (),
    members: tuple[str, ...] = ("resnet18.0", "vit_b16"),
    **fields: Any,
) -> Predictions:
    """Returns random predictions of `count` cutouts; `fields` are others of them, or of their
    scores."""
    rng = np.random.default_rng(0)
    readable = ~np.isin(np.arange(count), unreadable)

    def drawn(name: str) -> np.ndarray:
        first = {"pixels": (len(STATISTICS),)} | dict.fromkeys(OF_MEMBERS, (len(members),))
        shape = (*first.get(name, ()), count)
        return np.where(readable, fields.pop(name, rng.random(shape, np.float32)), np.nan)

    scores = Scores(*map(drawn, Scores._fields))
    assumed = {
        "readable": readable,
        "reason": np.where(readable, "", "truncated, or empty"),
        "flag": np.full(count, ""),
        "ra": 360 * rng.random(count),
        "dec": 180 * rng.random(count) - 90,
        "masked": np.zeros(count, int),
        "action": np.full(count, "as is"),
        "field": np.ones(count),
    }
    return Predictions(members, scores, **(assumed | fields))
