"""The step's preprocessing of a batch against the host's: geometry, channels, types."""

import dataclasses

import jax
import numpy as np
import pytest

from lensjax.data.brightness import LEVEL, measure
from lensjax.data.on_device import ImageSpec, Inputs, InputSpec, Transform, on_grid, prepare, seen
from lensjax.data.preprocess import fit, geometry
from tests.data.wanted import preprocessing

rng = np.random.default_rng(1)
look = jax.jit(seen, static_argnums=0)


def noise(*shape):
    return rng.normal(size=shape).astype(np.float32)


def transform_of(prepared, shape, scale=0.2, how="auto", channels=(0, 1)):
    return Transform(prepared, 0, channels, geometry(shape, scale, prepared, how))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_what_the_step_prepares_lowers_for_every_platform(platform):
    transform = transform_of(preprocessing(20), (31, 14))
    images = jax.ShapeDtypeStruct((3, 31, 14, 2), np.uint8)
    brightness = jax.ShapeDtypeStruct((3, 2, 4), np.float32)
    lowered = look.trace(transform, images, brightness).lower(lowering_platforms=(platform,))
    assert lowered.out_info.shape == (3, 20, 20, 2)


@pytest.mark.parametrize("shape", [(16, 16), (24, 24), (23, 40), (9, 12), (12, 40), (15, 16)])
def test_the_step_fits_as_the_host_does(shape):
    images = noise(3, *shape, 2) * 20 + 100
    ways = [("crop", None), ("resize", None), ("auto", 0.2), ("auto", 0.11), ("resample", 0.5)]
    transforms = [
        transform_of(preprocessing(16, scale), shape, how=how, channels=(1, 0))
        for how, scale in ways
    ]
    measured = [measure(images, *transform.measured) for transform in transforms]

    @jax.jit
    def on_grids(images, measured):
        return [
            on_grid(transform, images, each)
            for transform, each in zip(transforms, measured, strict=True)
        ]

    found = on_grids(images, measured)
    for transform, brightness, of_step in zip(transforms, measured, found, strict=True):
        expected = [
            fit(image[..., ::-1], transform.geometry, each[:, LEVEL])
            for image, each in zip(images, brightness, strict=True)
        ]
        if transform.geometry.ratio == 1.0:
            np.testing.assert_array_equal(of_step, expected)
        np.testing.assert_allclose(of_step, expected, rtol=1e-6, atol=1e-4)


def test_what_a_network_sees_is_stretched_and_normalised():
    images = noise(2, 12, 12, 2) * 4 + 100
    transform = transform_of(preprocessing(12, mean=0.3, std=2.0), (12, 12))
    wide = images.astype(np.float64)
    median = np.median(wide, axis=(1, 2), keepdims=True)
    sigma = 1.4826 * np.median(abs(wide - median), axis=(1, 2), keepdims=True)
    expected = (np.arcsinh((wide - median) / (3.0 * sigma)) - 0.3) / 2.0
    found = look(transform, images, measure(images, *transform.measured))
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float16, bool])
def test_the_type_in_which_pixels_travel_changes_nothing(dtype):
    images = (noise(2, 24, 24, 2) * 30 + 60).clip(0, 255).astype(dtype)
    wide = images.astype(np.float32)
    for size, how in ((16, "resize"), (30, "crop")):
        transform = transform_of(preprocessing(size), (24, 24), how=how)
        brightness = measure(images, *transform.measured)
        np.testing.assert_array_equal(brightness, measure(wide, *transform.measured))
        np.testing.assert_array_equal(
            look(transform, images, brightness), look(transform, wide, brightness)
        )


def test_one_canvas_serves_several_preparations_and_is_resampled_once_for_equal_grids():
    image_spec = ImageSpec((24, 24, 2), "uint8")
    transforms = [transform_of(preprocessing(size), (24, 24), how="resize") for size in (16, 40)]
    other = dataclasses.replace(transforms[0], preprocessing=preprocessing(16, mean=1.0, std=2.0))
    blank = InputSpec((image_spec,), (*transforms, other)).blank(3)
    assert image_spec.nbytes == 24 * 24 * 2 and blank.images[0].dtype == np.uint8
    assert [len(leaf) for leaf in jax.tree.leaves(blank)] == [3] * 4
    images = rng.integers(0, 255, (3, 24, 24, 2)).astype(np.uint8)
    brightness = tuple(measure(images, *transform.measured) for transform in blank.transforms)
    inputs = Inputs((images,), brightness, blank.transforms)
    compiled = jax.jit(prepare).lower(inputs).compile()
    first, large, shared = compiled(inputs)
    assert first.shape == (3, 16, 16, 2) and large.shape == (3, 40, 40, 2)
    np.testing.assert_allclose(shared, (np.asarray(first) - 1.0) / 2.0, atol=1e-6)
    assert compiled.as_text().count(" dot(") == 4  # two for each of two sizes
