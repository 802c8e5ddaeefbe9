"""Plain FITS images from their bytes are what astropy says; all else is left to astropy."""

import io
from contextlib import contextmanager

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.data.catalog import open_source
from lensjax.data.formats import fits as fits_format
from lensjax.data.formats.fits import fits_planes
from lensjax.data.planes import Unreadable

rng = np.random.default_rng(0)
NAMES = st.sampled_from(["", "SCI", "VIS_BGSUB", "g", "G_RMS", "it's", "NIR_Y / x"])
TYPES = st.sampled_from(["u1", "i2", "i4", "i8", "f4", "f8"])
SHAPES = st.lists(st.integers(1, 9), min_size=2, max_size=4)


@contextmanager
def by_astropy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fits_format, "_plain_images", lambda content: None)
        yield


def written(path, hdus) -> None:
    fits.HDUList(hdus).writeto(path, overwrite=True)


def seen(path):
    """Returns names, pixels and places, or the reason why not."""
    offered = []

    def everything(names):
        offered.append(names)
        return range(len(names))

    try:
        planes = fits_planes(path, everything)
    except Unreadable as error:
        return str(error)
    return offered, [(p.pixels.tobytes(), p.pixels.shape, str(p.sky)) for p in planes]


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(NAMES, TYPES, SHAPES, st.booleans()), min_size=1, max_size=4))
def test_plain_images_are_those_of_astropy(tmp_path_factory, extensions):
    path = tmp_path_factory.mktemp("fits") / "a.fits"
    hdus = [fits.PrimaryHDU()]
    for name, kind, shape, has_sky in extensions:
        pixels = (rng.normal(size=shape) * 50).astype(kind)
        header = fits.Header()
        if has_sky:
            header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
            header["CRVAL1"], header["CRVAL2"] = (150.1, "right ascension / deg"), -2.5
            header["CD1_1"], header["CD2_2"] = -5e-5, 5e-5
        header["FILTER"] = ("", "none / at all")
        hdus.append(fits.ImageHDU(pixels, header, name=name))
    written(path, hdus)
    assert fits_format._plain_images(path.read_bytes()) is not None
    found = seen(path)
    with by_astropy():
        assert found == seen(path)


def odd_files():
    image = rng.normal(size=(6, 5)).astype(np.float32)
    scaled = fits.PrimaryHDU((image * 100).astype(np.int16))
    scaled.header["BZERO"] = 32768
    whole = io.BytesIO()
    fits.PrimaryHDU(image).writeto(whole)
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1])])
    return {
        "scaled": [scaled],
        "compressed": [fits.PrimaryHDU(), fits.CompImageHDU(image)],
        "with a table": [fits.PrimaryHDU(image), table],
    }


@pytest.mark.parametrize("name", odd_files())
def test_other_files_are_left_to_astropy(name, tmp_path):
    written(tmp_path / "a.fits", odd_files()[name])
    assert fits_format._plain_images((tmp_path / "a.fits").read_bytes()) is None
    assert not isinstance(seen(tmp_path / "a.fits"), str)


def test_torn_and_foreign_files_are_left_to_astropy(tmp_path):
    written(tmp_path / "a.fits", [fits.PrimaryHDU(rng.normal(size=(40, 40)))])
    whole = (tmp_path / "a.fits").read_bytes()
    for content in (whole[:2000], whole[:5000], b"", b"x" * 9000, whole.replace(b"-64", b"-65")):
        assert fits_format._plain_images(content) in (None, [])


@pytest.mark.parametrize("compressed", [False, True])
def test_pan_starrs_stacks_are_flux_again(tmp_path, compressed):
    """By the formula of the survey's pipeline: 1.0857362 asinh((flux - offset) / (2 softening))."""
    flux = rng.normal(120.0, 300.0, (16, 16))
    magnitudes = 1.0857362 * np.arcsinh((flux - 7.5) / (2 * 33.0))
    header = fits.Header([("BOFFSET", 7.5), ("BSOFTEN", 33.0)])
    image = fits.CompImageHDU if compressed else fits.ImageHDU
    how = {"compression_type": "GZIP_2", "quantize_level": 0} if compressed else {}
    written(tmp_path / "a.fits", [fits.PrimaryHDU(), image(magnitudes, header, **how)])
    (plane,) = fits_planes(tmp_path / "a.fits", lambda names: (0,))
    np.testing.assert_allclose(plane.pixels, flux, rtol=1e-5, atol=1e-3)


def test_a_stack_of_cubes_knows_its_bands(tmp_path):
    cubes = rng.normal(size=(5, 3, 8, 8)).astype(np.float32)
    fits.writeto(tmp_path / "a.fits", cubes, fits.Header([("BANDS", "r,g,z")]))
    source = open_source(tmp_path / "a.fits", needed=("g", "r"))
    assert len(source) == 5 and source.bands_from == ("channel 2 (g)", "channel 1 (r)")
    np.testing.assert_array_equal(source[3].image, np.moveaxis(cubes[3, [1, 0]], 0, 2))
