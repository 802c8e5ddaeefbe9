"""Geometry against jax.image and closed forms; masks; what is joined and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.data.planes import Astrometry, Plane, Unreadable
from lensjax.data.preprocess import (
    fill_masked,
    fit,
    geometry,
    join,
    resample,
)
from lensjax.errors import UsageError
from tests.data.wanted import preprocessing

rng = np.random.default_rng(1)
BACKGROUND = np.array([5.0, -5.0], np.float32)


def fitted(image, scale, prepared, how="auto"):
    """The image on the grid of a member, and how it came there."""
    made = geometry(image.shape[:2], scale, prepared, how)
    return fit(image, made, BACKGROUND[: image.shape[2]]), made


def noise(height, width, bands=2):
    return rng.normal(size=(height, width, bands)).astype(np.float32)


def gaussian(size, scale, sigma, bands=1):
    """Surface brightness of a round Gaussian of unit flux; `scale` and `sigma` in arcsec."""
    x = (np.arange(size) - (size - 1) / 2) * scale
    profile = np.exp(-(x**2) / (2 * sigma**2)) / np.sqrt(2 * np.pi) / sigma
    image = profile[:, None] * profile[None, :]
    return np.repeat(image[..., None], bands, axis=-1).astype(np.float32)


@pytest.mark.parametrize(
    "change",
    [
        {"stretch": "sqrt"},
        {"bands": []},
        {"mean": [0.0]},
        {"std": [0.0, 1.0]},
        {"input_size": 0},
        {"softening": float("nan")},
        {"pixel_scale": -1.0},
        {"pixel_scale": 0.0},
        {"mean": [0.0, float("nan")]},
    ],
)
def test_preparations_that_make_no_sense_are_refused(change):
    with pytest.raises(UsageError):
        dataclasses.replace(preprocessing(), **change)


def test_resample_is_scale_and_translate():
    shape, out = (20, 12), (16, 13)
    image = noise(*shape, 3)
    reference = jax.jit(
        lambda scale, translation: jax.image.scale_and_translate(
            image, (*out, 3), (0, 1), scale, translation, method="linear", antialias=True
        )
    )
    for ratio in (0.3, 1.0, 1.9, 3.7):
        translation = [o / 2 - n / (2 * ratio) for n, o in zip(shape, out, strict=True)]
        expected = reference(jnp.full(2, 1 / ratio), jnp.asarray(translation))
        result = resample(image, ratio, out, 0.0)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=2e-5)


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.integers(1, 20),
    st.floats(0.1, 8.0),
    st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)
def test_a_uniform_sky_keeps_its_brightness(shape, size, ratio, sky):
    image = np.full((*shape, 1), sky, np.float32)
    result = resample(image, ratio, (size, size), np.float32(sky))
    np.testing.assert_allclose(result, sky, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 24), st.integers(1, 24), st.booleans())
def test_the_same_grid_is_cut_and_padded_without_interpolation(height, width, tight):
    image = noise(height, width)
    size = min(height, width) if tight else 24
    result, made = fitted(image, 0.2, preprocessing(size), "resample")
    rows, _ = made.bounds
    assert made.ratio == 1.0 and rows.stop - rows.start == min(height, size)
    top, left = max(0, (height - size) // 2), max(0, (width - size) // 2)
    np.testing.assert_array_equal(result[made.bounds], image[top : top + size, left : left + size])


def test_what_was_done_is_said():
    image = noise(16, 16)
    for size, scale, how, action in [
        (16, 0.2, "auto", "as is"),
        (10, 0.2, "auto", "cropped"),
        (20, 0.2, "auto", "padded"),
        (16, 0.4, "auto", "resampled"),
        (16, None, "auto", "as is"),
        (8, None, "auto", "resized"),
        (8, 0.4, "resize", "resized"),
        (8, 0.4, "crop", "cropped"),
        (16, 0.4, "crop", "as is"),
    ]:
        result, made = fitted(image, 0.2, preprocessing(size, scale), how)
        assert (made.action, result.shape) == (action, (size, size, 2))
    assert geometry((16, 16), None, preprocessing(8, 0.2)).action == "resized"


def test_nearly_the_same_scale_is_not_interpolated():
    image = noise(16, 16)
    result, _ = fitted(image, 0.2 * (1 + 1e-4), preprocessing(16, 0.2))
    np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize("scale", [0.1, 0.2, 0.5])
def test_flux_and_centre_of_a_galaxy_survive_resampling(scale):
    image = gaussian(101, 0.1, 1.2)
    size = round(10.1 / scale)
    result = fitted(image, 0.1, preprocessing(size, scale, ("g",)))[0][..., 0]
    assert result.sum() * scale**2 == pytest.approx(1.0, rel=2e-3)
    offset = (np.arange(size) - (size - 1) / 2) * scale
    assert abs((result.sum(axis=0) * offset).sum() / result.sum()) < 1e-4
    # Averaging over a triangle widens by a sixth of its squared half width on each axis.
    variance = (result.sum(axis=0) * offset**2).sum() / result.sum()
    assert variance == pytest.approx(1.2**2 + (scale**2 / 6 if scale > 0.1 else 0), rel=0.02)


def test_the_outside_is_background_and_is_told_apart():
    image = noise(10, 10)
    for how, scale in (("crop", None), ("resample", 0.4)):
        result, made = fitted(image, 0.2, preprocessing(20, scale), how)
        outside = np.ones((20, 20), bool)
        outside[made.bounds] = False
        assert made.pads and outside.any() and not outside[10, 10]
        np.testing.assert_array_equal(result[outside], np.tile(BACKGROUND, (outside.sum(), 1)))


def test_a_huge_cutout_is_read_only_where_it_is_seen():
    image = np.full((500, 500, 1), np.nan, np.float32)
    image[240:260, 240:260] = gaussian(20, 0.2, 0.8)
    seen = resample(image, 1.5, (8, 8), 0.0)
    np.testing.assert_allclose(seen, resample(image[240:260, 240:260], 1.5, (8, 8), 0.0), rtol=1e-6)


def test_sides_of_unequal_length_keep_the_shape_of_a_galaxy():
    image = gaussian(41, 0.2, 0.8)[:, 5:-5]
    result = fitted(image, None, preprocessing(20, None, ("g",)))[0][..., 0]
    np.testing.assert_allclose(result, result.T, atol=1e-4)


def test_masked_pixels_are_bridged_or_set_to_the_background():
    image = gaussian(32, 0.2, 1.5) + 3
    spoilt = image.copy()
    spoilt[16, 14] = spoilt[3, 3] = np.nan
    spoilt[:, 25:] = np.nan
    filled = fill_masked(spoilt)
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[np.isfinite(spoilt)], spoilt[np.isfinite(spoilt)])
    assert filled[16, 14, 0] == pytest.approx(image[16, 14, 0], rel=0.01)
    np.testing.assert_array_equal(filled[:, 28:], np.nanmedian(spoilt))
    whole = noise(4, 4)
    assert fill_masked(whole) is whole


def test_bands_with_few_valid_pixels_are_filled_with_their_median():
    image = np.full((8, 8, 2), np.nan, np.float32)
    image[4, 4, 0] = 7.0
    np.testing.assert_array_equal(fill_masked(image)[0, 0], [7.0, 0.0])


@pytest.mark.parametrize(
    ("how", "cutout_scale", "scale", "error"),
    [
        ("stretch", 0.2, 0.2, UsageError),
        ("resample", 0.2, None, UsageError),
        ("resample", None, 0.2, Unreadable),
        ("resample", 0.001, 1.0, Unreadable),
    ],
)
def test_what_cannot_be_fitted(how, cutout_scale, scale, error):
    with pytest.raises(error):
        geometry((8, 8), cutout_scale, preprocessing(8, scale), how)


def test_bands_of_different_grids_are_joined_on_the_finest():
    fine = Plane(gaussian(61, 0.1, 1.0)[..., 0], Astrometry(0.1, 10.0, -3.0))
    coarse_pixels = gaussian(21, 0.3, 1.0)[..., 0]
    coarse_pixels[0, :] = np.nan
    cutout = join([Plane(coarse_pixels, Astrometry(0.3, 11.0, -4.0)), fine])
    assert cutout.pixel_scale == 0.1 and (cutout.ra, cutout.dec) == (11.0, -4.0)
    assert cutout.image.shape == (61, 61, 2)
    np.testing.assert_array_equal(cutout.image[..., 1], fine.pixels)
    np.testing.assert_allclose(
        cutout.image[10:-10, 10:-10, 0], fine.pixels[10:-10, 10:-10], atol=5e-3
    )
    assert np.isnan(cutout.image[0, :, 0]).all() and np.isfinite(cutout.image[5:, :, 0]).all()


def test_bands_of_different_size_and_unknown_scale_are_refused():
    with pytest.raises(Unreadable, match="6x5, 7x7"):
        join([Plane(np.zeros((5, 6), np.float32)), Plane(np.zeros((7, 7), np.float32))])
    with pytest.raises(Unreadable, match="no valid pixel"):
        join([Plane(np.full((3, 3), np.nan, np.float32))] * 2)
