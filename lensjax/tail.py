"""What scores are worth where lenses are rare: rates at few false positives, and purity.

A test set has about as many lenses as others; a survey has one lens in 1,000 to 10,000 objects. So
the true-positive rate T counts where the false-positive rate F is about as small as the prevalence,
the share of lenses. Scores are any numbers of which higher ones mean lens; objects are independent
(see `independent`). An object is listed at a cut where it scores at least as high.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensjax.errors import UsageError
from lensjax.intervals import CONFIDENCE, Interval, share_interval

RATES = ("1e-2", "1e-3", "1e-4")  # false-positive rates, as they are written
LEAST = 10  # others expected above a cut, below which a rate there is not stated
POINTS = 400  # cuts of a curve for people
_QUANTILES = (np.arange(200) + 0.5) / 200

Array = NDArray[Any]


class Curve(NamedTuple):
    """How many of the `lenses` and of the `others` are listed at each distinct score.

    `cut`, `found`, `false`: (k,), the highest cut first.
    """

    cut: Array
    found: Array
    false: Array
    lenses: int
    others: int

    @property
    def tpr(self) -> Array:
        return self.found / self.lenses

    @property
    def fpr(self) -> Array:
        return self.false / self.others

    @property
    def fpr_above(self) -> Array:
        """(c + 1) / (n + 1) where c of n others are listed: the mean rate of the next object, were
        it an other. Never 0."""
        return (self.false + 1) / (self.others + 1)

    def at(self, places: ArrayLike) -> "Curve":
        """Returns the curve at some of its places."""
        cut, found, false = (each[np.asarray(places)] for each in self[:3])
        return Curve(cut, found, false, self.lenses, self.others)


class Band(NamedTuple):
    """Values and their intervals, (k,) each."""

    value: Array
    low: Array
    high: Array


class AtCuts(NamedTuple):
    """Purity and completeness with their intervals at each cut (k,), the highest first."""

    prevalence: float
    cut: Array
    completeness: Band
    purity: Band


class Top(NamedTuple):
    """The best `size` of a survey: the `cut` that ends the list, how many labelled others (`false`)
    lie above it, and the purity (lenses per inspected cutout) and completeness of the list."""

    size: int
    cut: float
    false: float
    purity: Interval
    completeness: Interval


def independent(lens: Array, groups: ArrayLike | None) -> Array:
    """Returns rows of objects that share no group: the first of each group, a lens where it has
    one. Exact intervals hold for these; all rows without groups.

    `lens`: (n,) bool; `groups`: (n,) of any one type, "" and masked ones being groups of their own.
    """
    unit = units(lens.size, groups)
    order = np.lexsort([~lens, unit])
    return np.sort(order[np.unique(unit[order], return_index=True)[1]])


def units(size: int, groups: ArrayLike | None) -> Array:
    """Returns (n,) int: the number of each object's group, from 0."""
    if groups is None:
        return np.arange(size)
    masked: Any = np.ma.asarray(groups)
    names, unit = np.unique(np.ma.getdata(masked).astype(str), return_inverse=True)
    alone = np.ma.getmaskarray(masked) | np.isin(names, ["", "nan"])[unit]
    unit = np.where(alone, names.size + np.arange(size), unit)
    return np.unique(unit, return_inverse=True)[1]


def refusal(lenses: int, others: int, rate: float) -> str:
    """Returns why so many objects say nothing of the true-positive rate at a false-positive `rate`,
    or "" where they do."""
    if not lenses:
        return "no lenses"
    if others * rate < LEAST * (1 - 1e-9):
        return f"needs {math.ceil(LEAST / rate - 1e-6):,} others"
    return ""


def tpr_at(lenses: Array, others: Array, rate: float, confidence: float = CONFIDENCE) -> Interval:
    """Returns the true-positive rate at a false-positive `rate`, with an exact interval.

    The value is that above the other of rank floor(rate n) + 1. The cut of a false-positive rate is
    not known either: of n others Binomial(n, rate) lie above it, so two of them bracket it, each
    missing with a probability of a quarter of delta = 1 - confidence; the interval reaches from the
    lower Clopper-Pearson end above the one to the upper end above the other, each at delta / 4.
    It holds for any number of objects (`refusal` says when the value is worth little), and with
    ties. Resampling does not hold here: it covers about 0.7 at a rate of 1e-3 with 1,000 a class.
    """
    from scipy import special

    beyond, size = (1 - confidence) / 4, others.size
    expected = size * rate
    most = min(math.ceil(expected + 12 * math.sqrt(expected) + 40), size)  # nothing is beyond
    up_to = special.bdtr(np.arange(most + 1), size, rate)
    # Rank 0 is a cut above all scores, rank n + 1 one below all.
    ranks = [
        int(np.searchsorted(up_to, beyond)),
        min(math.floor(expected * (1 + 1e-12)), size) + 1,
        int(np.searchsorted(up_to, 1 - beyond)) + 1,
    ]
    ranked = np.concatenate([[np.inf], np.sort(others)[::-1], [-np.inf]])
    above = lenses.size - np.searchsorted(np.sort(lenses), ranked[ranks], "right")
    low, high = share_interval(above, lenses.size, 1 - 2 * beyond)
    return Interval(float(above[1] / lenses.size), float(low[0]), float(high[2]))


def curve(lenses: Array, others: Array) -> Curve:
    """Returns the curve of the scores of lenses (n1,) and others (n0,)."""
    cut = np.unique(np.concatenate([lenses, others]))[::-1]
    found, false = (
        each.size - np.searchsorted(np.sort(each), cut, "left") for each in (lenses, others)
    )
    return Curve(cut, found, false, lenses.size, others.size)


def purity(tpr: ArrayLike, fpr: ArrayLike, prevalence: float) -> Array:
    """Returns the share of lenses in what is listed, p T / (p T + (1 - p) F); NaN where nothing is.

    It is also how many lenses there are in a cutout that is inspected.
    """
    right, wrong = prevalence * np.asarray(tpr), (1 - prevalence) * np.asarray(fpr)
    with np.errstate(invalid="ignore"):
        return right / (right + wrong)


def at_cuts(curve: Curve, prevalence: float, confidence: float = CONFIDENCE) -> AtCuts:
    """Returns purity and completeness at every cut of a curve, for a cut that was fixed beforehand.

    Completeness by Clopper and Pearson. Purity by the posterior of F / T for Jeffreys' priors,
    Beta(1/2, 1/2) of each rate (Brown, Cai and DasGupta 2001, Stat. Sci. 16, 101): its ends are
    quantiles of the purity over a grid of 200 quantiles of T by 200 of F. As they advise for a
    share, the end is 0 where no lens is listed, and 1 where no other is.
    """
    from scipy import special

    rates = []
    for count, size in ((curve.found, curve.lenses), (curve.false, curve.others)):
        a, b = count[:, None] + 0.5, size - count[:, None] + 0.5
        rates.append(special.betaincinv(a, b, _QUANTILES))
    beyond = (1 - confidence) / 2
    ends = np.empty((2, curve.cut.size))
    for place, (tpr, fpr) in enumerate(zip(*rates, strict=True)):  # a grid of all would be large
        grid = purity(tpr[:, None], fpr, prevalence)
        ends[:, place] = np.quantile(grid, [beyond, 1 - beyond])
    value = purity(curve.tpr, curve.fpr, prevalence)
    low = np.where(curve.found >= 1, np.fmin(ends[0], value), 0.0)
    high = np.where(curve.false >= 1, np.fmax(ends[1], value), 1.0)
    found = share_interval(curve.found, curve.lenses, confidence)
    return AtCuts(prevalence, curve.cut, Band(curve.tpr, *found), Band(value, low, high))


def shown(curve: Curve, points: int = POINTS) -> Curve:
    """Returns at most so many places of a curve, close to each other at the top of the list."""
    return curve.at(np.unique(np.geomspace(1, curve.cut.size, points).astype(int)) - 1)


def at_completeness(curve: Curve, shares: ArrayLike) -> Curve:
    """Returns the curve at the highest cut that lists each share of the lenses."""
    wanted = np.ceil(np.asarray(shares) * curve.lenses - 1e-9)
    return curve.at(np.searchsorted(curve.found, wanted))


def auprc(curve: Curve, prevalence: float) -> tuple[float, float]:
    """Returns a bracket of the area under the curve of purity against completeness.

    That is the mean over the lenses of the purity at each one's own score: average precision, were
    the labelled objects weighted to the prevalence. The higher end takes F as counted, which is 0
    above all others; the lower one takes (c + 1) / (n + 1).
    """
    lenses = np.diff(curve.found, prepend=0)
    low, high = (
        float(np.average(purity(curve.tpr, fpr, prevalence), weights=lenses))
        for fpr in (curve.fpr_above, curve.fpr)
    )
    return low, high


def top(
    curve: Curve, prevalence: float, objects: float, size: int, confidence: float = CONFIDENCE
) -> Top:
    """Returns what the best `size` of `objects` hold: those above the cut at which
    objects * (p T + (1 - p) F) = size.

    Between two cuts, objects of the lower score are listed in part. The interval of the purity is
    that of `at_cuts` at this cut; it is somewhat wide, as the cut is not fixed but moves with F so
    that `size` are listed. That of the completeness follows from it. Raises UsageError unless
    0 < size <= objects.
    """
    if not 0 < size <= objects:
        raise UsageError(f"the best {size:,} of {objects:,} objects: a list has 1 to {objects:,}")
    share = size / objects
    # From a cut above all scores on.
    found, false = (np.append(0, each) for each in (curve.found, curve.false))
    listed = prevalence * found / curve.lenses + (1 - prevalence) * false / curve.others
    place = np.interp(share, listed, np.arange(listed.size))
    cut = curve.cut[[max(math.ceil(place) - 1, 0)]]
    found, false = (np.interp([share], listed, each) for each in (found, false))
    at = at_cuts(Curve(cut, found, false, curve.lenses, curve.others), prevalence, confidence)
    ends = (float(at.purity.low[0]), float(at.purity.high[0]))
    value = prevalence * float(found[0]) / curve.lenses / share
    of_list = Interval(value, *ends)
    of_lenses = Interval(*(min(each * share / prevalence, 1.0) for each in of_list))
    return Top(size, float(cut[0]), float(false[0]), of_list, of_lenses)
