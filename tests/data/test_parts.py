"""A part of the data has its own rows only, and they are those of the whole."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from astropy.io import fits
from astropy.table import Table, vstack

from lensjax.data.catalog import open_source
from lensjax.data.formats.tables import read_rows
from lensjax.data.parts import rows_of

ROWS = 11


def catalogue(folder, name):
    for row in range(ROWS):
        np.save(folder / f"{row}.npy", np.random.default_rng(row).normal(size=(4, 4)))
    columns = {
        "path": [f"{row}.npy" for row in range(ROWS)],
        "note": ["", *(f"n{row}" for row in range(1, ROWS))],
        # Text by one value that another part holds.
        "field": ["1"] * (ROWS - 1) + ["007"],
    }
    table = Table(columns)
    if name == "a.parquet":
        pa.parquet.write_table(pa.table(columns), folder / name, row_group_size=3)
    elif name == "a.vot":
        table.write(folder / name, format="votable")
    else:
        table.write(folder / name)
    return folder / name


def stack(folder, name):
    images = np.random.default_rng(0).normal(size=(ROWS, 5, 4, 1)).astype("f4")
    np.savez(folder / name, images=images, ra=np.arange(ROWS, dtype=float))
    return folder / name


def template(folder, name):
    fits.writeto(folder / "g.fits", np.random.default_rng(1).normal(size=(ROWS, 5, 4)))
    return f"{folder}/{name}"


MADE = {
    "a.csv": catalogue,
    "a.parquet": catalogue,
    "a.fits": catalogue,
    "a.vot": catalogue,
    "a.npz": stack,
    "{band}.fits": template,
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("of", [1, 3, 15])
def test_parts_together_are_the_whole(tmp_path, name, of):
    data = MADE[name](tmp_path, name)
    whole = open_source(data, needed=("g",))
    parts = [open_source(data, needed=("g",), part=(part, of)) for part in range(1, of + 1)]
    assert [row for part in parts for row in part.rows] == list(whole.rows) == list(range(ROWS))
    assert {part.given for part in parts} == {whole.given} == {ROWS}
    together = vstack([part.table for part in parts if len(part)])
    for column in whole.table.colnames:
        assert str(together[column].tolist()) == str(whole.table[column].tolist()), column
    for part in parts:
        assert list(part.files()) == list(whole.files())
        for row in range(len(part)):
            expected = whole[part.first_row + row].image
            np.testing.assert_array_equal(part[row].image, expected)
        if part.stack is not None and len(part):
            expected = list(whole.stack.read(slice(part.rows.start, part.rows.stop)))
            np.testing.assert_array_equal(list(part.stack.read(slice(0, len(part)))), expected)


def test_only_the_groups_of_rows_of_a_part_are_read(tmp_path, monkeypatch):
    read = []
    whole = pa.parquet.ParquetFile.read_row_groups

    def read_row_groups(self, groups):
        read.extend(groups)
        return whole(self, groups)

    monkeypatch.setattr(pa.parquet.ParquetFile, "read_row_groups", read_row_groups)
    rows = read_rows(catalogue(tmp_path, "a.parquet"), (2, 3))
    assert rows.rows == range(3, 7) == rows_of((2, 3), ROWS) and rows.given == ROWS
    assert rows.table["path"].tolist() == [f"{row}.npy" for row in rows.rows] and read == [1, 2]


@pytest.mark.parametrize(("of", "most_bytes"), [(1, 500), (10, 100)])
def test_what_a_catalogue_takes_of_memory(tmp_path, of, most_bytes):
    rows = 10_000
    np.save(tmp_path / "a.npy", np.ones((4, 4)))
    lines = [
        f"{2**60 + row},{row / 100},-5.5,cutouts of a field/../../a.npy" for row in range(rows)
    ]
    (tmp_path / "cutouts of a field" / "b").mkdir(parents=True)
    (tmp_path / "list.csv").write_text("\n".join(["id,ra,dec,path", *lines]))
    open_source(tmp_path / "list.csv", needed=("g",))  # what is imported is not counted
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        source = open_source(tmp_path / "list.csv", needed=("g",), part=(1, of))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(source) == rows // of and pa.total_allocated_bytes() == before
    assert peak < most_bytes * rows
