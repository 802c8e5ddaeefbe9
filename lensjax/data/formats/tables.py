"""Reads a catalogue of cutouts: CSV, Parquet, VOTable or FITS, every column as it is."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Column, MaskedColumn, Table

from lensjax.data.copies import local
from lensjax.data.formats.pictures import FITS_SUFFIXES, has_suffix, stem
from lensjax.data.formats.reader_warnings import silenced
from lensjax.data.parts import WHOLE, Part, Rows, rows_of
from lensjax.data.planes import refusing
from lensjax.errors import UsageError
from lensjax.places import is_local, paths_below

PARQUET_SUFFIXES = (".parquet", ".pq")
VOTABLE_SUFFIXES = (".vot", ".votable", ".xml")
CSV_SUFFIXES = (".csv", ".tsv", ".ecsv", ".csv.gz", ".tsv.gz", ".csv.bz2")
TABLE_SUFFIXES = (*CSV_SUFFIXES, *PARQUET_SUFFIXES, *VOTABLE_SUFFIXES)

# What surveys call the columns that are known here, the first of these before the others.
SPELLINGS = {
    "id": ("id", "object_id", "source_id"),
    "ra": ("ra", "right_ascension", "ra_j2000", "raj2000", "alpha_j2000"),
    "dec": ("dec", "declination", "dec_j2000", "decj2000", "dej2000", "delta_j2000"),
    "path": ("path", "filepath", "filename"),
    "label": ("label",),
    "group": ("group",),
}
KNOWN_COLUMNS = tuple(SPELLINGS)

UNKNOWN_LABEL = -1
_LABELS = {
    1: frozenset(["lens", "lenses", "lensed", "positive", "positives", "true", "yes"]),
    0: frozenset(
        ["nonlens", "nonlenses", "notlens", "nolens", "negative", "negatives", "false", "no"]
    ),
    UNKNOWN_LABEL: frozenset(["", "none", "null", "unknown", "unlabelled", "unlabeled"]),
}

# Control characters but tab and line ends, and what stands for bytes that are no UTF-8, about which
# kinds of files disagree.
_ODD = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def read_table(path: Path) -> Table:
    """Returns the table of a catalogue file, as `read_rows` has it."""
    return read_rows(path).table


def read_rows(path: Path, part: Part = WHOLE) -> Rows:
    """Returns the rows of a catalogue file that a part takes, their values as in the file.

    Of CSV as `arrow.read_csv` has it. Raises `UsageError` for a file that is not there or cannot be
    read as a table, and for a column that occurs twice.
    """
    if is_local(path) and not path.exists():
        raise UsageError(f"{path}: no such file")
    with refusing(f"{path} cannot be read as a table"):
        if has_suffix(path, FITS_SUFFIXES):
            return _astropy_table(path, part, "fits", memmap=False)
        if has_suffix(path, VOTABLE_SUFFIXES):
            return _astropy_table(path, part, "votable")
        from lensjax.data.formats import arrow

        is_parquet = has_suffix(path, PARQUET_SUFFIXES)
        return arrow.read_parquet(path, part) if is_parquet else arrow.read_csv(path, part)


def read_catalogue(path: Path, part: Part) -> tuple[Rows, Callable[[], Iterable[str]]]:
    """Returns the rows of a catalogue of cutouts that a part takes, as `standardise` has them, with
    an `id` and with a `path` below the catalogue's folder; and what gives the paths of all rows.

    Raises `UsageError` where there are no paths.
    """
    raw, rows, count = read_rows(path, part)
    name = find_column("path", raw.colnames)
    if name is None:
        raise UsageError(
            f"{path} has no column {' or '.join(SPELLINGS['path'])}; its columns are "
            f"{', '.join(raw.colnames) or 'none'}; with survey tiles give --catalogue or --detect"
        )
    if not count:
        raise UsageError(f"{path} has no rows")
    table = standardise(raw, str(path))
    del raw  # a copy of each path
    if "id" not in table.colnames:
        table["id"] = [stem(file) for file in texts(table["path"])]
    paths = np.array(list(paths_below(path.parent, texts(table["path"]))), object)
    table["path"] = paths

    def of_all_rows() -> Iterable[str]:
        return paths if part == WHOLE else paths_below(path.parent, column_texts(path, name))

    return Rows(table, rows, count), of_all_rows


def column_texts(path: Path, name: str) -> Iterable[str]:
    """Returns the values of one column of a catalogue file, of all rows, as `texts` has them."""
    from lensjax.data.formats import arrow

    if has_suffix(path, (*FITS_SUFFIXES, *VOTABLE_SUFFIXES)):
        return texts(read_table(path)[name])
    values = arrow.column(path, name, is_parquet=has_suffix(path, PARQUET_SUFFIXES))
    return ("" if value is None else as_text(value).strip() for value in values)


def texts(column: Column) -> Iterable[str]:
    """Returns the values as texts without blanks around them, gaps as empty ones."""
    filled = np.ma.filled(np.ma.asarray(column).astype(object), "")
    return [as_text(value).strip() for value in filled]


def standardise(table: Table, source: str) -> Table:
    """Returns the table with its known columns under their own names, and checked.

    They are found in all their `SPELLINGS`, without regard to case. `ra`, `dec`: float64 degrees,
    NaN where unknown. `label`: int64, 1 a lens, 0 none, -1 unknown. `id`, `group` and all other
    columns stay as they are. Raises `UsageError` that names the `source` where a column holds what
    it cannot hold.
    """
    result = table.copy(copy_data=False)
    for known in SPELLINGS:
        name = find_column(known, result.colnames)
        if name is not None and name != known:
            result.rename_column(name, known)
    for name in ("ra", "dec"):
        if name in result.colnames:
            result[name] = _degrees(result[name], name, source)
    if "label" in result.colnames:
        result["label"] = label_column(result["label"], source)
    return result


def find_column(known: str, columns: Sequence[str]) -> str | None:
    """Returns the first of the columns that has one of the names of a known one; the same case
    comes before any other."""
    for spelling in SPELLINGS[known]:
        if spelling in columns:
            return spelling
        for column in columns:
            if column.strip().lower() == spelling:
                return column
    return None


def label_of(value: Any) -> int | None:
    """Returns 1 (lens), 0 (not a lens) or -1 (unknown) by a label's text; None for another text."""
    text = str(value).strip().lower()
    try:
        number = float(text)
    except ValueError:
        word = re.sub(r"[\s_-]+", "", text)
        return next((label for label, words in _LABELS.items() if word in words), None)
    if np.isnan(number) or number < 0:
        return UNKNOWN_LABEL
    return {0.0: 0, 1.0: 1}.get(number)


def label_column(values: Iterable[Any], source: str) -> np.ndarray:
    """Returns (row,) int64 of labels of any spelling. Raises `UsageError` for what is none."""
    array = np.ma.filled(np.ma.asarray(values).astype(object), "")
    meaning = {value: label_of(value) for value in set(array.tolist())}
    odd = sorted(str(value) for value, label in meaning.items() if label is None)
    if odd:
        raise UsageError(
            f"column label of {source} holds {odd[0]!r}: write 1 or lens, 0 or nonlens, or leave "
            "it empty; another kind of grade goes under another column name"
        )
    return np.array([meaning[value] for value in array.tolist()], np.int64)


def plain(column: Column) -> Column:
    """Returns the column as numbers, bools or str of native byte order, its gaps masked.

    Control characters but tab and line ends, and bytes that are no UTF-8, in texts or in the names
    of files, are U+FFFD.
    """
    data, gaps = np.ma.getdata(np.asanyarray(column)), np.ma.getmaskarray(np.ma.asarray(column))
    if data.dtype.kind == "V":  # records, as HDF5 has them
        data, gaps = np.array([str(record) for record in data.tolist()]), np.zeros(len(data), bool)
    if data.dtype.kind == "O":
        gaps = gaps | np.array([value is None for value in data], bool)
        data = _unboxed(data, gaps)
    if data.dtype.kind == "S":
        data = np.char.decode(data, "utf-8", "replace")
    elif data.dtype == np.longdouble:
        data = data.astype(np.float64)  # no kind of file has more digits
    elif data.dtype.kind not in "biufU":
        data = data.astype(str)
    data = data.astype(data.dtype.newbyteorder("="), copy=False)
    data = _cleaned(data) if data.dtype.kind == "U" else data
    made = MaskedColumn(data, mask=gaps) if gaps.any() else Column(data)
    made.name, made.unit, made.description = column.name, column.unit, column.description
    made.meta |= {name: column.meta[name] for name in ("ucd",) if name in column.meta}
    return made


def filled(column: Column) -> np.ndarray:
    """Returns the column as an array, as `plain` has it; gaps are NaN, or empty text, which makes
    integers with gaps texts."""
    column = plain(column)
    if not isinstance(column, MaskedColumn):
        return np.asarray(column)
    if column.dtype.kind == "f":
        return np.asarray(column.filled(np.nan))
    texts = np.ma.getdata(column).astype(str)
    return np.where(np.ma.getmaskarray(column), "", texts)


def _cleaned(texts: np.ndarray) -> np.ndarray:
    before = texts.ravel().tolist()
    after = [_ODD.sub("\ufffd", text) for text in before]
    return texts if after == before else np.array(after).reshape(texts.shape)


def _unboxed(data: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Returns objects as an array of one plain type, or else as their texts."""
    present = data[~gaps].tolist()
    kinds = {type(value) for value in present}
    is_plain = len(kinds) == 1 and issubclass(kinds.pop(), (bool, int, float, np.generic))
    values = np.array(present) if is_plain else np.zeros(0, object)
    if values.dtype.kind not in "biufU":  # texts, or integers beyond 64 bits
        # NUL at the end of a text of NumPy is nothing.
        values = np.array([as_text(value).replace("\0", "\ufffd") for value in present], "U")
    filled = np.zeros(data.shape, values.dtype if present else "U1")
    filled[~gaps] = values
    return filled


def as_text(value: Any) -> str:
    """Returns the value as text; bytes are taken for UTF-8."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _degrees(column: Column, name: str, source: str) -> np.ndarray:
    """Returns (row,) float64 of a column of numbers, NaN where it is empty."""
    try:
        values = np.ma.asarray(column)
        if values.dtype.kind in "OU":
            filled = np.ma.filled(values.astype(object), "nan")
            return np.array([float(str(value).strip() or "nan") for value in filled], np.float64)
        return np.ma.filled(values.astype(np.float64), np.nan)
    except (ValueError, TypeError) as error:
        raise UsageError(f"column {name} of {source} is not in decimal degrees: {error}") from error


@silenced()
def _astropy_table(path: Path, part: Part, form: str, **how: Any) -> Rows:
    table = Table.read(local(path), format=form, **how)
    rows, count = rows_of(part, len(table)), len(table)
    table = table[rows.start : rows.stop]
    table.convert_bytestring_to_unicode()
    table.meta.clear()
    return Rows(table, rows, count)
