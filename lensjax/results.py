"""What a run leaves behind: the ranked catalogue, the scores by input row, the rejects, the record.

Every file appears whole or not at all: it is written beside its place and then moved there.
"""

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Column, MaskedColumn, Table, meta
from numpy.typing import NDArray

from lensjax.columns import CARRIED, COLUMNS, OF_MEMBERS, Meaning
from lensjax.data.formats import fits_table
from lensjax.data.formats.tables import filled, plain
from lensjax.files import gathering, replacing

OF_CUTOUTS = ("id", "ra", "dec")
SCORES = tuple(name for name in COLUMNS if name not in ("rank", "flag", *OF_CUTOUTS))
FIGURES = ("roc", "precision_recall", "reliability", "scores", "uncertainty")
OUTPUTS = (  # every file that scoring or evaluating leaves in its folder
    "predictions.npz",
    "rejects.csv",
    "candidates.parquet",
    "candidates.csv",
    "candidates.fits",
    "run.json",
    "mosaic.png",
    "report.html",
    "metrics.json",
    *(f"{name}.{form}" for name in FIGURES for form in ("png", "pdf")),
)
THRESHOLD = 0.5  # probability from which `ensemble_preds` says lens

Array = NDArray[Any]
Scores = Mapping[str, Array]
Members = Mapping[str, Mapping[str, Array]]


def clear(folder: str | os.PathLike[str]) -> None:
    """Delete what scoring and evaluating have left in a folder: the results of a run take the place
    of another's as a whole. No other file is touched."""
    for name in OUTPUTS:
        (Path(folder) / name).unlink(missing_ok=True)


def write_outputs(
    folder: str | os.PathLike[str],
    candidates: Table,
    catalogue: Table,
    scores: Scores,
    members: Members,
    readable: Array,
    flags: Array,
    reasons: Sequence[str] | Array,
) -> None:
    """Write the predictions, the rejects and the ranked `candidates`; what fails stops no other.

    `catalogue` has N rows in input order, `scores` (see `SCORES`) and the `logits` and `probs` of
    each of `members` are (N,), `readable` is (N,) bool, `flags` (N,) says what is amiss with a
    row that is scored all the same, `reasons` (N,) why a row is not readable; both mostly "".
    """
    of_rows = scores, members, readable, flags
    with gathering() as attempt:
        attempt("predictions.npz", write_predictions, folder, catalogue, *of_rows)
        attempt("rejects.csv", write_rejects, folder, catalogue, readable, reasons)
        attempt("candidates", write_candidates, folder, candidates)


def ranking(scores: Scores, readable: Array) -> Array:
    """The input rows (readable,) of the readable cutouts, best first.

    Ties in probability go by logit (float32 probabilities saturate before logits do), then by
    input order.
    """
    rows = np.flatnonzero(readable)
    return rows[np.lexsort((-scores["logit"][rows], -scores["probability"][rows]))]


def candidate_table(
    catalogue: Table, scores: Scores, members: Members, readable: Array, flags: Array
) -> Table:
    """The readable rows, best first: rank, id, position, scores, `flag`, members, then carried
    columns.

    Carried columns whose names differ from ours at most in case get the suffix `_input`. Texts come
    as str, columns with gaps as MaskedColumn, a position that is not known as a gap. What a column
    means (see `lensjax.columns`) stands in its unit, its description and the `ucd` of its meta.
    """
    rows = ranking(scores, readable)
    table = Table({"rank": np.arange(1, rows.size + 1)})
    table["id"] = plain(catalogue["id"][rows])
    for name in ("ra", "dec"):
        degrees = np.ma.masked_invalid(np.ma.asarray(catalogue[name][rows]), copy=False)
        table[name] = MaskedColumn(degrees) if degrees.mask.any() else Column(degrees.data)
    for name in SCORES:
        table[name] = np.asarray(scores[name])[rows]
    table["flag"] = np.asarray(flags, np.str_)[rows]
    for name, column in table.columns.items():
        _describe(column, COLUMNS[name])
    for name, outputs in members.items():
        column = Column(np.asarray(outputs["probs"])[rows], meta={"member": name})
        table[f"{name}_probability"] = column
        _describe(table[f"{name}_probability"], OF_MEMBERS)
    ours = {name.lower() for name in table.colnames}
    for name in catalogue.colnames:
        if name in OF_CUTOUTS:
            continue
        free = name.encode(errors="replace").decode()  # names of HDF5 may be no text
        while free.lower() in ours or free in table.colnames:
            free += "_input"
        table[free] = plain(catalogue[name][rows])
        if free in CARRIED:
            _describe(table[free], CARRIED[free])
    return table


def notes(candidates: Table) -> list[str]:
    """What a user must know of the files that hold the candidates, a line a fact."""
    columns, kept = candidates.colnames, fits_table.names(candidates.colnames)
    said = []
    if len(kept) < len(columns):
        said.append(
            f"candidates.fits has the first {len(kept)} of {len(columns):,} columns, for FITS has "
            "no room for more: all are in candidates.parquet and candidates.csv"
        )
    renamed = sum(name != new for name, new in kept.items())
    if renamed:
        said.append(
            f"candidates.fits has shorter or plainer names for {renamed:,} of the columns: its "
            "header (TCOMM) says which"
        )
    return said


def write_candidates(folder: str | os.PathLike[str], table: Table) -> None:
    """Write candidates.parquet, candidates.csv and candidates.fits, all holding the same rows.

    Gaps are nulls in Parquet, empty fields in CSV (as NaN is), TNULL, NaN or blank in FITS, whose
    texts are UTF-8. A column of vectors is a list in Parquet, a vector in FITS, and a JSON array in
    CSV. FITS has no room for all columns and all names: see `fits_table`.
    """
    with gathering() as attempt:
        for name, write in (
            ("candidates.parquet", _write_parquet),
            ("candidates.csv", _write_csv),
            ("candidates.fits", _write_fits),
        ):
            attempt(name, write, Path(folder) / name, table)


def write_predictions(
    folder: str | os.PathLike[str],
    catalogue: Table,
    scores: Scores,
    members: Members,
    readable: Array,
    flags: Array,
) -> None:
    """Write predictions.npz: (N,) arrays in input order, readable without pickle.

    `id`, `path` where the catalogue has it, `ensemble_logits`, `ensemble_probs`, `ensemble_preds`
    (int8: 1 from a probability of 0.5 on, 0 below), `<member>_logits`, `<member>_probs`, `flag`. A
    row that could not be read is NaN, and -1 in `ensemble_preds`.
    """
    readable = np.asarray(readable, bool)

    def scored(values: Array) -> Array:
        values = np.asarray(values)
        return np.where(readable, values, values.dtype.type(np.nan))

    probability = scored(scores["probability"])
    arrays = {
        "ensemble_logits": scored(scores["logit"]),
        "ensemble_probs": probability,
        "ensemble_preds": np.where(np.isnan(probability), -1, probability >= THRESHOLD).astype(
            np.int8
        ),
    }
    for name, outputs in members.items():
        arrays[f"{name}_logits"] = scored(outputs["logits"])
        arrays[f"{name}_probs"] = scored(outputs["probs"])
    arrays["flag"] = np.asarray(flags, np.str_)
    for name in ("id", "path"):
        if name in catalogue.colnames:
            arrays[name] = filled(catalogue[name])
    size = sum(array.nbytes for array in arrays.values())
    with replacing(Path(folder) / "predictions.npz", size) as file:
        np.savez(file, allow_pickle=False, **arrays)


def write_rejects(
    folder: str | os.PathLike[str],
    catalogue: Table,
    readable: Array,
    reasons: Sequence[str] | Array,
) -> None:
    """Write rejects.csv: `path,id,reason` of each unreadable row; the header alone without any."""
    rows = np.flatnonzero(~np.asarray(readable, bool)).tolist()
    ids = filled(catalogue["id"][rows])
    paths = (
        filled(catalogue["path"][rows]) if "path" in catalogue.colnames else np.full(len(rows), "")
    )
    lines = [_csv_line(("path", "id", "reason"))]
    lines += [
        _csv_line((path, id_, reasons[row]))
        for path, id_, row in zip(paths, ids, rows, strict=True)
    ]
    content = b"".join(lines)
    with replacing(Path(folder) / "rejects.csv", len(content)) as file:
        file.write(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON, in which NaN and infinities are null."""
    text = json.dumps(to_json(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path, len(text)) as file:
        file.write(text.encode())


def _describe(column: Column, meaning: Meaning) -> None:
    column.unit, column.description = meaning.unit or None, meaning.description
    if meaning.ucd:
        column.meta["ucd"] = meaning.ucd


def _write_parquet(path: Path, table: Table) -> None:
    from lensjax.data.formats import arrow

    # What astropy reads: units and descriptions, texts with nulls and the width of texts.
    metadata = {"table_meta_yaml": "\n".join(meta.get_yaml_from_table(table))} | {
        f"table::len::{name}": str(max(table[name].dtype.itemsize // 4, 1))
        for name in table.colnames
        if table[name].dtype.kind == "U"
    }
    with replacing(path, _size(table)) as file:
        arrow.write_parquet(file, arrow.from_table(table), metadata)


def _write_csv(path: Path, table: Table) -> None:
    from lensjax.data.formats import arrow

    vectors = [name for name in table.colnames if table[name].ndim > 1]
    texts = {name: _json_rows(table[name]) for name in vectors}
    with replacing(path, 2 * _size(table)) as file:
        file.write(_csv_line(table.colnames))
        arrow.write_csv_rows(file, arrow.from_table(table), texts)


def _write_fits(path: Path, table: Table) -> None:
    with replacing(path, _size(table)) as file:
        hdu = fits_table.hdu(table, "CANDIDATES")
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(file)


def _size(table: Table) -> int:
    return sum(table[name].nbytes for name in table.colnames)


def _json_rows(column: Column) -> list[str]:
    return [json.dumps(to_json(row)) for row in np.ma.asarray(column).tolist()]


def _csv_line(values: Sequence[Any]) -> bytes:
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(values)  # so that a \r is quoted, as a \n is
    return line.getvalue().removesuffix("\r\n").encode("utf-8", "replace") + b"\n"


def to_json(value: Any) -> Any:
    """The value in the types of JSON, numbers that JSON lacks as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | bool | int) else str(value)
