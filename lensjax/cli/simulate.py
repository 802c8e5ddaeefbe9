"""scripts/simulate.py: makes ray-traced lenses and look-alikes, split into training and test."""

from collections.abc import Sequence

from lensjax import config
from lensjax.simulation import SimulateConfig, simulate_survey


def main(argv: Sequence[str]) -> None:
    """Runs the command and prints where the cutouts are."""
    options = config.parse(SimulateConfig, argv, description=__doc__.split(": ", 1)[1])
    print(simulate_survey(options))
