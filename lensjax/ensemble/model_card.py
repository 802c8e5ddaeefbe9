"""The model card of a member, README.md: what it is and how far it can be trusted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from scipy.special import expit

from lensjax import metrics
from lensjax.ensemble.quantisation import SCALES

METRICS = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "tpr0": "TPR0: lenses scored above every non-lens",
    "tpr10": "TPR10: lenses scored above the tenth-ranked non-lens",
    "expected_calibration_error": "expected calibration error",
    "log_loss": "log loss, nats",
    "brier": "Brier score",
}
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.05, 0.1)
# Of the record of a training, what the card says in words of its own.
TOLD = ("cutouts", "lenses", "epochs", "batch_size", "simulated", "imported_from", "seed")


def model_card(
    record: Mapping[str, Any],
    stored: Mapping[str, np.ndarray],
    validation: Mapping[str, np.ndarray] | None,
) -> str:
    """Returns the card, in Markdown, of what `member.json` says of a member, its arrays as they are
    stored, and its scores of the validation data."""
    loader = FileSystemLoader(Path(__file__).parent)
    templates = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True)
    templates.filters["figure"] = _figure
    training = record["training"]
    told = {name: value for name, value in training.items() if value not in (None, [])}
    return templates.get_template("model_card.md").render(
        **record,
        weights=sum(array.size for name, array in stored.items() if not name.endswith(SCALES)),
        megabytes=sum(array.nbytes for array in stored.values()) / 1e6,
        seen=round(training.get("epochs", 0) * training.get("cutouts", 0)),
        metric_names=METRICS,
        hyperparameters={name: told[name] for name in told if name not in TOLD},
        **({} if validation is None else _of_validation(validation, record["calibration"])),
    )


def _of_validation(
    validation: Mapping[str, np.ndarray], calibration: Mapping[str, float]
) -> dict[str, Any]:
    """Returns what the card shows of the scores: the calibrated `probability` above which there is
    a given share of the non-lenses, and the share of the lenses there; and a row (cutouts, mean
    probability, fraction of lenses) for each bin of probability that holds some."""
    lens = validation["label"] == 1
    scores = expit(calibration["slope"] * validation["logit"] + calibration["intercept"])
    others = np.sort(scores[~lens])[::-1]
    # The score that so many others exceed, for the rates that this many of them can show.
    thresholds = {
        rate: others[int(rate * others.size)]
        for rate in FALSE_POSITIVE_RATES
        if rate * others.size >= 1
    }
    rows = zip(*metrics.reliability(scores, lens), strict=True)
    return {
        "prevalence": lens.mean(),
        "thresholds": [
            (rate, threshold, (scores[lens] > threshold).mean())
            for rate, threshold in thresholds.items()
        ],
        "reliability": [row for row in rows if row[0]],
    }


def _figure(value: Any) -> str:
    """Returns a value as it stands in a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_figure(inner)}" for name, inner in value.items())
    return ", ".join(map(_figure, value)) if isinstance(value, list | tuple) else str(value)
