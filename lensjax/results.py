"""The results of a run: the ranked catalogue, the scores by input row, the rejects, the record.

Every file appears whole or not at all: it is written to a temporary name and then moved into place.
"""

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Column, MaskedColumn, Table, meta
from numpy.typing import NDArray

from lensjax import coverage, cutout_files, hats
from lensjax.columns import CARRIED, COLUMNS, OF_MEMBERS, TRUST, describe
from lensjax.data.catalog import DataOptions
from lensjax.data.formats import fits_table
from lensjax.data.formats.tables import filled, plain, read_table
from lensjax.data.planes import located
from lensjax.data.source import Source
from lensjax.errors import UsageError
from lensjax.files import gathering, remove, replacing
from lensjax.predictions import Predictions, Scores, write_predictions

NO_COLUMNS: Mapping[str, Any] = MappingProxyType({})
# A file of candidates has so many at most: it opens anywhere, and is written in little memory.
PARTITION_ROWS = 500_000
# The report lists so many.
LISTED = 200

OF_CUTOUTS = ("id", "ra", "dec")
OF_ENSEMBLE = tuple(name for name in Scores._fields if name in COLUMNS)
FIGURES = (
    *("roc", "precision_recall", "purity", "reliability", "scores", "uncertainty", "promise"),
)
WORST = ("false_positives.png", "missed_lenses.png")
OUTPUTS = (  # every file that scoring or evaluating leaves in its folder
    "predictions.npz",
    "rejects.csv",
    "candidates.parquet",
    "candidates.csv",
    "candidates.fits",
    "candidates.vot",
    "candidates.reg",
    "searched.moc.fits",
    "searched.moc.json",
    "run.json",
    "mosaic.png",
    "report.html",
    "inspection.html",
    "grading.html",
    "ask.html",
    "metrics.json",
    *WORST,
    *(f"{name}.{form}" for name in FIGURES for form in ("png", "pdf")),
)

Array = NDArray[Any]


def clear(folder: Path) -> None:
    """Deletes what scoring and evaluating have left in a folder, and no other file: the results of
    a run take the place of another's as a whole."""
    later = (path for name in CANDIDATES for path in folder.glob(partition_name(name, "[0-9]*")))
    for path in (*later, *(folder / name for name in OUTPUTS)):
        path.unlink(missing_ok=True)
    remove(folder / hats.FOLDER)
    cutout_files.clear(folder)


def write_outputs(
    folder: Path,
    catalogue: Table,
    predictions: Predictions,
    trust: Mapping[str, Array] = NO_COLUMNS,
) -> None:
    """Writes the predictions, the rejects and the ranked candidates; a file that fails does not
    stop the others.

    `catalogue` has the rows of the `predictions`, in input order; for `trust` see
    `candidate_table`. The four files of candidates hold the same rows: the best PARTITION_ROWS,
    and as many each those that are numbered. Gaps are nulls in Parquet, empty fields in CSV and
    VOTable (as NaN is), TNULL, NaN or blank in FITS, whose texts are UTF-8. A column of vectors is
    a list in Parquet, a vector in FITS, and a JSON array in CSV and VOTable. FITS has no room for
    all columns and all names: see `fits_table`.
    """
    with gathering() as attempt:
        attempt("predictions.npz", write_predictions, folder, catalogue, predictions)
        attempt("rejects.csv", write_rejects, folder, catalogue, predictions)
        ranking = predictions.ranking()
        for number, ranks in enumerate(_partitions(ranking.size), start=1):
            rows = ranking[ranks.start : ranks.stop]
            candidates = candidate_table(catalogue, predictions, rows, ranks.start, trust)
            write_candidates(folder, candidates, number, attempt)


def write_hats(folder: Path, candidates: Table) -> None:
    """Writes all candidates whose position is known as a HATS catalogue, candidates.hats."""
    hats.write(folder, candidates, _write_parquet)


def write_candidates(
    folder: Path, candidates: Table, number: int, attempt: Callable[..., None]
) -> None:
    """Writes a part of the ranked candidates, the first of which has the number 1; `attempt` is
    that of `files.gathering`."""
    for name, write in CANDIDATES.items():
        there = partition_name(name, number)
        attempt(there, write, folder / there, candidates)
    if number == 1:
        attempt("candidates.reg", write_regions, folder / "candidates.reg", candidates)


def read_candidates(folder: Path) -> Iterator[tuple[int, Table]]:
    """Yields the number of each part of the candidates of a run, and its rows, best first.

    Raises UsageError where the folder has none, or a part cannot be read.
    """
    for number in itertools.count(1):
        path = folder / partition_name("candidates.parquet", number)
        if not path.exists():
            if number == 1:
                raise UsageError(f"{folder} has no candidates.parquet: name the folder of a run")
            return
        yield number, Table([_with_gaps(plain(column)) for column in read_table(path).itercols()])


def read_record(folder: Path) -> dict[str, Any]:
    """Returns what run.json says of a run. Raises UsageError where it cannot be read."""
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: name the folder of a run") from error
    if not isinstance(record, dict):
        raise UsageError(f"cannot read {path}: it is no record of a run")
    return record


def scored_cutouts(run: Path, ids: Array, data: str | None = None) -> Source:
    """Returns the cutouts that a run scored, read as its run.json says; `data` names another place
    of them.

    Raises UsageError where they are not known, cannot be opened, or do not have the `ids` (n,) of
    the predictions.
    """
    record = read_record(run) if (run / "run.json").exists() else {}
    config, bands = record.get("config", {}), list(record.get("bands_from", ()))
    data = data or config.get("data")
    if data is None:
        raise UsageError(f"{run} has no run.json that names the cutouts: give --data")
    options = {name: config[name] for name in DataOptions().of_data() if name in config}
    source = DataOptions(**options).opened(data, bands or None)
    if source.table["id"].astype(str).tolist() != np.asarray(ids).astype(str).tolist():
        raise UsageError(f"{data} holds other cutouts than those of the predictions in {run}")
    return source


def _with_gaps(column: Column) -> Column:
    """Returns a column whose values that are NaN are gaps, as they were before they were read."""
    if column.dtype.kind != "f" or not np.isnan(column).any():
        return column
    return MaskedColumn(column, mask=np.isnan(column))


def is_of_trust(column: Column) -> bool:
    """Returns whether a column of candidates is one of TRUST, and no carried one of its name."""
    meaning = TRUST.get(column.name)
    return meaning is not None and column.description == meaning.description


def with_trust(candidates: Table, trust: Mapping[str, Array]) -> Table:
    """Returns candidates with these columns of TRUST, (rows,), in place of those that they have. A
    carried column of such a name gets the suffix `_input`."""
    table = candidates.copy(copy_data=False)
    for name in trust:
        if name in table.colnames and is_of_trust(table[name]):
            table.remove_column(name)
        elif name in table.colnames:
            table.rename_column(name, _free_name(name, table.colnames, TRUST))
    ours = {OF_MEMBERS.description, *(meaning.description for meaning in TRUST.values())}
    place = max(n for n, column in enumerate(table.itercols()) if column.description in ours) + 1
    for name, values in reversed(list(trust.items())):
        column = MaskedColumn(values) if np.ma.isMA(values) else Column(values)
        table.add_column(column, name=name, index=place)
        describe(table[name], TRUST[name])
    return table


def partition_name(name: str, number: int | str) -> str:
    """Returns what the numbered part of a file of candidates is called; the first is the file."""
    stem, _, form = name.rpartition(".")
    return name if number == 1 else f"{stem}-{number}.{form}"


def _partitions(count: int) -> list[range]:
    """Returns the ranks, from 0, that each file of candidates holds; there is always one."""
    firsts = range(0, max(count, 1), PARTITION_ROWS)
    return [range(first, min(first + PARTITION_ROWS, count)) for first in firsts]


def candidate_table(
    catalogue: Table,
    predictions: Predictions,
    rows: Array | None = None,
    before: int = 0,
    trust: Mapping[str, Array] = NO_COLUMNS,
) -> Table:
    """Returns the readable rows, best first: rank, id, position, scores, `flag`, members, columns
    of `trust`, `_healpix_29`, then carried columns; or those `rows` of the ranking that come after
    so many others.

    `trust` are those of TRUST that are known, (n,) in input order, with a mask where they say
    nothing.

    Carried columns whose names differ from ours at most in case get the suffix `_input`. Texts come
    as str, columns with gaps as MaskedColumn, a position that is not known as a gap. What a column
    means stands in its unit, its description and the `ucd` of its meta.
    """
    rows = predictions.ranking() if rows is None else rows
    table = Table({"rank": np.arange(before + 1, before + rows.size + 1)})
    table["id"] = plain(catalogue["id"][rows])
    for name in ("ra", "dec"):
        degrees = np.ma.masked_invalid(getattr(predictions, name)[rows])
        table[name] = MaskedColumn(degrees) if degrees.mask.any() else Column(degrees.data)
    for name in OF_ENSEMBLE:
        table[name] = getattr(predictions.scores, name)[rows]
    table["flag"] = np.asarray(predictions.flag[rows], np.str_)
    for name, column in table.columns.items():
        describe(column, COLUMNS[name])
    for name, values in zip(predictions.members, predictions.scores.member_probs, strict=True):
        table[f"{name}_probability"] = Column(values[rows], meta={"member": name})
        describe(table[f"{name}_probability"], OF_MEMBERS)
    for name, values in trust.items():
        table[name] = values[rows]
        describe(table[name], TRUST[name])
    if located(predictions.ra, predictions.dec).any():
        cells = coverage.healpix(predictions.ra[rows], predictions.dec[rows])
        gaps = np.ma.getmaskarray(cells).any()
        table["_healpix_29"] = MaskedColumn(cells) if gaps else Column(np.ma.getdata(cells))
        describe(table["_healpix_29"], COLUMNS["_healpix_29"])
    ours = {name.lower() for name in table.colnames}
    for name in catalogue.colnames:
        if name in OF_CUTOUTS:
            continue
        text = name.encode(errors="replace").decode()  # names of HDF5 may be no text
        free = _free_name(text, table.colnames, ours)
        table[free] = plain(catalogue[name][rows])
        if free in CARRIED:
            describe(table[free], CARRIED[free])
    return table


def _free_name(name: str, taken: Iterable[str], ours: Container[str]) -> str:
    """Returns the name of a carried column, with a suffix where it is one of ours or taken."""
    while name.lower() in ours or name in taken:
        name += "_input"
    return name


def notes(candidates: Table, count: int) -> list[str]:
    """Returns what a user must know of the files that hold so many candidates, one line per fact;
    `candidates` are some of them."""
    columns, kept = candidates.colnames, fits_table.names(candidates.colnames)
    said = []
    files = len(_partitions(count))
    if files > 1:
        said.append(
            f"candidates.* hold the best {PARTITION_ROWS:,} of {count:,} candidates: the others "
            f"follow in candidates-2.* to candidates-{files}.*"
        )
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


def write_rejects(folder: Path, catalogue: Table, predictions: Predictions) -> None:
    """Writes rejects.csv: `path,id,reason` of each unreadable row; the header alone without any."""
    rows = np.flatnonzero(~predictions.readable)
    rejects = Table({"path": np.full(rows.size, ""), "id": filled(catalogue["id"][rows])})
    if "path" in catalogue.colnames:
        rejects["path"] = filled(catalogue["path"][rows])
    rejects["reason"] = plain(Column(predictions.reason[rows]))
    _write_csv(folder / "rejects.csv", rejects)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes strict JSON, in which NaN and infinities are null."""
    text = json.dumps(to_json(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def _write_parquet(path: Path, table: Table) -> None:
    from lensjax.data.formats import arrow

    # What astropy reads: units and descriptions, texts with nulls and the width of texts.
    metadata = {"table_meta_yaml": "\n".join(meta.get_yaml_from_table(table))} | {
        f"table::len::{name}": str(max(table[name].dtype.itemsize // 4, 1))
        for name in table.colnames
        if table[name].dtype.kind == "U"
    }
    with replacing(path) as file:
        arrow.write_parquet(file, table, metadata)


def _flat(table: Table) -> Table:
    """Returns the table with vectors as JSON arrays."""
    flat = table.copy(copy_data=False)
    for name in table.colnames:
        if table[name].ndim > 1:
            rows = np.ma.asarray(table[name]).tolist()
            flat[name] = np.array([json.dumps(to_json(row)) for row in rows], np.str_)
    return flat


def _write_csv(path: Path, table: Table) -> None:
    from lensjax.data.formats import arrow

    header = io.StringIO(newline="")
    csv.writer(header, lineterminator="\r\n").writerow(table.colnames)  # quotes \r, as it does \n
    with replacing(path) as file:
        file.write(header.getvalue().removesuffix("\r\n").encode("utf-8", "replace") + b"\n")
        arrow.write_csv(file, _flat(table), header=False)


def _write_fits(path: Path, table: Table) -> None:
    with replacing(path) as file:
        fits.HDUList([fits.PrimaryHDU(), fits_table.hdu(table, "CANDIDATES")]).writeto(file)


def _write_votable(path: Path, table: Table) -> None:
    from lensjax.data.formats import votable

    with replacing(path) as file:
        votable.write_votable(file, _flat(table))


def write_regions(path: Path, candidates: Table) -> None:
    """Writes the first LISTED candidates as regions of DS9, with rank and score as text; none where
    no position is known."""
    lines = [
        f"point({row['ra']:.7f},{row['dec']:.7f}) # point=circle "
        f"text={{{row['rank']}: {row['probability']:.4f}}}"
        for row in candidates[:LISTED]
        if located(*(np.ma.filled(row[name], np.nan) for name in ("ra", "dec")))
    ]
    if lines:
        with replacing(path) as file:
            file.write("\n".join(["# Region file format: DS9", "icrs", *lines, ""]).encode())


CANDIDATES = {
    "candidates.parquet": _write_parquet,
    "candidates.csv": _write_csv,
    "candidates.fits": _write_fits,
    "candidates.vot": _write_votable,
}


def to_json(value: Any) -> Any:
    """Returns the value in the types of JSON, numbers that JSON lacks as None."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | bool | int) else str(value)
