"""A training of a minute or two, which shows whether all runs."""

import dataclasses
import sys
from collections.abc import Collection
from pathlib import Path

from lensjax import runtime
from lensjax.data.source import Source
from lensjax.simulation import SimulateConfig, simulate_survey
from lensjax.train.data import first_of_each_class
from lensjax.training_config import SIMULATED, TrainConfig

SMOKE_SKY = SimulateConfig(count=160, size=48)


def shrunk(options: TrainConfig, given: Collection[str]) -> TrainConfig:
    """Returns the options of a run of a minute or two that goes the same way; `given` are those of
    the command line.

    At most two scales, small ones, and two members of each architecture, and neither weights to
    start from nor a budget: these belong to the devices of the run. Data that a config names
    may not be there yet: small simulated ones stand in for them.
    """
    folder, is_own = runtime.cache_folder() / "smoke", "--output" in given
    data = options.data
    if data not in (None, SIMULATED) and "--data" not in given and not Path(data).exists():
        print(f"{data} is not there: small simulated cutouts instead", file=sys.stderr)
        data = None
    options = dataclasses.replace(options, bands=None, pixel_scale=None) if not data else options
    if data is None:
        data = str(folder / "train.npz")
        if not (folder / "truth.csv").exists():
            simulate_survey(dataclasses.replace(SMOKE_SKY, output=folder))
    sizes = (32, 48)[: len(options.sizes())]
    return dataclasses.replace(
        options,
        data=data,
        scales=",".join(map(str, sizes)) or None,
        members=min(options.members, 2),
        batch_size=8,
        micro_batches=min(options.micro_batches, 2),
        epochs=0.4,
        validation_fraction=0.25,
        memory_budget="auto",
        start_from=None,
        replay=None,
        keep_start=0.0,
        grow_from=None,
        teachers=None,
        output=options.output if is_own else folder / "members",
        resume=options.resume and is_own,
    )


def few(source: Source) -> Source:
    """Returns the first lenses and the first others of a source, as many as a small sky has."""
    return first_of_each_class(source, SMOKE_SKY.count // 2)


def small(sky: SimulateConfig) -> SimulateConfig:
    """Returns a sky to train on with few cutouts, of few pixels."""
    return dataclasses.replace(sky, count=SMOKE_SKY.count, size=SMOKE_SKY.size)
