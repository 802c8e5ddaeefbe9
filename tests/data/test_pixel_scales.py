"""Pixel scales that cannot be are refused or unknown; fields of view are compared with members'."""

import h5py
import numpy as np
import pyarrow.parquet
import pytest
import zarr
from astropy.io import fits

from lensjax.data.catalog import open_source
from lensjax.data.formats.shards import INDEX, pack
from lensjax.data.pipeline import batches, check_fields
from lensjax.data.preprocess import OtherField, doubts, fields_of_view, geometry
from lensjax.errors import UsageError
from tests.data.wanted import preprocessing

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype(np.float32)
ODD = [-0.2, 0.0, np.nan, 1e12, "0.2 arcsec", [0.2, 0.3]]


def npz(path, scale):
    np.savez(path / "a.npz", images=IMAGES, pixel_scale=scale)
    return path / "a.npz"


def hdf5(path, scale):
    with h5py.File(path / "a.h5", "w") as file:
        file["images"] = IMAGES
        file.attrs["pixel_scale"] = scale
    return path / "a.h5"


def zarr_group(path, scale):
    group = zarr.open_group(path / "a.zarr", mode="w")
    group.create_array("images", shape=IMAGES.shape, dtype="f4")[...] = IMAGES
    group.attrs["pixel_scale"] = scale
    return path / "a.zarr"


@pytest.mark.parametrize("write", [npz, hdf5, zarr_group])
@pytest.mark.parametrize("scale", ODD)
def test_a_scale_in_a_stack_that_cannot_be_is_one_clear_line(tmp_path, write, scale):
    path = write(tmp_path, scale)
    with pytest.raises(UsageError, match="is no pixel scale: it must be one number") as raised:
        open_source(path, needed=("g", "r"))
    assert f"{path}: pixel_scale {np.ravel(scale)[0]}" in str(raised.value)
    assert open_source(path, needed=("g", "r"), pixel_scale=0.3)[0].pixel_scale == 0.3


def test_one_scale_said_for_each_cutout_is_that_scale(tmp_path):
    source = open_source(npz(tmp_path, np.full(3, 0.25)), needed=("g", "r"))
    assert source[0].pixel_scale == 0.25


@pytest.mark.parametrize("scale", [-0.2, 0.0, float("nan"), 18.75, 1e-4])
def test_a_scale_on_the_command_line_that_cannot_be_is_refused(tmp_path, scale):
    with pytest.raises(UsageError, match=r"--pixel-scale .* from 0.001 to 10 arcsec per pixel"):
        open_source(npz(tmp_path, 0.2), needed=("g", "r"), pixel_scale=scale)


def test_a_scale_in_shards_that_cannot_be_is_refused(tmp_path):
    pack(open_source(npz(tmp_path, 0.2), needed=None, bands="g,r"), tmp_path / "packed")
    index = pyarrow.parquet.read_table(tmp_path / "packed" / INDEX)
    place = index.column_names.index("_pixel_scale")
    odd = index.set_column(place, "_pixel_scale", pyarrow.array([0.2, -0.2, float("nan")]))
    pyarrow.parquet.write_table(odd, tmp_path / "packed" / INDEX)
    with pytest.raises(UsageError, match=r"index.parquet: _pixel_scale -0.2 is no pixel scale"):
        open_source(tmp_path / "packed", needed=("g", "r"))


@pytest.mark.parametrize("step", [0.0, 1e8, 1e-9])
def test_a_scale_or_place_in_a_header_that_cannot_be_is_unknown(tmp_path, step):
    header = fits.Header([("CTYPE1", "RA---CAR"), ("CTYPE2", "DEC--CAR"), ("CRPIX1", 4.5)])
    header.update({"CRPIX2": 4.5, "CRVAL1": 30.0, "CRVAL2": -5.0, "CDELT1": step, "CDELT2": step})
    fits.writeto(tmp_path / "a.fits", IMAGES[0, ..., 0], header)
    cutout = open_source(tmp_path / "a.fits", needed=("g",))[0]
    assert cutout.pixel_scale is None
    assert np.isnan(cutout.ra) or 0 <= cutout.ra <= 360


def test_a_place_off_the_sky_is_unknown(tmp_path):
    header = fits.Header([("CTYPE1", "RA---CAR"), ("CTYPE2", "DEC--CAR"), ("CRPIX1", 4.5)])
    header.update({"CRPIX2": -3e6, "CRVAL1": 0.0, "CRVAL2": 0.0, "CDELT1": 1e-4, "CDELT2": 1e-4})
    fits.writeto(tmp_path / "a.fits", IMAGES[0, ..., 0], header)
    cutout = open_source(tmp_path / "a.fits", needed=("g",))[0]
    assert cutout.pixel_scale == pytest.approx(0.36) and np.isnan([cutout.ra, cutout.dec]).all()


# --- fields of view ---

MEMBER = preprocessing(16, 0.2, ("g", "r"))  # 3.2 arcsec


@pytest.mark.parametrize(("scale", "allowed"), [(0.2, True), (1.6, True), (1.61, False)])
@pytest.mark.parametrize("way", ["more", "less"])
def test_beyond_a_factor_of_four_a_user_must_insist(scale, allowed, way):
    scale = scale if way == "more" else 0.16 / scale
    if allowed:
        assert geometry((8, 9), scale, MEMBER).field == pytest.approx(8 * scale / 3.2)
    else:
        with pytest.raises(OtherField, match=f"four times {way} than the member's 3.2 arcsec"):
            geometry((8, 9), scale, MEMBER)
    for how in ("resample", "resize", "crop"):
        assert geometry((8, 9), scale, MEMBER, how).field == pytest.approx(8 * scale / 3.2)
    assert geometry((8, 9), None, MEMBER).field is None


def test_files_of_another_field_are_rejects_and_a_stack_or_nothing_else_is_an_error(tmp_path):
    sizes = [16, 80, 3, 64, 32]
    (tmp_path / "files").mkdir()
    for row, size in enumerate(sizes):
        image = np.random.default_rng(row).normal(size=(size, size, 2))
        np.save(tmp_path / "files" / f"{row}.npy", image)
    source = open_source(tmp_path / "files", needed=("g", "r"), pixel_scale=0.2)
    check_fields(source, [MEMBER], "auto")
    smaller = preprocessing(14, 0.2, ("g",))
    (batch,) = batches(source, [MEMBER, smaller], how="auto", batch_size=6)
    assert batch.readable.tolist() == [True, False, False, False, True, False]
    assert "16 arcsec, more than four times more" in batch.reasons[1]
    np.testing.assert_allclose(batch.field[[0, 4]], [16 / 14, 32 / 14])
    (batch,) = batches(source, [MEMBER], how="crop", batch_size=5)
    np.testing.assert_allclose(batch.field, np.divide(sizes, 16))
    for name in ("0", "4"):
        (tmp_path / "files" / f"{name}.npy").unlink()
    few = open_source(tmp_path / "files", needed=("g", "r"), pixel_scale=0.2)
    check_fields(few, [MEMBER], "crop")
    with pytest.raises(UsageError, match="the cutouts have a field of view of 16 arcsec"):
        check_fields(few, [smaller, MEMBER], "auto")
    with pytest.raises(UsageError, match="the cutouts have a field of view of 0.4 arcsec"):
        check_fields(open_source(npz(tmp_path, 0.05), needed=("g", "r")), [MEMBER], "auto")


def test_a_stack_says_its_field_of_view(tmp_path):
    source = open_source(npz(tmp_path, 0.2), needed=("g", "r"))
    (batch,) = batches(source, [MEMBER], how="auto", batch_size=4)
    np.testing.assert_array_equal(batch.field, [0.5, 0.5, 0.5, np.nan])


def test_what_is_doubtful_is_counted_and_told_once():
    field = np.array([1.0, 0.5, 1.9, 2.0, 3.0, np.nan])
    action = np.array(["resampled"] * 5 + ["as is"])
    assert fields_of_view(field) == {
        "alike": 2, "half or less": 1, "twice or more": 2, "not known": 1,
    }  # fmt: skip
    first, second = doubts(field, action, [MEMBER], "auto")
    assert (
        "3 of 6 cutouts show half or less, or twice or more" in first and "up to 3 times" in first
    )
    assert "only the middle is scored" in first and "resized to it" not in first
    (line,) = doubts(field, action, [MEMBER], "resize")
    assert "resized to it" in line and "only the middle" not in line
    assert "pixel scale of the cutouts is not known: 1 of 6" in second and "--pixel-scale" in second
    assert doubts(field[:1], action[:1], [MEMBER], "auto") == []
    assert doubts(field[5:], action[5:], [MEMBER], "resize") == []
    free = preprocessing(16, None, ("g",))
    assert doubts(field[5:], action[5:], [free], "auto") == []
    (line,) = doubts(field[5:], np.array(["resized"]), [free], "auto")
    assert "pixel scale of the members is not known" in line
