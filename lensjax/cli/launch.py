"""scripts/launch.py: writes the job files that run a command on a cluster or in a cloud."""

import shlex
from collections.abc import Sequence

from lensjax import config
from lensjax.cluster.jobs import LaunchConfig, write


def main(argv: Sequence[str]) -> None:
    """Writes the files and prints their names. What follows `--` is the command to run."""
    ours, theirs = list(argv), []
    if "--" in ours:
        at = ours.index("--")
        ours, theirs = ours[:at], ours[at + 1 :]
    if theirs:
        ours.append(f"--command={shlex.join(theirs)}")
    options = config.parse(LaunchConfig, ours, description=__doc__.split(": ", 1)[1])
    print("\n".join(map(str, write(options))))
    print("the first lines of each file say how to start it")
