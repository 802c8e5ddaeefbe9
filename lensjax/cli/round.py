"""scripts/round.py: scores, asks what to grade, learns from the grades, and scores again."""

from collections.abc import Sequence

from lensjax import config
from lensjax.rounds import RoundConfig, go_on


def main(argv: Sequence[str]) -> None:
    """Runs the command and prints what it does, the ledger, and what is to be graded next."""
    options = config.parse(RoundConfig, argv, description=__doc__.split(": ", 1)[1])
    for line in go_on(options):
        print(line, flush=True)
