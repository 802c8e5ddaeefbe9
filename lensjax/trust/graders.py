"""How far graders agree, how well each of them grades, and what they say together."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lensjax.errors import UsageError
from lensjax.intervals import CONFIDENCE

Array = NDArray[np.floating]
Votes = NDArray[np.integer]
"""(candidate, grader): 1 says lens, 0 none, -1 nothing."""

LEAST_GRADERS = 3
"""Of one candidate, for which skills can be found without controls: two graders' votes have three
degrees of freedom, two skills each and the share of lenses are five."""
ROUNDS, CLOSE = 2000, 1e-9
LEAST_RATIO = 5.0
"""Share of votes for a lens by the rate of false positives that controls leave open, from which on
they say how far grades can be relied upon. Chosen."""


class Skill(NamedTuple):
    """What is known of each grader, all (grader,): `found` of `lenses` are called a lens, `cleared`
    of `nones` none. The counts are fractions where the truth is only probable."""

    found: Array
    lenses: Array
    cleared: Array
    nones: Array

    @property
    def of_lenses(self) -> Array:
        """Returns PL, the probability that the grader calls a lens one: the mean of its posterior,
        Beta(found + 1, missed + 1)."""
        return (self.found + 1) / (self.lenses + 2)

    @property
    def of_nones(self) -> Array:
        """Returns PD, the probability that the grader calls what is none none, likewise."""
        return (self.cleared + 1) / (self.nones + 2)


class Conclusion(NamedTuple):
    """The probability (candidate,) of each candidate to be a lens, the share of lenses among them,
    the skill of the graders where it can be known, and in words where that is from."""

    probability: Array
    share: float
    skill: Skill | None
    origin: str


def credible(hits: Array, of: Array, confidence: float = CONFIDENCE) -> tuple[Array, Array]:
    """Returns the central interval of the posterior Beta(hits + 1, misses + 1)."""
    from scipy import special

    beyond = (1 - confidence) / 2
    hits, misses = np.asarray(hits), np.asarray(of) - np.asarray(hits)
    low, high = (special.betaincinv(hits + 1, misses + 1, q) for q in (beyond, 1 - beyond))
    return low, high


def skill(votes: Votes, probability: Array) -> Skill:
    """Returns the skill of graders by their votes on candidates that are lenses with this
    probability (candidate,); of controls it is 0 or 1.

    The posterior means are PL and PD of SWAP (Marshall et al. 2016, MNRAS 455, 1171), which start
    at one half and move with each control.
    """
    lens, given = np.asarray(probability)[:, None], votes >= 0
    return Skill(
        found=(lens * (votes == 1)).sum(0),
        lenses=(lens * given).sum(0),
        cleared=((1 - lens) * (votes == 0)).sum(0),
        nones=((1 - lens) * given).sum(0),
    )


def consensus(votes: Votes, skill: Skill, prior: float) -> Array:
    """Returns the probability (candidate,) of each candidate to be a lens, from the `prior` and the
    votes on it, taken as independent.

    Bayes' theorem, vote by vote, as SWAP does (Marshall et al. 2016): the odds of a lens grow by PL
    / (1 - PD) where a grader says lens, by (1 - PL) / PD where none. The order does not matter.
    """
    of_lenses, of_nones = skill.of_lenses, skill.of_nones
    says_lens, says_none = np.log(of_lenses / (1 - of_nones)), np.log((1 - of_lenses) / of_nones)
    log_odds = np.where(votes == 1, says_lens, np.where(votes == 0, says_none, 0.0)).sum(1)
    return 1 / (1 + (1 - prior) / prior * np.exp(-log_odds))


def share_of_lenses(probability: Array) -> float:
    """Returns the share of lenses among candidates of these probabilities; one lens and one other
    are added, so that it is never 0 or 1."""
    return float((probability.sum() + 1) / (len(probability) + 2))


def estimated_prior(votes: Votes, skill: Skill) -> float:
    """Returns the share of lenses that makes the votes most likely, by the EM algorithm."""
    prior = 0.5
    for _ in range(ROUNDS):
        before, prior = prior, share_of_lenses(consensus(votes, skill, prior))
        if abs(prior - before) < CLOSE:
            break
    return prior


def without_controls(votes: Votes, prior: float | None) -> tuple[Skill, float]:
    """Returns the skill of graders whose votes alone are known, and the share of lenses, which is
    the `prior` where that is given.

    The EM algorithm of Dawid and Skene (1979, Applied Statistics 28, 20), from the share of votes
    for a lens, with the same posterior means of skills. It takes graders whose errors are
    independent and who are more often right than wrong.
    """
    probability = votes_for_lens(votes)
    for _ in range(ROUNDS):
        known = skill(votes, probability)
        share = share_of_lenses(probability) if prior is None else prior
        before, probability = probability, consensus(votes, known, share)
        if np.abs(probability - before).max() < CLOSE:
            break
    return known, share


def votes_for_lens(votes: Votes) -> Array:
    """Returns (candidate,) the mean of the posterior Beta(for + 1, against + 1) of how often such
    graders call it a lens: where nothing is known of any skill."""
    return ((votes == 1).sum(1) + 1) / ((votes >= 0).sum(1) + 2)


def conclusion(votes: Votes, skill: Skill | None, prior: float | None) -> Conclusion:
    """Returns the consensus on candidates, by the `skill` that controls have shown where they are
    enough (`are_enough`) or a prior is given; the `prior` (None: estimated) is the share of lenses
    among them.

    Without controls skill is found by agreement where three graders have looked at one candidate.
    With fewer it cannot be known: that two differ does not say which of them is right. A prior then
    means nothing, and UsageError is raised.
    """
    about = "there are no controls"
    if skill is not None:
        about = "there are too few controls to weigh grades by"
    if skill is not None and (prior is not None or are_enough(votes, skill)):
        share = estimated_prior(votes, skill) if prior is None else prior
        origin = "graders count by their skill on the controls"
        return Conclusion(consensus(votes, skill, share), share, skill, origin)
    if (votes >= 0).sum(1).max() >= LEAST_GRADERS:
        skill, share = without_controls(votes, prior)
        origin = f"{about}: graders count by how they agree with each other"
        return Conclusion(consensus(votes, skill, share), share, skill, origin)
    if prior is not None:
        raise UsageError("--prior needs controls, or three graders of a candidate: leave it out")
    probability = votes_for_lens(votes)
    origin = (
        f"{about} and no three graders of one candidate: no skill can be known, all count alike"
    )
    return Conclusion(probability, share_of_lenses(probability), None, origin)


def are_enough(votes: Votes, skill: Skill) -> bool:
    """Returns whether the controls of any grader say how many of the votes for a lens are false.

    Of n non-lenses all of which are cleared the posterior has 1 / (n + 2) false positives. Where
    that is not far below the share of votes for a lens, which is low where lenses are, each of
    them could be false, and a share of lenses of nothing would be the likeliest.
    """
    given = votes >= 0
    share = (votes == 1).sum(0) / np.maximum(given.sum(0), 1)
    return bool((share * (skill.nones + 2) >= LEAST_RATIO).any())


def cohen_kappa(mine: NDArray[np.integer], theirs: NDArray[np.integer]) -> float:
    """Returns the agreement beyond chance of two graders on the same candidates (n,); NaN where
    there are none, or both gave one grade alone."""
    from sklearn.metrics import cohen_kappa_score

    several = len(np.unique([mine, theirs])) > 1
    return float(cohen_kappa_score(mine, theirs)) if several else float("nan")


def fleiss_kappa(counts: NDArray[np.integer]) -> float:
    """Returns the agreement of graders beyond chance, 1 at most, by how many of them gave each
    candidate each grade, (candidate, grade); every candidate has as many grades as any other.

    Fleiss (1971, Psychological Bulletin 76, 378), equations 1 to 7. NaN where there is no candidate
    or one grade alone was given.
    """
    if not len(counts):
        return float("nan")
    graders = counts[0].sum()
    agreed = ((counts**2).sum(1) - graders) / (graders * (graders - 1))
    by_chance = ((counts.sum(0) / counts.sum()) ** 2).sum()
    return float((agreed.mean() - by_chance) / (1 - by_chance)) if by_chance < 1 else float("nan")
