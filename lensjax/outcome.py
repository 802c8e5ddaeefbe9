"""What a run leaves: the catalogue, the record of the run, and what `pages` draws."""

import functools
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.table import Column, Table

from lensjax import (
    asking,
    controls,
    coverage,
    cutout_files,
    known,
    metrics,
    pages,
    results,
    runtime,
)
from lensjax.data.bands import colours
from lensjax.data.preprocess import Preprocessing, doubts, fields_of_view
from lensjax.data.source import Source
from lensjax.ensemble.stack import fused_validation
from lensjax.files import gathering
from lensjax.inference_config import InferenceConfig
from lensjax.members import Members
from lensjax.metrics import Metrics
from lensjax.predictions import Predictions
from lensjax.trust import cascade as trust_cascade
from lensjax.trust import outliers, spread
from lensjax.trust import run as trust
from lensjax.trust.cascade import Cascade
from lensjax.trust.run import Said

if TYPE_CHECKING:
    from mocpy import MOC

REASONS, REASONS_SHOWN = 20, 3
"""So many of the reasons for which cutouts were rejected are in run.json, and in the summary."""


@dataclass(frozen=True)
class Outcome:
    """What a run did: the content of run.json, and metrics by score where labels were given. Of a
    part of the rows, what is said of its scoring."""

    run: dict[str, Any]
    metrics: Mapping[str, Metrics]

    def summary(self, output: Path) -> str:
        """Returns the lines that a user reads at the end."""
        if "part" in self.run:
            rows = self.run["rows"]
            return (
                f"part {self.run['part']}: rows {rows.start} to {rows.stop} of {self.run['given']} "
                "are scored; the same command without --part writes the catalogue"
            )
        counts = f"{self.run['scored']} scored + {self.run['rejected']} rejected"
        lines = [f"{counts} = {self.run['given']} given; {self.run['data']}"]
        lines += _most_rejected(self.run["rejected_for"], self.run["rejected"])
        if "reused" in self.run:
            whole, in_part = self.run["reused"], self.run["reused_in_part"]
            lines.append(f"logits were kept of {whole} cutouts, of some members of {in_part} more")
        rates = self.run.get("benchmark")
        if rates:
            lines.append(
                f"in one step {rates['one_step']:.4g} cutouts/s, one by one "
                f"{rates['one_by_one']:.4g}: {rates['one_step'] / rates['one_by_one']:.3g} times"
            )
        shares = ", ".join(f"{m['name']} {m['share']:.2f}" for m in self.run["members"])
        lines.append(f"shares in the stacked score: {shares} ({self.run['shares_from']})")
        if self.run["left_out"]:
            others = ", ".join(self.run["left_out"])
            lines.append(f"without a share, so not run: {others} (--ensemble all runs them too)")
        if self.metrics:
            lines += ["", metrics.table(self.metrics), ""]
        lines += self.run["notes"]
        names = ("candidates.csv", "mosaic.png", "report.html", controls.PAGE, asking.PAGE)
        lines += [f"{output / name}" for name in names if (output / name).exists()]
        return "\n".join(lines)


def _most_rejected(reasons: Mapping[str, int], rejected: int) -> list[str]:
    """Returns how many cutouts were rejected for each of the most common `reasons`, in words."""
    shown = list(reasons.items())[:REASONS_SHOWN]
    others = rejected - sum(count for _, count in shown)
    lines = [f"{count} rejected: {reason}" for reason, count in shown]
    return [*lines, f"{others} rejected for other reasons: see rejects.csv"] if others else lines


def write(
    config: InferenceConfig,
    members: Members,
    source: Source,
    predictions: Predictions,
    scoring: Mapping[str, Any],
    cascade: Cascade | None = None,
    lenses: Table | None = None,
) -> Outcome:
    """Writes the output directory from the predictions and what is to be said of the `scoring`;
    `lenses` are those that are known. A file that cannot be written does not stop the others."""
    table, readable, flag = source.table, predictions.readable, predictions.flag
    ensemble = members.ensemble
    ranking = predictions.ranking()
    labels = table["label"] if "label" in table.colnames else None
    promised = _promised(config, ensemble.validated_on, predictions, ranking, labels)
    said = said_of(predictions, members, promised)
    if cascade:
        rate = scoring.get("images_per_second")
        said = trust.together(trust_cascade.said(cascade, predictions, rate), said)
    unsearched = scoring.get("detection", {}).get("not_searched", {})
    searched = functools.cache(
        functools.partial(_searched, source, predictions, ensemble.preprocessings, unsearched)
    )
    area = searched() if lenses is not None and source.tiles is not None else None
    said = trust.together(said, known.said(predictions, lenses, config.known_radius, area))
    top = ranking[: max(config.top, results.LISTED)]
    best = results.candidate_table(table, predictions, top, trust=said.columns)
    field, action = predictions.field[readable], predictions.action[readable]
    validated = fused_validation(ensemble, members.validations, config.fusion)
    warnings = doubts(field, action, ensemble.preprocessings, config.fit)
    warnings += [*said.warnings, *trust.unlike_validation(predictions, labels, validated)]
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    found = {}
    if labels is not None and (labels[readable] >= 0).any():
        found = metrics.evaluate_all(predictions.probabilities(), labels)
    record = {
        "config": asdict(config),
        "members": [
            {
                "name": name,
                "architecture": info.architecture,
                "weights_sha256": info.weights_sha256,
                "share": float(ensemble.fusion_params.share[ensemble.names.index(name)]),
            }
            for name, info in members.infos.items()
        ],
        "shares_from": ensemble.weights_origin,
        "left_out": members.left_out,
        "data": source.description,
        "bands_from": dict(zip(source.bands, source.bands_from, strict=False)),
        "flags": dict(Counter(flag[flag != ""].tolist())),
        "fitted": dict(Counter(action.tolist())),
        "field_of_view": fields_of_view(field),
        "masked_pixels": int(predictions.masked.sum()),
        "versions": runtime.versions(),
        "given": len(source),
        "scored": int(readable.sum()),
        "flagged": int((flag != "").sum()),
        "rejected": int((~readable).sum()),
        "rejected_for": dict(Counter(predictions.reason[~readable].tolist()).most_common(REASONS)),
        **scoring,
        **said.record,
        "warnings": warnings,
        "notes": [
            *colours(source.bands, source.bands_from),
            *said.notes,
            *results.notes(best, int(readable.sum())),
            *metrics.caveats(predictions.scores.probability, labels),
        ],
        "metrics": {name: metric.to_json() for name, metric in found.items()},
    }
    with gathering() as attempt:
        attempt("catalogue", results.write_outputs, config.folder, table, predictions, said.columns)
        if config.hats:
            attempt("hats", _write_hats, config.folder, table, predictions, said.columns)
        attempt("searched.moc.*", _write_searched, config.folder, searched)
        # Pictures last: drawing takes memory of its own, and the catalogue must not be lost.
        record["peak_memory_bytes"] = runtime.peak_memory_bytes()
        attempt("run.json", results.write_json, config.folder / "run.json", record)
        if config.ask:
            attempt(asking.PAGE, pages.ask, config, source, members, predictions)
        if config.cutouts:
            attempt("cutouts", cutout_files.write, config.folder, source, ranking[: config.cutouts])
        attempt(
            "pictures", pages.draw, config, source, best, predictions, record, found, said.columns
        )
    return Outcome(record, found)


def said_of(predictions: Predictions, members: Members, promised: Said) -> Said:
    """Returns what is `promised` of cutouts, how far members disagree about them, and how unlike
    those of calibration they are."""
    unlike = outliers.said(predictions.scores.pixels.T, members.pixels)
    return trust.together(promised, spread.said(predictions, members.infos), unlike)


def _promised(
    config: InferenceConfig,
    validated_on: tuple[int, int] | None,
    predictions: Predictions,
    ranking: np.ndarray,
    labels: Column | None,
) -> Said:
    """Returns what the run promises of its candidates, in input order."""
    said = trust.likelihood(predictions, validated_on, config.prevalence)
    if config.max_false_discovery is None:
        return said
    truth = np.full(ranking.size, -1) if labels is None else labels[ranking]
    # The others rank before what a cascade has dropped.
    ranked = np.where(predictions.complete, predictions.scores.logit, -np.inf)[ranking]
    promise = trust.promise(config, ranked, truth, config.seed)
    in_order = trust.in_input_order(promise, ranking, len(predictions.readable))
    return trust.together(said, in_order)


def _searched(
    source: Source,
    predictions: Predictions,
    preprocessings: Sequence[Preprocessing],
    unsearched: Collection[str],
) -> "MOC | None":
    """Returns the sky that was searched: where an object in a tile, but not in one of those
    `unsearched`, would have been scored, or what the scored cutouts show. None where that is not
    known."""
    if source.tiles is not None:
        from lensjax.data import tile_areas  # with mocpy a second

        return tile_areas.searched(source.tiles, predictions.readable, unsearched)
    rows = predictions.readable
    widths = coverage.widths(predictions.field[rows], preprocessings)
    return coverage.searched(predictions.ra[rows], predictions.dec[rows], widths)


def _write_searched(folder: Path, searched: Callable[[], "MOC | None"]) -> None:
    coverage.write_searched(folder, searched())


def _write_hats(
    folder: Path, catalogue: Table, predictions: Predictions, columns: Mapping[str, np.ndarray]
) -> None:
    results.write_hats(folder, results.candidate_table(catalogue, predictions, trust=columns))
