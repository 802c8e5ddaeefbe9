"""A table as a FITS binary table, whatever its columns are called and however many there are."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Column, MaskedColumn, Table

MOST_COLUMNS = 999  # of a FITS table
MOST_CHARACTERS = 68  # of a text in one line of a header
_MOST_OF_A_COMMENT = 200


def names(columns: Sequence[str]) -> dict[str, str]:
    """Returns the columns that a FITS table has room for, in order, and what it calls them.

    FITS has ASCII names of at most 68 characters, and does not tell `Flux` from `flux`.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for column in columns[:MOST_COLUMNS]:
        free, number = _fitting(column), 1
        while free.lower() in taken:
            number += 1
            free = _fitting(column, f"_{number}")
        taken.add(free.lower())
        found[column] = free
    return found


def hdu(table: Table, name: str) -> fits.BinTableHDU:
    """Returns the table as an HDU of this name; columns beyond the 999th are left out.

    Gaps are TNULL, NaN or blank, texts UTF-8. Each column has the unit, the `ucd` of its meta and
    the description that it has in the table, as TUNIT, TUCD and TCOMM; one that could not keep its
    name has that in TCOMM.
    """
    called = names(table.colnames)
    columns = [_column(table[original], new) for original, new in called.items()]
    made = fits.table_to_hdu(Table(columns, copy=False), name=name)
    for number, (original, new) in enumerate(called.items(), 1):
        column = table[original]
        comments = [column.description or "", f"column {original}" if new != original else ""]
        comments = [_ascii(comment)[:_MOST_OF_A_COMMENT] for comment in comments if comment]
        unit = "" if column.unit is None else _ascii(_unit(column.unit))[:MOST_CHARACTERS]
        said = {"TUNIT": unit, "TUCD": column.meta.get("ucd"), "TCOMM": "; ".join(comments)}
        made.header.update({f"{key}{number}": text for key, text in said.items() if text})
    return made


def _fitting(name: str, suffix: str = "") -> str:
    """Returns the name in printable ASCII, without accents and quotes, as long as a line holds."""
    bare = unicodedata.normalize("NFKD", name).replace("'", "_")
    text = "".join(c if " " <= c <= "~" else "_" for c in bare if not unicodedata.combining(c))
    return (text.strip() or "column")[: MOST_CHARACTERS - len(suffix)].rstrip() + suffix


def _ascii(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def _unit(unit: Any) -> str:
    """Returns the unit as FITS writes it, or as it calls itself where FITS has none."""
    try:
        return unit.to_string("fits")
    except ValueError:
        return str(unit)


def _column(column: Column, name: str) -> Column:
    """Returns the column in a type that FITS has, with a null value that no row holds."""
    data, gaps = np.ma.getdata(np.asanyarray(column)), np.ma.getmaskarray(np.ma.asarray(column))
    kind, masked = data.dtype.kind, bool(gaps.any())
    null: Any = None
    if kind == "U":
        encoded = np.char.encode(np.where(gaps, "", data), "utf-8")
        data = encoded.astype(f"S{max(encoded.dtype.itemsize, 1)}")
    elif kind == "f":
        data = np.where(gaps, np.nan, data).astype(np.result_type(data.dtype, np.float32))
    elif masked and kind == "u" and data[~gaps].max(initial=0) > np.iinfo(np.int64).max:
        return _column(Column(np.where(gaps, "", data.astype(str))), name)
    elif masked or data.dtype == np.int8:
        data = data.astype(np.int64 if kind in "iu" else np.int16)
        null = np.iinfo(data.dtype).min
    if null is None:
        return Column(data, name=name)
    return MaskedColumn(data, mask=gaps, fill_value=null, name=name)
