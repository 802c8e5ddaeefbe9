"""A list with a promise: which rows of a run calibrate it, and what is certain of the others.

All arrays are in the order of the ranking, best first. The rows that calibrate are drawn at random
from the run itself, so that they are what its other non-lenses are; lenses that were found among
them are taken out. The promise is about the rows that were not drawn.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lensjax.trust import envelope

INSPECTED = 300
"""Of the drawn rows, and of the others, the best so many are looked at."""

Array = NDArray[Any]


class Listed(NamedTuple):
    """A list that is certified: its first `rows` that were not drawn, down to the row of that
    `rank`, of which at most `false` are no lenses."""

    rows: int
    rank: int
    false: int


def drawn(rows: int, calibration: int, seed: int) -> Array:
    """Returns which of so many rows calibrate, (rows,) bool: that many, drawn at random."""
    chosen = np.random.default_rng(seed).choice(rows, calibration, replace=False)
    return np.isin(np.arange(rows), chosen)


def columns(
    logit: Array, calibration: Array, lens: Array, *, confidence: float, seed: int
) -> dict[str, Array]:
    """Returns `calibration`, `p_value`, `false_positives_at_most` and `purity_at_least` of ranked
    rows (n,), masked where a row calibrates.

    `logit` falls along the ranking, `calibration` says which rows were drawn, and `lens` which rows
    are known to be lenses. The list down to a row holds the rows so far that were not drawn.
    """
    others = ~calibration
    negatives, survey = logit[calibration & ~lens], logit[others]
    false = envelope.false_positives_at_most(negatives, survey, confidence=confidence, seed=seed)
    length = np.searchsorted(-survey, -survey, "right")
    found = {
        "p_value": envelope.p_values(negatives, survey),
        "false_positives_at_most": false,
        "purity_at_least": 1 - false / length,
    }
    return {"calibration": calibration} | {
        name: _among(values, others) for name, values in found.items()
    }


def to_inspect(calibration: Array, most: int, seed: int) -> Array:
    """Returns the ranks, from 0 and in no order, of what is to be looked at: the best `most` rows
    that calibrate, and as many of the others."""
    kinds = (np.flatnonzero(calibration)[:most], np.flatnonzero(~calibration)[:most])
    return np.random.default_rng(seed).permutation(np.concatenate(kinds))


def certified(found: dict[str, Array], max_false_discovery: float) -> Listed | None:
    """Returns the longest list of which at most that share is false, None where there is none."""
    purity = np.ma.filled(found["purity_at_least"], -1.0)
    kept = np.flatnonzero(purity >= 1 - max_false_discovery)
    if not kept.size:
        return None
    last = int(kept[-1])
    rows = int((~found["calibration"][: last + 1]).sum())
    return Listed(rows, last + 1, int(found["false_positives_at_most"][last]))


def of_average_purity(p_value: Array, false_discovery_rate: float) -> int:
    """Returns how many rows the list of Benjamini & Hochberg (1995) has: the false share is that
    low on average over surveys, so that about half of such lists hold more."""
    adjusted = stats.false_discovery_control(np.ma.compressed(p_value))
    return int((adjusted <= false_discovery_rate).sum())


class Needs(NamedTuple):
    """What a promise takes: so many calibration negatives, and so many rows to be looked at among
    them."""

    negatives: int
    inspections: int


def needs(
    prevalence: float,
    *,
    survey: int,
    completeness: float,
    max_false_discovery: float,
    false_share: float,
    confidence: float = 0.95,
) -> Needs | None:
    """Returns what a list of a survey of m rows takes that is to hold a share `completeness` of the
    lenses, where in truth a share `false_share` of it is no lens, for the promise
    `max_false_discovery` to come out in nine of ten draws; None where no number suffices.

    The number of negatives above the cut is binomial; inspections are what lies above the cut among
    the drawn rows, lenses included, with nine of ten draws below it.
    """
    lenses = prevalence * completeness
    negatives_above = lenses * false_share / (1 - false_share)
    allowed_false = max_false_discovery * survey * (lenses + negatives_above)
    # The level hardly depends on the number: that of about as many as it takes serves for all.
    level = envelope.level(math.ceil(30 / lenses), survey, confidence=confidence, paths=2000)
    # The need falls as 1 / lenses.
    for negatives in np.ceil(np.geomspace(1, 1000, 200) / lenses).astype(int).tolist():
        above = stats.binom.ppf(0.9, negatives, negatives_above / (1 - prevalence))
        if envelope.at_level(level, above + 1, negatives, survey) <= allowed_false:
            of_draw = negatives * (lenses + negatives_above)
            return Needs(negatives, int(stats.poisson.ppf(0.9, of_draw)))
    return None


def _among(values: Array, where: Array) -> np.ma.MaskedArray:
    """Returns values at these places of a longer array (n,), the others masked."""
    full = np.ma.masked_all(where.size, values.dtype)
    full[where] = values
    return full
