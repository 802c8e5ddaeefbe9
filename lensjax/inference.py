"""Scoring cutouts with an ensemble, from members on disk to the output folder.

A run is a few steps, each of which can be called alone: `find_members`, `open_cutouts`,
`prepare`, `scoring.score`, `write`; `infer` is all of them. The simpler way in
for a notebook is `lensjax.load_ensemble`.
"""

import dataclasses
import functools
import platform
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from astropy.table import Column, Table
from jax.sharding import Mesh

from lensjax import __version__, inspection, metrics, results, runtime
from lensjax.data import pipeline
from lensjax.data.catalog import DataOptions
from lensjax.data.identity import content_sha256
from lensjax.data.noise_free import refuse_noise_free
from lensjax.data.on_device import InputSpec
from lensjax.data.parts import WHOLE, Part
from lensjax.data.preprocess import Preprocessing, doubts, fields_of_view
from lensjax.data.source import Source
from lensjax.ensemble import checkpoint, plan, scoring, sharding
from lensjax.ensemble.checkpoint import MemberInfo, Validation
from lensjax.ensemble.plan import FULL_BATCH, SHARE_OF_HOST, CompiledStep, batch_sizes
from lensjax.ensemble.reuse import ScoreStore
from lensjax.ensemble.stack import Ensemble, abstract_ensemble, with_weights
from lensjax.ensemble.step import StepOptions, Weights, place_weights
from lensjax.errors import LensjaxError, UsageError, refuse
from lensjax.files import gathering
from lensjax.ledger import Columns, Ledger, claimed, fingerprint
from lensjax.memory import memory_budget
from lensjax.metrics import Metrics
from lensjax.places import is_address, paths_below, place
from lensjax.predictions import Predictions, unscored
from lensjax.trust import run as trust
from lensjax.trust.run import PromiseOptions, Said

PARTS = ".scores"


@dataclass(frozen=True)
class ScoringOptions(StepOptions):
    """How scores are computed."""

    batch_size: int | Literal["auto"] = FULL_BATCH
    """Cutouts per step; auto, for accelerators: as many as fit into the memory."""
    batch_parallel: bool = True
    """Run all members and samples in one step, not one by one."""
    member_shards: int = 1
    """Distribute the weights over this many devices; the others share the cutouts."""
    workers: int | Literal["auto"] = "auto"
    """Processes that read files; 0: threads; auto: one per core if there are many files and an
    accelerator."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        super().__post_init__()
        one_by_one = not self.batch_parallel
        wrong = {
            "--batch-size must be at least 1": self.batch_size != "auto" and self.batch_size < 1,
            "--member-shards must be at least 1": self.member_shards < 1,
            "--workers must not be negative": self.workers != "auto" and self.workers < 0,
            "--batch-size auto is for members that run together: name a number": (
                self.batch_size == "auto" and one_by_one
            ),
            "--member-shards shares members that run together: drop --no-batch-parallel": (
                self.member_shards > 1 and one_by_one
            ),
        }
        refuse(wrong)


@dataclass(frozen=True)
class InferenceConfig(DataOptions, ScoringOptions, PromiseOptions):
    """A run: which members score which cutouts, how, and where the results go."""

    ensemble: str | None = None
    """Architectures, comma separated; resnet18:4 takes four members (None: all members of the
    folder). There are: resnet18, resnet34, vit_ti16, vit_s16, vit_b16, light_transformer,
    trans_enc_s."""
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
    impostors: str = inspection.IMPOSTORS
    """Kinds of non-lens that graders can name in the report, at most nine, comma separated."""
    profile: Path | None = None
    """Folder for a profiler trace of some batches."""
    benchmark: bool = False
    """Compare the speed of the compiled step with members and samples run one by one."""
    reuse: Path | None = None
    """Folder of scores that are kept: a cutout whose content is the same is not scored again."""
    engine: Literal["local", "ray"] = "local"
    """Where cutouts are scored: on this machine, or by the actors of a Ray cluster."""
    address: str | None = None
    """The Ray cluster: auto, or ray://HOST:PORT; without it one is started on this machine."""
    actors: int | Literal["auto"] = "auto"
    """Ray actors that score; auto: one per accelerator, without any one per four cores."""
    deadline: float = 900.0
    """Seconds after which a Ray actor that has not finished its rows is ended."""
    prevalence: float | None = None
    """Share of lenses in the survey: adds the probability there, survey_probability."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        super().__post_init__()
        PromiseOptions.__post_init__(self)
        wrong = {
            "--top must be at least 1": self.top < 1,
            "--address, --actors and --deadline are for --engine ray": self.engine != "ray"
            and (self.address, self.actors, self.deadline)
            != (None, "auto", InferenceConfig.deadline),
            "--prevalence is a share between 0 and 1": self.prevalence is not None
            and not 0 < self.prevalence < 1,
            "--actors must be at least 1": self.actors != "auto" and self.actors < 1,
            "--deadline must be more than 0 s": not self.deadline > 0,
            "--engine ray needs an --output that is a folder": self.engine == "ray"
            and is_address(str(self.output)),
            "--profile and --benchmark are for --engine local": self.engine != "local"
            and (self.profile is not None or self.benchmark),
            "--benchmark times the step beside --no-batch-parallel: drop the latter": (
                self.benchmark and not self.batch_parallel
            ),
        }
        refuse(wrong)
        self.rows_part()
        inspection.kinds_of(self.impostors)

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


class Members(NamedTuple):
    """Members on disk, by column name: where they are and all that is known of them but weights."""

    folders: Mapping[str, Path]
    infos: Mapping[str, MemberInfo]
    validations: Mapping[str, Validation | None]
    preprocessings: tuple[Preprocessing, ...]
    """What members see and how, each once."""
    bands: tuple[str, ...]
    """Every band that some member sees, in the order in which members name them."""


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
        names = ("candidates.csv", "mosaic.png", "report.html")
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
    source = open_cutouts(config.data, members, config, config.rows_part())
    ensemble = abstract_ensemble(members.infos, members.validations)
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
        outcome = write(config, members, ensemble, source, predictions, record)
        ledger.finish()
    if not outcome.run["scored"]:
        reason = Counter(predictions.reason.tolist()).most_common(1)[0][0]
        raise LensjaxError(
            f"none of the {outcome.run['given']} cutouts could be scored ({reason}): "
            f"{config.folder / 'rejects.csv'} has the reason for each"
        )
    return outcome


def score_here(
    config: InferenceConfig, members: Members, source: Source, ledger: Ledger
) -> dict[str, Any]:
    """Scores the rows that the ledger lacks on the devices of this machine, and returns what
    run.json says of it."""
    step, weights = prepare(config, members, source)
    store = score_store(config, members)
    timing = scoring.score(
        step, weights, source, ledger, config.fit, config.workers, config.profile, store
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

    config = dataclasses.replace(
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
    step, weights = prepare(config, members, source)
    store = score_store(config, members)

    def score(rows: range) -> dict[str, Any]:
        ledger = Ledger(config.folder / PARTS, settings, rows)
        timing = scoring.score(
            step, weights, source, ledger, config.fit, config.workers, store=store
        )
        return timing | {"step": step.record()}

    return score


def prepare(
    config: InferenceConfig, members: Members, source: Source
) -> tuple[CompiledStep, Weights]:
    """Returns the compiled step for the cutouts of a source, and the weights on the devices."""
    mesh = sharding.mesh_of(jax.local_devices(), config.member_shards)
    input_spec = pipeline.input_spec(source, members.preprocessings, config.fit)
    step = compile_step(members, input_spec, len(source), config, mesh)
    return step, load_weights(members, step, config)


def find_members(checkpoints: Path, ensemble: str | None) -> Members:
    """Returns the members that `ensemble` (`resnet18:2,vit_b16`; None: all) names in a folder.

    Raises UsageError where there are none or too few, LensjaxError where one is damaged.
    """
    folders = checkpoint.find_members(checkpoints, ensemble)
    infos = {name: checkpoint.read_info(folder) for name, folder in folders.items()}
    validations = {name: checkpoint.read_validation(folder) for name, folder in folders.items()}
    preprocessings = tuple(dict.fromkeys(info.preprocessing for info in infos.values()))
    bands = dict.fromkeys(band for preprocessing in preprocessings for band in preprocessing.bands)
    return Members(folders, infos, validations, preprocessings, tuple(bands))


def open_cutouts(data: str, members: Members, options: DataOptions, part: Part = WHOLE) -> Source:
    """Returns the cutouts at `data` in the bands that `members` see.

    Raises UsageError where they cannot be opened, lack a band, or show another field of view than
    the members were trained on.
    """
    source = options.opened(data, members.bands, part)
    pipeline.check_fields(source, members.preprocessings, options.fit)
    refuse_noise_free(source.table)
    return source


def compile_step(
    members: Members,
    input_spec: InputSpec,
    rows: int,
    options: ScoringOptions,
    mesh: Mesh,
    one_by_one: bool = False,
) -> CompiledStep:
    """Returns the step for these members and so many cutouts, compiled for as many at once as fit
    the memory. No weights are read yet: what memory compiling takes is free again for them."""
    if options.batch_size == "auto":
        batches = batch_sizes(rows, input_spec, mesh)
    else:
        batches = [sharding.divisible(options.batch_size, mesh)]
        if batches[0] != options.batch_size:
            print(f"batches of {batches[0]} cutouts, so that {mesh.size} devices can share them")
    compiled = plan.compile_step(
        abstract_ensemble(members.infos, members.validations),
        mesh,
        input_spec,
        batches,
        options,
        budget=memory_budget(mesh, SHARE_OF_HOST),
        one_by_one=one_by_one or not options.batch_parallel,
    )
    if options.batch_size == "auto" or compiled.samples_at_once:
        print(f"a step takes {compiled}", flush=True)
    runtime.give_back_memory()
    return compiled


def load_weights(members: Members, step: CompiledStep, options: ScoringOptions) -> Weights:
    """Returns the weights of the members on the devices, read and placed group by group."""
    ensemble = read_ensemble(members, step.ensemble)
    weights = place_weights(ensemble, step.mesh, options)
    del ensemble
    runtime.give_back_memory()
    return weights


def read_ensemble(members: Members, abstract: Ensemble) -> Ensemble:
    """Returns an abstract ensemble with the weights of its members, in the host's memory."""
    return with_weights(
        abstract,
        members.infos,
        lambda name: checkpoint.read_weights(members.folders[name], members.infos[name]),
    )


def compare_steps(
    step: CompiledStep, weights: Weights, members: Members, options: ScoringOptions
) -> dict[str, float]:
    """Returns the cutouts per second of all members and samples in one step, and one by one."""
    options = ScoringOptions(**options.of_step(), batch_size=step.cutouts)
    one_by_one = compile_step(members, step.input_spec, 0, options, step.mesh, one_by_one=True)
    steps = {"one_step": step.step, "one_by_one": one_by_one.step}
    return scoring.side_by_side(steps, weights, step.input_spec.blank(step.cutouts), step.mesh)


def score_store(config: InferenceConfig, members: Members) -> ScoreStore | None:
    """Returns the scores that are kept in `config.reuse`, None where no folder is named."""
    if config.reuse is None:
        return None
    return ScoreStore(config.reuse, _score_settings(config, members), len(members.infos))


def _settings(config: InferenceConfig, members: Members, source: Source) -> dict[str, Any]:
    """Returns what a run must share with a killed one to go on from its scores."""
    data = config.of_data() | {"data_sha256": content_sha256(source)}
    return data | _score_settings(config, members)


def _score_settings(config: InferenceConfig, members: Members) -> dict[str, Any]:
    """Returns all that a score depends on besides the cutout and the device."""
    return config.of_step() | {
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
) -> Outcome:
    """Writes the output directory from the predictions and what is to be said of the `scoring`.
    A file that cannot be written does not stop the others."""
    table, readable, flag = source.table, predictions.readable, predictions.flag
    ranking = predictions.ranking()
    labels = table["label"] if "label" in table.colnames else None
    said = _promised(config, ensemble, predictions, ranking, labels)
    top = ranking[: max(config.top, results.LISTED)]
    best = results.candidate_table(table, predictions, top, trust=said.columns)
    field, action = predictions.field[readable], predictions.action[readable]
    warnings = doubts(field, action, ensemble.preprocessings, config.fit)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    found = {}
    if labels is not None and (labels[readable] >= 0).any():
        found = metrics.evaluate_all(predictions.probabilities(), labels)
    record = {
        "config": dataclasses.asdict(config),
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
        # Pictures last: drawing takes memory of its own, and the catalogue must not be lost.
        record["peak_memory_bytes"] = runtime.peak_memory_bytes()
        attempt("run.json", results.write_json, config.folder / "run.json", record)
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
    known = np.full(ranking.size, -1) if labels is None else labels[ranking]
    promise = trust.promise(config, predictions.scores.logit[ranking], known, config.seed)
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
        if "calibration" in best.colnames and "label" not in source.table.colnames:
            attempt("inspection.html", _write_inspection, config, source, ranking)


def _write_inspection(config: InferenceConfig, source: Source, ranking: np.ndarray) -> None:
    """Writes what is to be looked at before a list is certified."""
    from lensjax.trust import certificate

    calibration = trust.drawn(config.calibration, ranking.size, config.seed)
    inspection.write(
        config.folder,
        source,
        ranking,
        calibration,
        most=certificate.INSPECTED,
        seed=config.seed,
        impostors=config.impostors,
        data=config.data,
    )
