"""inspection.html and ask.html: cutouts to be graded without scores, and the same as CSV."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from lensjax.data.formats import arrow
from lensjax.data.planes import Cutout
from lensjax.errors import UsageError
from lensjax.files import replacing
from lensjax.labels import match, read_labels
from lensjax.report.page import graded_page, place_of, write_page

COLUMNS = ("id", "ra", "dec", "path")
UNSEEN = -1

Array = NDArray[Any]


def write_inspection(
    folder: Path,
    shown: Table,
    cutouts: Sequence[Cutout | None],
    bands: Sequence[str],
    impostors: Sequence[str],
    data: object,
    name: str = "inspection",
) -> tuple[Path, Path]:
    """Writes NAME.html and NAME.csv, see `write_list`, and returns their paths.

    `shown` has a row for each of the cutouts, in these `bands`. The page has no score and no rank
    of them; it exports a CSV with grades. `impostors` are the kinds of non-lens that can be named,
    `data` is where the cutouts come from. Raises LensjaxError where they cannot be written.
    """
    paths = folder / f"{name}.html", folder / f"{name}.csv"
    write_list(paths[1], shown)
    places = [place_of(row) for row in shown]
    write_page(paths[0], graded=graded_page(name, data, places, cutouts, bands, impostors))
    return paths


def write_list(path: Path, shown: Table) -> None:
    """Writes a CSV of the cutouts `shown`, for other tools: their `id` and, where they are known,
    `ra`, `dec` and `path`, and a `label` to be filled in: 1 a lens, 0 none, -1 not looked at."""
    table = shown[[column for column in COLUMNS if column in shown.colnames]]
    table["label"] = _known_labels(path, table)
    with replacing(path) as file:
        arrow.write_csv(file, table)


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
