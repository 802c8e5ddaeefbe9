"""Tables from and to files by way of Apache Arrow: CSV and Parquet.

Arrow's libraries take 40 MiB: this module is imported where such a file is read or written.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from astropy.table import Column, MaskedColumn, Table

from lensjax.errors import UsageError

_DECIMAL = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_LEADING_ZERO = r"^[+-]?0\d"
_WHOLE = r"^[+-]?\d+$"


def read_csv(path: Path) -> Table:
    """The table of a CSV file. A column becomes numbers only where each of its values is written
    back the same (identifiers) or is a decimal number; `007` stays text."""
    header = pa.csv.open_csv(path).schema.names
    text = pa.csv.read_csv(
        path,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types={name: pa.string() for name in header},
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )
    with ThreadPoolExecutor() as threads:  # Arrow lets go of the interpreter
        texts = (column.combine_chunks() for column in text.columns)
        columns = list(threads.map(_numbers, texts, text.column_names))
    return _to_table(pa.Table.from_arrays(columns, names=text.column_names), path)


def read_parquet(path: Path) -> Table:
    """The table of a Parquet file."""
    return _to_table(pa.parquet.read_table(path), path)


def parquet_metadata(path: Path) -> dict[str, str]:
    """What the writer of a Parquet file noted beside the schema."""
    metadata = pa.parquet.read_schema(path).metadata or {}
    return {
        key.decode(errors="replace"): metadata[key].decode(errors="replace") for key in metadata
    }


def from_table(table: Table) -> pa.Table:
    """The table as Arrow's, gaps as nulls, vectors as lists, with what each column means."""
    arrays = {name: _array(table[name]) for name in table.colnames}
    schema = pa.schema(
        pa.field(name, array.type, metadata=_meaning(table[name])) for name, array in arrays.items()
    )
    return pa.table(arrays, schema)


def write_parquet(file: IO[bytes], arrow: pa.Table, metadata: Mapping[str, str]) -> None:
    """Writes a table as Parquet."""
    pyarrow.parquet.write_table(arrow.replace_schema_metadata(metadata), file)


def write_csv(file: IO[bytes], arrow: pa.Table) -> None:
    """Writes a table as CSV with its header."""
    pyarrow.csv.write_csv(arrow, file)


def write_csv_rows(file: IO[bytes], arrow: pa.Table, texts: Mapping[str, Sequence[str]]) -> None:
    """Writes a table as CSV without a header, gaps empty, in types that all readers know; the
    columns that `texts` has are written as it has them."""
    columns = {
        name: pa.array(texts[name]) if name in texts else _readable(column)
        for name, column in _items(arrow)
    }
    pyarrow.csv.write_csv(pa.table(columns), file, pa.csv.WriteOptions(include_header=False))


def _to_table(arrow: pa.Table, path: Path) -> Table:
    repeated = sorted({name for name in arrow.column_names if arrow.column_names.count(name) > 1})
    if repeated:
        raise UsageError(f"{path} has the column {repeated[0]} more than once: rename one")
    table = Table()
    for name, column in _items(arrow):
        table[name] = _column(column, name)
    return table


def _readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in a type whose digits say the same to all readers, NaN as a gap."""
    if pa.types.is_boolean(column.type):
        return column.cast(pa.int8())  # 1 and 0 equal True and False; the words come back as text
    if pa.types.is_floating(column.type):
        # digits of a double: the value is the same, bit for bit, to readers that know only doubles
        digits = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(digits), None, digits)
    return column


def _meaning(column: Column) -> dict[str, str]:
    """Unit, description and UCD of a column, where it has them."""
    found = {"unit": column.unit, "description": column.description, "ucd": column.meta.get("ucd")}
    return {name: str(value) for name, value in found.items() if value}


def _array(column: Column) -> pa.Array:
    """The column as Arrow's, its gaps as nulls, vectors as lists."""
    data, gaps = np.ma.getdata(np.asanyarray(column)), np.ma.getmaskarray(np.ma.asarray(column))
    if data.ndim == 1:
        return pa.array(data, mask=gaps if gaps.any() else None)
    values = pa.array(data.ravel(), mask=gaps.ravel() if gaps.any() else None)
    for length in reversed(data.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    return values


def _items(table: pa.Table) -> Iterable[tuple[str, pa.ChunkedArray]]:
    return zip(table.column_names, table.columns, strict=True)


def _numbers(text: pa.Array, name: str) -> pa.Array:
    """A column of text as integers or floats where nothing is lost, else as it is."""
    if text.null_count == len(text):
        return text
    try:
        integers = pc.cast(text, pa.int64())
        if pc.all(pc.equal(pc.cast(integers, pa.string()), text)).as_py():
            return integers
    except pa.ArrowInvalid:
        pass
    # A look at the first rows says of most texts that they are no numbers.
    if name.lower() == "id" or not (
        _all_match(text[:100], _DECIMAL) and _all_match(text, _DECIMAL)
    ):
        return text
    if _any_match(text, _LEADING_ZERO) or _all_match(text, _WHOLE):
        return text
    return pc.cast(text, pa.float64())


def _all_match(text: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(text, pattern), min_count=0).as_py())


def _any_match(text: pa.Array, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(text, pattern), min_count=0).as_py())


def _column(values: pa.ChunkedArray, name: str) -> Column:
    """An astropy column; missing values are masked, so that integers stay integers."""
    array = values.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_decimal(array.type):
        array = pc.cast(array, pa.float64())
    missing = array.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        # Told the length, numpy goes through the texts once.
        length = pc.max(pc.utf8_length(array)).as_py() or 1
        data = np.array(pc.fill_null(array, "").to_pylist(), dtype=f"U{length}")
    elif pa.types.is_integer(array.type) or pa.types.is_boolean(array.type):
        data = pc.fill_null(array, False if pa.types.is_boolean(array.type) else 0).to_numpy(
            zero_copy_only=False
        )
    elif pa.types.is_floating(array.type):
        return Column(pc.fill_null(array, np.nan).to_numpy(zero_copy_only=False), name=name)
    else:
        data = array.to_numpy(zero_copy_only=False)
    return MaskedColumn(data, mask=missing, name=name) if missing.any() else Column(data, name=name)
