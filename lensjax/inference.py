"""Scoring cutouts with an ensemble, from members on disk to the output folder.

A run is a few steps, each of which can be called alone: `find_members`, `open_cutouts`,
`prepare`, `scoring.score`, `write`; `infer` is all of them. The simpler way in
for a notebook is `lensjax.load_ensemble`.
"""

import functools
import platform
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax

from lensjax import (
    __version__,
    asking,
    controls,
    known,
    results,
    staging,
)
from lensjax.data import pipeline
from lensjax.data.catalog import DataOptions
from lensjax.data.identity import content_sha256
from lensjax.data.noise_free import refuse_noise_free
from lensjax.data.parts import WHOLE, Part
from lensjax.data.source import Source
from lensjax.ensemble import scoring, sharding
from lensjax.ensemble.checkpoint import ALL
from lensjax.ensemble.plan import CompiledStep
from lensjax.ensemble.staged import Staged
from lensjax.ensemble.step import Weights
from lensjax.errors import LensjaxError, UsageError
from lensjax.inference_config import InferenceConfig
from lensjax.ledger import Columns, Ledger, claimed, fingerprint
from lensjax.members import Members, ScoringOptions, compile_step, find_members, load_weights
from lensjax.outcome import Outcome, write
from lensjax.places import paths_below, place
from lensjax.predictions import Predictions, unscored
from lensjax.trust import run as trust
from lensjax.trust.cascade import CascadeOptions

PARTS = ".scores"


def infer(config: InferenceConfig) -> Outcome:
    """Scores all cutouts of `config.data`, writes `config.output`, and returns the Outcome.

    Of a `config.part` the scores are only kept, in `config.output`: a run for all rows takes them
    from there. Raises UsageError for options that cannot be carried out, LensjaxError where the run
    fails.
    """
    if config.cascade is not None and config.ensemble is None:
        # Its first member need not have a share in the score.
        config = replace(config, ensemble=ALL)
    if config.checkpoints is None or config.data is None:
        raise UsageError("--checkpoints and --data are both needed")
    _check_apart(place(config.data), config.folder)
    members = find_members(config.checkpoints, config.ensemble)
    detection = None
    if config.detect:
        from lensjax import objects  # an extra

        has_scores = (config.folder / PARTS).exists()
        config, detection = objects.find(config, members.bands, has_scores)
    config = config.for_members(members.preprocessings)
    source = open_cutouts(str(config.data), members, config, config.rows_part())
    if detection is not None:
        source = replace(source, description=f"{source.description}; {objects.words(detection)}")
    # What could not be promised or asked in the end is refused before anything is scored.
    if config.ask and config.part is None:
        asking.check(config, source, members)
    lenses = known.lenses_of(config)
    trust.refuse_unknown_odds(members.ensemble.validated_on, config.prevalence)
    if config.max_false_discovery is not None:
        trust.number_drawn(config.calibration, source.given)
    if config.controls is not None:
        controls.check(config, str(config.data), source, config.ask or config.top, config.seed)
    cascade = None
    if config.cascade is not None:
        spec = pipeline.input_spec(source, members.preprocessings, config.fit)
        cascade = staging.find_cascade(config, members, spec)
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
        predictions = Predictions.of_columns(members.ensemble.names, ledger.columns())
        record["devices"] = ledger.devices()
        if detection is not None:
            record["detection"] = detection
        results.clear(config.folder)
        outcome = write(config, members, source, predictions, record, cascade, lenses)
        ledger.finish()
    if not outcome.run["scored"]:
        reason = next(iter(outcome.run["rejected_for"]))
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

    data, catalogue = paths_below(Path(), [str(config.data), config.catalogue or ""])
    config = replace(
        config,
        data=data,
        catalogue=catalogue or None,
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
    del data["catalogue"]  # Wherever it lies, its content counts.
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
