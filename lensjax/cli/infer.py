"""scripts/infer.py: scores cutouts with an ensemble, writes the catalogue and its pictures."""

import contextlib
import dataclasses
import functools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
from astropy.table import Table
from jax.sharding import Mesh

from lensjax import __version__, config, metrics, results, runtime
from lensjax.data import pipeline
from lensjax.data.catalog import DataOptions
from lensjax.data.formats import shards
from lensjax.data.formats.shards import Encoding
from lensjax.data.identity import content_sha256
from lensjax.data.parts import WHOLE, Part, rows_of
from lensjax.data.planes import Unreadable
from lensjax.data.preprocess import doubts, fields_of_view
from lensjax.data.source import Source
from lensjax.ensemble import checkpoint, rate, sharding
from lensjax.ensemble.checkpoint import MemberInfo
from lensjax.ensemble.fusion import Fusion
from lensjax.ensemble.plan import (
    FULL_BATCH,
    SHARE_OF_HOST,
    InferencePlan,
    batch_sizes,
    plan,
    unplanned,
)
from lensjax.ensemble.scoring import score
from lensjax.ensemble.stack import Ensemble, filled, outline
from lensjax.ensemble.step import (
    Precision,
    Step,
    Weights,
    ensemble_step,
    one_by_one_step,
    outline_weights,
    place_weights,
)
from lensjax.errors import LensjaxError, UsageError
from lensjax.files import gathering, make_folder
from lensjax.memory import memory_budget
from lensjax.metrics import Metrics
from lensjax.models.registry import ARCHITECTURES
from lensjax.resume import Columns, PartialRows

DEMO = Path("demo")
PARTS = ".scores"

MANY_FILES, MOST_WORKERS = 20_000, 16


@dataclass(frozen=True)
class InferConfig(DataOptions):
    """Options of scripts/infer.py."""

    ensemble: Annotated[
        str | None,
        "architectures, comma separated; resnet18:4 takes four members (default: all members of "
        "the folder); there are: " + ", ".join(ARCHITECTURES),
    ] = None
    checkpoints: Annotated[
        Path | None,
        "folder of the members, or `demo` for the demonstration's (default: checkpoints)",
    ] = None
    data: Annotated[
        str | None,
        "folder, catalogue, stack, FITS or {band} template; without it the demonstration runs",
    ] = None
    workers: Annotated[
        int | Literal["auto"],
        "processes that read files; 0: threads; auto: one a core for many files and an accelerator",
    ] = "auto"
    output: Annotated[Path, "folder of the results"] = Path("results")
    pack: Annotated[
        Path | None, "write the cutouts to ArrayRecord shards in this folder, and stop"
    ] = None
    pack_as: Annotated[Encoding, "pixels as they are, or whole numbers as PNG"] = "raw"
    batch_size: Annotated[
        int | Literal["auto"], "cutouts a step; auto, for accelerators: as many as fit the memory"
    ] = FULL_BATCH
    mc_samples: Annotated[int, "Monte Carlo dropout samples; 1: dropout off"] = 10
    fusion: Annotated[Fusion, "how members become one score"] = "stacked"
    precision: Annotated[Precision, "of the networks' arithmetic"] = "float32"
    batch_parallel: Annotated[bool, "all members and samples in one step, not one by one"] = True
    member_shards: Annotated[
        int, "share the weights among so many devices; the others share the cutouts"
    ] = 1
    seed: Annotated[int, "seed of the dropout masks"] = 0
    resume: Annotated[bool, "go on where a killed run of the same settings stopped"] = True
    part: Annotated[
        str | None, "K/N: score the K-th of N parts of the rows; without it all parts become one"
    ] = None
    top: Annotated[int, "candidates in the mosaic and the report"] = 48
    profile: Annotated[Path | None, "folder for a profiler trace of some batches"] = None
    benchmark: Annotated[
        bool, "time the step beside members and samples one by one, some batches of each"
    ] = False
    smoke: Annotated[
        bool, "to see within a minute or two that all runs: with members of a small demonstration"
    ] = False


def main(argv: Sequence[str]) -> None:
    """Carries out `argv` and prints the metrics and where the results lie."""
    options = config.parse(
        InferConfig,
        argv,
        description=__doc__.split(": ", 1)[1],
        spellings={"models": "ensemble", "parallel": "batch_parallel"},
    )
    runtime.hush_absent_tpu()
    runtime.keep_compilations()
    _check(options)
    if options.pack is not None:
        print(repack(options, options.pack))
        return
    options = _with_members(options)
    print(infer(options).summary(options.output) if options.part is None else infer_part(options))


def _with_members(options: InferConfig) -> InferConfig:
    """Returns the options with members and data, those of the demonstration where it is meant."""
    checkpoints = DEMO if options.smoke else options.checkpoints
    if checkpoints is None:
        checkpoints = DEMO if options.data is None else Path("checkpoints")
    if checkpoints == DEMO:
        from lensjax.cli import demo  # simulates and trains: nothing that other runs need

        ensemble = options.ensemble or demo.ENSEMBLE
        if options.smoke:
            ensemble = ",".join(checkpoint.parse_ensemble(ensemble))
        then = f"scores {options.data or 'the held-back part'}"
        print(demo.announce(ensemble, options.smoke, then), flush=True)
        prepared = demo.prepare(ensemble, options.smoke)
        data = options.data or str(prepared.held_back)
        return dataclasses.replace(
            options, ensemble=ensemble, checkpoints=prepared.members, data=data
        )
    if options.data is None:
        raise UsageError("--data is missing: name the cutouts, or leave out --checkpoints too")
    return dataclasses.replace(options, checkpoints=checkpoints)


@dataclass(frozen=True)
class Outcome:
    """What a run did: the content of run.json, and metrics by score where labels were given."""

    run: dict[str, Any]
    metrics: Mapping[str, Metrics]

    def summary(self, output: Path) -> str:
        """Returns the lines that a user reads at the end."""
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


def infer(options: InferConfig) -> Outcome:
    """Scores all cutouts of `options.data`, writes `options.output`, and returns the Outcome.

    What runs of single parts have scored is taken from there. Raises UsageError for options that
    cannot be carried out, LensjaxError where the run fails.
    """
    with _scored(options) as done:
        columns = done.parts.columns()
        results.clear(options.output)
        outcome = write(options, done.infos, done.ensemble, done.source, columns, done.scoring)
        done.parts.remove()
    if not outcome.run["scored"]:
        reason = Counter(columns["reasons"].tolist()).most_common(1)[0][0]
        raise LensjaxError(
            f"none of the {outcome.run['given']} cutouts could be scored ({reason}): "
            f"{options.output / 'rejects.csv'} has the reason for each"
        )
    return outcome


def infer_part(options: InferConfig) -> str:
    """Scores the rows of `options.part`, keeps them in `options.output`, and returns a line.

    Raises as `infer` does.
    """
    with _scored(options) as done:
        rows = done.parts.rows
    return (
        f"part {options.part}: rows {rows.start} to {rows.stop} of {done.source.given} are scored; "
        "the same command without --part writes the catalogue"
    )


class _Scored(NamedTuple):
    """What a run has scored, with what, and what is to be said of it."""

    infos: Mapping[str, MemberInfo]
    ensemble: Ensemble
    source: Source
    parts: PartialRows
    scoring: Mapping[str, Any]


@contextlib.contextmanager
def _scored(options: InferConfig) -> Iterator[_Scored]:
    """Scores those cutouts of `options.data`, or of the part of them, that are not scored yet, and
    yields the _Scored. No other process may score the same rows meanwhile."""
    if options.checkpoints is None or options.data is None:
        raise UsageError("--checkpoints and --data are both needed")
    folders = checkpoint.find_members(options.checkpoints, options.ensemble)
    infos = {name: checkpoint.read_info(folder) for name, folder in folders.items()}
    validations = {name: checkpoint.read_validation(folder) for name, folder in folders.items()}
    mesh = sharding.mesh_of(jax.local_devices(), options.member_shards)
    _check_apart(options.data, options.output)
    source = options.opened(options.data, _all_bands(infos), _part(options))
    preprocessings = [info.preprocessing for info in infos.values()]
    pipeline.check_fields(source, preprocessings, options.fit)
    make_folder(options.output)
    identities = {name: info.identity(validations[name]) for name, info in infos.items()}
    parts = PartialRows(
        options.output / PARTS,
        _settings(options, identities, source),
        source.rows,
        resume=options.resume,
    )
    with contextlib.closing(parts):
        outlined = outline(infos, validations, stacked=sharding.stacks_members(mesh))
        scoring = _score(options, folders, infos, outlined, mesh, source, parts)
        yield _Scored(infos, outlined, source, parts, scoring)


def _score(
    options: InferConfig,
    folders: Mapping[str, Path],
    infos: Mapping[str, MemberInfo],
    outlined: Ensemble,
    mesh: Mesh,
    source: Source,
    parts: PartialRows,
) -> dict[str, Any]:
    """Adds the scores that `parts` lack, and returns what is to be said of the scoring."""
    settings: dict[str, Any] = {
        "seed": options.seed,
        "samples": options.mc_samples,
        "precision": options.precision,
    }
    # Compiled before the weights are read: what memory that takes is free again for them.
    abstract = outline_weights(outlined, mesh, **settings)
    planned = _plan(options, outlined, abstract, mesh, source)
    runtime.give_back_memory()
    ensemble = filled(
        outlined, infos, lambda name: checkpoint.read_weights(folders[name], infos[name])
    )
    weights = place_weights(ensemble, mesh, **settings)
    del ensemble
    runtime.give_back_memory()
    timing = score(
        planned,
        weights,
        mesh,
        outlined,
        source,
        parts,
        how=options.fit,
        workers=_workers(options.workers, len(source)),
        profile=options.profile,
    )
    scoring = planned.record() | {"mesh": dict(mesh.shape)} | dataclasses.asdict(timing)
    if options.benchmark:
        one_by_one = _make(options, outlined, mesh, together=False)()
        scoring["benchmark"] = rate.side_by_side(
            {"one_step": planned.step, "one_by_one": one_by_one},
            weights,
            pipeline.layout(source, outlined.preprocessings, options.fit).blank(
                planned.size.cutouts
            ),
            mesh,
        )
    return scoring


def _part(options: InferConfig) -> Part:
    """Returns the part of the rows that is asked for."""
    if options.part is None:
        return WHOLE
    number, of = map(int, options.part.split("/"))
    return number, of


def repack(options: InferConfig, folder: Path) -> str:
    """Writes the cutouts of `options.data`, or of the part of them, to shards in `folder`, with all
    their bands, and returns a line about them."""
    if options.data is None:
        raise UsageError("--data is missing: which cutouts are to be packed?")
    source = options.opened(options.data, None)
    rows = rows_of(_part(options), len(source), shards.SHARD_ROWS)
    with runtime.progress("packing", len(rows), "cutouts") as advance:
        packed = shards.pack(
            source,
            folder,
            rows=rows,
            settings=options.of_data() | {"version": __version__},
            encoding=options.pack_as,
            resume=options.resume,
            progress=advance,
        )
    if options.part is not None:
        return (
            f"{folder}, part {options.part}: {packed} packed + {len(rows) - packed} rejected = "
            f"{len(rows)} rows; the same command without --part packs the rest and ends the shards"
        )
    return (
        f"{folder}: {packed} packed + {len(source) - packed} rejected = {len(source)} given; "
        f"{source.description}"
    )


def _plan(
    options: InferConfig, ensemble: Ensemble, weights: Weights, mesh: Mesh, source: Source
) -> InferencePlan:
    """Returns the plan of the step that `options` ask for, and says what a user may not expect."""
    make = _make(options, ensemble, mesh, together=options.batch_parallel)
    layout = pipeline.layout(source, ensemble.preprocessings, options.fit)
    if options.batch_size == "auto":
        batches = batch_sizes(len(source), layout, mesh)
    else:
        batches = [sharding.divisible(options.batch_size, mesh)]
        if batches[0] != options.batch_size:
            print(f"batches of {batches[0]} cutouts, so that {mesh.size} devices can share them")
    if not options.batch_parallel:
        return unplanned(make(), batches[0])
    budget = memory_budget(mesh, SHARE_OF_HOST)
    planned = plan(make, weights, layout, mesh, batches, budget=budget)
    if options.batch_size == "auto" or planned.is_chunked:
        print(f"a step takes {planned}", flush=True)
    return planned


def _make(
    options: InferConfig, ensemble: Ensemble, mesh: Mesh, *, together: bool
) -> Callable[..., Step]:
    """Returns what makes a step of members and samples together, or one by one."""
    return functools.partial(
        ensemble_step if together else one_by_one_step,
        ensemble,
        mesh,
        samples=options.mc_samples,
        fusion=options.fusion,
        precision=options.precision,
    )


def write(
    options: InferConfig,
    infos: Mapping[str, MemberInfo],
    ensemble: Ensemble,
    source: Source,
    columns: Columns,
    scoring: Mapping[str, Any],
) -> Outcome:
    """Writes the output directory from `columns`, the scores in input order, and what is to be
    said of the `scoring`. A file that cannot be written keeps no other back."""
    readable, reasons, flags = (columns[name] for name in ("readable", "reasons", "flags"))
    scores = {name: columns[name] for name in results.SCORES}
    of_members = {
        name: {"logits": columns[f"{name}_logits"], "probs": columns[f"{name}_probs"]}
        for name in ensemble.names
    }
    table = source.table.copy(copy_data=False)
    table["ra"], table["dec"] = columns["ra"], columns["dec"]
    candidates = results.candidate_table(table, scores, of_members, readable, flags)
    labels = table["label"] if "label" in table.colnames else None
    field, action = columns["field"][readable], columns["action"][readable]
    warnings = doubts(field, action, ensemble.preprocessings, options.fit)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    found = _metrics(labels, scores["probability"], of_members)
    record = {
        "config": dataclasses.asdict(options),
        "members": [
            {
                "name": name,
                "architecture": info.architecture,
                "weights_sha256": info.weights_sha256,
                "share": float(ensemble.fusion_params.share[ensemble.names.index(name)]),
            }
            for name, info in infos.items()
        ],
        "shares_from": ensemble.weights_origin,
        "data": source.description,
        "bands_from": dict(zip(source.bands, source.bands_from, strict=False)),
        "flags": dict(Counter(flags[flags != ""].tolist())),
        "fitted": dict(Counter(action.tolist())),
        "field_of_view": fields_of_view(field),
        "masked_pixels": int(columns["masked"].sum()),
        "versions": runtime.versions(),
        "devices": runtime.devices(),
        "given": len(source),
        "scored": int(readable.sum()),
        "flagged": int((flags != "").sum()),
        "rejected": int((~readable).sum()),
        **scoring,
        "warnings": warnings,
        "notes": [*results.notes(candidates), *metrics.caveats(scores["probability"], labels)],
        "metrics": {name: metric.to_json() for name, metric in found.items()},
    }
    scored = scores, of_members, readable, flags
    with gathering() as attempt:
        attempt(
            "catalogue", results.write_outputs, options.output, candidates, table, *scored, reasons
        )
        # Pictures last: drawing takes memory of its own, and the catalogue must not be lost.
        record["peak_memory_bytes"] = runtime.peak_memory_bytes()
        attempt("run.json", results.write_json, options.output / "run.json", record)
        best = results.ranking(scores, readable)[: options.top]
        attempt("pictures", draw, options, source, best, candidates, record, reasons, found)
    return Outcome(record, found)


def draw(
    options: InferConfig,
    source: Source,
    best: np.ndarray,
    candidates: Table,
    record: Mapping[str, Any],
    reasons: np.ndarray,
    found: Mapping[str, Metrics],
) -> None:
    """Writes mosaic.png and report.html; the cutouts of the rows in `best` are read once more, and
    black where they cannot be."""
    from lensjax import report

    def picture(row: int) -> np.ndarray:
        try:
            return report.colour(source[row].image, source.bands)
        except Unreadable:  # it was scored: the file is gone since
            return report.unreadable()

    pictures = [picture(row) for row in best]
    ids = source.table["id"]
    with gathering() as attempt:
        mosaic = options.output / "mosaic.png"
        attempt("mosaic.png", report.write_mosaic, mosaic, pictures, candidates)
        attempt(
            "report.html",
            report.write_report,
            options.output,
            candidates=candidates,
            pictures=pictures,
            run=record,
            rejects=[(id_, reason) for id_, reason in zip(ids, reasons, strict=True) if reason],
            metrics=found,
        )


def _workers(asked: int | Literal["auto"], cutouts: int) -> int:
    """Returns how many processes read. They take seconds to start, and on a CPU the networks are
    slower than one reader."""
    if asked != "auto":
        return asked
    outrun = cutouts >= MANY_FILES and jax.default_backend() != "cpu"
    return min(MOST_WORKERS, os.cpu_count() or 1) if outrun else 0


def _check(options: InferConfig) -> None:
    """Raises UsageError for settings that make no sense."""
    if options.workers != "auto" and options.workers < 0:
        raise UsageError("--workers must not be negative")
    for name in ("batch_size", "mc_samples", "member_shards", "top"):
        value = getattr(options, name)
        if value != "auto" and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1")
    if options.part is not None:
        found = re.fullmatch(r"(\d+)/(\d+)", options.part)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"--part {options.part} is none: give K/N with K from 1 to N")
    if options.batch_size == "auto" and not options.batch_parallel:
        raise UsageError("--batch-size auto is for members that run together: name a number")
    if options.benchmark and not options.batch_parallel:
        raise UsageError("--benchmark times the step beside --no-batch-parallel: drop the latter")
    if options.member_shards > 1 and not options.batch_parallel:
        raise UsageError(
            "--member-shards shares members that run together: drop --no-batch-parallel"
        )


def _all_bands(infos: Mapping[str, MemberInfo]) -> tuple[str, ...]:
    """Returns every band that some member sees, in the order in which members name them."""
    return tuple(dict.fromkeys(b for info in infos.values() for b in info.preprocessing.bands))


def _settings(options: InferConfig, members: Mapping[str, str], source: Source) -> dict[str, Any]:
    """Returns what a run must share with a killed one to go on from its scores: all that a score
    depends on."""
    kept = ("mc_samples", "fusion", "precision", "seed")
    return (
        options.of_data()
        | {name: getattr(options, name) for name in kept}
        | {
            "data_sha256": content_sha256(source),
            "members": dict(members),
            "version": __version__,
        }
    )


def _check_apart(data: str, output: Path) -> None:
    """Raises UsageError where the results would be among the images of a folder."""
    if Path(data).is_dir() and output.resolve().is_relative_to(Path(data).resolve()):
        raise UsageError(
            f"--output {output} lies in --data {data}: the next run would take its pictures for "
            "cutouts; give an --output outside"
        )


def _metrics(
    labels: np.ndarray | None,
    probability: np.ndarray,
    of_members: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, Metrics]:
    """Returns the metrics of each member and of the ensemble, none where no label is known."""
    if labels is None or not (labels[~np.isnan(probability)] >= 0).any():
        return {}
    probabilities = {name: member["probs"] for name, member in of_members.items()}
    probabilities["ensemble"] = probability
    return {name: metrics.evaluate(values, labels) for name, values in probabilities.items()}
