"""scripts/evaluate.py: compares predictions with labels: metrics with intervals, and figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lensjax import config, evaluation, metrics, results
from lensjax.errors import UsageError, refuse
from lensjax.files import make_folder

WORST = 24  # cutouts in a mosaic
SURVEY = 1_000_000  # objects of a survey of which nothing is said


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of scripts/evaluate.py."""

    predictions: Path | None = None
    """Folder of a run, or its predictions.npz."""
    labels: Path | None = None
    """CSV, Parquet, FITS or .npz with id and label; objects of one group, where it has that column,
    are resampled as a whole."""
    output: Path | None = None
    """Folder of what is written (None: that of the run)."""
    bootstrap: int = 1000
    """Resamples of the 95 % intervals."""
    seed: int = 0
    """Seed of the resampling."""
    prevalence: float | None = None
    """Share of lenses in the survey, as 1e-3: gives purity and completeness there."""
    objects: int | None = None
    """Objects of the survey, of which the best are listed (None: a million)."""
    area: float | None = None
    """Square degrees of the survey: gives lenses and inspected cutouts per square degree."""
    by: str | None = None
    """Column of the labels in bins of which metrics are given: numbers by quantile, texts by
    value."""
    edges: str | None = None
    """Edges of the bins of --by, as 0.5,1,2."""
    compare: str | None = None
    """Folders of other runs, comma separated, to compare with on the same objects."""
    data: str | None = None
    """The cutouts, for mosaics of the worst false positives and missed lenses (None: those that
    run.json names)."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        prevalence, in_survey = self.prevalence, self.prevalence is not None
        refuse(
            {
                "--bootstrap must be at least 1, and --seed not negative": (
                    self.bootstrap < 1 or self.seed < 0
                ),
                "--prevalence must lie between 0 and 1": (
                    prevalence is not None and not 0 < prevalence < 1
                ),
                "--objects and --area are for --prevalence: give it too": (
                    not in_survey and (self.objects, self.area) != (None, None)
                ),
                "--objects must be at least 1": self.objects is not None and self.objects < 1,
                "--area must be more than 0 square degrees": (
                    self.area is not None and not self.area > 0
                ),
                "--area needs --objects: how many objects are in that area?": (
                    self.area is not None and self.objects is None
                ),
                "--edges are for --by: name the column": bool(self.edges) and self.by is None,
            }
        )
        self.of_bins()

    def of_bins(self) -> list[float]:
        """Returns the edges of the bins, rising."""
        try:
            edges = [float(word) for word in (self.edges or "").split(",") if self.edges]
        except ValueError:
            edges = [0.0]
        if self.edges and (len(edges) < 2 or min(np.diff(edges)) <= 0):
            raise UsageError(f"--edges {self.edges} are none: give two or more rising numbers")
        return edges


def main(argv: Sequence[str]) -> None:
    """Runs the command and prints the metrics."""
    print(evaluate(config.parse(EvaluateConfig, argv, description=__doc__.split(": ", 1)[1])))


def evaluate(options: EvaluateConfig) -> str:
    """Returns the metrics as text; writes metrics.json, the figures, and the mosaics of the worst.

    Raises UsageError where predictions and labels cannot be read or share no id.
    """
    if options.predictions is None or options.labels is None:
        raise UsageError("--predictions and --labels are both needed")
    labelled = evaluation.read(options.predictions, options.labels)
    beside = options.predictions if options.predictions.is_dir() else options.predictions.parent
    folder = options.output or beside
    resampling = {"bootstrap": options.bootstrap, "seed": options.seed}
    found = metrics.evaluate_all(
        labelled.probabilities, labelled.labels, groups=labelled.groups, **resampling
    )
    notes = labelled.notes()
    counts = {
        "predictions_without_label": labelled.match.without_label,
        "labels_without_prediction": labelled.match.without_prediction,
    }
    parts, at_cuts = {}, None
    if options.prevalence is not None:
        objects = options.objects or SURVEY
        parts["in_survey"], at_cuts = evaluation.in_survey(
            labelled, options.prevalence, objects, options.area
        )
    if options.by is not None:
        parts["by"] = evaluation.by_column(labelled, options.by, options.of_bins(), **resampling)
    if options.compare is not None:
        names = [name.strip() for name in options.compare.split(",")]
        runs = {name: evaluation.read(Path(name), options.labels) for name in names}
        parts["compared"] = evaluation.against(labelled, runs, **resampling)
    worst = evaluation.worst(labelled, WORST)
    ids = {Path(name).stem: labelled.catalogue["id"][rows] for name, rows in worst.items()}
    of_scores = {name: metric.to_json() for name, metric in found.items()}
    of_parts = {name: part.record for name, part in parts.items()}
    make_folder(folder)
    record = folder / "metrics.json"
    results.write_json(record, counts | of_scores | {"notes": notes, "worst": ids} | of_parts)
    from lensjax import report
    from lensjax.report.worst import write_mosaics

    scored = report.Scored(labelled.probabilities, labelled.labels, at_cuts=at_cuts)
    figures = report.write_figures(folder, scored)
    mosaics, said = write_mosaics(folder, beside, options.data, labelled, worst)
    unmatched = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    lines = [metrics.table(found), "", *(line for part in parts.values() for line in part.lines)]
    lines += [*notes, unmatched, *said, *map(str, [record, *figures, *mosaics])]
    return "\n".join(lines)
