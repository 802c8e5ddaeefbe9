"""The cutouts of a run that people look at before its list is certified."""

from pathlib import Path

import numpy as np

from lensjax.data.source import Source

WHAT_TO_DO = (
    "say in inspection.csv beside it which of them are lenses (label 1, others 0), then: "
    "lensjax certify --run {folder} --labels {folder}/inspection.csv"
)


def write(
    folder: Path,
    source: Source,
    ranking: np.ndarray,
    calibration: np.ndarray,
    *,
    most: int,
    seed: int,
) -> tuple[Path, Path]:
    """Writes inspection.html and inspection.csv into the folder of a run, and returns their paths.

    They hold, in no order, the best `most` of the rows that calibrate, (n,) bool by rank, and as
    many of the others; `ranking` (n,) are the rows of the `source`, best first.
    """
    from lensjax import report
    from lensjax.trust import certificate

    rows = ranking[certificate.to_inspect(calibration, most, seed)]
    pictures = [report.picture(source, row) for row in rows]
    return report.write_inspection(folder, source.table[rows], pictures)
