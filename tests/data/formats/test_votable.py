"""A VOTable is valid, and comes back as the table that was written."""

import io

import numpy as np
import pytest
from astropy.io.votable import parse, validate
from astropy.table import MaskedColumn, Table

from lensjax import results
from lensjax.columns import COLUMNS, OF_MEMBERS
from lensjax.data.formats import votable
from tests.scored import scored

TEXTS = ["a & b", "<TD>", "two\nlines", "ünï ☃", "]]>", "a\rb", "plain", ""]


def written(table: Table) -> Table:
    file = io.BytesIO()
    votable.write_votable(file, table)
    file.seek(0)
    return parse(file, verify="exception").get_first_table().to_table()


def test_values_of_all_types_come_back():
    columns = {
        kind: np.array([0, 1, 2, 3, 100, 5, 6, 7], kind)
        for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "f2", "f4", "f8", "bool")
    }
    table = Table(columns | {"text": TEXTS})
    table["f8"] = [0.1, np.nan, np.inf, -np.inf, 1e300, 5e-324, -0.0, 1 / 3]
    table["f4"] = np.float32([0.1, 1 / 3, 3e38, 1e-45, 5, 6, 7, 8])
    table["i8"] = MaskedColumn([2**62 + 1, -5, 0, 1, 2, 3, 4, 5], mask=[0, 0, 1, 0, 0, 0, 0, 0])
    table["u8"] = np.array([2**64 - 1] * 8, np.uint64)
    found = written(table)
    for name in ("f4", "f8"):
        mine, theirs = np.asarray(table[name]), np.ma.filled(found[name], np.nan)
        assert theirs.dtype == mine.dtype and np.array_equal(mine, theirs, equal_nan=True)
    assert found["i8"].tolist() == [2**62 + 1, -5, None, 1, 2, 3, 4, 5]
    for name in (*columns, "text"):
        if name not in ("f4", "f8", "i8"):
            assert found[name].tolist() == table[name].tolist(), name
    assert found["u8"].tolist() == [str(2**64 - 1)] * 8


@pytest.mark.parametrize("size", [0, 5])
def test_candidates_are_a_valid_table_whose_columns_say_what_they_are(tmp_path, size, monkeypatch):
    monkeypatch.setattr(votable, "_ROWS", 2)
    predictions = scored(size, (0,) if size else ())
    catalogue = Table({"id": np.arange(size), "path": [f"{k}.fits" for k in range(size)]})
    results.write_outputs(tmp_path, catalogue, predictions)
    path = tmp_path / "candidates.vot"
    assert validate(path, output=io.StringIO())
    found = parse(path, verify="exception").get_first_table()
    table = results.candidate_table(catalogue, predictions)
    assert [field.name for field in found.fields] == table.colnames
    meanings = COLUMNS | {f"{name}_probability": OF_MEMBERS for name in predictions.members}
    for field in found.fields:
        if field.name in meanings:
            said = (str(field.unit or ""), field.ucd, " ".join(field.description.split()))
            assert said == meanings[field.name]
    assert all((found.to_table()[name] == table[name]).all() for name in table.colnames)
