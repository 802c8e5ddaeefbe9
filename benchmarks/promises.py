"""Certifies the list of a run whose truth is known, again and again, and says what came true.

    python -m benchmarks.promises --run FOLDER

FOLDER holds the results of infer.py over cutouts with a column `label`. Each repetition draws other
rows to calibrate, has an oracle look at the best of them, certifies a list of the rest, and counts
what is false in it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lensjax import config, launch, results
from lensjax.errors import UsageError
from lensjax.trust import certificate
from lensjax.trust.run import PromiseOptions, drawn, promise_of

UNKNOWN = -1


@dataclass(frozen=True)
class Promises(PromiseOptions):
    """Options of this benchmark."""

    run: Path | None = None
    """Folder of the results."""
    max_false_discovery: float | None = 0.5
    """Certify the longest list of which at most this share is false."""
    repetitions: int = 20
    """How often rows are drawn."""
    inspect: int = certificate.INSPECTED
    """Of the drawn rows the oracle looks at the best so many."""


def main(argv: Sequence[str]) -> None:
    """Prints a line for each repetition, and in how many of them a promise was broken."""
    options = config.parse(Promises, argv, description=__doc__.split("\n", 1)[0])
    logit, lens = _truth(options)
    print(f"{lens.size:,} cutouts, {lens.sum():,} lenses; the same from a list of its length")
    print("seed  listed  false at most  false  purity  of the lenses  any cut broken")
    broken = 0
    for seed in range(options.repetitions):
        calibration = drawn(options.calibration, lens.size, seed)
        seen = np.full(lens.size, UNKNOWN)
        looked_at = np.flatnonzero(calibration)[: options.inspect]
        seen[looked_at] = lens[looked_at]
        said = promise_of(options, logit, calibration, seen, seed)
        others = ~calibration
        false = np.cumsum(~lens[others])
        at_most = np.ma.compressed(said.columns["false_positives_at_most"])
        is_broken = bool((false > at_most).any())
        broken += is_broken
        found = said.record["promise"]["certified"]
        if found is None:
            print(f"{seed:>4}    none{'':>44}{'yes' if is_broken else 'no':>16}")
            continue
        rows, bound = found["rows"], found["false"]
        wrong = int(false[rows - 1])
        kept = (rows - wrong) / lens[others].sum()
        print(
            f"{seed:>4}  {rows:>6,}  {bound:>13,}  {wrong:>5,}  {1 - wrong / rows:>6.2f}  "
            f"{kept:>13.2f}  {'yes' if is_broken else 'no':>14}"
        )
    print(f"broken at some cut: {broken} of {options.repetitions}")


def _truth(options: Promises) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logits of all candidates, best first, and which are lenses.

    Raises UsageError where the folder does not say it of each.
    """
    if options.run is None:
        raise UsageError("--run is missing: name the folder of the results of infer.py")
    parts = [table["logit", "label"] for _, table in results.read_candidates(options.run)]
    logit, label = (
        np.concatenate([np.asarray(part[name]) for part in parts]) for name in ("logit", "label")
    )
    if (label < 0).any():
        raise UsageError(f"{options.run} has cutouts without a label: the truth must be known")
    return logit, label == 1


if __name__ == "__main__":
    sys.exit(launch.run(main, sys.argv[1:]))
