"""A path `FILE[ROW]`, as results have it, is read back as that cutout of that stack."""

import os
import pickle

import cloudpickle
import h5py
import numpy as np
import pytest
import zarr
from astropy.io import fits
from astropy.table import Table

from lensjax.data import catalog
from lensjax.data.catalog import open_source
from lensjax.data.formats import shards
from lensjax.data.planes import Unreadable
from lensjax.errors import UsageError

GRI = ("g", "r", "i")
IMAGES = np.random.default_rng(0).normal(size=(5, 7, 6, 3)).astype(np.float32)


def npz(name):
    np.savez(name, images=IMAGES)


def npy(name):
    np.save(name, IMAGES)


def cube(name):
    fits.writeto(name, IMAGES)


def hdf5(name):
    with h5py.File(name, "w") as file:
        file["images"] = IMAGES


def in_zarr(name):
    zarr.create_array(name, name="images", data=IMAGES)


def packed(name):
    npy("plain.npy")
    source = open_source("plain.npy", needed=GRI)
    source.table.remove_column("path")
    shards.pack(source, catalog.Path(name))


def a_file_a_band(name):
    for number, band in enumerate(GRI):
        fits.writeto(name.replace("{band}", band), IMAGES[..., number])


STACKS = {
    "a.npz": npz,
    "a.npy": npy,
    "a.fits": cube,
    "a.h5": hdf5,
    "a.zarr": in_zarr,
    "packed": packed,
    "{band}.fits": a_file_a_band,
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", STACKS)
def test_the_table_of_a_stack_is_a_catalogue(here, name, monkeypatch):
    """Written anywhere, from a run that was started where the stack lies."""
    STACKS[name](name)
    table = open_source(name, needed=GRI).table[[4, 0, 2]]
    (here / "results").mkdir()
    table.write(here / "results" / "a.csv")
    (here / "relative.csv").write_text(f"path\n{name}[4]\n./{name}[0]\n{name}[2]\n")
    monkeypatch.chdir("/")
    for file in ("results/a.csv", "relative.csv"):
        source = open_source(here / file, needed=("i", "g"), bands="g,r,i", pixel_scale=0.3)
        assert source.bands == ("i", "g") and "7 pixels" in source.description
        for row, number in enumerate((4, 0, 2)):
            np.testing.assert_array_equal(source[row].image, IMAGES[number][..., [2, 0]])
            assert source[row].pixel_scale == 0.3
        assert all(os.path.exists(path) for path in source.files())
        copy = pickle.loads(cloudpickle.dumps(source.read))
        np.testing.assert_array_equal(copy(1).image, source[1].image)
    all_bands = open_source(here / "relative.csv", needed=None)
    assert all_bands[2].image.shape == (7, 6, 3)


def test_the_stack_is_opened_once(here, monkeypatch):
    npz("a.npz")
    (here / "a.csv").write_text("path\n" + "".join(f"a.npz[{row % 5}]\n" for row in range(50)))
    opened = []
    monkeypatch.setitem(
        catalog._OPENED_BY,
        "numpy",
        lambda *a: opened.append(a) or catalog.arrays.open_arrays("numpy", *a),
    )
    source = open_source(here / "a.csv", needed=GRI)
    for row in range(50):
        np.testing.assert_array_equal(source[row].image, IMAGES[row % 5])
    assert len(opened) == 1


def test_rows_that_there_are_not_are_rejected_with_a_reason(here):
    npz("a.npz")
    fits.writeto("b.fits[3]", IMAGES[1].transpose(2, 0, 1))
    (here / "c.npz").write_text("no stack")
    (here / "d.csv").write_text("path\nd.csv[0]\n")
    rejected = {
        "a.npz[5]": "no row 5 among the 5",
        "none.npz[0]": "no such file",
        "c.npz[0]": "no .npz file",
        "d.csv[0]": "no stack",
        "a.npz[-1]": "no such file",
        "b.fits[3]": "not an image suffix",  # a file of that very name
    }
    (here / "a.csv").write_text("\n".join(["path", *rejected, "a.npz[1]"]))
    source = open_source(here / "a.csv", needed=GRI)
    np.testing.assert_array_equal(source[len(rejected)].image, IMAGES[1])
    for row, words in enumerate(rejected.values()):
        with pytest.raises(Unreadable, match=words) as caught:
            source[row]
        assert "\n" not in str(caught.value)


def test_a_stack_of_other_bands_is_refused(here):
    np.savez("a.npz", images=IMAGES[..., :2])
    (here / "a.csv").write_text("path\na.npz[0]\n")
    with pytest.raises(UsageError, match="need bands g, r, i"):
        open_source(here / "a.csv", needed=GRI)


def test_all_paths_of_tables_are_absolute(here):
    for row in range(2):
        np.save(f"{row}.npy", IMAGES[row])
        fits.writeto(f"{row}_g.fits", IMAGES[row, ..., 0])
    Table({"path": ["0.npy", "1.npy"]}).write("a.csv")
    for data in ("a.csv", "0.npy", "0_g.fits", ".", "{id}_{band}.fits"):
        paths = open_source(data, needed=None).table["path"].tolist()
        assert paths and all(path.startswith(f"{here}/") for path in paths), data
