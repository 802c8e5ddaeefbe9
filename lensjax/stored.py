"""Arrays by name, in Parquet files: what ledgers and stores of scores keep.

Arrow's libraries take 40 MiB: this module is imported where such a file is read or written.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from lensjax.places import readable


def write_columns(
    file: IO[bytes], columns: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes arrays (row,) or (vector, row) as Parquet, of which `read_columns` returns the very
    same: NaN is no gap here. What in a text is no Unicode becomes a question mark."""
    arrays = {}
    for name, values in columns.items():
        flat = np.ascontiguousarray(values.T).ravel()
        if flat.dtype.kind == "U":
            arrays[name] = pa.array(np.char.encode(flat, "utf-8", "replace")).cast(pa.string())
        else:
            arrays[name] = pa.array(flat)
        if values.ndim > 1:
            arrays[name] = pa.FixedSizeListArray.from_arrays(arrays[name], len(values))
    table = pa.table(arrays).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(table, file, write_page_checksum=True)


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays that `write_columns` wrote, texts as Python's, of which equal ones are
    one."""
    columns = {}
    table = pyarrow.parquet.read_table(
        readable(path), partitioning=None, page_checksum_verification=True
    )
    for name, column in zip(table.column_names, table.columns, strict=True):
        array = column.combine_chunks()
        if pa.types.is_string(column.type):
            coded = array.dictionary_encode()
            texts = np.array(list(map(sys.intern, coded.dictionary.to_pylist())), object)
            columns[name] = texts[coded.indices.to_numpy()]
        elif pa.types.is_fixed_size_list(column.type):
            flat = array.flatten().to_numpy(zero_copy_only=False)
            columns[name] = flat.reshape(-1, column.type.list_size).T
        else:
            columns[name] = array.to_numpy(zero_copy_only=False)
    return columns


def parquet_metadata(path: Path) -> dict[str, str]:
    """Returns what the writer of a Parquet file noted beside the schema."""
    metadata = pa.parquet.read_schema(readable(path)).metadata or {}
    return {k.decode(errors="replace"): v.decode(errors="replace") for k, v in metadata.items()}
