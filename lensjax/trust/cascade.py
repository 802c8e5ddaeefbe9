"""A cascade: a cheap member sees all cutouts, the others those that may still be listed.

Which lenses that are listed the cheap member loses is known from validation lenses: its cut is that
of `completeness` on them. It says nothing of lenses that look otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lensjax.errors import UsageError, refuse
from lensjax.predictions import THRESHOLD, Predictions
from lensjax.trust.run import Said


@dataclass(frozen=True)
class CascadeOptions:
    """Which member sees all cutouts, and what that may cost."""

    cascade: str | None = None
    """Score all cutouts by this member, an architecture or a column (auto: the cheapest), and by
    the others only what may still be listed."""
    cascade_loss: float = 0.01
    """Share of the listed lenses that the cascade may lose."""
    cascade_listed: float = THRESHOLD
    """Probability from which all members together list a cutout."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        wrong = {
            "--cascade-loss is a share between 0 and 1": not 0 < self.cascade_loss < 1,
            "--cascade-listed is a probability between 0 and 1": not 0 < self.cascade_listed < 1,
        }
        refuse(wrong)


class Cascade(NamedTuple):
    """A cascade: its first member, which passes on cutouts of at least `cut`, a calibrated logit.

    It is set on so many listed `lenses`, of which it keeps all but the share `loss` with that
    `confidence`; they are `listed` from a probability on that holds where a share `prevalence` of
    all cutouts are lenses. The first member alone takes the share `cost` of the operations of all.
    """

    member: str
    cut: float
    lenses: int
    loss: float
    confidence: float
    listed: float
    prevalence: float
    cost: float


def named(wanted: str, members: Mapping[str, str]) -> str:
    """Returns the name of a member, of those whose architectures these are, that is wanted by its
    name or by an architecture of which there is one. Raises UsageError where there is none."""
    alike = [name for name, architecture in members.items() if wanted in (name, architecture)]
    if wanted in members:
        return wanted
    if len(alike) == 1:
        return alike[0]
    many = f"there are {len(alike)} of it" if alike else "there is none"
    raise UsageError(f"--cascade {wanted}: {many}; name auto or one of {', '.join(members)}")


def cut(
    cheap: ArrayLike,
    fused: ArrayLike,
    labels: ArrayLike,
    options: CascadeOptions,
    confidence: float,
) -> tuple[float, int]:
    """Returns the cut on the logits of the cheap member, (n,) as the fused ones, that loses at most
    a share `cascade_loss` of the lenses that are listed, with that confidence; and how many lenses
    it was set on.

    `labels` (n,) are 1 for lenses. Raises UsageError where too few are listed.
    """
    from lensjax.trust import completeness  # scipy.stats takes a second to import

    probability = 1 / (1 + np.exp(-np.asarray(fused, np.float64)))
    listed = (np.asarray(labels) == 1) & (probability >= options.cascade_listed)
    kept = 1 - options.cascade_loss
    try:
        found = completeness.cut(np.asarray(cheap)[listed], kept, confidence=confidence)
    except completeness.TooFewLenses as error:
        raise UsageError(f"--cascade-loss {options.cascade_loss:.4g}: {error}") from error
    return found.score, found.lenses


def speed_up(cost: float, passed: float) -> float:
    """Returns how many times as fast a cascade is whose first member takes a share `cost` of the
    operations of all, and which passes on a share `passed` of the cutouts."""
    return 1 / (cost + passed * (1 - cost))


def said(cascade: Cascade, predictions: Predictions, per_second: float | None) -> Said:
    """Returns what a run says of its cascade."""
    scored = int(predictions.readable.sum())
    passed = float(predictions.complete.sum() / scored) if scored else 0.0
    record: dict[str, Any] = cascade._asdict()
    record |= {"passed": passed, "speed_up": speed_up(cascade.cost, passed)}
    rate = f"; {per_second:.4g} cutouts/s" if per_second else ""
    notes = [
        f"cascade: {cascade.member} has seen all cutouts and passed on {passed:.2%} of them, those "
        f"of a logit of at least {cascade.cut:.3f}: {record['speed_up']:.3g} times as fast by the "
        f"operations counted{rate}",
        f"it loses at most {cascade.loss:.3g} of the lenses that all members would list, from a "
        f"probability of {cascade.listed:.3g} where a share {cascade.prevalence:.3g} are lenses "
        f"(confidence {cascade.confidence:.3g}, set on {cascade.lenses:,} lenses of the members' "
        "validation data: it says nothing of lenses that look otherwise)",
    ]
    return Said({}, {"cascade": record}, notes)
