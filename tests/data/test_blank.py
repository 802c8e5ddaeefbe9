"""Blank cutouts are rejected with the reason, blank bands are flagged, whatever holds them."""

import jax
import numpy as np
import pytest
import tifffile
import zarr
from astropy.io import fits
from PIL import Image

from lensjax.data.catalog import open_source
from lensjax.data.formats.shards import pack
from lensjax.data.on_device import prepare
from lensjax.data.pipeline import batches
from lensjax.data.planes import LARGEST, Cutout, perhaps_blank
from tests.data.wanted import preprocessing

BANDS = ("g", "r", "i")
MEMBERS = [preprocessing(16, bands=("g", "r")), preprocessing(12, bands=("i",))]
EQUAL = "all pixels are equal ({})"


def cutouts(dtype, empty) -> np.ndarray:
    """Cutouts of which the second and third have one and two blank bands, the last three all;
    `empty` is what stands in a band without data."""
    images = np.random.default_rng(1).integers(5, 90, (6, 16, 16, 3)).astype(dtype)
    images[1, ..., 1] = empty
    images[2, ..., :2] = 7
    images[3:] = np.array([0, 9, empty], dtype).reshape(3, 1, 1, 1)
    return images


FLAGS = ["", "no data in r", "no data in g, r", "", "", ""]


def read(source):
    (batch,) = batches(source, MEMBERS, how="auto", batch_size=7)
    return batch


WAYS = [
    *[("uint8", 0, EQUAL.format(0)), ("int32", 3, EQUAL.format(3))],
    *[("float32", value, "no valid pixel") for value in (np.nan, -np.inf, 3e38)],
    *[("float64", 1e300, "no valid pixel"), ("float16", np.inf, "no valid pixel")],
]


@pytest.mark.parametrize(
    ("kind", "dtype", "empty", "reason"),
    [(kind, *way) for kind in ("whole stack", "fitted") for way in WAYS],
)
def test_the_rule_is_the_same_on_every_way_in(tmp_path, kind, dtype, empty, reason):
    images = cutouts(dtype, empty)
    if kind == "whole stack":
        np.savez(tmp_path / "a.npz", images=images, bands=BANDS)
        source = open_source(tmp_path / "a.npz", needed=BANDS, pixel_scale=0.2)
    else:
        for row, image in enumerate(images):
            np.save(tmp_path / f"{row}.npy", image)
        source = open_source(tmp_path, needed=BANDS, pixel_scale=0.2)
    batch = read(source)
    assert batch.readable.tolist() == [True] * 3 + [False] * 4
    assert batch.reasons.tolist() == [""] * 3 + [EQUAL.format(0), EQUAL.format(9), reason, ""]
    assert batch.flags.tolist() == [*FLAGS, ""]
    assert batch.masked[:3].tolist() == [0, 256, 512]
    # Zero is what the members see there: level and noise of nothing.
    filled = [image for image in batch.inputs.images if image.shape[-1] >= 2][0][1:3]
    assert not filled[0, ..., 1].any() and not filled[1, ..., :2].any() and filled[0].any()


def as_png(path, image):
    Image.fromarray(image.astype(np.uint8)).save(path)


def as_fits(path, image):
    fits.writeto(path, np.moveaxis(image, 2, 0).astype(np.float32))


SAVED = {
    "png": as_png,
    "tiff": lambda path, image: tifffile.imwrite(path, image.astype(np.uint16), photometric="rgb"),
    "npy": np.save,
    "fits": as_fits,
}


@pytest.mark.parametrize("suffix", SAVED)
def test_a_constant_picture_is_rejected_and_a_constant_band_flagged(tmp_path, suffix):
    for row, image in enumerate(cutouts(np.float32, 0)):
        SAVED[suffix](tmp_path / f"{row}.{suffix}", image)
    batch = read(open_source(tmp_path, needed=BANDS, bands="g,r,i", pixel_scale=0.2))
    assert batch.readable.tolist() == [True] * 3 + [False] * 4
    assert batch.reasons[3:6].tolist() == [EQUAL.format(value) for value in (0, 9, 0)]
    assert batch.flags.tolist() == [*FLAGS, ""]


def test_a_missing_chunk_of_a_zarr_array_is_rejected(tmp_path):
    images = np.random.default_rng(0).normal(size=(6, 16, 16, 3)).astype(np.float32)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    array = group.create_array("images", shape=images.shape, chunks=(2, 16, 16, 3), dtype="f4")
    array[...] = images
    (tmp_path / "a.zarr" / "images" / "c" / "1" / "0" / "0" / "0").unlink()
    batch = read(open_source(tmp_path / "a.zarr", needed=BANDS, bands="g,r,i", pixel_scale=0.2))
    assert batch.readable.tolist() == [True, True, False, False, True, True, False]
    assert batch.reasons[2:4].tolist() == [EQUAL.format(0)] * 2


def test_packed_blank_bands_are_flagged_and_keep_the_narrow_type(tmp_path):
    np.savez(tmp_path / "a.npz", images=cutouts("uint8", 0)[:3], bands=BANDS)
    pack(open_source(tmp_path / "a.npz", needed=None, pixel_scale=0.2), tmp_path / "packed")
    source = open_source(tmp_path / "packed", needed=BANDS)
    assert source.stack is not None and source.stack.dtype == np.uint8
    assert read(source).flags.tolist() == [*FLAGS, ""]


def test_a_band_that_no_member_sees_is_not_flagged(tmp_path):
    images = cutouts("float32", np.nan)[:2]
    np.savez(tmp_path / "a.npz", images=images, bands=BANDS)
    source = open_source(tmp_path / "a.npz", needed=BANDS, pixel_scale=0.2)
    (batch,) = batches(source, [preprocessing(16, bands=("g", "i"))], how="auto", batch_size=2)
    assert batch.flags.tolist() == ["", ""] and batch.readable.all()
    (batch,) = batches(source, [preprocessing(16, bands=("r",))], how="auto", batch_size=2)
    assert batch.readable.tolist() == [True, False] and batch.reasons[1] == "no valid pixel"


def test_a_few_values_beyond_what_float32_bears_are_masked(tmp_path):
    images = cutouts("float32", 0)[:1].repeat(4, 0)
    images[1, 3, 4, 0], images[2, 5:7, 5, 1], images[3, 0, 0, 2] = 3e38, -2e30, 0.9 * LARGEST
    np.savez(tmp_path / "a.npz", images=images, bands=BANDS)
    source = open_source(tmp_path / "a.npz", needed=BANDS, pixel_scale=0.2)
    batch = read(source)
    assert batch.masked[:4].tolist() == [0, 1, 2, 0] and batch.readable[:4].all()
    transforms = [preprocessing(16, bands=BANDS, stretch=name) for name in ("linear", "zscale")]
    (batch,) = batches(source, transforms, how="auto", batch_size=4)
    for transform, seen in zip(transforms, jax.jit(prepare)(batch.inputs), strict=True):
        assert np.isfinite(seen).all(), transform.stretch


def test_a_blank_middle_row_is_not_a_blank_band():
    images = np.random.default_rng(2).normal(size=(3, 9, 9, 2))
    images[1, 4], images[1, 0, 0] = 1.0, 1.0
    images[2, ..., 1] = 5.0
    assert perhaps_blank(images).tolist() == [False, True, True]
    assert [Cutout(image).blank for image in images] == [{}, {}, {1: 5.0}]
