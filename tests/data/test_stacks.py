"""HDF5 and Zarr: images on demand, rows tied by an index, one clear line for what is wrong."""

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zarr

from lensjax.data.catalog import open_source
from lensjax.errors import UsageError

GRI = ("g", "r", "i")
IMAGES = np.random.default_rng(0).normal(size=(7, 6, 5, 3)).astype(np.float32)
IDS = np.array([f"tile α,{row}" for row in range(7)])


def holds(source, rows=range(7), images=IMAGES) -> None:
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(source[place].image, images[row])
    np.testing.assert_array_equal(source.stack.read(slice(1, 3)), images[list(rows[1:3])])


@pytest.fixture
def hdf5(tmp_path):
    path = tmp_path / "cutouts.h5"
    with h5py.File(path, "w") as file:
        file["images"] = IMAGES
        file["id"] = IDS.astype(object)
        file["ra"] = np.linspace(1, 2, 7)
        file["label"] = np.arange(7) % 2
        file["psf"] = np.zeros((5, 5))
        file.attrs["bands"] = ["g", "r", "i"]
        file.attrs["pixel_scale"] = 0.2
    return path


def test_hdf5(hdf5):
    source = open_source(hdf5, needed=GRI)
    holds(source)
    assert source.table["id"].tolist() == IDS.tolist() and source.threads > 0
    assert source.table["label"].tolist() == [0, 1, 0, 1, 0, 1, 0] and source[0].pixel_scale == 0.2
    turned = open_source(hdf5, needed=("i", "g"), pixel_scale=0.5)
    holds(turned, images=IMAGES[..., [2, 0]])
    assert turned[0].pixel_scale == 0.5


def test_hdf5_in_groups_and_channels_first(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["sample/pixels"] = np.moveaxis(IMAGES, 3, 1)
        file["sample/id"] = np.arange(7) + 2**60
    source = open_source(tmp_path / "a.hdf5", needed=GRI)
    holds(source)
    assert source.table["id"].tolist() == (np.arange(7) + 2**60).tolist()


def test_hdf5_that_cannot_serve_is_refused(tmp_path, hdf5):
    (tmp_path / "text.h5").write_text("no data")
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["first"], file["second"] = IMAGES, IMAGES
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["id"] = np.arange(3)
    whole = hdf5.read_bytes()
    (tmp_path / "half.h5").write_bytes(whole[: len(whole) // 2])
    for name, words in {
        "text.h5": "cannot be read as HDF5",
        "half.h5": "cannot be read as HDF5",
        "two.h5": "several arrays of images .first, second.: call the right one `images`",
        "none.h5": "no array of images",
    }.items():
        with pytest.raises(UsageError, match=words) as caught:
            open_source(tmp_path / name, needed=GRI)
        assert "\n" not in str(caught.value)


@pytest.fixture(params=[2, 3])
def store(tmp_path, request):
    path = tmp_path / "survey.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=request.param)
    images = group.create_array("images", shape=IMAGES.shape, chunks=(3, 6, 5, 3), dtype="f4")
    images[...] = IMAGES
    return path


def sidecar(path, rows, **columns) -> None:
    table = pa.table({"idx_in_zarr": rows, **columns})
    pa.parquet.write_table(table, path)


def test_zarr_alone(store):
    source = open_source(store, needed=GRI, pixel_scale=0.1)
    holds(source)
    assert source.table["id"].tolist() == list(range(7)) and source[0].pixel_scale == 0.1


@pytest.mark.parametrize("given", ["survey.zarr", "survey.parquet"])
def test_zarr_with_its_catalogue(store, given):
    rows = [6, 0, 3, 3, 1]
    folder = store.parent
    sidecar(folder / "survey.parquet", rows, id=[f"s{row}" for row in rows], grade=[1, 2, 3, 4, 5])
    sidecar(folder / "other.parquet", [0])
    source = open_source(folder / given, needed=GRI)
    holds(source, rows)
    assert source.table["id"].tolist() == ["s6", "s0", "s3", "s3", "s1"]
    assert source.table["grade"].tolist() == [1, 2, 3, 4, 5]
    assert len(source) == 5 and "2x" not in source.description


def test_zarr_that_does_not_fit_its_catalogue_is_refused(store):
    folder = store.parent
    sidecar(folder / "survey.parquet", [0, 7])
    with pytest.raises(UsageError, match="goes from 0 to 7, but .* holds 7 images"):
        open_source(store, needed=GRI)
    for name in ("a", "b"):
        sidecar(folder / f"{name}.parquet", [0])
    (folder / "survey.parquet").unlink()
    with pytest.raises(UsageError, match="which of a.parquet, b.parquet belongs to it"):
        open_source(store, needed=GRI)
    (folder / "alone").mkdir()
    sidecar(folder / "alone" / "survey.parquet", [0])
    with pytest.raises(UsageError, match="there is no Zarr beside it"):
        open_source(folder / "alone" / "survey.parquet", needed=GRI)


def test_a_damaged_zarr_is_refused(store):
    for mark in (".zgroup", "zarr.json"):
        if (store / mark).exists():
            (store / mark).write_text("{")
    with pytest.raises(UsageError, match="cannot be read as Zarr") as caught:
        open_source(store, needed=GRI)
    assert "\n" not in str(caught.value)


def test_the_format_can_be_said(tmp_path, hdf5):
    hdf5.rename(tmp_path / "cutouts.dat")
    with pytest.raises(UsageError, match="--format"):
        open_source(tmp_path / "cutouts.dat", needed=GRI)
    holds(open_source(tmp_path / "cutouts.dat", needed=GRI, form="hdf5"))
    with pytest.raises(UsageError, match="is a folder: it cannot be of the format hdf5"):
        open_source(tmp_path, needed=GRI, form="hdf5")
