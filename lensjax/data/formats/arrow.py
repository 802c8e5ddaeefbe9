"""Tables from and to files by way of Apache Arrow: CSV and Parquet.

Arrow's libraries take 40 MiB: this module is imported where such a file is read or written.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from astropy.table import Column, MaskedColumn, Table

from lensjax.data.copies import local
from lensjax.data.parts import WHOLE, Part, Rows, rows_of
from lensjax.errors import UsageError
from lensjax.places import readable

# `007` is a name, not a number.
_DECIMAL = r"^[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"
_WHOLE = r"^[+-]?\d+$"
_DELIMITERS = ",;\t|"
_LONGEST_LINE = 2**20


def read_csv(path: Path, part: Part = WHOLE) -> Rows:
    """Returns the rows of a CSV file that a part takes.

    Values are separated by commas, semicolons, tabs or bars, as the column names are; lines before
    these that begin with # are comments. A column becomes numbers only where each of its values is
    written back the same (identifiers) or is a decimal number; `007` stays text.
    """
    text = pa.csv.read_csv(local(path), **_form(path))
    _check_quotes(path, text)
    columns = map(_numbers, text.columns, text.column_names)
    arrow = pa.Table.from_arrays(list(columns), names=text.column_names)
    rows = rows_of(part, len(arrow))
    return Rows(_to_table(arrow.slice(rows.start, len(rows)), path), rows, len(arrow))


def column(path: Path, name: str, *, is_parquet: bool) -> Iterator[Any]:
    """Yields the values of one column of a Parquet file, or the texts of one of a CSV file, of
    which a piece at a time is in memory."""
    if is_parquet:
        batches = pa.parquet.ParquetFile(readable(path)).iter_batches(columns=[name])
    else:
        form = _form(path)
        form["convert_options"].include_columns = [name]
        batches = pa.csv.open_csv(local(path), **form)
    for batch in batches:
        yield from batch.column(0).to_pylist()


def read_parquet(path: Path, part: Part = WHOLE) -> Rows:
    """Returns the rows of a Parquet file that a part takes. Groups of rows outside of it are not
    read."""
    with pa.parquet.ParquetFile(readable(path)) as file:
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
        ends = np.cumsum([0, *(group.num_rows for group in groups)])
        rows = rows_of(part, count := int(ends[-1]))
        held = [n for n in range(len(groups)) if ends[n] < rows.stop and ends[n + 1] > rows.start]
        before = int(ends[held[0]]) if held else 0
        arrow = file.read_row_groups(held).slice(rows.start - before, len(rows))
    return Rows(_to_table(arrow, path), rows, count)


def read_parquet_where(
    files: Iterable[Path], columns: Sequence[str], keep: Callable[..., np.ndarray]
) -> Table:
    """Returns the rows of Parquet files that `keep` says, (row,) bool, by the values of some
    columns; without columns where there are none. Of groups of rows without such only these columns
    are read."""
    kept = []
    for path in files:
        with pa.parquet.ParquetFile(readable(path)) as file:
            for group in range(file.num_row_groups):
                values = file.read_row_group(group, columns)
                rows = keep(*(values[name].to_numpy() for name in columns))
                if rows.any():
                    kept.append(file.read_row_group(group).filter(pa.array(rows)))
    return _to_table(pa.concat_tables(kept, promote_options="default"), path) if kept else Table()


def write_parquet(file: IO[bytes], table: Table, metadata: Mapping[str, str]) -> None:
    """Writes a table as Parquet: gaps as nulls, vectors as lists, with the unit, description and
    UCD of each column."""
    arrow = _from_table(table).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(arrow, file)


def write_csv(file: IO[bytes], table: Table, *, header: bool = True) -> None:
    """Writes a table of scalars as CSV, gaps empty, in types that all readers know."""
    arrow = _from_table(table)
    columns = {name: _readable(arrow[name]) for name in arrow.column_names}
    pyarrow.csv.write_csv(pa.table(columns), file, pa.csv.WriteOptions(include_header=header))


def plain_digits(column: Column) -> pa.Array:
    """Returns a column of scalars in a type whose digits say the same to all readers, gaps and NaN
    as nulls."""
    return _readable(_array(column))


def schema(table: Table) -> pa.Schema:
    """Returns the names, types and meanings of the columns as `write_parquet` writes them."""
    return _from_table(table[:0]).schema


def _form(path: Path) -> dict[str, Any]:
    """Returns how Arrow is to read a CSV file: all columns as texts, empty ones as gaps."""
    skipped, delimiter = _head(path)
    reading = pa.csv.ReadOptions(skip_rows=skipped)
    parsing = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with pa.csv.open_csv(local(path), reading, parsing) as reader:
        names = reader.schema.names
    converting = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in names},
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""],
    )
    return {"read_options": reading, "parse_options": parsing, "convert_options": converting}


def _head(path: Path) -> tuple[int, str]:
    """Returns how many lines of a CSV file come before the column names, and what stands between
    these."""
    skipped = 0
    with pa.input_stream(local(path)) as stream:
        lines = io.TextIOWrapper(io.BufferedReader(stream), "utf-8-sig", "replace")
        first = line = lines.readline(_LONGEST_LINE)
        while line.startswith("#") or line.isspace():
            skipped, line = skipped + 1, lines.readline(_LONGEST_LINE)
    names = re.sub(r'"[^"]*"', "", line)
    most = max(_DELIMITERS, key=names.count)
    # The enhanced CSV of astropy has blanks, unless it says otherwise.
    is_enhanced = first.startswith("# %ECSV")
    return skipped, " " if is_enhanced and most not in names else most


def _check_quotes(path: Path, text: pa.Table) -> None:
    """Raises `UsageError` where a quotation mark that nothing closes has made the rest of the file
    one value: its rows would be lost."""
    if not len(text) or "\n" not in (text.column(-1)[-1].as_py() or ""):
        return
    end = b""
    with pa.input_stream(local(path)) as stream:
        while piece := stream.read(2**20):
            end = (end + piece)[-1000:]
    if not end.rstrip().endswith(b'"'):
        raise UsageError(f"{path} cannot be read as a table: a quotation mark is never closed")


def _numbers(text: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Returns a column of text as integers or floats where nothing is lost, else as it is."""
    if text.null_count == len(text):
        return text
    try:
        integers = pc.cast(text, pa.int64())
        if pc.all(pc.equal(pc.cast(integers, pa.string()), text)).as_py():
            return integers
    except pa.ArrowInvalid:
        pass
    is_number = name.lower() != "id" and _all_match(text, _DECIMAL) and not _all_match(text, _WHOLE)
    return pc.cast(text, pa.float64()) if is_number else text


def _all_match(text: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(text, pattern), min_count=0).as_py())


def _to_table(arrow: pa.Table, path: Path) -> Table:
    names = arrow.column_names
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"{path} has the column {repeated[0]} more than once: rename one")
    return Table([_described(_column(arrow[name], name), arrow.field(name)) for name in names])


def _described(column: Column, field: pa.Field) -> Column:
    """Returns a column with the unit, description and UCD that `write_parquet` wrote, if it did."""
    said = {name.decode(): text.decode() for name, text in (field.metadata or {}).items()}
    column.unit, column.description = said.get("unit"), said.get("description")
    if "ucd" in said:
        column.meta["ucd"] = said["ucd"]
    return column


def _column(values: pa.ChunkedArray, name: str) -> Column:
    """Returns an astropy column; missing values are masked, so that integers stay integers."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    if pa.types.is_fixed_size_list(values.type):
        inner = _column(pc.list_flatten(values), name)
        return type(inner)(inner.reshape(len(values), -1, *inner.shape[1:]), name=name)
    if pa.types.is_floating(values.type):
        return Column(values.fill_null(np.nan).to_numpy(), name=name)
    missing = values.is_null().to_numpy()
    if pa.types.is_integer(values.type):
        values = values.fill_null(0)
    elif pa.types.is_boolean(values.type):
        values = values.fill_null(False)
    # Of texts an array of Python's: one of numpy's takes four bytes for each letter of the longest.
    data = values.to_numpy()
    return MaskedColumn(data, mask=missing, name=name) if missing.any() else Column(data, name=name)


def _from_table(table: Table) -> pa.Table:
    """Returns the table as Arrow's, gaps as nulls, vectors as lists."""
    arrays = {name: _array(table[name]) for name in table.colnames}
    schema = pa.schema(
        pa.field(name, array.type, metadata=_meaning(table[name])) for name, array in arrays.items()
    )
    return pa.table(arrays, schema)


def _array(column: Column) -> pa.Array:
    data, gaps = np.ma.getdata(np.asanyarray(column)), np.ma.getmaskarray(np.ma.asarray(column))
    values = pa.array(data.ravel(), mask=gaps.ravel() if gaps.any() else None)
    if data.ndim > 1 and not data.size:  # lists of no length at all are of no fixed one to Arrow
        return pa.ListArray.from_arrays(np.zeros(len(data) + 1, np.int32), values)
    for length in reversed(data.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    return values


def _meaning(column: Column) -> dict[str, str]:
    """Returns unit, description and UCD of a column, where it has them."""
    found = {"unit": column.unit, "description": column.description, "ucd": column.meta.get("ucd")}
    return {name: str(value) for name, value in found.items() if value}


def _readable(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Returns the column in a type whose digits say the same to all readers, NaN as a gap."""
    if pa.types.is_boolean(column.type):
        return column.cast(pa.int8())  # 1 and 0 equal True and False; the words come back as text
    if pa.types.is_floating(column.type):
        # digits of a double: the value is the same, bit for bit, to readers that know only doubles
        digits = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(digits), None, digits)
    return column
