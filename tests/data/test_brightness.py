"""Level, noise and limits against NumPy in float64 and astropy; stretches by their formulas."""

import jax
import numpy as np
import pytest
from astropy.visualization import LogStretch, PercentileInterval, ZScaleInterval
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.data.brightness import (
    LEVEL,
    LOW,
    MOST_PIXELS,
    NOISE,
    bisected,
    measure,
    measure_in_step,
    noise_unit,
    sorted_quantile,
    stretched,
)
from lensjax.data.preprocess import STRETCHES, fit, geometry
from tests.data.wanted import preprocessing

rng = np.random.default_rng(1)
SIDE = 24
make = jax.jit(stretched, static_argnums=0)


def noise(*shape):
    return rng.normal(size=shape).astype(np.float32)


def shown(height, width, size=SIDE, scale=0.2):
    return geometry((height, width), 0.2, preprocessing(size, scale))


def brightness(images, stretch="asinh", size=SIDE, scale=0.2):
    bands = tuple(range(images.shape[-1]))
    return measure(images, shown(*images.shape[1:3], size, scale), bands, stretch)


def in_float64(pixels):
    """Level, noise and limits of the pixels (n,) of a band."""
    pixels = pixels.astype(np.float64)
    level = np.median(pixels)
    low, high = np.percentile(pixels, (0.5, 99.5))
    high = high if high > level else pixels.max()
    return level, 1.4826 * np.median(abs(pixels - level)), low, high


# --- what is measured ---


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", ">i2"])
def test_level_noise_and_limits_are_those_of_numpy(dtype):
    images = (noise(3, SIDE, SIDE, 3) * 20 + 90).clip(0, 255).astype(dtype)
    found = brightness(images)
    assert found.shape == (3, 3, 4) and found.dtype == np.float32
    for image, band in np.ndindex(3, 3):
        np.testing.assert_allclose(
            found[image, band], in_float64(images[image, ..., band]), rtol=1e-5
        )
    wide = brightness(images.astype(np.float32))
    np.testing.assert_array_equal(found, wide)


def test_a_compiled_step_measures_the_same_beside_a_bright_star():
    images = noise(3, SIDE, SIDE, 3) * 20 + 90
    images[1, 3:5, 3:5] = 1e7
    wanted, geometry = brightness(images), shown(SIDE, SIDE)
    found = measure_in_step(images, geometry, sorted_quantile)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    # By bisection the level lies off by up to 2^-24 of the range.
    near = measure_in_step(images, geometry, bisected)
    np.testing.assert_allclose(near, wanted, rtol=1e-6, atol=2 * 1e7 / 2**24)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 64), (224, 224), (208, 300)])
def test_of_large_cutouts_every_so_many_pixels_are_taken(height, width):
    images = noise(2, height, width, 1) * 3 + 7
    size = max(height, width)
    found = brightness(images, size=size)[:, 0]
    stride = -(-height * width // MOST_PIXELS)
    for image, values in zip(images[..., 0], found, strict=True):
        np.testing.assert_allclose(values, in_float64(image.reshape(-1)[::stride]), rtol=1e-5)
        whole = in_float64(image.reshape(-1))
        np.testing.assert_allclose(values[NOISE], whole[1], rtol=0.08)
        np.testing.assert_allclose(values[LEVEL], whole[0], atol=0.08 * whole[1])


def test_only_what_a_member_sees_counts_and_only_its_bands():
    images = np.full((2, 40, 50, 3), 1e6, np.float32)
    images[:, 8:32, 13:37] = noise(2, 24, 24, 3)
    found = measure(images, shown(40, 50), (2, 0), "asinh")
    np.testing.assert_array_equal(found, brightness(images[:, 8:32, 13:37])[:, [2, 0]])
    coarser = measure(images, shown(40, 50, 12, 0.4), (2, 0), "asinh")
    np.testing.assert_array_equal(coarser, found)


def test_an_image_is_measured_alone():
    images = noise(37, 30, SIDE, 2)
    together = brightness(images)
    alone = np.concatenate([brightness(image[None]) for image in images])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("height", [11, 13, 32, 40])
def test_the_limits_of_zscale_are_those_of_astropy(height):
    images = noise(2, height, 40, 2) * 3 + 100
    images[:, 2:6, 3:9] += 400
    found = brightness(images, "zscale", 40)
    for image, band in np.ndindex(2, 2):
        expected = ZScaleInterval().get_limits(images[image, ..., band].astype(np.float64))
        np.testing.assert_allclose(found[image, band, LOW:], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[..., :LOW], brightness(images, size=40)[..., :LOW])


@pytest.mark.parametrize("ratio", [0.4, 0.7, 1.0, 1.3, 2.0, 3.3])
def test_the_noise_after_resampling_is_that_of_white_noise(ratio):
    image = rng.normal(0, 5, (240, 240, 1)).astype(np.float32)
    made = shown(240, 240, round(240 / ratio) - 4, 0.2 * ratio)
    new = fit(image, made, np.zeros(1, np.float32))[..., 0]
    expected = in_float64(new.reshape(-1))[1] / in_float64(image.reshape(-1))[1]
    assert made.noise == pytest.approx(expected, rel=0.03)


# --- stretches ---


def stretches(name, images, softening=3.0):
    prepared = preprocessing(images.shape[1], bands=("g",) * images.shape[-1], stretch=name)
    return np.asarray(make(prepared, images, brightness(images, name, images.shape[1])))


def test_stretches_of_the_signal_equal_their_formulas():
    images = noise(2, SIDE, SIDE, 2) * 3 + 40
    images[:, 5:7, 5:7] += 500
    level, sigma, _, _ = np.moveaxis(brightness(images).astype(np.float64), -1, 0)[:, :, None, None]
    signal = (images - level) / sigma / 3.0
    np.testing.assert_allclose(stretches("linear", images), signal, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stretches("asinh", images), np.arcsinh(signal), rtol=1e-4, atol=1e-5)
    top = signal.max()
    expected = LogStretch(a=top)(np.clip(signal / top, 0, 1)) * np.log(1 + top)
    np.testing.assert_allclose(stretches("log", images), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(stretches("none", images), images)


def test_percentiles_are_those_of_numpy_and_astropy():
    images = noise(2, SIDE, SIDE, 2) ** 3
    found = stretches("percentile", images)
    for image, band in np.ndindex(2, 2):
        expected = PercentileInterval(99.0)(images[image, ..., band].astype(np.float64))
        np.testing.assert_allclose(found[image, ..., band], expected, atol=2e-6)


def test_pixels_far_beyond_all_others_stay_finite():
    images = noise(1, SIDE, SIDE, 2)
    images[0, 3, 4], images[0, 5, 6], images[0, 7, 8] = 1e30, -1e37, 1e9
    level, sigma, _, _ = np.moveaxis(brightness(images).astype(np.float64), -1, 0)[:, :, None, None]
    expected = np.arcsinh((images - level) / sigma / 3.0)
    np.testing.assert_allclose(stretches("asinh", images), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("picture", ["clipped", "point", "flat"])
def test_a_sky_without_noise_gives_finite_contrast(picture):
    image = np.zeros((1, SIDE, SIDE, 2), np.float32)
    if picture == "clipped":
        image[:, 10:20, 10:20] = 255.0
    elif picture == "point":
        image[:, 16, 16] = 255.0
    result = stretches("asinh", image)
    assert np.isfinite(result).all()
    assert result.max() == pytest.approx(0 if picture == "flat" else np.arcsinh(256 / 3), rel=1e-5)
    np.testing.assert_array_equal(result, stretches("asinh", image * 2))
    # Resampled, such a sky has no less contrast: what was clipped is no noise.
    unit = np.asarray(noise_unit(brightness(image), 0.3))
    np.testing.assert_array_equal(unit, np.asarray(noise_unit(brightness(image))))


@pytest.mark.parametrize("name", STRETCHES)
def test_a_flat_image_stays_finite_and_only_none_depends_on_the_unit(name):
    flat = np.full((2, SIDE, SIDE, 2), 7.0, np.float32)
    assert np.isfinite(stretches(name, flat)).all()
    images = noise(2, SIDE, SIDE, 2)
    found, scaled = stretches(name, images), stretches(name, images * np.float32(2.0**-40))
    assert np.array_equal(found, scaled) == (name != "none")


@settings(deadline=None, max_examples=30)
@given(st.floats(-14, 9), st.floats(-3, 3))
def test_the_unit_of_flux_does_not_matter(exponent, sky):
    images = noise(2, SIDE, SIDE, 2) + np.float32(sky)
    images[:, 6:10, 6:10] += 50
    scaled = images * np.float32(10.0**exponent)
    np.testing.assert_allclose(stretches("asinh", scaled), stretches("asinh", images), atol=1e-4)


def test_a_picture_emptier_than_its_percentile_reaches_to_its_maximum():
    image = np.zeros((1, SIDE, SIDE, 1), np.float32)
    image[0, 0, 0] = 9.0
    assert brightness(image)[0, 0].tolist() == [0, 0, 0, 9]
