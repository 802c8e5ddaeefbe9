"""The pieces of the sky hold each candidate once, and HATS's own library reads them."""

import numpy as np
import pyarrow.parquet
import pytest
from astropy.table import Table

from lensjax import hats, results
from tests.scored import scored


@pytest.fixture
def job():
    predictions = scored(400, (3, 7))
    predictions.ra[10] = np.nan
    predictions.ra[200:], predictions.dec[200:] = 150 + predictions.ra[200:] / 100, 2.0
    return Table({"id": np.arange(400), "field": ["a"] * 400}), predictions


def write(folder, job, monkeypatch):
    monkeypatch.setattr(hats.write, "__defaults__", (60,))
    results.write_hats(folder, results.candidate_table(*job))
    return folder / hats.FOLDER


def test_each_candidate_is_in_the_pixel_of_its_place(tmp_path, job, monkeypatch):
    root = write(tmp_path, job, monkeypatch)
    listed = (root / "partition_info.csv").read_text().split()[1:]
    found = []
    for line in listed:
        order, number = map(int, line.split(","))
        folder = root / "dataset" / f"Norder={order}" / f"Dir={number // 10_000 * 10_000}"
        rows = pyarrow.parquet.ParquetFile(folder / f"Npix={number}.parquet").read().to_pydict()
        cells = np.array(rows["_healpix_29"])
        assert (np.diff(cells) >= 0).all() and 0 < cells.size <= 60
        assert set((cells >> 2 * (29 - order)).tolist()) == {number}
        found += zip(rows["id"], rows["rank"], strict=True)
    table = results.candidate_table(*job)
    assert sorted(found) == sorted(
        (row["id"], row["rank"]) for row in table if row["id"] not in (3, 7, 10)
    )
    assert len({line.split(",")[0] for line in listed}) > 1
    assert len(list(root.rglob("*.parquet"))) == len(listed)
    results.clear(tmp_path)
    assert not root.exists()


@pytest.mark.slow
def test_the_library_of_hats_reads_it(tmp_path, job, monkeypatch):
    read_hats = pytest.importorskip("hats").read_hats
    from hats.io.validation import is_valid_catalog

    root = write(tmp_path, job, monkeypatch)
    catalogue = read_hats(root)
    assert catalogue.catalog_info.total_rows == 397
    assert catalogue.schema.names == results.candidate_table(*job).colnames
    assert len(catalogue.get_healpix_pixels()) == len(list(root.rglob("*.parquet")))
    assert is_valid_catalog(root)
    near = catalogue.filter_by_cone(152.0, 2.0, 3600)
    assert 0 < len(near.get_healpix_pixels()) < len(catalogue.get_healpix_pixels())
