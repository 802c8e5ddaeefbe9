"""Scoring cutouts with an ensemble, from members on disk to the output folder.

A run is a few steps, each of which can be called alone: `find_members`, `open_cutouts`,
`prepare`, `scoring.score`, `write`; `infer` is all of them. The simpler way in
for a notebook is `lensjax.load_ensemble`.
"""

import functools
import platform
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from astropy.table import Column, Table

from lensjax import (
    __version__,
    asking,
    controls,
    coverage,
    cutout_files,
    inspection,
    known,
    metrics,
    results,
    runtime,
    staging,
)
from lensjax.asking import AskOptions
from lensjax.controls import ControlOptions
from lensjax.data import pipeline
from lensjax.data.catalog import DataOptions
from lensjax.data.identity import content_sha256
from lensjax.data.noise_free import refuse_noise_free
from lensjax.data.parts import WHOLE, Part
from lensjax.data.preprocess import doubts, fields_of_view
from lensjax.data.source import Source
from lensjax.ensemble import scoring, sharding
from lensjax.ensemble.plan import CompiledStep
from lensjax.ensemble.stack import Ensemble, abstract_ensemble, fused_validation
from lensjax.ensemble.staged import Staged
from lensjax.ensemble.step import Weights
from lensjax.errors import LensjaxError, UsageError, refuse
from lensjax.files import gathering
from lensjax.known import KnownOptions
from lensjax.ledger import Columns, Ledger, claimed, fingerprint
from lensjax.members import Members, ScoringOptions, compile_step, find_members, load_weights
from lensjax.metrics import Metrics
from lensjax.places import is_address, paths_below, place
from lensjax.predictions import Predictions, unscored
from lensjax.trust import cascade as trust_cascade
from lensjax.trust import outliers, spread
from lensjax.trust import run as trust
from lensjax.trust.cascade import Cascade, CascadeOptions
from lensjax.trust.run import Said

PARTS = ".scores"


@dataclass(frozen=True)
class InferenceConfig(AskOptions, ControlOptions, KnownOptions):
    """A run: which members score which cutouts, how, and where the results go."""

    ensemble: str | None = None
    """Architectures, comma separated; resnet18:4 takes four members (None: all members of the
    folder). There are: resnet18, resnet18_x0_25, resnet34, vit_ti16, vit_s16, vit_b16,
    light_transformer, trans_enc_s."""
    checkpoints: Path | None = None
    """Folder of the members (None: checkpoints)."""
    data: str | None = None
    """Folder, catalogue, stack, FITS or {band} template, or its address (s3://...); without it a
    small simulated sky is scored."""
    output: str | Path = "results"
    """Folder of the results, or its address."""
    resume: bool = True
    """Continue an interrupted run with the same settings."""
    part: str | None = None
    """Score the K-th of N parts of the rows, given as K/N; without it all parts are merged."""
    top: int = 48
    """Candidates in the mosaic and the report."""
    cutouts: int = 0
    """Candidates from tiles that are written as FITS files with world coordinates."""
    profile: Path | None = None
    """Folder for a profiler trace of some batches."""
    benchmark: bool = False
    """Compare the speed of the compiled step with members and samples run one by one."""
    engine: Literal["local", "ray"] = "local"
    """Where cutouts are scored: on this machine, or by the actors of a Ray cluster."""
    address: str | None = None
    """The Ray cluster: auto, or ray://HOST:PORT; without it one is started on this machine."""
    actors: int | Literal["auto"] = "auto"
    """Ray actors that score; auto: one per accelerator, without any one per four cores."""
    deadline: float = 900.0
    """Seconds after which a Ray actor that has not finished its rows is ended."""
    hats: bool = False
    """Write the catalogue also in pieces of the sky, for LSDB: candidates.hats."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        for options in (AskOptions, ControlOptions):
            options.__post_init__(self)
        wrong = {
            "--top must be at least 1": self.top < 1,
            "--cutouts is for tiles: give --catalogue": self.cutouts != 0 and not self.catalogue,
            "--address, --actors and --deadline are for --engine ray": self.engine != "ray"
            and (self.address, self.actors, self.deadline)
            != (None, "auto", InferenceConfig.deadline),
            "--actors must be at least 1": self.actors != "auto" and self.actors < 1,
            "--deadline must be more than 0 s": not self.deadline > 0,
            "--engine ray needs an --output that is a folder": self.engine == "ray"
            and is_address(str(self.output)),
            "--profile and --benchmark are for --engine local": self.engine != "local"
            and (self.profile is not None or self.benchmark),
            "--benchmark times the step beside --no-batch-parallel: drop the latter": (
                self.benchmark and not self.batch_parallel
            ),
            "--catalogue cuts from tiles in one step on this machine: drop --cascade, --reuse and "
            "--engine ray (--part shares the rows)": self.catalogue is not None
            and (self.in_stages or self.engine != "local"),
            "--benchmark times all members in one step: drop --cascade and --reuse": (
                self.benchmark and self.in_stages
            ),
        }
        refuse(wrong)
        self.rows_part()

    @property
    def folder(self) -> Path:
        """Returns the folder of the results."""
        return place(self.output)

    def rows_part(self) -> Part:
        """Returns the part of the rows to score, (K, N)."""
        if self.part is None:
            return WHOLE
        found = re.fullmatch(r"(\d+)/(\d+)", self.part)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"--part {self.part} is none: give K/N with K from 1 to N")
        return int(found[1]), int(found[2])


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
        rates = self.run.get("benchmark")
        if rates:
            lines.append(
                f"in one step {rates['one_step']:.4g} cutouts/s, one by one "
                f"{rates['one_by_one']:.4g}: {rates['one_step'] / rates['one_by_one']:.3g} times"
            )
        shares = ", ".join(f"{m['name']} {m['share']:.2f}" for m in self.run["members"])
        lines.append(f"shares in the stacked score: {shares} ({self.run['shares_from']})")
        if self.metrics:
            lines += ["", metrics.table(self.metrics), ""]
        lines += self.run["notes"]
        names = ("candidates.csv", "mosaic.png", "report.html", controls.PAGE, "ask.html")
        lines += [f"{output / name}" for name in names if (output / name).exists()]
        return "\n".join(lines)


def infer(config: InferenceConfig) -> Outcome:
    """Scores all cutouts of `config.data`, writes `config.output`, and returns the Outcome.

    Of a `config.part` the scores are only kept, in `config.output`: a run for all rows takes them
    from there. Raises UsageError for options that cannot be carried out, LensjaxError where the run
    fails.
    """
    if config.checkpoints is None or config.data is None:
        raise UsageError("--checkpoints and --data are both needed")
    _check_apart(place(config.data), config.folder)
    members = find_members(config.checkpoints, config.ensemble)
    config = replace(config, field=config.field_seen_by(members.preprocessings))
    source = open_cutouts(str(config.data), members, config, config.rows_part())
    ensemble = abstract_ensemble(members.infos, members.validations)
    # What could not be promised or asked in the end is refused before anything is scored.
    if config.ask and config.part is None:
        asking.check(config, source, members)
    known.lenses_of(config)
    trust.refuse_unknown_odds(ensemble.validated_on, config.prevalence)
    if config.max_false_discovery is not None:
        trust.number_drawn(config.calibration, source.given)
    if config.controls is not None:
        controls.check(config, str(config.data), source, config.top, config.seed)
    cascade = None
    if config.cascade is not None:
        spec = pipeline.input_spec(source, members.preprocessings, config.fit)
        cascade = staging.find_cascade(config, members, ensemble, spec)
        config = replace(config, cascade=cascade.member)
    settings = _settings(config, members, source)
    with claimed(config.folder / PARTS, settings, source.rows, resume=config.resume) as ledger:
        if config.engine == "ray":
            record = score_with_ray(config, members, source, ledger, settings)
        else:
            record = score_here(config, members, source, ledger)
        if config.part is not None:
            done = {"part": config.part, "rows": source.rows, "given": source.given}
            return Outcome(record | done, {})
        predictions = Predictions.of_columns(ensemble.names, ledger.columns())
        record["devices"] = ledger.devices()
        results.clear(config.folder)
        outcome = write(config, members, ensemble, source, predictions, record, cascade)
        ledger.finish()
    if not outcome.run["scored"]:
        reason = Counter(predictions.reason.tolist()).most_common(1)[0][0]
        raise LensjaxError(
            f"none of the {outcome.run['given']} cutouts could be scored ({reason}): "
            f"{config.folder / 'rejects.csv'} has the reason for each"
        )
    return outcome


def is_finished(folder: Path) -> bool:
    """Returns whether a run has ended in a folder, with all that it was to write."""
    return (folder / "run.json").exists() and not (folder / PARTS).exists()


def score_here(
    config: InferenceConfig, members: Members, source: Source, ledger: Ledger
) -> dict[str, Any]:
    """Scores the rows that the ledger lacks on the devices of this machine, and returns what
    run.json says of it."""
    step, weights, staged = prepare(config, members, source)
    timing = scoring.score(
        step, weights, source, ledger, config.fit, config.workers, config.profile, staged
    )
    record = step.record() | timing
    if config.benchmark:
        record["benchmark"] = compare_steps(step, weights, members, config)
    return record


def score_with_ray(
    config: InferenceConfig,
    members: Members,
    source: Source,
    ledger: Ledger,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores the rows that the ledger lacks on the actors of a Ray cluster, and returns what
    run.json says of it."""
    from lensjax.cluster import ray_engine  # an extra

    config = replace(
        config,
        data=next(iter(paths_below(Path(), [str(config.data)]))),
        checkpoints=Path(config.checkpoints or "").absolute(),
        reuse=config.reuse and config.reuse.absolute(),
        output=config.folder.absolute(),
    )

    def reject(row: int, reason: str) -> Columns:
        ra, dec = (float(values[row - source.first_row]) for values in source.places)
        return unscored(tuple(members.infos), ra, dec, reason).columns()

    return ray_engine.score(
        functools.partial(range_scorer, config, settings),
        ledger,
        reject,
        config.folder / "progress",
        address=config.address,
        actors=config.actors,
        deadline=config.deadline,
    )


def range_scorer(
    config: InferenceConfig, settings: Mapping[str, Any]
) -> Callable[[range], dict[str, Any]]:
    """Returns a function that scores some rows into the ledger of a run, in a process that is one
    of many, and returns how fast it was.

    Raises LensjaxError where members or data are not those of the run, as this process sees them.
    """
    members = find_members(Path(config.checkpoints or ""), config.ensemble)
    source = open_cutouts(str(config.data), members, config, config.rows_part())
    if fingerprint(_settings(config, members, source)) != fingerprint(settings):
        raise LensjaxError(
            f"{platform.node()} finds other members or data than the run that it serves: it must "
            f"see the same files at {config.checkpoints} and {config.data}"
        )
    step, weights, staged = prepare(config, members, source)

    def score(rows: range) -> dict[str, Any]:
        ledger = Ledger(config.folder / PARTS, settings, rows)
        timing = scoring.score(
            step, weights, source, ledger, config.fit, config.workers, staged=staged
        )
        return timing | {"step": step.record()}

    return score


def prepare(
    config: InferenceConfig, members: Members, source: Source
) -> tuple[CompiledStep, Weights, Staged | None]:
    """Returns the compiled step for the cutouts of a source, and the weights on the devices; of the
    first stage, and all of them, where members are computed in stages."""
    mesh = sharding.mesh_of(jax.local_devices(), config.member_shards)
    input_spec = scoring.input_spec(source, members.preprocessings, config.fit)
    if config.cascade is not None:
        staged = staging.cascaded(config, members, input_spec, len(source), mesh)
    elif config.reuse is not None:
        staged = staging.reused(config, members, input_spec, len(source), mesh)
    else:
        step = compile_step(members, input_spec, len(source), config, mesh)
        return step, load_weights(members, step, config), None
    first = staged.stages[min(staged.stages)]
    return first.step, first.weights, staged


def open_cutouts(data: str, members: Members, options: DataOptions, part: Part = WHOLE) -> Source:
    """Returns the cutouts at `data` in the bands that `members` see.

    Raises UsageError where they cannot be opened, lack a band, or show another field of view than
    the members were trained on.
    """
    source = options.opened(data, members.bands, part)
    pipeline.check_fields(source, members.preprocessings, options.fit)
    refuse_noise_free(source.table)
    return source


def compare_steps(
    step: CompiledStep, weights: Weights, members: Members, options: ScoringOptions
) -> dict[str, float]:
    """Returns the cutouts per second of all members and samples in one step, and one by one."""
    options = ScoringOptions(**options.of_step(), batch_size=step.cutouts)
    one_by_one = compile_step(members, step.input_spec, 0, options, step.mesh, one_by_one=True)
    steps = {"one_step": step.step, "one_by_one": one_by_one.step}
    return scoring.side_by_side(steps, weights, step.input_spec.blank(step.cutouts), step.mesh)


def _settings(config: InferenceConfig, members: Members, source: Source) -> dict[str, Any]:
    """Returns what a run must share with a killed one to go on from its scores."""
    data = config.of_data() | {"data_sha256": content_sha256(source)}
    names = [field.name for field in fields(CascadeOptions)] + ["confidence"]
    cascade = {name: getattr(config, name) for name in names if config.cascade is not None}
    return {
        **data,
        **config.of_step(),
        **cascade,
        "members": {
            name: info.identity(members.validations[name]) for name, info in members.infos.items()
        },
        "order": list(members.infos),
        "version": __version__,
    }


def _check_apart(data: Path, output: Path) -> None:
    """Raises UsageError where the results would be among the images of a folder."""
    resolved = output.resolve()
    if data.resolve() in (resolved, *resolved.parents) and data.is_dir():
        raise UsageError(
            f"--output {output} lies in --data {data}: the next run would take its pictures for "
            "cutouts; give an --output outside"
        )


def write(
    config: InferenceConfig,
    members: Members,
    ensemble: Ensemble,
    source: Source,
    predictions: Predictions,
    scoring: Mapping[str, Any],
    cascade: Cascade | None = None,
) -> Outcome:
    """Writes the output directory from the predictions and what is to be said of the `scoring`.
    A file that cannot be written does not stop the others."""
    table, readable, flag = source.table, predictions.readable, predictions.flag
    ranking = predictions.ranking()
    labels = table["label"] if "label" in table.colnames else None
    promised = _promised(config, ensemble, predictions, ranking, labels)
    unlike = outliers.said(predictions.scores.pixels.T, members.pixels)
    said = trust.together(promised, spread.said(predictions, members.infos), unlike)
    if cascade:
        rate = scoring.get("images_per_second")
        said = trust.together(trust_cascade.said(cascade, predictions, rate), said)
    lenses = known.lenses_of(config)
    said = trust.together(said, known.said(predictions, lenses, config.known_radius))
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
        **scoring,
        **said.record,
        "warnings": warnings,
        "notes": [
            *said.notes,
            *results.notes(best, int(readable.sum())),
            *metrics.caveats(predictions.scores.probability, labels),
        ],
        "metrics": {name: metric.to_json() for name, metric in found.items()},
    }
    with gathering() as attempt:
        attempt("catalogue", results.write_outputs, config.folder, table, predictions, said.columns)
        if config.hats:
            attempt("hats", results.write_hats, config.folder, table, predictions, said.columns)
        sky = predictions.ra[readable], predictions.dec[readable]
        widths = coverage.widths(field, ensemble.preprocessings)
        attempt("searched.moc.*", coverage.write_searched, config.folder, *sky, widths)
        # Pictures last: drawing takes memory of its own, and the catalogue must not be lost.
        record["peak_memory_bytes"] = runtime.peak_memory_bytes()
        attempt("run.json", results.write_json, config.folder / "run.json", record)
        if config.ask:
            given = config.folder, config, config.data, source, members, ensemble, predictions
            attempt("ask.html", asking.write, *given)
        if config.cutouts:
            attempt("cutouts", cutout_files.write, config.folder, source, ranking[: config.cutouts])
        attempt("pictures", draw, config, source, best, predictions, record, found, said.columns)
    return Outcome(record, found)


def _promised(
    config: InferenceConfig,
    ensemble: Ensemble,
    predictions: Predictions,
    ranking: np.ndarray,
    labels: Column | None,
) -> Said:
    """Returns what the run promises of its candidates, in input order."""
    said = trust.likelihood(predictions, ensemble.validated_on, config.prevalence)
    if config.max_false_discovery is None:
        return said
    truth = np.full(ranking.size, -1) if labels is None else labels[ranking]
    # The others rank before what a cascade has dropped.
    ranked = np.where(predictions.complete, predictions.scores.logit, -np.inf)[ranking]
    promise = trust.promise(config, ranked, truth, config.seed)
    in_order = trust.in_input_order(promise, ranking, len(predictions.readable))
    return trust.together(said, in_order)


def draw(
    config: InferenceConfig,
    source: Source,
    best: Table,
    predictions: Predictions,
    record: Mapping[str, Any],
    found: Mapping[str, Metrics],
    promised: Mapping[str, np.ndarray],
) -> None:
    """Writes mosaic.png and report.html; the `best` cutouts are read once more, and black where
    they cannot be."""
    from lensjax import report

    ranking = predictions.ranking()
    cutouts = [report.look(source, row) for row in ranking[: config.top]]
    pictures = [report.picture(cutout, source.bands) for cutout in cutouts]
    rejected, purity = ~predictions.readable, promised.get("purity_at_least")
    scored = report.Scored(
        {name: values[~rejected] for name, values in predictions.probabilities().items()},
        labels=source.table["label"][~rejected] if "label" in source.table.colnames else None,
        logit=predictions.scores.logit[~rejected],
        logit_std=predictions.scores.logit_std[~rejected],
        purity_at_least=purity if purity is None else purity[ranking],
    )
    rejects = zip(source.table["id"][rejected], predictions.reason[rejected], strict=True)
    with gathering() as attempt:
        mosaic = config.folder / "mosaic.png"
        attempt("mosaic.png", report.write_mosaic, mosaic, pictures, best, record["scored"])
        attempt(
            "report.html",
            report.write_report,
            config.folder,
            best=best,
            scored=scored,
            cutouts=cutouts,
            bands=source.bands,
            impostors=inspection.kinds_of(config.impostors),
            run=record,
            rejects=rejects,
            metrics=found,
        )
        if config.controls is not None:
            attempt(
                controls.PAGE,
                controls.write,
                config.folder,
                config,
                str(config.data),
                source,
                ranking,
                cutouts,
                inspection.kinds_of(config.impostors),
                config.seed,
            )
        if "calibration" in promised and "label" not in source.table.colnames:
            drawn = promised["calibration"][ranking]
            attempt("inspection.html", _write_inspection, config, source, ranking, drawn)


def _write_inspection(
    config: InferenceConfig, source: Source, ranking: np.ndarray, calibration: np.ndarray
) -> None:
    """Writes what is to be looked at before a list is certified."""
    from lensjax.trust import certificate

    inspection.write(
        config.folder,
        source,
        ranking,
        np.asarray(calibration),
        most=certificate.INSPECTED,
        seed=config.seed,
        impostors=config.impostors,
        data=config.data,
    )
