"""What a training learns from: labelled cutouts, graded ones beside a known sky, or simulated
ones."""

import contextlib
import dataclasses
import sys

import numpy as np

from lensjax import config
from lensjax.data import pipeline
from lensjax.data.catalog import DataOptions
from lensjax.data.identity import content_sha256
from lensjax.data.planes import Cutout, Unreadable
from lensjax.data.preprocess import Preprocessing
from lensjax.data.source import Source
from lensjax.errors import UsageError, refuse
from lensjax.simulation import SimulateConfig, sources_of, survey_of
from lensjax.train import finetune
from lensjax.train.data import Labelled, read_labelled, split
from lensjax.train.replay import Replayed, replayed, together
from lensjax.train.setup import TrainingData
from lensjax.train.simulated import Simulated, Sky, simulated
from lensjax.training_config import SIMULATED, TrainConfig
from lensjax.training_smoke import few, small
from lensjax.training_start import preprocessing_of, start_folders

LEFT_OUT = "left out (unreadable, blank, of weight 0 or without a label)"


def announcement(options: TrainConfig) -> str:
    """Returns one line: what a training without --data trains on, and how long it is."""
    sky = sky_options(options)
    survey, batch = survey_of(sky), options.batch_size
    own_size = preprocessing_of(options, survey.bands, survey.size, survey.pixel_scale).input_size
    sizes = ", ".join(map(str, sorted(options.sizes()) or [own_size]))
    steps = max(1, round(options.epochs * (sky.count // batch)))
    return (
        f"No --data: trains on simulated cutouts without end, as {survey.name} sees them "
        f"({', '.join(survey.bands)}; {survey.size}x{survey.size} pixels), at {sizes} pixels: "
        f"{steps} steps of {batch} cutouts. The progress says how long that takes on this machine, "
        "--plan how much memory; --epochs makes it shorter."
    )


def training_and_validation(options: TrainConfig) -> tuple[TrainingData, Labelled, str]:
    """Returns what is trained on, what validates, and their numbers in words."""
    if options.data in (None, SIMULATED):
        endless, validation = _simulated(options)
        counts = f"{len(endless)} simulated cutouts per epoch, {len(validation)} for validation"
        return endless, validation, counts
    if options.replay is not None:
        return _replayed(options, options.replay)
    source, preprocessing = opened_cutouts(options)
    if options.smoke:
        source = few(source)
    data = _read(options, source, preprocessing)
    if data.threads:
        print(
            f"more cutouts than the memory holds: each batch reads its own from {options.data}; "
            "fastest from shards, which infer.py --pack writes",
            file=sys.stderr,
        )
    training, validation = split(data, options.validation_fraction)
    counts = f"{len(training)} cutouts, {len(validation)} for validation"
    counts += f", {len(source) - len(data)} {LEFT_OUT}"
    if data.flagged:
        counts += f"; {data.flagged} of those kept have no data in some band"
    return training, validation, counts


def _read(options: DataOptions, source: Source, preprocessing: Preprocessing) -> Labelled:
    """Returns the labelled cutouts of a source, and what they are."""
    data = read_labelled(source, preprocessing, options.fit)
    origin = options.of_data() | {"data_sha256": content_sha256(source)}
    return dataclasses.replace(data, origin=origin)


def _replayed(options: TrainConfig, sky: str) -> tuple[Replayed, Replayed, str]:
    """Returns what `training_and_validation` does: the graded cutouts of `--data` mixed with those
    of a known sky, as the members to start from see them."""
    preprocessing = finetune.seen_by(start_folders(options))
    of_sky = dataclasses.replace(options, bands=None, pixel_scale=None, format="auto")

    def read(which: TrainConfig, data: str) -> tuple[Labelled, str]:
        source = which.opened(data, preprocessing.bands)
        pipeline.check_fields(source, (preprocessing,), options.fit)
        found = _read(which, source, preprocessing)
        return found, f"{len(source) - len(found)} {LEFT_OUT}"

    (graded, not_graded), (known, not_known) = read(options, str(options.data)), read(of_sky, sky)
    if options.head_only:
        if len(np.unique(graded.group)) < 2:
            raise UsageError(
                f"the {len(graded)} graded cutouts of {options.data} are one group: some must be "
                "held back while others are learned, so grade more"
            )
        both = together(graded, known, options.replay_share, preprocessing)
        counts = f"{both.graded} graded cutouts, each held back once; {not_graded}"
        return both, both, counts
    training, validation = replayed(
        graded, known, options.replay_share, options.validation_fraction, preprocessing
    )
    counts = (
        f"{training.graded} graded cutouts and {len(training) - training.graded} replayed, "
        f"{validation.graded} and {len(validation) - validation.graded} for validation; of those "
        f"graded {not_graded}, of the others {not_known}"
    )
    return training, validation, counts


def _simulated(options: TrainConfig) -> tuple[Simulated, Labelled]:
    """Returns the endless training set that `--sky` describes, and its validation set."""
    sky = sky_options(options)
    survey, stamps = survey_of(sky), sources_of(sky)
    if stamps is not None and sky.test_fraction:
        stamps, _ = stamps.split(sky.test_fraction, "test")  # as simulate.py does it
    return simulated(
        Sky(survey, sky.lens_fraction, sky.seed, stamps),
        sky.count,
        round(options.validation_fraction * sky.count),
        preprocessing_of(options, survey.bands, survey.size, survey.pixel_scale),
    )


def sky_options(options: TrainConfig) -> SimulateConfig:
    """Returns the options of simulate.py that `--sky` gives.

    Raises UsageError for options that do not go with them.
    """
    given = [] if options.sky is None else ["--config", str(options.sky)]
    sky = config.parse(SimulateConfig, given, description="")
    wrong = {
        "--bootstrap wants cutouts that return; simulated ones do not": options.bootstrap,
        f"{options.sky}: noise_free is for simulate.py: no cutout of --data {SIMULATED} returns": (
            sky.noise_free
        ),
        f"{options.sky}: backgrounds are for simulate.py, not for --data {SIMULATED}": (
            sky.backgrounds is not None
        ),
    }
    refuse(wrong)
    return small(sky) if options.smoke else sky


def opened_cutouts(options: TrainConfig) -> tuple[Source, Preprocessing]:
    """Returns the cutouts of `--data` and how networks see them."""
    assert options.data is not None
    source = options.opened(options.data, None)
    cutout = _first_cutout(source)
    side = min(cutout.image.shape[:2])
    return source, preprocessing_of(options, source.bands, side, cutout.pixel_scale)


def _first_cutout(source: Source) -> Cutout:
    """Returns the first cutout that can be read: the others are brought to its size."""
    for row in range(len(source)):
        with contextlib.suppress(Unreadable):
            return source[row]
    raise UsageError(f"none of the {len(source)} cutouts can be read: {source.description}")
