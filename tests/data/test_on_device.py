"""The step's view of a batch against NumPy: order statistics, geometry, brightness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.visualization import LogStretch, PercentileInterval
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lensjax.data import on_device
from lensjax.data.on_device import (
    Canvas,
    Layout,
    View,
    background_level,
    level_and_noise,
    on_grid,
    percentile_limits,
    prepare,
    seen,
    stretched,
)
from lensjax.data.order_statistics import order_statistic
from lensjax.data.preprocess import STRETCHES, fit, geometry
from lensjax.data.preprocess import background_level as background_on_host
from tests.data.wanted import preprocessing

rng = np.random.default_rng(1)


def noise(*shape):
    return rng.normal(size=shape).astype(np.float32)


def view_of(prepared, shape, scale=0.2, how="auto", channels=(0, 1)):
    return View(prepared, 0, channels, geometry(shape, scale, prepared, how))


def all_sky(count, height, width):
    return np.tile(np.array([0, height, 0, width], np.int32), (count, 1))


# --- order statistics ---

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
some_twice = st.one_of(finite, st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, -3e38]))


def assert_in_order(plane, rank):
    value, following = jax.jit(order_statistic)(plane, rank)
    ordered = np.append(np.sort(plane, axis=None), np.nan)
    np.testing.assert_array_equal([value, following], ordered[rank : rank + 2])


@settings(deadline=None, max_examples=60)
@given(arrays.arrays(np.float32, (5, 8), elements=some_twice), st.integers(0, 39))
def test_order_statistics_are_those_of_sorted_planes(plane, rank):
    assert_in_order(plane, rank)


@pytest.mark.parametrize("height", [1, 2, 31, 32, 33, 64, 65, 600])
@pytest.mark.parametrize("width", [1, 3, 70])
def test_order_statistics_of_planes_of_any_size(height, width):
    plane = noise(height, width) * np.float32(10.0 ** rng.integers(-20, 20))
    for rank in (0, plane.size // 2, plane.size - 1):
        assert_in_order(plane, rank)


def test_more_equal_pixels_than_a_byte_counts():
    plane = np.zeros((1024, 3), np.float32)
    plane[:300] = 1.0
    for rank in (0, 2171, 2172, 3071):
        assert_in_order(plane, rank)


@pytest.mark.parametrize("planes_at_once", [0, 5])
def test_brightness_is_a_matter_of_each_image_alone(monkeypatch, planes_at_once):
    """However many images are measured at once, and over however many devices."""
    monkeypatch.setattr(on_device, "_CACHED", planes_at_once * 4 * 40 * 40)
    jax.clear_caches()  # what the other case has traced
    images, bounds = noise(37, 40, 40, 3), all_sky(37, 40, 40)
    images[::5] = np.round(images[::5] / 2)
    expected = [
        np.concatenate(values) for values in zip(*map(measured, images[:, None]), strict=True)
    ]
    for found in (measured(images), [v[:37] for v in measured(np.tile(images, (9, 1, 1, 1)))]):
        np.testing.assert_array_equal(found, expected)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    sharded = jax.shard_map(level_and_noise, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_array_equal(jax.jit(sharded)(images, bounds), expected)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_what_the_step_prepares_lowers_for_every_platform(platform):
    prepared = preprocessing(20)
    view = view_of(prepared, (31, 14))
    images = jax.ShapeDtypeStruct((3, 31, 14, 2), np.uint8)
    bounds = jax.ShapeDtypeStruct((3, 4), np.int32)
    lowered = jax.jit(seen, static_argnums=0).trace(view, images, bounds)
    assert lowered.lower(lowering_platforms=(platform,)).out_info.shape == (3, 20, 20, 2)


# --- geometry ---

SHAPES = [(16, 16), (24, 24), (23, 40), (40, 23), (9, 12), (12, 40), (15, 16)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("how", "scale"),
    [("crop", None), ("resize", None), ("auto", 0.2), ("auto", 0.11), ("resample", 0.5)],
)
def test_the_step_fits_as_the_host_does(shape, how, scale):
    images = noise(3, *shape, 2) * 20 + 100
    made = geometry(shape, 0.2, preprocessing(16, scale), how)
    view = View(preprocessing(16, scale), 0, (0, 1), made)
    found, bounds = jax.jit(on_grid, static_argnums=0)(view, images, all_sky(3, *shape))
    expected = np.stack([fit(image, made) for image in images])
    if made.ratio == 1.0:
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4)
    edges = [edge for axis in made.bounds for edge in (axis.start, axis.stop)]
    np.testing.assert_array_equal(bounds, [edges] * 3)


@pytest.mark.parametrize("shape", [(1, 1), (3, 9), (16, 16), (31, 50)])
def test_the_background_is_that_of_the_host(shape):
    images = noise(4, *shape, 3)
    expected = [background_on_host(image) for image in images]
    np.testing.assert_array_equal(background_level(jnp.asarray(images)), expected)


def test_channels_are_taken_by_the_view():
    images, prepared = noise(2, 16, 16, 3), preprocessing(stretch="none")
    view = view_of(prepared, (16, 16), channels=(2, 0))
    found = seen(view, images, all_sky(2, 16, 16))
    np.testing.assert_array_equal(found, images[..., [2, 0]])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float16, bool])
def test_the_type_in_which_pixels_travel_changes_nothing(dtype):
    images = (noise(2, 24, 24, 2) * 30 + 60).clip(0, 255).astype(dtype)
    wide = images.astype(np.float32)
    for size, how in ((16, "resize"), (30, "crop"), (24, "crop")):
        view, bounds = view_of(preprocessing(size), (24, 24), how=how), all_sky(2, 24, 24)
        look = jax.jit(seen, static_argnums=0)
        np.testing.assert_array_equal(look(view, images, bounds), look(view, wide, bounds))


def test_one_canvas_serves_several_preparations():
    canvas = Canvas((24, 24, 2), "uint8")
    views = tuple(view_of(preprocessing(size), (24, 24), how="resize") for size in (16, 24, 40))
    layout = Layout((canvas,), views)
    blank = layout.blank(3)
    assert canvas.nbytes == 24 * 24 * 2 and blank.images[0].dtype == np.uint8
    found = jax.jit(prepare)(blank)
    assert [images.shape for images in found] == [(3, s, s, 2) for s in (16, 24, 40)]
    assert all(np.isfinite(images).all() for images in found)
    leaves = jax.tree.leaves(blank)
    assert all(leaf.shape[0] == 3 for leaf in leaves) and len(leaves) == 2


# --- brightness ---


def measured(images, bounds=None):
    images = np.asarray(images)
    bounds = all_sky(len(images), *images.shape[1:3]) if bounds is None else bounds
    return [np.asarray(values) for values in jax.jit(level_and_noise)(images, bounds)]


def sorted_level_and_noise(image):
    """Level and noise of an image (height, width, band), by sorting in NumPy."""
    pixels = np.sort(image.reshape(-1, image.shape[-1]).T, axis=1)
    level = np.median(pixels, axis=1)
    noise = 1.4826 * np.median(np.abs(pixels - level[:, None]), axis=1)
    bright = pixels[:, (199 * (pixels.shape[1] - 1) + 100) // 200] - level
    rise = np.where(bright > 0, bright, pixels[:, -1] - level)
    scale = np.maximum(noise, rise / 256)
    return level, np.where(scale > 0, scale, 1.0)


@pytest.mark.parametrize("picture", ["noise", "grey levels", "tiny", "flat"])
def test_level_and_noise_are_those_of_the_sorted_sky(picture):
    images = noise(6, 21, 30, 2)
    images[0, 4:9, 4:9] += 80
    if picture == "grey levels":
        images = np.round(images * 3)
    images = {"tiny": images * np.float32(1e-14), "flat": np.full_like(images, 3)}.get(
        picture, images
    )
    bounds = np.stack(
        [rng.integers(0, 8, 6), rng.integers(10, 22, 6), rng.integers(0, 8, 6), np.full(6, 30)], 1
    ).astype(np.int32)
    # Whatever lies outside is not looked at.
    for image, (top, bottom, left, right) in zip(images, bounds, strict=True):
        sky = image[top:bottom, left:right].copy()
        image[:] = 1e6
        image[top:bottom, left:right] = sky
    level, scale = measured(images, bounds)
    for row, (top, bottom, left, right) in enumerate(bounds):
        expected = sorted_level_and_noise(images[row, top:bottom, left:right])
        np.testing.assert_array_equal(level[row], expected[0])
        np.testing.assert_allclose(scale[row], expected[1], rtol=1e-7)


def test_a_sky_of_both_zeros_has_the_noise_of_its_brightest_pixel():
    image = np.zeros((20, 20, 1), np.float32)
    image[:13] = -0.0
    image[-1, -1] = 5.0
    level, scale = measured(image[None])
    np.testing.assert_array_equal([level[0], scale[0]], sorted_level_and_noise(image))
    assert scale[0] == np.float32(5.0) / 256


def as_seen(image, prepared):
    view = view_of(prepared, image.shape[:2])
    return np.asarray(
        jax.jit(seen, static_argnums=0)(view, image[None], all_sky(1, *image.shape[:2]))
    )[0]


def test_level_and_noise_of_normal_noise():
    image = np.stack([rng.normal(5, 2, (200, 200)), rng.normal(-1, 0.1, (200, 200))], axis=-1)
    level, scale = measured(image.astype(np.float32)[None])
    np.testing.assert_allclose(level[0], [5.0, -1.0], atol=0.05)
    np.testing.assert_allclose(scale[0], [2.0, 0.1], rtol=0.03)


def test_stretch_against_its_formula():
    image = noise(12, 12, 2) * 4 + 100
    prepared = preprocessing(12, mean=0.3, std=2.0)
    median = np.median(image.astype(np.float64), axis=(0, 1), keepdims=True)
    sigma = 1.4826 * np.median(abs(image - median), axis=(0, 1), keepdims=True)
    expected = (np.arcsinh((image - median) / (3.0 * sigma)) - 0.3) / 2.0
    np.testing.assert_allclose(as_seen(image, prepared), expected, atol=2e-5)


def test_no_stretch_leaves_pixels_to_the_normalisation():
    image = noise(6, 6, 2)
    prepared = preprocessing(6, stretch="none", mean=1.0, std=2.0)
    np.testing.assert_allclose(as_seen(image, prepared), (image - 1) / 2, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.floats(-14, 9), st.floats(-3, 3))
def test_the_unit_of_flux_does_not_matter(exponent, sky):
    image = noise(16, 16, 2) + np.float32(sky)
    image[6:10, 6:10] += 50
    factor = np.float32(10.0**exponent)
    np.testing.assert_allclose(
        as_seen(image * factor, preprocessing()), as_seen(image, preprocessing()), atol=1e-4
    )


@pytest.mark.parametrize("picture", ["clipped", "point", "flat"])
def test_a_sky_without_noise_gives_finite_contrast(picture):
    image = np.zeros((32, 32, 2), np.float32)
    if picture == "clipped":
        image[10:20, 10:20] = 255.0
    elif picture == "point":
        image[16, 16] = 255.0
    result = as_seen(image, preprocessing(32))
    assert np.isfinite(result).all()
    assert result.max() == pytest.approx(0 if picture == "flat" else np.arcsinh(256 / 3), rel=1e-5)
    np.testing.assert_array_equal(result, as_seen(image * 2, preprocessing(32)))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_cpu_takes_batches_without_a_copy_and_leaves_them_as_they_are(dtype):
    view = view_of(preprocessing(9), (9, 7))
    (images,) = Layout((Canvas((9, 7, 2), dtype),), (view,)).blank(5).images
    assert images.shape == (5, 9, 7, 2) and images.dtype == dtype and not images.any()
    placed = jax.device_put(images)
    assert placed.unsafe_buffer_pointer() == images.ctypes.data
    doubled = jax.jit(lambda x: x + 1, donate_argnums=0)(placed)
    assert np.asarray(doubled).all() and not images.any()


def test_preparations_that_differ_in_brightness_share_the_work():
    view = view_of(preprocessing(16), (24, 24), how="resize")
    other = dataclasses.replace(view, preprocessing=preprocessing(16, mean=1.0, std=2.0))
    inputs = [
        Layout((Canvas((24, 24, 2), "float32"),), views).blank(4)
        for views in ((view,), (view, other))
    ]
    one, both = (jax.jit(prepare).lower(batch).compile().as_text() for batch in inputs)
    assert both.count(" while(") == one.count(" while(") > 0


# --- stretches ---


def stretches(name, images, bounds=None, softening=2.0):
    bounds = all_sky(*images.shape[:3]) if bounds is None else bounds
    return np.asarray(jax.jit(stretched, static_argnums=(0, 1))(name, softening, images, bounds))


@pytest.mark.parametrize("shape", [(3, 7, 9, 2), (1, 32, 31, 1), (2, 101, 101, 1)])
def test_percentiles_are_those_of_numpy_and_astropy(shape):
    images = noise(*shape) ** 3
    found = stretches("percentile", images)
    for image, plane in np.ndindex(shape[0], shape[3]):
        pixels = images[image, ..., plane].astype(np.float64)
        expected = PercentileInterval(99.0)(pixels)
        np.testing.assert_allclose(found[image, ..., plane], expected, atol=2e-6)
        assert (found[image] == 0).any() and (found[image] == 1).any()


def test_percentiles_are_of_what_is_inside():
    images, bounds = noise(1, 8, 8, 1), np.array([[2, 6, 1, 8]], np.int32)
    low, high = jax.jit(percentile_limits)(images, bounds)
    expected = np.percentile(images[0, 2:6, 1:8, 0].astype(np.float64), (0.5, 99.5))
    np.testing.assert_allclose([low[0, 0], high[0, 0]], expected, rtol=1e-5)


def test_stretches_of_the_signal_equal_their_formulas():
    images = noise(2, 12, 12, 2) * 3 + 40
    images[:, 5:7, 5:7] += 500
    level, sigma = (
        np.asarray(v)[:, None, None] for v in level_and_noise(images, all_sky(2, 12, 12))
    )
    signal = (images.astype(np.float64) - level) / sigma / 2.0
    np.testing.assert_allclose(stretches("linear", images), signal, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stretches("asinh", images), np.arcsinh(signal), rtol=1e-4, atol=1e-5)
    top = signal.max()
    expected = LogStretch(a=top)(np.clip(signal / top, 0, 1)) * np.log(1 + top)
    np.testing.assert_allclose(stretches("log", images), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(stretches("none", images), images)


def test_pixels_far_beyond_all_others_stay_finite():
    images = noise(1, 16, 16, 1)
    images[0, 3, 4], images[0, 5, 6] = 1e30, -1e37
    images[0, 7, 8] = 1e9
    level, sigma = (
        np.asarray(v)[:, None, None] for v in level_and_noise(images, all_sky(1, 16, 16))
    )
    expected = np.arcsinh((images.astype(np.float64) - level) / sigma / 2.0)
    np.testing.assert_allclose(stretches("asinh", images), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", STRETCHES)
def test_a_flat_image_stays_finite_and_only_none_hangs_on_the_unit(name):
    flat = np.full((1, 8, 8, 1), 7.0, np.float32)
    assert np.isfinite(stretches(name, flat)).all()
    images = noise(2, 16, 16, 2)
    found, scaled = stretches(name, images), stretches(name, images * np.float32(2.0**-40))
    assert np.array_equal(found, scaled) == (name != "none")
