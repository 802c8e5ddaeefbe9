"""FITS images: bands by name, pixels in proportion to the flux, places in the sky."""

import gzip

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area

from lensjax.data.catalog import open_source
from lensjax.data.formats.fits import fits_planes, fits_stack, open_fits
from lensjax.data.formats.pictures import read_planes
from lensjax.data.planes import Unreadable
from lensjax.errors import UsageError

# pytest undoes the filters that the module sets.
pytestmark = pytest.mark.filterwarnings("ignore")

rng = np.random.default_rng(0)
SKY = rng.normal(size=(6, 8)).astype(np.float32)
DEEP = rng.integers(0, 65536, (5, 7, 1), dtype=np.uint16)


def everything(names):
    return range(len(names))


def image(path):
    return np.stack([plane.pixels for plane in read_planes(path, everything)], axis=-1)


def names_of(path):
    seen = []
    read_planes(path, lambda names: (seen.append(names), ())[1])
    return seen[0]


def sky_header(scale=0.1, size=(6, 8), matrix="CD"):
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRVAL1"], header["CRVAL2"] = 150.0, 2.0
    header["CRPIX1"], header["CRPIX2"] = (size[1] + 1) / 2, (size[0] + 1) / 2
    if matrix == "CD":
        header["CD1_1"], header["CD1_2"] = -scale / 3600, 0.0
        header["CD2_1"], header["CD2_2"] = 0.0, scale / 3600
    else:
        header["CDELT1"], header["CDELT2"] = -scale / 3600, scale / 3600
    return header


@pytest.mark.parametrize("matrix", ["CD", "CDELT"])
def test_fits_pixels_scale_and_centre(tmp_path, matrix):
    fits.writeto(tmp_path / "a.fits", SKY, sky_header(0.263, matrix=matrix))
    (plane,) = read_planes(tmp_path / "a.fits", everything)
    np.testing.assert_array_equal(plane.pixels, SKY)
    assert plane.sky.pixel_scale == pytest.approx(0.263, rel=1e-9)
    assert (plane.sky.ra, plane.sky.dec) == pytest.approx((150.0, 2.0), abs=1e-9)


TPV = {"PV1_0": 0.0, "PV1_1": 1.0001, "PV1_2": 1e-4, "PV2_0": 0.0, "PV2_1": 1.0002}
ROTATED = {"CD1_1": -5e-5, "CD1_2": 1e-5, "CD2_1": 2e-5, "CD2_2": 6e-5}


@pytest.mark.parametrize(
    "cards",
    [
        {"CRPIX1": -500.0, "CRPIX2": 300.0},
        ROTATED,
        ROTATED | TPV | {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV"},
        {"CTYPE1": "RA---ZEA", "CTYPE2": "DEC--ZEA"},
        {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": 2.0, "CRVAL2": 150.0},
        {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"},
    ],
)
def test_fits_scale_and_centre_are_those_of_astropy(tmp_path, cards):
    header = sky_header(0.3)
    header.update(cards)
    fits.writeto(tmp_path / "a.fits", SKY, header)
    (plane,) = read_planes(tmp_path / "a.fits", everything)
    position, scale = WCS(header).pixel_to_world(3.5, 2.5), proj_plane_pixel_area(WCS(header))
    assert plane.sky == pytest.approx(
        (3600 * np.sqrt(scale), position.ra.deg, position.dec.deg), abs=1e-9
    )


def test_fits_in_galactic_coordinates_has_its_centre_in_icrs(tmp_path):
    header = sky_header()
    header["CTYPE1"], header["CTYPE2"] = "GLON-TAN", "GLAT-TAN"
    header["CRVAL1"], header["CRVAL2"] = 0.0, 0.0
    fits.writeto(tmp_path / "a.fits", SKY, header)
    (plane,) = read_planes(tmp_path / "a.fits", everything)
    # The galactic centre of the coordinate system in ICRS.
    assert (plane.sky.ra, plane.sky.dec) == pytest.approx((266.40499, -28.93617), abs=1e-4)


@pytest.mark.parametrize("spoil", [{"CTYPE1": "LINEAR"}, {"CTYPE1": "XX---TAN"}, {"CD1_1": 0.0}])
def test_fits_without_a_usable_wcs_has_an_unknown_place_and_says_nothing(tmp_path, spoil):
    header = sky_header()
    header.update(spoil)
    fits.writeto(tmp_path / "a.fits", SKY, header)
    (plane,) = read_planes(tmp_path / "a.fits", everything)
    assert plane.sky.pixel_scale is None
    np.testing.assert_array_equal(plane.pixels, SKY)


def test_fits_extensions_by_name_without_companions(tmp_path):
    hdus = [fits.PrimaryHDU()]
    for number, name in enumerate(["DES_G_BGSUB", "DES_G_PSF", "MSK_G", "VIS_BGSUB", "BKG_SUB"]):
        hdus.append(fits.ImageHDU(SKY + number, name=name))
    hdus += [fits.ImageHDU(SKY, name=name) for name in ("DES_G_RMS", "VAR_POISSON", "CON", "WGT")]
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    assert names_of(tmp_path / "a.fits") == ("DES_G_BGSUB", "VIS_BGSUB", "BKG_SUB")
    planes = read_planes(tmp_path / "a.fits", lambda names: (1, 0))
    np.testing.assert_array_equal(planes[0].pixels, SKY + 3)
    np.testing.assert_array_equal(planes[1].pixels, SKY)


def test_fits_names_that_say_nothing_and_filters_that_do(tmp_path):
    science, red = fits.ImageHDU(SKY, name="SCI"), fits.ImageHDU(SKY, name="SCI")
    red.header["FILTER"] = "DECam_r"
    fits.HDUList([fits.PrimaryHDU(), science]).writeto(tmp_path / "a.fits")
    fits.HDUList([fits.PrimaryHDU(), red]).writeto(tmp_path / "b.fits")
    assert names_of(tmp_path / "a.fits") == (None,)
    assert names_of(tmp_path / "b.fits") == ("DECam_r",)


@pytest.mark.parametrize(
    "cards",
    [
        {"BANDS": "grz"},
        {"BANDS": "g,r, z"},
        {"BAND0": "g", "BAND1": "r", "BAND2": "z"},
        {"BAND1": "g", "BAND2": "r", "BAND3": "z", "BANDS": "gr"},
    ],
)
def test_fits_cubes_say_their_bands_in_the_header(tmp_path, cards):
    cube = np.stack([SKY, SKY + 1, SKY + 2])
    fits.writeto(tmp_path / "a.fits", cube, fits.Header(cards))
    with (tmp_path / "a.fits").open("rb") as plain:
        (tmp_path / "b.fits.gz").write_bytes(gzip.compress(plain.read()))
    fits.CompImageHDU(cube, fits.Header(cards)).writeto(tmp_path / "c.fits.fz")
    for name in ("a.fits", "b.fits.gz", "c.fits.fz"):
        assert names_of(tmp_path / name) == ("g", "r", "z")
        source = open_source(tmp_path / name, needed=("z", "g"))
        np.testing.assert_allclose(source[0].image, np.moveaxis(cube[[2, 0]], 0, 2), rtol=0.1)
        # One band of them, and not as many cutouts as there are planes.
        assert len(open_source(tmp_path / name, needed=("r",))) == 1
        with pytest.raises(UsageError, match="the data hold g, r, z"):
            open_source(tmp_path / name, needed=("g", "r", "i"))


def test_fits_cubes_that_say_nothing_of_all_their_planes_have_no_names(tmp_path):
    for number, cards in enumerate(({}, {"BANDS": "griz"}, {"BAND0": "g"}, {"BANDS": "gg"})):
        fits.writeto(tmp_path / f"{number}.fits", np.stack([SKY, SKY, SKY]), fits.Header(cards))
        assert names_of(tmp_path / f"{number}.fits") == (None, None, None)


def test_fits_cube_scaled_compressed_and_zipped(tmp_path):
    cube = rng.integers(0, 30000, (3, 6, 8)).astype(np.int16)
    fits.writeto(tmp_path / "cube.fits", cube)
    np.testing.assert_array_equal(image(tmp_path / "cube.fits"), np.moveaxis(cube, 0, 2))
    fits.writeto(tmp_path / "unsigned.fits", DEEP[..., 0])
    np.testing.assert_array_equal(image(tmp_path / "unsigned.fits"), DEEP)
    packed = fits.CompImageHDU(cube[0], sky_header(0.2), compression_type="RICE_1")
    packed.writeto(tmp_path / "a.fits.fz")
    (plane,) = read_planes(tmp_path / "a.fits.fz", everything)
    np.testing.assert_array_equal(plane.pixels, cube[0])
    assert plane.sky.pixel_scale == pytest.approx(0.2)
    (tmp_path / "z.fits.gz").write_bytes(gzip.compress((tmp_path / "cube.fits").read_bytes()))
    np.testing.assert_array_equal(image(tmp_path / "z.fits.gz"), np.moveaxis(cube, 0, 2))


def test_fits_blank_integers_are_masked(tmp_path):
    hdu = fits.PrimaryHDU(np.array([[1, -9, 3], [4, 5, 6]], np.int16))
    hdu.header["BLANK"] = -9
    hdu.header["BSCALE"] = 2.0
    hdu.writeto(tmp_path / "a.fits")
    pixels = image(tmp_path / "a.fits")[..., 0]
    assert np.isnan(pixels[0, 1]) and np.isfinite(pixels).sum() == 5


def test_a_fits_stack_is_mapped_and_stays_readable(tmp_path):
    stack = rng.normal(size=(4, 6, 8)).astype(np.float32)
    fits.writeto(tmp_path / "g.fits", stack, sky_header(0.5))
    array, _, sky = fits_stack(tmp_path / "g.fits")
    np.testing.assert_array_equal(array[2], stack[2])
    assert sky.pixel_scale == pytest.approx(0.5)
    (tmp_path / "z.fits.gz").write_bytes(gzip.compress((tmp_path / "g.fits").read_bytes()))
    np.testing.assert_array_equal(fits_stack(tmp_path / "z.fits.gz")[0], stack)
    with pytest.raises(UsageError, match="no such file"):
        fits_stack(tmp_path / "r.fits")


@pytest.mark.parametrize("compressed", [False, True])
def test_pan_starrs_stacks_are_flux_again(tmp_path, compressed):
    """By the formula of the survey's pipeline: 1.0857362 asinh((flux - offset) / (2 softening))."""
    flux = rng.normal(120.0, 300.0, (16, 16))
    magnitudes = 1.0857362 * np.arcsinh((flux - 7.5) / (2 * 33.0))
    header = fits.Header([("BOFFSET", 7.5), ("BSOFTEN", 33.0)])
    image = fits.CompImageHDU if compressed else fits.ImageHDU
    how = {"compression_type": "GZIP_2", "quantize_level": 0} if compressed else {}
    fits.HDUList([fits.PrimaryHDU(), image(magnitudes, header, **how)]).writeto(tmp_path / "a.fits")
    (plane,) = fits_planes(tmp_path / "a.fits", lambda names: (0,))
    np.testing.assert_allclose(plane.pixels, flux, rtol=1e-5, atol=1e-3)


def test_a_stack_of_cubes_knows_its_bands(tmp_path):
    cubes = rng.normal(size=(5, 3, 8, 8)).astype(np.float32)
    fits.writeto(tmp_path / "a.fits", cubes, fits.Header([("BANDS", "r,g,z")]))
    source = open_source(tmp_path / "a.fits", needed=("g", "r"))
    assert len(source) == 5 and source.bands_from == ("channel 2 (g)", "channel 1 (r)")
    np.testing.assert_array_equal(source[3].image, np.moveaxis(cubes[3, [1, 0]], 0, 2))


@pytest.mark.parametrize("kind", ["image", "compressed"])
def test_headers_of_a_large_file_are_looked_at_and_its_pixels_are_not(kind, tmp_path):
    pixels = rng.integers(0, 256, (1100, 1000), np.uint8)
    text = f"NAXIS   = {9999999:>20}".encode()
    pixels[500, : len(text)] = np.frombuffer(text, np.uint8)
    image = {"image": fits.ImageHDU, "compressed": fits.CompImageHDU}[kind]
    hdus = [fits.PrimaryHDU(), image(pixels, name="SCI"), fits.ImageHDU(SKY, name="LAST")]
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    for memmap in (True, False):
        with open_fits(tmp_path / "a.fits", memmap=memmap) as found:
            np.testing.assert_array_equal(found["SCI"].data, pixels)
    content = (tmp_path / "a.fits").read_bytes()
    at = content.rindex(b"NAXIS   =")
    assert at > 2**20
    (tmp_path / "b.fits").write_bytes(content[:at] + text + content[at + len(text) :])
    with pytest.raises(Unreadable, match="NAXIS 9999999 in a header"):
        open_fits(tmp_path / "b.fits")
    # Where a header does not say where the next begins, all that follows is looked at.
    broken = content.replace(b"BITPIX  =                    8", b"BITPIX  =                  'x'")
    (tmp_path / "c.fits").write_bytes(broken[:at] + text + broken[at + len(text) :])
    with pytest.raises(Unreadable, match="NAXIS 9999999 in a header"):
        open_fits(tmp_path / "c.fits")
