"""scripts/grades.py: merges the grades of several people into labels and weights."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from lensjax import config, errors
from lensjax.grades import GradesConfig, merge


def main(argv: Sequence[str]) -> None:
    """Runs `merge FILE... --output FILE` and prints what came out."""
    words = list(takewhile(lambda word: not word.startswith("-"), argv))
    if words[:1] != ["merge"] and not {"-h", "--help"} & set(argv):
        raise errors.unknown("word", words[0] if words else "", ["merge"])
    about = f"{__doc__.split(': ', 1)[1]} usage: grades merge A.csv B.csv ... --output M.csv"
    options = config.parse(GradesConfig, argv[len(words) :], description=about)
    print(merge([Path(word) for word in words[1:]], options))
