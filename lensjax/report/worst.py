"""Mosaics of what a run gets most wrong, from the cutouts that it scored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from lensjax.errors import LensjaxError
from lensjax.evaluation import Labelled
from lensjax.report.pictures import look, picture, write_mosaic
from lensjax.results import WORST, scored_cutouts

TITLES = dict(zip(WORST, ("Others that score highest", "Lenses that score lowest"), strict=True))

Array = NDArray[Any]


def write_mosaics(
    folder: Path, run: Path, data: str | None, labelled: Labelled, rows: Mapping[str, Array]
) -> tuple[list[Path], list[str]]:
    """Writes a mosaic of some `rows` by the name of its file, in place of a former one, each cutout
    with its rank among all; returns the paths, or says why there are none.

    The cutouts are those that a `run` scored, or `data`. Raises UsageError where `data` are not.
    """
    for name in rows:
        (folder / name).unlink(missing_ok=True)
    try:
        source = scored_cutouts(run, labelled.catalogue["id"], data)
    except LensjaxError as error:
        if data is not None:
            raise
        return [], [f"no mosaics of the worst: {error}"]
    scores, paths = labelled.scores, []
    place = np.argsort(np.argsort(-scores, kind="stable"))  # NaN is last
    for (name, chosen), label in zip(rows.items(), (0, 1), strict=True):
        shown = Table({"rank": place[chosen] + 1, "id": source.table["id"][chosen]})
        shown["probability"] = scores[chosen]
        shown["logit"] = shown["logit_std"] = np.full(chosen.size, np.nan)
        pictures = [picture(look(source, row), source.bands) for row in chosen]
        count = int((labelled.labels == label).sum())
        if chosen.size:
            paths.append(folder / name)
            write_mosaic(paths[-1], pictures, shown, count, title=TITLES[name], which="the worst")
    return paths, []
