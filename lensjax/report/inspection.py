"""inspection.html: cutouts to be looked at, in no order, and inspection.csv for what is seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from lensjax.data.formats import arrow
from lensjax.errors import UsageError
from lensjax.files import replacing
from lensjax.labels import match, read_labels
from lensjax.report.page import inline, templates

COLUMNS = ("id", "ra", "dec", "path")
UNSEEN = -1

Array = NDArray[Any]


def write_inspection(folder: Path, shown: Table, pictures: Sequence[Array]) -> tuple[Path, Path]:
    """Writes inspection.html and inspection.csv, and returns their paths.

    `shown` has a row for each of the pictures (H, W, 3), with `id` and, where they are known, `ra`,
    `dec` and `path`. In the CSV `label` is to be filled in: 1 a lens, 0 none, -1 not looked at.
    Raises LensjaxError where they cannot be written.
    """
    table = shown[[name for name in COLUMNS if name in shown.colnames]]
    paths = folder / "inspection.html", folder / "inspection.csv"
    table["label"] = _known_labels(paths[1], table)
    page = (
        templates()
        .get_template("inspection.html")
        .render(
            cards=[
                {"id": str(row["id"]), "image": inline(picture)}
                for row, picture in zip(shown, pictures, strict=True)
            ]
        )
    )
    with replacing(paths[0]) as file:
        file.write(page.encode("utf-8", "replace"))
    with replacing(paths[1]) as file:
        arrow.write_csv(file, table)
    return paths


def _known_labels(path: Path, table: Table) -> Array:
    """Returns the labels (n,) that somebody has written for rows of this table. Raises UsageError
    where the file has labels of other cutouts, which would be lost."""
    if not path.exists():
        return np.full(len(table), UNSEEN, np.int8)
    there = read_labels(path)
    there = there[there["label"] != UNSEEN]
    found = match(table, there) if len(there) else None
    if found and found.without_prediction:
        raise UsageError(f"{path} has labels of other cutouts: move it to where it is safe")
    return found.labels if found else np.full(len(table), UNSEEN, np.int8)
