"""The cutouts of a run that people look at before its list is certified."""

from pathlib import Path

import numpy as np

from lensjax.data.source import Source
from lensjax.errors import UsageError

IMPOSTORS = "ring,spiral,merger,satellite,artefact"
MOST_KINDS = 9  # each has a digit
WHAT_TO_DO = (
    "grade its cutouts in a browser, export the grades, then: "
    "lensjax certify --run {folder} --labels GRADES.csv"
)


def write(
    folder: Path,
    source: Source,
    ranking: np.ndarray,
    calibration: np.ndarray,
    *,
    most: int,
    seed: int,
    impostors: str = IMPOSTORS,
    data: object = None,
) -> tuple[Path, Path]:
    """Writes inspection.html and inspection.csv into the folder of a run, and returns their paths.

    They hold, in no order, the best `most` of the rows that calibrate, (n,) bool by rank, and as
    many of the others; `ranking` (n,) are the rows of the `source`, best first.
    """
    from lensjax import report
    from lensjax.trust import certificate

    rows = ranking[certificate.to_inspect(calibration, most, seed)]
    cutouts = [report.look(source, row) for row in rows]
    kinds = kinds_of(impostors)
    return report.write_inspection(folder, source.table[rows], cutouts, source.bands, kinds, data)


def kinds_of(impostors: str) -> list[str]:
    """Returns the kinds of non-lens that an option names. Raises UsageError where there are more
    than there are digits to give them."""
    kinds = list(dict.fromkeys(filter(None, map(str.strip, impostors.split(",")))))
    if len(kinds) > MOST_KINDS:
        raise UsageError(f"--impostors names {len(kinds)} kinds: give at most {MOST_KINDS}")
    return kinds
