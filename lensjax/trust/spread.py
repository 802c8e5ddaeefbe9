"""How far apart members are in what they say of a cutout: intervals and disagreement."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from lensjax.ensemble.checkpoint import MemberInfo
from lensjax.predictions import Predictions
from lensjax.trust.run import Said


def said(predictions: Predictions, members: Mapping[str, MemberInfo]) -> Said:
    """Returns the interval of each probability, and how much members disagree where there are
    several; `members` are they, by name.

    The interval is logit -+ logit_std, as probabilities: for normal log-odds it holds 68 %. It lies
    within 0 and 1, and is no interval of the truth. `disagreement` is the standard deviation of
    calibrated log-odds over architectures, each the mean of its members, and
    `member_disagreement` that over all members, where some architecture has several. All count
    alike, whatever their share of the score. Masked where a member has not seen a cutout.
    """
    scores = predictions.scores
    columns: dict[str, NDArray[Any]] = {
        "probability_low": expit(scores.logit - scores.logit_std),
        "probability_high": expit(scores.logit + scores.logit_std),
    }
    of = np.array([members[name].architecture for name in predictions.members])
    kinds = list(dict.fromkeys(of.tolist()))
    logits = scores.member_logits
    if len(kinds) > 1:
        columns["disagreement"] = _std([logits[of == kind].mean(axis=0) for kind in kinds])
    if len(of) > len(kinds):
        columns["member_disagreement"] = _std(logits)
    return Said(columns, {}, [])


def _std(logits: Sequence[NDArray[Any]] | NDArray[Any]) -> NDArray[Any]:
    """Returns the standard deviation (n,) over the first axis of (k, n), by k - 1, masked where one
    is not known."""
    return np.ma.masked_invalid(np.std(logits, axis=0, ddof=1))
