"""The scores of a run read back, and the labels that somebody has for them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from lensjax.data.formats.tables import filled, paths_below, read_table, standardise, texts
from lensjax.errors import UsageError

Array = NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """Scores of N cutouts in input order: `ids` (N,), `paths` (N,) where the run knew them, and
    `probabilities` (N,) of the `ensemble` and of each member, NaN where unreadable."""

    ids: Array
    paths: Array | None
    probabilities: dict[str, Array]


@dataclass(frozen=True)
class Match:
    """Labels brought to the order of the predictions.

    `labels` (N,) int8: 1 lens, 0 other, -1 unknown; `without_label` of the predictions found no
    row, and `without_prediction` rows of the labels found no prediction.
    """

    labels: Array
    without_label: int
    without_prediction: int


def read_predictions(folder: str | os.PathLike[str]) -> Predictions:
    """The predictions.npz of a run's folder (or the file itself). UsageError where it is none."""
    path = Path(folder)
    path = path / "predictions.npz" if path.is_dir() else path
    arrays = _read_npz(path)
    missing = {"id", "ensemble_probs"} - arrays.keys()
    if missing:
        raise UsageError(f"{path} lacks {' and '.join(sorted(missing))}: give the folder of a run")
    members = [name for name in arrays if name.endswith("_probs") and name != "ensemble_probs"]
    probabilities = {
        name.removesuffix("_probs"): arrays[name] for name in ("ensemble_probs", *members)
    }
    for name, values in probabilities.items():
        if values.dtype.kind not in "fiu" or values.shape != arrays["id"].shape or values.ndim != 1:
            raise UsageError(
                f"{path}: the probabilities of {name} are not one number for each of its "
                f"{arrays['id'].size} ids: give the folder of a run"
            )
    return Predictions(arrays["id"], arrays.get("path"), probabilities)


def read_labels(file: str | os.PathLike[str]) -> Table:
    """The columns `id`, `path` (those that the file has) and `label` of CSV, Parquet, FITS or NPZ.

    `path` comes absolute: relative ones are below the folder of the file, as in a catalogue.
    `label` comes as int: 1 lens, 0 other, -1 unknown. An NPZ without `id` is numbered from 0 by
    row. Raises UsageError for a file that cannot be read, or lacks the columns.
    """
    path = Path(file)
    if path.suffix.lower() == ".npz":
        arrays = _read_npz(path)
        given = {name: arrays[name] for name in ("id", "path", "label") if name in arrays}
        shapes = {array.shape for array in given.values()}
        if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
            raise UsageError(f"{path}: {' and '.join(given)} must have one value for each cutout")
        table = Table(given)
        if "id" not in arrays and "label" in arrays:
            table["id"] = np.arange(len(table))
    else:
        table = read_table(path)
    table = standardise(table, str(path))
    keys = [name for name in ("id", "path") if name in table.colnames]
    if "label" not in table.colnames or not keys:
        raise UsageError(
            f"{path} has the columns {', '.join(table.colnames)}: "
            "labels need `label`, and `id` or `path`"
        )
    columns = {name: filled(table[name]) for name in keys}
    if "path" in columns:  # as a run writes them
        columns["path"] = np.array(list(paths_below(path.parent, texts(table["path"]))), str)
    return Table(columns | {"label": np.asarray(table["label"])})


def match(predictions: Predictions, labels: Table) -> Match:
    """The label of each prediction, found by id, or by path where the labels have no id.

    An id counts as the same number or text whatever its type: 7, 7.0, "7" and, against a number,
    "007". Raises UsageError where nothing matches, or where one id has two labels.
    """
    by = "id" if "id" in labels.colnames else "path"
    ours = predictions.ids if by == "id" else predictions.paths
    if ours is None:
        raise UsageError("the predictions know no paths: give labels with an `id` column")
    mine, theirs = _comparable(np.asarray(ours), np.asarray(labels[by]))
    keys, first, place = np.unique(theirs, return_index=True, return_inverse=True)
    given = np.asarray(labels["label"])
    disagreeing = given != given[first][place]
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
        without_label=int((~found).sum()),
        without_prediction=int((~np.isin(theirs, mine)).sum()),
    )


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    # Arbitrary bytes: NumPy, zipfile and zlib have errors of their own.
    except Exception as error:
        reason = getattr(error, "strerror", None) or "it is no plain NPZ file, or not a whole one"
        raise UsageError(f"cannot read {path}: {reason}") from error


def _comparable(mine: Array, theirs: Array) -> tuple[Array, Array]:
    """Both keys as integers where one of them is and the other can be, else both as text."""
    if "i" in mine.dtype.kind + theirs.dtype.kind or "u" in mine.dtype.kind + theirs.dtype.kind:
        with np.errstate(invalid="ignore"):
            try:
                whole = mine.astype(np.int64), theirs.astype(np.int64)
            except (ValueError, OverflowError):
                return mine.astype(str), theirs.astype(str)
        fractions = [
            keys
            for keys, ints in zip((mine, theirs), whole, strict=True)
            if keys.dtype.kind == "f" and (keys != ints).any()
        ]
        if not fractions:
            return whole
    return mine.astype(str), theirs.astype(str)


def _example(keys: Array) -> str:
    return f"{keys[0]!s}, ..." if keys.size else "none"
