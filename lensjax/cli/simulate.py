"""scripts/simulate.py: makes ray-traced lenses and look-alikes: cutouts, split into training and
test, or with --tiles whole tiles of a survey with a catalogue and the truth."""

from collections.abc import Sequence

from lensjax import config
from lensjax.simulation import SimulateConfig, simulate_survey
from lensjax.tile_simulation import simulate_tiles


def main(argv: Sequence[str]) -> None:
    """Runs the command and prints where the sky is."""
    options = config.parse(SimulateConfig, argv, description=__doc__.split(": ", 1)[1])
    print(simulate_survey(options) if options.tiles is None else simulate_tiles(options))
