"""Whether data are the same: what changes the answer, and what does not."""

import os
import shutil

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from PIL import Image

from lensjax.data import identity
from lensjax.data.catalog import open_source
from lensjax.data.formats import shards
from lensjax.data.identity import content_sha256

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


def as_npz(folder, images):
    np.savez(folder / "data.npz", images=images)
    return folder / "data.npz"


def as_npy(folder, images):
    np.save(folder / "data.npy", images)
    return folder / "data.npy"


def as_fits_cube(folder, images):
    fits.writeto(folder / "data.fits", images, overwrite=True)
    return folder / "data.fits"


def as_hdf5(folder, images):
    import h5py

    with h5py.File(folder / "data.h5", "w") as file:
        file["images"] = images
    return folder / "data.h5"


def as_zarr(folder, images):
    import zarr

    store = folder / "data.zarr"
    zarr.create_array(str(store), name="images", data=images, chunks=(1, 8, 8, 3), overwrite=True)
    return store


def as_shards(folder, images):
    shards.pack(open_source(as_npy(folder, images), needed=None), folder / "data", resume=False)
    return folder / "data"


def as_bands(folder, images):
    for number, band in enumerate("gri"):
        fits.writeto(folder / f"{band}.fits", images[..., number], overwrite=True)
    return f"{folder}/{{band}}.fits"


def as_files_of_bands(folder, images):
    for row, image in enumerate(images):
        for number, band in enumerate("gri"):
            fits.writeto(folder / f"o{row}_{band}.fits", image[..., number], overwrite=True)
    return f"{folder}/{{id}}_{{band}}.fits"


def as_folder(folder, images):
    path = folder / "data"
    path.mkdir(exist_ok=True)
    for row, image in enumerate(images):
        pixels = np.clip(100 + 30 * image, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path / f"{row}.png", compress_level=0)
    return path


def as_catalogue(folder, images):
    as_folder(folder, images)
    Table({"path": [f"data/{row}.png" for row in range(len(images))]}).write(
        folder / "list.csv", overwrite=True
    )
    return folder / "list.csv"


FORMS = [
    *(as_npz, as_npy, as_fits_cube, as_hdf5, as_zarr, as_shards, as_bands, as_files_of_bands),
    *(as_folder, as_catalogue),
]


def sha256(path) -> str:
    return content_sha256(open_source(path, needed=None))


@pytest.mark.parametrize("write", FORMS)
def test_one_other_pixel_is_other_data_and_the_same_pixels_are_not(write, tmp_path):
    """Of any form, also where the names, the sizes and the times are those of before."""
    before = sha256(write(tmp_path, IMAGES))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    times = {path: path.stat().st_mtime_ns for path in files}
    assert sha256(write(tmp_path, IMAGES)) == before
    changed = IMAGES.copy()
    changed[-1, 4, 4, 1] += 2.0
    path = write(tmp_path, changed)
    for file, time in times.items():
        os.utime(file, ns=(time, time))
    assert sha256(path) != before


def test_small_data_are_the_same_wherever_they_lie_and_whenever_written(tmp_path):
    before = sha256(as_npz(tmp_path, IMAGES))
    shutil.copy(tmp_path / "data.npz", tmp_path / "copy.npz")
    os.utime(tmp_path / "copy.npz", (1, 1))
    assert sha256(tmp_path / "copy.npz") == before


def test_what_is_too_much_to_read_is_known_by_times_and_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "MOST_READ_BYTES", 10)
    monkeypatch.setattr(identity, "SAMPLE_BYTES", 2000)
    monkeypatch.setattr(identity, "PIECE_BYTES", 20)
    path = as_npy(tmp_path, IMAGES)
    before, time = sha256(path), path.stat().st_mtime_ns
    assert sha256(path) == before
    os.utime(path, ns=(time, time + 1))
    assert sha256(path) != before
    as_npy(tmp_path, -IMAGES)
    os.utime(path, ns=(time, time))
    assert sha256(path) != before


def test_of_many_files_the_catalogue_alone_is_opened(tmp_path, monkeypatch):
    """A size or a time that differs is enough, and so is a file that is gone."""
    path = as_catalogue(tmp_path, IMAGES)
    source = open_source(path, needed=None)
    monkeypatch.setattr(identity, "MOST_READ_FILES", 3)
    known = {str(path): open}
    monkeypatch.setattr(identity, "open", lambda *a: known[a[0]](*a), raising=False)
    found = {content_sha256(source)}
    os.utime(tmp_path / "data" / "2.png", (1, 1))
    found.add(content_sha256(source))
    (tmp_path / "data" / "1.png").unlink()
    found.add(content_sha256(source))
    assert len(found) == 3


def test_the_names_of_cutouts_count(tmp_path):
    folder = as_folder(tmp_path, IMAGES)
    before = sha256(folder)
    (folder / "3.png").rename(folder / "4.png")
    assert sha256(folder) != before


def test_a_catalogue_that_says_something_else_is_other_data(tmp_path):
    path = as_catalogue(tmp_path, IMAGES)
    before = sha256(path)
    path.write_text(path.read_text().replace("data/1.png", "data/2.png"))
    assert sha256(path) != before


def test_the_catalogue_beside_a_zarr_counts(tmp_path):
    store, rows = as_zarr(tmp_path, IMAGES), tmp_path / "data.parquet"
    Table({"idx_in_zarr": [0, 1], "z": [0.5, 0.6]}).write(rows)
    before = sha256(store)
    assert sha256(rows) == before
    Table({"idx_in_zarr": [0, 1], "z": [0.5, 0.7]}).write(rows, overwrite=True)
    assert sha256(store) != before


def test_each_part_of_the_data_says_what_the_data_are(tmp_path):
    for write in (as_catalogue, as_folder, as_npy):
        path = write(tmp_path, IMAGES)
        parts = [open_source(path, needed=None, part=(part, 3)) for part in (1, 2, 3)]
        assert {content_sha256(part) for part in parts} == {sha256(path)}


def test_a_catalogue_is_its_content(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "MOST_READ_FILES", 3)
    path = as_catalogue(tmp_path, IMAGES)
    before, time = sha256(path), path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("data/1.png", "data/2.png"))
    os.utime(path, ns=(time, time))
    assert sha256(path) != before
    path.write_text("path,id\ndata/1.png,a\n,b\n")
    assert sha256(path) != before
