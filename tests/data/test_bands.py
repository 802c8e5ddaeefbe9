"""Bands by name: what surveys call their planes against what members ask for."""

import pytest

from lensjax.data.bands import Selection, parse, reddest, select, short_name
from lensjax.data.planes import COLOURS
from lensjax.errors import UsageError

EUCLID = ("DES_G_BGSUB", "DES_R_BGSUB", "VIS_BGSUB", "DES_I_BGSUB", "NIR_Y_BGSUB")


def chosen(names, needed, bands=None):
    return select(names, parse(needed, bands))


def test_survey_names_are_matched_without_prefix_and_suffix():
    assert chosen(EUCLID, ("g", "r", "i")).planes == (0, 1, 3)
    assert chosen(EUCLID, ("VIS", "y")).planes == (2, 4)
    assert chosen(EUCLID, ("NIR_Y",)).planes == (4,)
    assert chosen(EUCLID, ("VIS_BGSUB",)).planes == (2,)


def test_a_survey_that_is_asked_for_is_not_replaced_by_another():
    with pytest.raises(UsageError, match="SDSS_g"):
        chosen(("HSC_g", "HSC_r"), ("SDSS_g",))


def test_an_exact_name_comes_before_another_case():
    assert chosen(("y", "Y"), ("Y",)).planes == (1,)
    assert chosen(("y", "Y"), ("y",)).planes == (0,)


def test_two_planes_that_could_be_the_band_are_an_error_naming_both():
    with pytest.raises(UsageError, match="DES_Y, NIR_Y.*--bands"):
        chosen(("DES_Y", "NIR_Y"), ("y",))


def test_called_gives_bands_other_names_and_leaves_the_rest_by_their_own():
    assert chosen(EUCLID, ("g", "r", "i"), "r=VIS_BGSUB,g=NIR_Y").planes == (4, 2, 3)
    assert chosen(EUCLID, None, "r=VIS,g=NIR_Y") == Selection(("r", "g"), (2, 4))


def test_a_colour_picture_is_i_r_g_unless_told_otherwise():
    assert chosen(COLOURS, ("g", "r", "i")).planes == (2, 1, 0)
    assert chosen(COLOURS, ("g", "r", "i"), "g,r,i").planes == (0, 1, 2)
    assert chosen(COLOURS, None) == Selection(("i", "r", "g"), (0, 1, 2))
    assert chosen(COLOURS, ("g",), "g=green").planes == (1,)


def test_planes_without_names_are_in_the_members_order():
    assert chosen((None,) * 3, ("g", "r", "i")).planes == (0, 1, 2)
    assert chosen((None,) * 3, ("g", "r", "i"), "i,r,g").planes == (2, 1, 0)
    assert chosen((None,) * 5, ("g", "i"), "g,r,i,z,Y").planes == (0, 2)
    assert chosen((None,) * 2, None).bands == ("band1", "band2")


def test_an_order_that_names_planes_is_followed_by_name():
    assert chosen(("r", "g", "i"), ("g", "i"), "g,r,i").planes == (1, 2)
    assert chosen(("F1", "F2", "F3"), ("g", "i"), "g,r,i").planes == (0, 2)


def test_all_bands_are_given_short_names_where_these_differ():
    assert chosen(EUCLID, None).bands == ("G", "R", "VIS", "I", "Y")
    assert chosen(("DES_Y", "NIR_Y"), None).bands == ("DES_Y", "NIR_Y")
    assert short_name("DES_G_BGSUB") == "G" and short_name("HSC-I") == "I"


def test_filters_that_are_described_behind_their_letter():
    described = ("g.00000", "r.MP9601", "i DECam SDSS c0003 7835.0 1470.0", "HSC-Z")
    assert chosen(described, ("i", "z", "r", "g")).planes == (2, 3, 1, 0)


@pytest.mark.parametrize(
    ("names", "needed", "bands", "says"),
    [
        ((None,), ("g", "r", "i"), None, "need bands g, r, i.*1 channel.*--bands"),
        ((None,) * 4, ("g", "r", "i"), None, "4 channels without names.*--bands"),
        (COLOURS, ("g", "r", "z"), None, "need bands g, r, z.*red, green, blue.*--bands"),
        (COLOURS, ("g", "r", "i"), "g,r,z", "said to be g, r, z"),
        (COLOURS, ("g", "r", "i"), "g,r", "names 2 bands"),
        (("g", "r"), ("g", "r", "i"), None, "data hold g, r"),
        (("g", "r"), ("g",), "g=VIS", "VIS"),
    ],
)
def test_absent_bands_are_an_error_that_names_both_sides(names, needed, bands, says):
    with pytest.raises(UsageError, match=says):
        chosen(names, needed, bands)


@pytest.mark.parametrize("bands", ["", "g,,r", "g,g", "g=VIS,r", "g=", "=VIS", "g=A,g=B"])
def test_bands_that_make_no_sense_are_refused(bands):
    with pytest.raises(UsageError, match="--bands"):
        parse(None, bands)


def test_the_reddest_band_is_that_of_the_longest_wavelength():
    assert reddest(("i", "r", "g")) == "i" and reddest(("g", "r", "z", "i")) == "z"
    assert reddest(EUCLID) == "NIR_Y_BGSUB"
    assert reddest(("F606W", "F814W")) == "F814W" and reddest(("VIS", "g")) == "g"
