"""scripts/evaluate.py: compares predictions with labels: metrics with intervals, and figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lensjax import config, metrics, results
from lensjax.errors import UsageError
from lensjax.files import make_folder
from lensjax.labels import match, read_labels
from lensjax.predictions import read_probabilities


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of scripts/evaluate.py."""

    predictions: Path | None = None
    """Folder of a run, or its predictions.npz."""
    labels: Path | None = None
    """CSV, Parquet, FITS or .npz with id and label."""
    output: Path | None = None
    """Folder of what is written (None: that of the run)."""
    bootstrap: int = 1000
    """Resamples of the 95 % intervals."""
    seed: int = 0
    """Seed of the resampling."""


def main(argv: Sequence[str]) -> None:
    """Runs the command and prints the metrics."""
    print(evaluate(config.parse(EvaluateConfig, argv, description=__doc__.split(": ", 1)[1])))


def evaluate(options: EvaluateConfig) -> str:
    """Returns the metrics as text; writes metrics.json and the figures.

    Raises UsageError where predictions and labels cannot be read or share no id.
    """
    if options.predictions is None or options.labels is None:
        raise UsageError("--predictions and --labels are both needed")
    if options.bootstrap < 1 or options.seed < 0:
        raise UsageError("--bootstrap must be at least 1, and --seed not negative")
    catalogue, probabilities = read_probabilities(options.predictions)
    matched = match(catalogue, read_labels(options.labels))
    found = metrics.evaluate_all(
        probabilities, matched.labels, bootstrap=options.bootstrap, seed=options.seed
    )
    beside = options.predictions if options.predictions.is_dir() else options.predictions.parent
    folder = options.output or beside
    make_folder(folder)
    counts = {
        "predictions_without_label": matched.without_label,
        "labels_without_prediction": matched.without_prediction,
    }
    caveats = metrics.caveats(probabilities["ensemble"], matched.labels)
    record = folder / "metrics.json"
    of_scores = {name: metric.to_json() for name, metric in found.items()}
    results.write_json(record, counts | of_scores | {"notes": caveats})
    from lensjax import report

    figures = report.write_figures(folder, report.Scored(probabilities, matched.labels))
    said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    lines = [metrics.table(found), "", *caveats, said, *map(str, [record, *figures])]
    return "\n".join(lines)
