"""What a network is when it has been trained: a member, with its calibration and its metrics."""

import dataclasses

import numpy as np
from scipy.special import expit

from lensjax import metrics
from lensjax.ensemble import calibration
from lensjax.ensemble.checkpoint import Member, MemberInfo, State
from lensjax.train.data import Labelled


def as_member(
    info: MemberInfo,
    state: State,
    logits: np.ndarray,
    seed: int,
    data: Labelled,
    pixels: np.ndarray | None,
) -> Member:
    """Returns the member of these weights, with its calibration and metrics on the validation data
    by its logits (n,) there, and the statistics of their pixels."""
    label = data.labels
    slope, intercept = calibration.platt(logits, label)
    probability = expit(slope * logits + intercept)
    info = dataclasses.replace(
        info,
        training=info.training | {"seed": seed},
        calibration={
            "slope": slope,
            "intercept": intercept,
            "brier": float(np.mean((probability - label) ** 2)),
        },
        metrics=metrics.evaluate(probability, label).to_json(),
    )
    return Member(info, state, {"id": data.id, "label": label, "logit": logits}, pixels)
