"""The magnitude of one unit of flux: as headers of surveys have it, or as it is said."""

import numpy as np
import pytest
from astropy import units
from astropy.io import fits

from lensjax.data.formats import tile_files
from lensjax.data.zero_points import UNITS, parse_zero_points, zero_point
from lensjax.errors import UsageError

KNOWN = [
    ({"MAGZERO": 30.0, "MAGZPT": 25.2}, 30.0),  # DECam: MAGZPT is for one second
    ({"PHOTZP": 30}, 30.0),  # MegaPipe
    ({"FLUXMAG0": 63095734448.0194}, 27.0),  # HSC
    ({"BUNIT": "nanomaggy"}, 22.5),  # SDSS
    ({"MAGZERO": "unknown", "BUNIT": "nJy"}, 31.4),  # Rubin
    ({"BUNIT": "adu", "MAGZERO": True}, None),
    ({}, None),
]


@pytest.mark.parametrize(("header", "magnitude"), KNOWN)
def test_headers_of_surveys_are_understood(header, magnitude):
    assert zero_point(fits.Header(header)) == (magnitude and pytest.approx(magnitude, abs=1e-6))


@pytest.mark.parametrize("unit", ["nJy", "uJy", "Jy"])
def test_units_are_what_astropy_makes_of_them(unit):
    magnitude = (1 * units.Unit(unit)).to_value(units.ABmag)
    np.testing.assert_allclose(UNITS[unit], magnitude, atol=0.001)


def test_the_first_header_of_a_file_counts_where_that_of_the_image_says_nothing(tmp_path):
    first, image = fits.PrimaryHDU(), fits.ImageHDU(np.zeros((4, 5), np.float32), name="SCI")
    first.header["MAGZERO"], first.header["SATURATE"] = 27.0, 5e4
    fits.HDUList([first, image]).writeto(tmp_path / "a.fits")
    image.header["MAGZERO"], image.header["SATURATE"] = 25.0, -1
    fits.HDUList([first, image]).writeto(tmp_path / "b.fits")
    found = [tile_files.stored(str(tmp_path / name)) for name in ("a.fits", "b.fits")]
    assert [said.zero_point for said in found] == [27.0, 25.0]
    assert [said.saturation for said in found] == [5e4, 5e4]  # -1 is none


def test_one_number_is_for_all_bands_and_several_are_one_a_band():
    assert parse_zero_points("27", "gri") == (27.0,) * 3
    assert parse_zero_points("27,28,29.5", "gri") == (27.0, 28.0, 29.5)
    for said in ("27,28", "x", "nan", ""):
        with pytest.raises(UsageError, match="give one number, or one for each of g,r,i"):
            parse_zero_points(said, "gri")
