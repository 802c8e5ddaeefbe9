"""What a run promises of its scores: columns of its candidates, and what is said of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lensjax.errors import UsageError, refuse
from lensjax.intervals import share_interval
from lensjax.metrics import lens_or_unknown
from lensjax.predictions import Predictions
from lensjax.trust.prevalence import Counts, at_prevalence, log_likelihood_ratio

SHARE_DRAWN = 0.5
"""Of the rows of a run, unless a user names a number."""

Array = NDArray[Any]


@dataclass(frozen=True)
class PromiseOptions:
    """What a list is to promise."""

    max_false_discovery: float | None = None
    """Certify the longest list of which at most this share is false."""
    confidence: float = 0.95
    """Confidence of what is certified."""
    calibration: int | Literal["auto"] = "auto"
    """Rows drawn at random to calibrate what is certified; auto: half of them."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        share = self.max_false_discovery
        wrong = {
            "--max-false-discovery is a share between 0 and 1": share is not None
            and not 0 < share < 1,
            "--confidence is a share between 0 and 1": not 0 < self.confidence < 1,
            "--calibration must be at least 1": self.calibration != "auto" and self.calibration < 1,
        }
        refuse(wrong)


class Said(NamedTuple):
    """What a run promises: `columns` of its candidates (n,) in input order, the `record` for
    run.json, and `notes` and `warnings` for people."""

    columns: Mapping[str, Array]
    record: Mapping[str, Any]
    notes: list[str]
    warnings: Sequence[str] = ()


def refuse_unknown_odds(validated_on: tuple[int, int] | None, prevalence: float | None) -> None:
    """Raises UsageError for a prevalence where it is not known how many lenses and others logits
    were calibrated on."""
    if prevalence is not None and not (validated_on and all(validated_on)):
        raise UsageError(
            "--prevalence needs members that share validation data: at which share of lenses "
            "their probabilities hold is not known"
        )


def likelihood(
    predictions: Predictions, validated_on: tuple[int, int] | None, prevalence: float | None
) -> Said:
    """Returns what each cutout says by itself, and the probability at a `prevalence`, where that is
    given.

    Raises UsageError for a prevalence where the logits were not calibrated on data of a known one.
    """
    refuse_unknown_odds(validated_on, prevalence)
    if validated_on is None or not all(validated_on):
        return Said({}, {}, [])
    counts = Counts(*validated_on)
    ratio, beyond = log_likelihood_ratio(predictions.scores.logit, counts)
    columns = {"log_likelihood_ratio": ratio.astype(np.float32), "beyond_calibration": beyond}
    known = counts.lenses / sum(counts)
    note = f"`probability` holds where a share {known:.3g} of all cutouts are lenses"
    if prevalence is None:
        return Said(columns, {"validation_prevalence": known}, [f"{note}: see --prevalence"])
    columns["survey_probability"] = at_prevalence(ratio, prevalence).astype(np.float32)
    record = {"validation_prevalence": known, "prevalence": prevalence}
    return Said(columns, record, [f"{note}, `survey_probability` at {prevalence:.3g}"])


def unlike_validation(
    predictions: Predictions, labels: Array | None, validated: tuple[Array, Array] | None
) -> list[str]:
    """Returns a warning where far more cutouts of a run score high than non-lenses do in the
    members' validation data: then the probabilities hold for other galaxies than these.

    `labels` (n,) are 1 for known lenses, 0 for others and -1 where unknown; `validated` are the
    fused logits and the labels (m,) of the validation data. High is a probability above one
    half, far more are above twice the upper limit of their share (Clopper-Pearson, 95 %).
    """
    if validated is None:
        return []
    readable, of_others = predictions.readable, validated[0][validated[1] == 0]
    logit = predictions.scores.logit[readable]
    known = lens_or_unknown(np.full(len(readable), -1) if labels is None else labels)[readable]
    others = logit[known == 0] if (known == 0).any() else logit[known < 0]
    if not others.size or not of_others.size:
        return []
    share, expected = float((others > 0).mean()), float((of_others > 0).mean())
    _, most = share_interval((of_others > 0).sum(), of_others.size)
    if share <= 2 * float(most):
        return []
    perhaps = "" if (known == 0).any() else ", unless so many are lenses"
    return [
        f"{share:.1%} of the cutouts{' that are no lenses' * (not perhaps)} have a probability "
        f"above one half, where {expected:.1%} of the non-lenses in the members' validation data "
        f"have: this survey looks different, and its probabilities are too high{perhaps}"
    ]


def promise(options: PromiseOptions, ranked: Array, labels: Array, seed: int) -> Said:
    """Returns the promise of the ranked rows (n,), best first, whose logits are `ranked`; columns
    are in that order.

    `labels` (n,) are 1 for rows known to be lenses, 0 and -1 for others and unknown ones. Raises
    UsageError where the rows are too few to draw from.
    """
    calibration = drawn(options.calibration, ranked.size, seed)
    return promise_of(options, ranked, calibration, labels, seed)


def promise_of(
    options: PromiseOptions, ranked: Array, calibration: Array, labels: Array, seed: int
) -> Said:
    """Returns the promise of ranked rows (n,) of which those that calibrate have been drawn."""
    from lensjax.trust import certificate  # scipy.stats takes a second to import

    lens = lens_or_unknown(labels) == 1
    columns = certificate.columns(
        ranked, calibration, lens, confidence=options.confidence, seed=seed
    )
    share = options.max_false_discovery or 0.5
    found = certificate.certified(columns, share)
    seen = int((calibration & (lens_or_unknown(labels) >= 0)).sum())
    record = {
        "max_false_discovery": share,
        "confidence": options.confidence,
        "calibration": int(calibration.sum()),
        "calibration_labelled": seen,
        "calibration_lenses": int((calibration & lens).sum()),
        "certified": found._asdict() if found else None,
    }
    return Said(columns, {"promise": record}, _notes(record))


def in_input_order(said: Said, ranking: Array, rows: int) -> Said:
    """Returns what is said of ranked rows for all `rows` in input order, masked beyond the
    ranking."""
    columns = {}
    for name, values in said.columns.items():
        columns[name] = np.ma.masked_all(rows, values.dtype)
        columns[name][ranking] = values
    return said._replace(columns=columns)


def together(*parts: Said) -> Said:
    """Returns what several parts say."""
    return Said(
        columns={name: values for part in parts for name, values in part.columns.items()},
        record={name: value for part in parts for name, value in part.record.items()},
        notes=[note for part in parts for note in part.notes],
        warnings=[warning for part in parts for warning in part.warnings],
    )


def drawn(wanted: int | Literal["auto"], rows: int, seed: int) -> Array:
    """Returns which of so many ranked rows calibrate, (rows,) bool. Raises UsageError where they
    are too few to draw from."""
    from lensjax.trust import certificate

    return certificate.drawn(rows, number_drawn(wanted, rows), seed)


def number_drawn(wanted: int | Literal["auto"], rows: int) -> int:
    """Returns how many of so many rows calibrate. Raises UsageError as `drawn` does."""
    count = int(rows * SHARE_DRAWN) if wanted == "auto" else wanted
    if not 0 < count < rows:
        raise UsageError(
            f"{count} rows cannot be drawn from {rows} and leave others to certify: name fewer as "
            "--calibration"
        )
    return count


def _notes(record: Mapping[str, Any]) -> list[str]:
    """Returns what a promise means, for people."""
    drawn = (
        f"{record['calibration']:,} rows drawn at random calibrate the list: "
        f"{record['calibration_labelled']:,} of them have a label, and the "
        f"{record['calibration_lenses']:,} lenses are taken out"
    )
    found, share = record["certified"], record["max_false_discovery"]
    if found is None:
        return [
            drawn,
            f"no list is certified to have a share of at most {share:.3g} false: look at more of "
            "the drawn rows, or draw more (lensjax certify --plan says how many)",
        ]
    return [
        drawn,
        f"certified: of the {found['rows']:,} candidates down to rank {found['rank']:,} that were "
        f"not drawn, at most {found['false']:,} are no lenses (confidence "
        f"{record['confidence']:.3g})",
    ]
