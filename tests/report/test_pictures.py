"""Composites keep colours and survive bad pixels; the mosaic shows every candidate."""

from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from lensjax.errors import LensjaxError
from lensjax.report import colour, write_mosaic
from lensjax.report.pictures import _shortened, score_text, uncertainty, wavelength


def galaxy(bands: int, place: tuple[int, int] = (20, 20), noise: float = 1.0) -> np.ndarray:
    y, x = np.mgrid[:40, :40]
    blob = 100 * np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / 18)
    rng = np.random.default_rng(0)
    return blob[:, :, None] + rng.normal(0, noise, (40, 40, bands))


def candidates(count: int) -> Table:
    logit = np.linspace(12, -3, count)
    return Table(
        {
            "rank": np.arange(1, count + 1),
            "id": [f"object {k} with quite a long name" for k in range(count)],
            "ra": np.zeros(count),
            "dec": np.zeros(count),
            "probability": 1 / (1 + np.exp(-logit)),
            "logit": logit,
            "logit_std": np.full(count, 0.5),
        }
    )


@pytest.mark.parametrize("bands", [["i"], ["r", "i"], ["g", "r", "i"], list("ugrizy"), ["?"] * 4])
def test_any_number_of_bands(bands: list[str]) -> None:
    shown = colour(galaxy(len(bands)), bands)
    assert shown.shape == (40, 40, 3) and shown.dtype == np.uint8
    brightness = shown.mean(axis=2)
    assert brightness[18:22, 18:22].mean() > 150
    assert brightness[:8, :8].mean() < 40


def test_one_band_is_grey() -> None:
    shown = colour(galaxy(1), ["VIS"])
    assert (shown == shown[:, :, :1]).all()


def test_redder_bands_are_red_whatever_their_order() -> None:
    image = galaxy(5, noise=0.5)
    image[:, :, 0] += galaxy(1, place=(8, 20), noise=0.5)[:, :, 0]  # seen in g alone
    image[:, :, 4] += galaxy(1, place=(32, 20), noise=0.5)[:, :, 0]  # seen in Y alone
    names = ["g", "r", "i", "z", "Y"]
    shown = colour(image, names).astype(int)
    assert shown[8, 20, 2] > shown[8, 20, 0] + 50
    assert shown[32, 20, 0] > shown[32, 20, 2] + 50
    again = colour(image[:, :, ::-1], names[::-1]).astype(int)
    assert np.abs(again - shown).max() <= 1


def test_wavelengths_of_survey_names() -> None:
    order = ["u", "DES_G", "des-r", "VIS", "i", "z", "NIR_Y", "NIR_J", "NISP H", "Ks", "W1"]
    assert (np.diff([wavelength(band) for band in order]) > 0).all()
    assert (wavelength("F814W"), wavelength("f160w")) == (814, 1600)
    assert np.isnan(wavelength("band1"))


def test_scale_does_not_depend_on_units_or_bad_pixels() -> None:
    image = galaxy(3)
    shown = colour(image, "gri").astype(int)
    assert np.abs(colour(image * 1e-12, "gri").astype(int) - shown).max() <= 1
    bad = image.copy()
    bad[2, 2], bad[3, :] = 1e9, np.nan
    difference = np.abs(colour(bad, "gri").astype(int) - shown)
    difference[2:4] = 0
    assert difference.max() <= 40 and difference.mean() < 1


@pytest.mark.parametrize("value", [np.nan, 0.0, 5.0, -1.0])
def test_empty_images(value: float) -> None:
    assert colour(np.full((8, 8, 3), value), "gri").max() == 0


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, (6, 7, 3), elements=st.floats(width=32, allow_subnormal=False)))
def test_no_image_breaks_it(image: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        assert colour(image, "gri").shape == (6, 7, 3)


def test_eight_bit_pictures_are_shown_as_they_are() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    np.testing.assert_array_equal(colour(picture, ("i", "r", "g")), picture)
    np.testing.assert_array_equal(colour(picture.astype(np.float32), ("red", "green")), picture)
    np.testing.assert_array_equal(colour(picture, ("g", "r", "i")), picture[:, :, ::-1])


def test_digits_follow_certainty() -> None:
    assert score_text(0.0, 0.2, 0.5) == ("0.500", "± 0.050")
    assert score_text(9.0, 0.5, 0.99988)[0] == "0.99988"
    assert score_text(30.0, 0.1, 1.0) == (">0.99999", "± <0.00001")
    assert score_text(-30.0, np.nan, 0.0) == ("<0.00001", "")
    assert score_text(np.nan, np.nan, np.nan) == ("–", "")


def test_uncertainty_is_in_probability_not_in_logits() -> None:
    assert uncertainty(0.0, 0.01) == pytest.approx(0.01 / 4, rel=1e-4)
    assert uncertainty(0.0, 1e6) == pytest.approx(0.5)
    assert uncertainty(20.0, 1.0) < 1e-8


@pytest.mark.parametrize("count", [0, 1, 13])
def test_mosaic_has_a_tile_a_candidate(tmp_path: Path, count: int) -> None:
    pictures = [np.full((20, 30, 3), 0.5)] * count
    write_mosaic(tmp_path / "mosaic.png", pictures, candidates(count), count)
    with Image.open(tmp_path / "mosaic.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    grey = (pixels == 128).all(axis=2)
    assert grey.sum() == pytest.approx(count * 176**2, rel=0.05)


def test_mosaic_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LensjaxError, match="cannot write"):
        write_mosaic(tmp_path / "file" / "mosaic.png", [], candidates(0), 0)


def test_long_names_are_shortened_to_the_width_with_few_looks_at_them() -> None:
    class Monospaced:
        looks = 0

        def getlength(self, text: str) -> float:
            self.looks += 1
            return 7 * len(text)

    for length in (1, 2, 20, 21, 22, 5000):
        font, text = Monospaced(), "".join(chr(97 + k % 26) for k in range(length))
        found = _shortened(text, 7 * 20, font)
        assert len(found) == min(length, 20) and found[:2] == text[:2] and found[-1] == text[-1]
        assert ("…" in found) == (length > 20) and font.looks < 100
