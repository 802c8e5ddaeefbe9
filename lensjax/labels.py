"""Labels that somebody has for the cutouts of a run, brought to the order of its predictions."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.table import Column, Table
from numpy.typing import NDArray

from lensjax.data.formats.tables import filled, paths_below, plain, read_table, standardise, texts
from lensjax.errors import UsageError
from lensjax.predictions import read_npz

Array = NDArray[Any]

GRADES = {"A": 1, "B": 1, "C": 0, "X": 0, "": -1}
"""The label of a grade: A and B, a certain and a probable lens, count as lenses; C, a possible one,
and X, none, do not."""


class Match(NamedTuple):
    """Labels in the order of the predictions.

    `labels` (n,) int8: 1 lens, 0 other, -1 unknown; `rows` (n,) int: where each stands among the
    labels, -1 where nowhere; `without_label` of the predictions found no row, and
    `without_prediction` rows of the labels found no prediction.
    """

    labels: Array
    rows: Array
    without_label: int
    without_prediction: int


def read_labels(file: str | os.PathLike[str]) -> Table:
    """Returns the columns `id`, `path` (those that the file has) and `label` of CSV, Parquet, FITS
    or NPZ, then all others that have one value a row.

    `path` comes absolute: relative ones are below the folder of the file, as in a catalogue.
    `label` comes as int: 1 lens, 0 other, -1 unknown. Where a file has none it is taken from its
    column `grade`, which the pages that people grade on export: A and B are lenses, C and X none, a
    row without a grade is unknown. An NPZ without `id` is numbered from 0 by row. Raises UsageError
    for a file that cannot be read, or lacks the columns.
    """
    path = Path(file)
    table = _npz_table(path) if path.suffix.lower() == ".npz" else read_table(path)
    table = standardise(table, str(path))
    if "label" not in table.colnames and "grade" in table.colnames:
        table["label"] = _labels_of_grades(table["grade"], path)
    keys = [name for name in ("id", "path") if name in table.colnames]
    if "label" not in table.colnames or not keys:
        raise UsageError(
            f"{path} has the columns {', '.join(table.colnames)}: "
            "labels need `label` or `grade`, and `id` or `path`"
        )
    columns = {name: filled(table[name]) for name in keys}
    if "path" in columns:  # as a run writes them
        columns["path"] = np.array(list(paths_below(path.parent, texts(table["path"]))), str)
    found = Table(columns | {"label": np.asarray(table["label"])})
    for name in table.colnames:
        if name not in found.colnames and table[name].ndim == 1:
            found[name] = plain(table[name])
    return found


def match(catalogue: Table, labels: Table) -> Match:
    """Returns the label of each row of the catalogue, found by id, or by path where the labels have
    no id. A row of the labels that is unknown says nothing against another of the same id.

    An id counts as the same number or text whatever its type: 7, 7.0, "7" and, against a number,
    "007". Raises UsageError where nothing matches, or where one id has two labels.
    """
    by = "id" if "id" in labels.colnames else "path"
    if by not in catalogue.colnames:
        raise UsageError("the predictions know no paths: give labels with an `id` column")
    mine, theirs = _comparable(np.asarray(catalogue[by]), np.asarray(labels[by]))
    given = np.asarray(labels["label"])
    known_first = np.argsort(given < 0, kind="stable")
    theirs, given = theirs[known_first], given[known_first]
    keys, first, place = np.unique(theirs, return_index=True, return_inverse=True)
    disagreeing = (given >= 0) & (given != given[first][place])
    if disagreeing.any():
        raise UsageError(f"{by} {theirs[disagreeing][0]} has two labels: keep one of them")
    found = np.isin(mine, keys)
    if not found.any():
        raise UsageError(
            f"no {by} of the labels ({_example(theirs)}) is one of the predictions "
            f"({_example(mine)}): are they of the same data?"
        )
    row = first[np.minimum(np.searchsorted(keys, mine), keys.size - 1)]
    return Match(
        labels=np.where(found, given[row], -1).astype(np.int8),
        rows=np.where(found, known_first[row], -1),
        without_label=int((~found).sum()),
        without_prediction=int((~np.isin(theirs, mine)).sum()),
    )


def _labels_of_grades(grades: Column, path: Path) -> Array:
    """Returns the label (n,) of each grade. Raises UsageError for what is no grade."""
    given = [text.upper() for text in texts(grades)]
    odd = sorted(set(given) - GRADES.keys())
    if odd:
        raise UsageError(f"column grade of {path} holds {odd[0]!r}: grades are A, B, C and X")
    return np.array([GRADES[grade] for grade in given], np.int64)


def _npz_table(path: Path) -> Table:
    arrays = read_npz(path)
    given = {name: arrays[name] for name in ("id", "path", "label") if name in arrays}
    shapes = {array.shape for array in given.values()}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise UsageError(f"{path}: {' and '.join(given)} must have one value for each cutout")
    if "label" in given and "id" not in given:
        given["id"] = np.arange(len(given["label"]))
    others = {name: array for name, array in arrays.items() if array.shape in shapes}
    return Table(given | {name: array for name, array in others.items() if name not in given})


def _comparable(mine: Array, theirs: Array) -> tuple[Array, Array]:
    """Returns both keys as integers where one of them is and the other can be, else as texts."""
    if {"i", "u"} & {mine.dtype.kind, theirs.dtype.kind}:
        with np.errstate(invalid="ignore"):
            try:
                whole = mine.astype(np.int64), theirs.astype(np.int64)
            except (ValueError, OverflowError):
                return mine.astype(str), theirs.astype(str)
        pairs = zip((mine, theirs), whole, strict=True)
        if not any(keys.dtype.kind == "f" and (keys != ints).any() for keys, ints in pairs):
            return whole
    return mine.astype(str), theirs.astype(str)


def _example(keys: Array) -> str:
    return f"{keys[0]!s}, ..." if keys.size else "none"
