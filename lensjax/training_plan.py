"""How much memory a training would need, said without training."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from lensjax import results
from lensjax.cluster import hosts
from lensjax.data import pipeline
from lensjax.data.noise_free import noise_of
from lensjax.data.on_device import ImageSpec, Transform
from lensjax.data.preprocess import geometry
from lensjax.ensemble import checkpoint, sharding
from lensjax.errors import UsageError
from lensjax.files import make_folder
from lensjax.memory import find_target, in_gib
from lensjax.simulation import survey_of
from lensjax.train import finetune
from lensjax.train.plan import budget_bytes, plan_training, steps_per_second
from lensjax.train.setup import set_up
from lensjax.training_config import SIMULATED, TrainConfig, check
from lensjax.training_data import opened_cutouts, sky_options
from lensjax.training_start import hyperparameters_of, of_start, preprocessing_of, start_folders


def make_plan(options: TrainConfig) -> str:
    """Returns the table of what a training step needs, and writes it to OUTPUT/plan.json.

    Without data the cutouts are taken to be as large as the largest scale, in three bands unless
    `bands` says otherwise. Raises UsageError as `train` does, and for several architectures.
    """
    check(options)
    (architecture, *others) = checkpoint.parse_ensemble(options.arch)
    if others:
        raise UsageError("--plan takes one architecture at a time")
    image_spec, transform = _image_spec(options)
    hyperparameters = hyperparameters_of(options)
    budget = options.memory_budget
    if options.target and budget == "auto":
        raise UsageError("--target wants a --memory-budget such as 70GiB: the device is not here")
    target = find_target(options.target) if options.target else None
    devices = jax.local_devices()[:1] if target else jax.devices()
    shards = (1, 1) if target else (options.member_shards, options.fsdp)
    mesh = sharding.mesh_of(devices, *shards)
    info = checkpoint.MemberInfo(architecture, transform.preprocessing, *hyperparameters.rates())
    seeds = range(options.seed, options.seed + options.members)
    labels = np.zeros(options.batch_size, np.float32)
    setup, state = set_up(info, transform, labels, hyperparameters, seeds, mesh)
    plan = plan_training(
        *(setup, state, image_spec),
        batch_size=options.batch_size,
        budget=budget_bytes(budget, mesh),
        target=target,
        compare=True,
    )
    record, lines = plan.record() | {"memory_budget": budget}, [plan.table()]
    if target is None:
        state = hosts.from_whole(state, sharding.places(state, mesh))
        record["steps_per_second"] = steps_per_second(plan, state, image_spec)
        lines.append(f"{record['steps_per_second']:.3g} steps/s at the last set of scales")
        peak = (mesh.local_devices[0].memory_stats() or {}).get("peak_bytes_in_use")
        if peak is not None:
            record["measured_peak_bytes"] = peak
            lines.append(f"measured peak {in_gib(peak)}")
    if hosts.is_first():
        make_folder(options.output)
        results.write_json(options.output / "plan.json", record)
    return "\n".join([*lines, str(options.output / "plan.json")])


def _image_spec(options: TrainConfig) -> tuple[ImageSpec, Transform]:
    """Returns how cutouts travel to the device, and what the largest scale takes of them."""
    if options.replay is not None:
        seen = finetune.seen_by(start_folders(options))
        return _square(options, seen.bands, seen.input_size, seen.pixel_scale)
    if options.data == SIMULATED:
        survey = survey_of(sky_options(options))
        return _square(options, survey.bands, survey.size, survey.pixel_scale)
    if options.data is not None:
        source, preprocessing = opened_cutouts(options)
        input_spec = pipeline.input_spec(source, (preprocessing,), options.fit)
        image_spec = input_spec.image_specs[input_spec.transforms[0].image]
        is_bare = noise_of(source.table, source.bands) is not None
        return dataclasses.replace(image_spec, noise_free=is_bare), input_spec.transforms[0]
    size = max(options.sizes(), default=None) or of_start(options, "input_size")
    if size is None:
        raise UsageError("--plan wants --data or --scales: how large are the cutouts?")
    return _square(options, tuple((options.bands or "i,r,g").split(",")), size, options.pixel_scale)


def _square(
    options: TrainConfig, bands: Sequence[str], size: int, pixel_scale: float | None
) -> tuple[ImageSpec, Transform]:
    """Returns what `_image_spec` does, for cutouts of `size` pixels that are not there yet."""
    preprocessing = preprocessing_of(options, bands, size, pixel_scale)
    of_image = geometry((size, size), pixel_scale, preprocessing)
    transform = Transform(preprocessing, 0, tuple(range(len(bands))), of_image)
    return ImageSpec((size, size, len(bands)), "float32"), transform
