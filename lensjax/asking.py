"""The cutouts of a run whose grades would teach its members most, and the page to grade them on.

What a grade teaches is what the members do not know, each by itself and among each other, about
cutouts that may be lenses in this survey. Those that teach most are looked at once more, and such
are asked for as differ from one another in what the networks make of them.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, xlogy

from lensjax import inspection
from lensjax.data.catalog import DataOptions
from lensjax.data.source import Source
from lensjax.ensemble.features import member_features
from lensjax.errors import UsageError, refuse
from lensjax.labels import match, read_labels
from lensjax.members import Members, read_ensemble
from lensjax.metrics import lens_or_unknown
from lensjax.predictions import Predictions
from lensjax.staging import StagedOptions
from lensjax.trust.prevalence import Counts, estimate, log_likelihood_ratio

PAGE = "ask.html"
PRESELECTED = 10
"""Cutouts looked at once more for each that is asked for."""
OF_MEMBERS = 0.5
"""Weight of the disagreement among members; that of each one's own doubt is the rest."""
COPY = 1e-6
"""Squared distance, the mean one from the centre being one, below which two cutouts are the same:
rounding moves features by less."""
NO_DOUBTS = "a network says by itself how sure it is only with dropout and --mc-samples above 1"
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(31)

Array = NDArray[Any]


@dataclass(frozen=True)
class AskOptions(DataOptions, StagedOptions):
    """What people are to look at, beside how it is read and scored."""

    ask: int = 0
    """Write ask.html with this many cutouts whose grades would teach the members most."""
    by: Literal["gain", "score", "random"] = "gain"
    """Which cutouts to ask for: those whose grades would teach most, those of the highest scores,
    or any, at random."""
    graded: Path | None = None
    """Grades or labels that are there already: their cutouts are not asked for again."""
    impostors: str = inspection.IMPOSTORS
    """Kinds of non-lens that graders can name on the pages, at most nine, comma separated."""
    prevalence: float | None = None
    """Share of lenses in the survey: adds the probability there, survey_probability."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        StagedOptions.__post_init__(self)
        wrong = {
            "--ask must not be negative": self.ask < 0,
            "--graded is for --ask: say how many cutouts to ask for": bool(
                self.graded and not self.ask
            ),
            "--by is for --ask: say how many cutouts to ask for": self.by != "gain"
            and not self.ask,
            "--prevalence is a share between 0 and 1": self.prevalence is not None
            and not 0 < self.prevalence < 1,
        }
        refuse(wrong)
        inspection.kinds_of(self.impostors)


def check(options: AskOptions, source: Source, members: Members) -> None:
    """Raises UsageError where nothing could be asked: as `known` does, and for a sole member
    without dropout, which has no doubts."""
    known(options, source)
    (first, *others) = members.infos.values()
    if options.by != "gain" or others:
        return
    if options.mc_samples == 1 or not (first.dropout or first.block_dropout):
        raise UsageError(f"--ask: {NO_DOUBTS}")


def known(options: AskOptions, source: Source) -> Array:
    """Returns which cutouts (n,) have a label, by the data or by `graded`, or grades that differ.

    Raises UsageError where that file cannot be read or is about other cutouts, and where all have
    one.
    """
    table = source.table
    known = np.zeros(len(table), bool)
    if "label" in table.colnames:
        known |= lens_or_unknown(table["label"]) >= 0
    known |= graded(options, source)
    if known.all():
        raise UsageError(f"--ask: all {len(table)} cutouts have a label already")
    return known


def graded(options: AskOptions, source: Source) -> Array:
    """Returns which cutouts (n,) have a label in the file `graded`, or grades that differ. Raises
    UsageError where it cannot be read or is about other cutouts."""
    if options.graded is None:
        return np.zeros(len(source), bool)
    labels = read_labels(options.graded)
    found = match(source.table, labels)
    # Merged grades leave some open.
    return (found.rows if "consensus" in labels.colnames else found.labels) >= 0


def rows_to_ask(
    options: AskOptions, source: Source, members: Members, predictions: Predictions
) -> Array:
    """Returns the rows of the source that the options ask for, or as many as there are, of those
    that are not `known`. Raises UsageError where there are none."""
    open_ = predictions.readable & ~known(options, source)
    if not open_.any():
        raise UsageError("--ask: all cutouts that have a score have a label already")
    if options.by == "gain":
        return of_most_gain(open_, options, source, members, predictions)
    rng, ranking = np.random.default_rng(options.seed), predictions.ranking()
    if options.by == "score":
        return rng.permutation(ranking[open_[ranking]][: options.ask])  # a place tells no score
    return rng.permutation(np.flatnonzero(open_))[: options.ask]


def of_most_gain(
    open_: Array,
    options: AskOptions,
    source: Source,
    members: Members,
    predictions: Predictions,
) -> Array:
    """Returns the rows of the cutouts whose grades would teach most, in the order in which they
    were chosen, of those that are `open_` (n,) bool and that all members have scored: as many as
    are asked for, or as differ. Raises UsageError where the members are sure of all."""
    gain = worth(predictions, members.ensemble.validated_on, options.prevalence)
    gain[~open_] = 0
    rows = np.argsort(-gain, kind="stable")[: PRESELECTED * options.ask]
    rows = rows[gain[rows] > 0]
    if not rows.size:
        raise UsageError(f"--ask finds no cutout of which the members are unsure: {NO_DOUBTS}")
    features = member_features(
        read_ensemble(members, members.ensemble), source.take(rows), options.fit
    )
    chosen = rows[spread(together(features), gain[rows], options.ask, options.seed)]
    if len(chosen) < options.ask:
        print(f"warning: --ask found {len(chosen)} cutouts that differ", file=sys.stderr)
    return chosen


def worth(
    predictions: Predictions, validated_on: tuple[int, int] | None, prevalence: float | None
) -> Array:
    """Returns what the grade of each cutout would teach, (n,) float64 in nats, 0 where not all
    members have scored it.

    It is the mean of `mutual_information`, by dropout and members as they are fused, and of the
    `disagreement` of the members, which all count alike there. Log-odds are those at the
    `prevalence` of the survey, where it is not known at the most likely one: where lenses are rare
    nothing is open but near the top of the list. The logits were calibrated on so many lenses and
    others (None: as many).
    """
    scores, scored = predictions.scores, predictions.complete & predictions.readable
    lenses, others = validated_on if validated_on and all(validated_on) else (1, 1)
    if prevalence is None:
        ratio, _ = log_likelihood_ratio(scores.logit[scored], Counts(lenses, others))
        prevalence = estimate(ratio)
    shift = np.log(prevalence / (1 - prevalence)) - np.log(lenses / others)
    own = mutual_information(scores.logit[scored] + shift, scores.logit_std[scored])
    among = disagreement(scores.member_logits[:, scored] + shift)
    found = np.zeros(len(scored))
    found[scored] = OF_MEMBERS * among + (1 - OF_MEMBERS) * own
    return found


def mutual_information(logit: Array, spread: Array) -> Array:
    """Returns the mutual information (n,) in nats between the label and the network, H(mean p) -
    mean H(p), where log-odds are normal with this mean and standard deviation (n,) (Houlsby et al.
    2011, "Bayesian active learning for classification and preference learning", eq. 2), by
    Gauss-Hermite quadrature."""
    mean, width = np.asarray(logit, np.float64), np.asarray(spread, np.float64)
    drawn = mean[:, None] + width[:, None] * NODES
    share = NODE_WEIGHTS / NODE_WEIGHTS.sum()
    probability = expit(drawn)
    return np.maximum(entropy(probability @ share) - entropy(probability) @ share, 0)


def disagreement(logits: Array) -> Array:
    """Returns the Jensen-Shannon divergence (n,) in nats between what members say whose log-odds
    are (member, n)."""
    probability = expit(np.asarray(logits, np.float64))
    return np.maximum(entropy(probability.mean(0)) - entropy(probability).mean(0), 0)


def entropy(probability: Array) -> Array:
    """Returns the entropies in nats of Bernoulli variables."""
    probability = np.clip(probability, 0, 1)  # a mean of ones may round to more
    other = 1 - probability
    return -xlogy(probability, probability) - xlogy(other, other)


def together(features: Mapping[str, Array]) -> Array:
    """Returns the features (n, all) of all members side by side: the mean squared distance from
    the centre is one, and each member has an equal part of it."""
    scaled = []
    for values in features.values():
        centred = values - np.mean(values, axis=0, dtype=np.float64)
        spread = np.square(centred).sum(1).mean()
        scaled.append(centred / np.sqrt(spread * len(features) or 1))
    return np.concatenate(scaled, axis=1)


def spread(features: Array, gain: Array, count: int, seed: int) -> Array:
    """Returns which of the objects (n,) to take, in order: `count`, or as many as differ.

    Each is drawn with a chance that goes as its gain (n,) times its squared distance, by features
    (n, feature), from the nearest one drawn before: the seeding of k-means++ (Arthur and
    Vassilvitskii 2007) with weights, much as BADGE chooses (Ash et al. 2020, "Deep batch active
    learning by diverse, uncertain gradient lower bounds").
    """
    rng, nearest = np.random.default_rng(seed), np.ones(len(gain))
    taken: list[int] = []
    while len(taken) < count:
        chance = gain * nearest
        if not chance.any():
            break
        taken.append(int(rng.choice(len(gain), p=chance / chance.sum())))
        distance = np.square(features - features[taken[-1]]).sum(1)
        distance[distance < COPY] = 0
        nearest = distance if len(taken) == 1 else np.minimum(nearest, distance)
    return np.array(taken)
