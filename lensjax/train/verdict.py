"""Whether a member that learned from grades is better than it was, by grades that it has not seen.

It is called better only where these say so: AUROC or log loss is better by its paired interval, and
neither is worse. Too few lenses or others say nothing.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from lensjax import metrics
from lensjax.ensemble import calibration, checkpoint
from lensjax.ensemble.checkpoint import Member
from lensjax.intervals import Interval
from lensjax.train.data import Labelled
from lensjax.train.head import features_of, logits_of
from lensjax.train.replay import Replayed

BETTER, WORSE, OPEN, UNKNOWN = "better", "worse", "not shown to be better", "not known"
# What decides, and whether more is better. TPR10 is shown, too: it takes many others to say much.
DECIDES = {"auroc": 1, "log_loss": -1}
# Less than this, of AUROC or of nats, is no difference.
LEAST = 1e-3
IN_ORDER = 1e-6


def judged(member: Member, start: Path, validation: Replayed) -> Member:
    """Returns a member with its verdict, as `verdict` has it, against the member in `start`."""
    assert member.validation is not None
    held = validation.take(np.arange(validation.graded))
    after = member.validation["logit"][: validation.graded]
    found = verdict(logits_before(start, held), after, held.labels, held.group)
    return dataclasses.replace(member, info=dataclasses.replace(member.info, verdict=found))


def verdict(
    before: np.ndarray, after: np.ndarray, label: np.ndarray, group: np.ndarray
) -> dict[str, Any]:
    """Returns what the logits (n,) before and after learning say, by labels (n,) and groups (n,):
    `word`, one of BETTER, WORSE, OPEN and UNKNOWN, and `why` where it is the last; how many
    `cutouts` and `lenses` there are; the metrics `before` and `after` by name; and their
    `difference`, after less before, with 95 % intervals of a paired bootstrap over groups.

    Both are calibrated on these labels alike: what was learned is judged, not the calibration.
    """
    before, after = (calibrated(logits, label) for logits in (before, after))
    difference, _ = metrics.compare(after, before, label, groups=group)
    caveats = metrics.caveats(after, label, group)
    values = [metrics.values(probability, label) for probability in (before, after)]
    of_before, of_after = ({name: found[name] for name in difference} for found in values)
    return {
        "word": UNKNOWN if caveats else _word(difference),
        "why": "; ".join(caveats),
        "cutouts": len(label),
        "lenses": int(label.sum()),
        "before": of_before,
        "after": of_after,
        "difference": {name: found._asdict() for name, found in difference.items()},
    }


def sentence(found: Mapping[str, Any]) -> str:
    """Returns a verdict as one line."""
    shown = {"auroc": "AUROC", "log_loss": "log loss", "tpr10": "TPR10"}
    parts = [
        f"{words} {found['before'][name]:.3f} before, {found['after'][name]:.3f} after ("
        + metrics.cell(Interval(**found["difference"][name]), "+.3f")
        + ")"
        for name, words in shown.items()
    ]
    why = f" ({found['why']})" if found["why"] else ""
    return (
        f"on {found['cutouts']} held-back grades, {found['lenses']} of them lenses: "
        f"{', '.join(parts)}: {found['word']}{why}"
    )


def logits_before(start: Path, data: Labelled) -> np.ndarray:
    """Returns the logits (n,) float64 that the member in `start` gives cutouts on its grid, by its
    own normalisation and without dropout."""
    member = checkpoint.load_member(start)
    transform = dataclasses.replace(data.transform, preprocessing=member.info.preprocessing)
    return logits_of(member.state, features_of(member, transform, data))


def calibrated(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Returns the probabilities (n,) of logits (n,), calibrated where there are both classes, in
    the same order."""
    if len(np.unique(label)) < 2:
        return expit(logits)
    slope, intercept = calibration.platt(logits, label)
    # Of logits that rank backwards calibration makes one probability, with nothing to rank by.
    return expit(max(slope, IN_ORDER) * logits + intercept)


def speaks_for(found: Mapping[str, Any]) -> bool:
    """Returns whether a verdict speaks for what was learned: it is better, or though it is not
    shown to be, both AUROC and log loss are."""
    gains = [sign * found["difference"][name]["value"] for name, sign in DECIDES.items()]
    return found["word"] == BETTER or (found["word"] == OPEN and min(gains) > LEAST)


def _word(difference: Mapping[str, Interval]) -> str:
    gains = [sorted(sign * np.array(difference[n][1:])) for n, sign in DECIDES.items()]
    if any(high < -LEAST for _, high in gains):
        return WORSE
    return BETTER if any(low > LEAST for low, _ in gains) else OPEN
