"""The cutouts of a run that people look at without its scores."""

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
    from lensjax.trust import certificate

    rows = ranking[certificate.to_inspect(calibration, most, seed)]
    return write_blind(folder, source, rows, "inspection", impostors, data)


def write_blind(
    folder: Path, source: Source, rows: np.ndarray, name: str, impostors: str, data: object
) -> tuple[Path, Path]:
    """Writes NAME.html and NAME.csv with these rows of the source, and returns their paths."""
    from lensjax import report

    cutouts = [report.look(source, row) for row in rows]
    shown, kinds = source.table[rows], kinds_of(impostors)
    return report.write_inspection(folder, shown, cutouts, source.bands, kinds, data, name)


def kinds_of(impostors: str) -> list[str]:
    """Returns the kinds of non-lens that an option names. Raises UsageError where there are more
    than there are digits to give them."""
    kinds = list(dict.fromkeys(filter(None, map(str.strip, impostors.split(",")))))
    if len(kinds) > MOST_KINDS:
        raise UsageError(f"--impostors names {len(kinds)} kinds: give at most {MOST_KINDS}")
    return kinds
