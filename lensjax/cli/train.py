"""scripts/train.py: trains members on labelled cutouts."""

import dataclasses
from collections.abc import Sequence

from lensjax import config
from lensjax.cluster import hosts
from lensjax.training import train
from lensjax.training_config import SIMULATED, TrainConfig
from lensjax.training_data import announcement
from lensjax.training_plan import make_plan
from lensjax.training_smoke import shrunk


def main(argv: Sequence[str]) -> None:
    """Runs the command and prints a line for each member."""
    argv = ["--schedule=progressive" if word == "--progressive" else word for word in argv]
    options = config.parse(TrainConfig, argv, description=__doc__.split(": ", 1)[1])
    with hosts.joined(options.coordinator, options.processes, options.process):
        _run(options, argv)


def _run(options: TrainConfig, argv: Sequence[str]) -> None:
    if options.smoke:
        options = shrunk(options, given={word.split("=")[0] for word in argv})
    if options.plan:
        print(make_plan(options))
        return
    if options.data is None:
        print(announcement(options), flush=True)
        options = dataclasses.replace(options, data=SIMULATED)
    for trained in train(options):
        print(trained.summary())
