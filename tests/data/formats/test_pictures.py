"""Image files as they come from surveys, and as they must not."""

import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lensjax.data.catalog import open_source
from lensjax.data.formats.pictures import IMAGE_SUFFIXES, has_suffix, read_planes, stem
from lensjax.data.planes import COLOURS, MAX_VALUES, Unreadable, channels_last, masked

# pytest undoes the filters that the module sets.
pytestmark = pytest.mark.filterwarnings("ignore")

rng = np.random.default_rng(0)
COLOUR = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP = rng.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
SKY = rng.normal(size=(6, 8)).astype(np.float32)


def everything(names):
    return range(len(names))


def image(path):
    return np.stack([plane.pixels for plane in read_planes(path, everything)], axis=-1)


def names_of(path):
    seen = []
    read_planes(path, lambda names: (seen.append(names), ())[1])
    return seen[0]


def write_16_bit_png(path, pixels):
    """A colour PNG of 16 bits by its specification, without filters; Pillow writes none."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_colour_png_in_any_case_of_suffix(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.PNG")
    assert names_of(tmp_path / "a.PNG") == COLOURS
    np.testing.assert_array_equal(image(tmp_path / "a.PNG"), COLOUR)


def test_opacity_is_left_out(tmp_path):
    alpha = np.dstack([COLOUR, np.full((5, 7), 9, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "a.png")
    Image.fromarray(alpha[..., 2:], "LA").save(tmp_path / "grey.png")
    tifffile.imwrite(tmp_path / "a.tif", alpha, photometric="rgb", extrasamples=[1])
    np.testing.assert_array_equal(image(tmp_path / "a.png"), COLOUR)
    np.testing.assert_array_equal(image(tmp_path / "a.tif"), COLOUR)
    np.testing.assert_array_equal(image(tmp_path / "grey.png"), COLOUR[..., 2:])


def test_palette_and_one_bit_pictures(tmp_path):
    Image.fromarray(COLOUR).quantize(256).save(tmp_path / "palette.png")
    Image.fromarray(COLOUR[..., 0] > 99).save(tmp_path / "bits.png")
    assert image(tmp_path / "palette.png").shape == (5, 7, 3)
    np.testing.assert_array_equal(image(tmp_path / "bits.png")[..., 0], 255 * (COLOUR[..., 0] > 99))


def test_sixteen_bits_are_kept(tmp_path):
    write_16_bit_png(tmp_path / "a.png", DEEP)
    Image.fromarray(DEEP[..., 0]).save(tmp_path / "grey.png")
    tifffile.imwrite(tmp_path / "a.tif", DEEP, photometric="rgb")
    tifffile.imwrite(tmp_path / "lzw.tif", DEEP, photometric="rgb", compression="lzw")
    tifffile.imwrite(tmp_path / "planes.TIFF", np.moveaxis(DEEP, 2, 0), photometric="minisblack")
    for name in ("a.png", "a.tif", "lzw.tif", "planes.TIFF"):
        np.testing.assert_array_equal(image(tmp_path / name), DEEP, err_msg=name)
    np.testing.assert_array_equal(image(tmp_path / "grey.png"), DEEP[..., :1])


def test_jpeg_of_a_smooth_picture(tmp_path):
    smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(image(tmp_path / "a.jpg"), smooth, atol=3)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 4), (4, 5, 7)])
def test_npy_axes(tmp_path, shape):
    array = rng.normal(size=shape).astype(np.float32)
    np.save(tmp_path / "a.npy", array)
    expected = array[..., None] if array.ndim == 2 else array
    if shape[0] == 4:
        expected = np.moveaxis(array, 0, 2)
    np.testing.assert_array_equal(image(tmp_path / "a.npy"), expected)
    assert channels_last(array).shape == expected.shape


def test_a_picture_of_one_value_is_read_as_it_is(tmp_path):
    fits.writeto(tmp_path / "a.fits", np.zeros((4, 4), np.float32))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    for name in ("a.fits", "a.png"):
        np.testing.assert_array_equal(image(tmp_path / name), 0.0)


def test_nan_infinity_and_marks_are_masked():
    faint = 1e-12 * rng.normal(size=(9, 9)).astype(np.float32)
    for mark in (100.0, -99.0, 1e20, -1e30, np.nan, np.inf, -np.inf):
        spoilt = faint.copy()
        spoilt[2, 3:6] = mark
        result = masked(spoilt)
        assert np.isnan(result[2, 3:6]).all(), mark
        assert np.isnan(result).sum() == 3
        np.testing.assert_array_equal(np.delete(result, 2, 0), np.delete(faint, 2, 0))


def test_what_is_no_mark_is_kept():
    bright = rng.normal(size=(9, 9)).astype(np.float32)
    bright[4, 4] = 1e6
    saturated = bright.copy()
    saturated[4, 4:7] = (60.0, 65.0, 65.0)
    saturated[5, 4:7] = (40.0, 65.0, 30.0)
    block = np.zeros((9, 9), np.float32)
    block[3:5, 3:5] = 1.0
    clipped = np.maximum(bright, 0)
    counts = np.zeros((9, 9), np.uint8)
    counts[0, :2] = 255
    counts[1, :2] = 1
    for kept in (bright, saturated, block, clipped, counts, np.zeros((3, 3), np.float32)):
        np.testing.assert_array_equal(masked(kept), kept.astype(np.float32))


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A folder of files that no reader can use."""
    folder = tmp_path_factory.mktemp("broken")
    fits.writeto(folder / "whole.fits", np.zeros((200, 200), np.float32) + SKY[0, 0])
    (folder / "truncated.fits").write_bytes((folder / "whole.fits").read_bytes()[:6000])
    (folder / "whole.fits").unlink()
    header = fits.Header([("SIMPLE", True), ("BITPIX", -64), ("NAXIS", 2)])
    header["NAXIS1"] = header["NAXIS2"] = 200_000
    (folder / "huge.fits").write_bytes(header.tostring().encode())
    fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1])]).writeto(folder / "table.fits")
    fits.PrimaryHDU(np.zeros((2, 2, 2, 2), np.float32)).writeto(folder / "four.fits")
    for suffix in IMAGE_SUFFIXES:
        (folder / f"text{suffix}").write_text("this is no image\n")
        (folder / f"empty{suffix}").touch()
        (folder / f"folder{suffix}").mkdir()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "a.png")
    png = (folder / "a.png").read_bytes()
    (folder / "a.png").unlink()
    (folder / "cut.png").write_bytes(png[:50])
    bomb = bytearray(png)
    bomb[16:24] = struct.pack(">II", 30_000, 30_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    (folder / "bomb.png").write_bytes(bomb)
    np.save(folder / "objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save(folder / "words.npy", np.array([["a", "b"]]))
    np.save(folder / "five.npy", np.zeros((1, 2, 1, 2, 1)))
    np.save(folder / "none.npy", np.zeros((0, 5)))
    with open(folder / "large.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (MAX_VALUES, 2)}
        )
        file.truncate(MAX_VALUES * 8 + 128)
    os.mkfifo(folder / "pipe.fits")
    os.symlink("nowhere.png", folder / "dangling.png")
    return folder


def test_unusable_files_say_why_on_one_line(broken):
    reasons = {}
    for path in sorted(broken.iterdir()):
        with pytest.raises(Unreadable) as caught:
            read_planes(path, everything)
        reasons[path.name] = str(caught.value)
    assert all(0 < len(reason) <= 200 and "\n" not in reason for reason in reasons.values())
    assert reasons["empty.png"] == "empty file"
    assert "folder" in reasons["folder.fits"]
    assert reasons["dangling.png"] == "no such file"
    assert "regular" in reasons["pipe.fits"]
    assert all("too large" in reasons[n] for n in ("huge.fits", "large.npy", "bomb.png"))
    assert "no image" in reasons["table.fits"]


def test_the_size_limit_is_the_users(tmp_path):
    pixels = np.random.default_rng(0).normal(0, 1, (20, 20)).astype(np.float32)
    np.save(tmp_path / "a.npy", pixels)
    Image.fromarray(np.uint8(pixels)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    for name in ("a.fits", "a.fits.gz"):
        fits.PrimaryHDU(pixels).writeto(tmp_path / name)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(pixels)]).writeto(tmp_path / "a.fits.fz")
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 6
    for path in paths:
        assert read_planes(path, everything, 400)[0].pixels.shape == (20, 20), path
        with pytest.raises(Unreadable, match=r"too large .* the limit is 399 \(--max-values\)"):
            read_planes(path, everything, 399)
    source = open_source(tmp_path, needed=None, max_values=399)
    with pytest.raises(Unreadable, match="the limit is 399"):
        source[0]


def test_a_missing_file_and_a_foreign_suffix(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(Unreadable, match="no such file"):
        read_planes(tmp_path / "a.png", everything)
    with pytest.raises(Unreadable, match="suffix"):
        read_planes(tmp_path / "a.txt", everything)


MAGIC = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0"]
MAGIC += [b"\x93NUMPY\x01\0", b"SIMPLE  =                    T", b"\x1f\x8b\x08\0", b"\x1f\x8b"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(MAGIC), st.binary(max_size=300), st.sampled_from(IMAGE_SUFFIXES))
def test_junk_of_any_suffix_is_unreadable_and_nothing_else(tmp_path, magic, junk, suffix):
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(magic + junk)
    with pytest.raises(Unreadable):
        read_planes(path, everything)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_file_is_read_or_unreadable(tmp_path, data):
    kind = data.draw(st.sampled_from(["a.png", "a.jpg", "a.tif", "a.npy", "a.fits"]))
    whole = tmp_path / f"whole_{kind}"
    if not whole.exists():
        if kind.endswith(("png", "jpg")):
            Image.fromarray(COLOUR).save(whole)
        elif kind.endswith("tif"):
            tifffile.imwrite(whole, COLOUR, photometric="rgb")
        elif kind.endswith("npy"):
            np.save(whole, SKY)
        else:
            fits.writeto(whole, SKY, fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}))
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / kind).write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        planes = read_planes(tmp_path / kind, everything)
    except Unreadable:
        return
    assert all(plane.pixels.dtype == np.float32 and plane.pixels.ndim == 2 for plane in planes)


def test_stems_and_suffixes():
    assert stem("a/b.fits.gz") == "a/b" and stem("a.b.PNG") == "a.b" and stem("x.txt") == "x.txt"
    assert stem("a.fits.fz") == "a"
    assert has_suffix("A.FIT", (".fit",)) and not has_suffix("fits", (".fits",))
