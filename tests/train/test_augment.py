"""Each change of a cutout against its closed form; none at all is none, bit for bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.data.brightness import measure
from lensjax.data.preprocess import Geometry
from lensjax.train import augment
from lensjax.train.augment import Augmentation
from lensjax.train.step import ResolutionGroup, TrainBatch, train_step
from tests.train.small import Convolutional, config_and_state

augmented = jax.jit(augment.augmented, static_argnums=0)

NONE = Augmentation(0, 0, 0, 0, 0)
LEVEL = np.array([5.0, -20.0], np.float32)
NOISE = np.array([2.0, 4.0], np.float32)
SIDE = 32


def sky(count: int, side: int = SIDE) -> np.ndarray:
    """Level and noise alone."""
    drawn = np.random.default_rng(1).standard_normal((count, side, side, 2))
    return (LEVEL + NOISE * drawn).astype(np.float32)


def measured(images: np.ndarray) -> np.ndarray:
    """The brightness of images that are sky alone."""
    as_it_is = Geometry(images.shape[1:3], images.shape[1], 1.0, "as is")
    return measure(images, as_it_is, (0, 1), "asinh")


def keys(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(3), count)


def only(**strengths: float) -> Augmentation:
    return dataclasses.replace(NONE, **strengths)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_no_strength_is_no_change(dtype):
    images = np.arange(2 * SIDE * SIDE).reshape(1, SIDE, SIDE, 2).astype(dtype)
    found, brightness = augmented(NONE, keys(1), images, measured(images))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(brightness, measured(images))


def test_a_shift_moves_the_pixels_and_leaves_the_level():
    image = sky(1)[0]
    moved = jax.jit(augment.shifted)(image, jnp.array([3, -2]), LEVEL)
    np.testing.assert_array_equal(moved[3:, :-2], image[:-3, 2:])
    for edge in (moved[:3], moved[:, -2:]):
        np.testing.assert_array_equal(edge, np.broadcast_to(LEVEL, edge.shape))


def test_blur_keeps_light_and_sky_and_is_a_gaussian():
    taps = augment.gaussian(jnp.float32(0.8), 4)
    point = np.zeros((SIDE, SIDE, 1), np.float32)
    point[0, 1], point[16, 20] = 3.0, 7.0
    image = np.asarray(jax.jit(augment.blurred)(point, taps), np.float64)
    np.testing.assert_allclose(image.sum(), 10.0, rtol=1e-5)
    y, x = np.mgrid[:SIDE, :SIDE]
    expected = np.exp(-((y - 16.0) ** 2 + (x - 20.0) ** 2) / (2 * 0.8**2))
    expected *= 7.0 / expected.sum()
    np.testing.assert_allclose(image[8:, 8:, 0], expected[8:, 8:], atol=1e-4)
    even = jax.jit(augment.blurred)(np.full((SIDE, SIDE, 1), 4.0, np.float32), taps)
    np.testing.assert_allclose(even, 4.0, rtol=1e-6)


def test_flux_is_scaled_above_the_level():
    image, factor = sky(1)[0], np.array([0.5, 0.25], np.float32)
    found = augment.scaled(image, LEVEL, factor)
    np.testing.assert_allclose(found - LEVEL, factor * (image - LEVEL), atol=1e-5)


def test_noise_has_the_sigma_that_was_asked_for():
    image = np.zeros((200, 200, 2), np.float32)
    found = np.asarray(jax.jit(augment.noisier)(jax.random.key(0), image, NOISE))
    np.testing.assert_allclose(found.std((0, 1)), NOISE, rtol=0.03)


@pytest.mark.parametrize(
    "augmentation",
    [only(augment_seeing=1.0), only(augment_flux=1.0), only(augment_colour=1.0)],
)
def test_the_noise_that_fainter_or_smoother_light_lacks_is_put_back(augmentation):
    images = sky(8, 128)
    found, _ = augmented(augmentation, keys(8), images, measured(images))
    np.testing.assert_allclose(np.asarray(found).std((0, 1, 2)), NOISE, rtol=0.03)
    assert np.abs(found - images).mean() > 0.1


def test_noise_is_added_up_to_its_strength():
    found, _ = augmented(only(augment_noise=1.0), keys(400), sky(400), measured(sky(400)))
    added = (np.asarray(found) - sky(400)).std((1, 2)) / NOISE
    np.testing.assert_allclose(added[:, 0], added[:, 1], rtol=0.2, atol=0.02)  # one draw an image
    assert added.max() < 1.1 and abs(added.mean() - 0.5) < 0.05


@pytest.mark.slow
def test_an_image_is_changed_by_its_key_alone():
    images, default = sky(6), Augmentation()
    brightness = measured(images)
    together, changed = augmented(default, keys(6), images, brightness)
    order = np.array([4, 1, 4])
    again, same = augmented(default, keys(6)[order], images[order], brightness[order])
    np.testing.assert_allclose(again, together[order], atol=1e-5)
    np.testing.assert_allclose(same, changed[order], rtol=1e-6)
    assert np.abs(np.asarray(together) - images).max((1, 2, 3)).min() > 0.1


@pytest.mark.parametrize(
    "augmentation",
    [
        only(augment_shift=0.04, augment_noise=1.0),
        only(augment_seeing=1.0),
        only(augment_flux=1.0, augment_colour=0.5, augment_noise=0.5),
    ],
)
def test_the_brightness_of_a_changed_image_is_what_would_be_measured(augmentation):
    """A small galaxy on noise."""
    images = sky(16, 64)
    y, x = np.mgrid[:64, :64] - 31.5
    images += 40 * NOISE * np.exp(-((y**2 + x**2) / 2 / 3**2))[..., None].astype(np.float32)
    found, brightness = augmented(augmentation, keys(16), images, measured(images))
    level, noise, low, high = np.moveaxis(np.asarray(brightness), -1, 0)
    expected = np.moveaxis(measured(np.asarray(found)), -1, 0)
    np.testing.assert_allclose(level, expected[0], atol=0.15 * NOISE.max())
    np.testing.assert_allclose(noise, expected[1], rtol=0.2)
    np.testing.assert_allclose(low - level, expected[2] - expected[0], rtol=0.35)
    np.testing.assert_allclose(high - level, expected[3] - expected[0], rtol=0.3)


def test_the_eight_symmetries_are_all_shown():
    image = np.arange(9.0).reshape(1, 3, 3, 1)
    drawn = jax.jit(augment.flip_bits)(keys(100))
    shown = jax.jit(augment.flipped)(jnp.tile(image, (100, 1, 1, 1)), drawn)
    expected = {
        np.rot90(each, turn).tobytes()
        for each in (image[0, :, :, 0], image[0, :, :, 0].T)
        for turn in range(4)
    }
    assert {np.asarray(each[:, :, 0], np.float64).tobytes() for each in shown} == expected


@pytest.mark.slow
def test_one_size_is_trained_with_it_as_several_are():
    """The step itself: what a training at one size sees is changed, validation is not asked."""
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (4, 48, 48, 2)).astype(np.float32)
    label = np.array([0, 1, 0, 1.0], np.float32)
    batch = TrainBatch(images, measured(images), label, np.ones((2, 4)))
    losses = {}
    for name, augmentation in {"none": NONE, "noise": only(augment_noise=0.5)}.items():
        config, begun = config_and_state(Convolutional, augmentation=augmentation)
        for groups in ((0,), (0, 1, 2)):
            member_keys = jax.vmap(jax.random.key)(jnp.arange(2))
            state = jax.tree.map(jnp.copy, begun)
            _, found = train_step(config, [ResolutionGroup(groups)], state, batch, member_keys)
            losses[name, len(groups)] = np.asarray(found)[:, 0]
    for name in ("none", "noise"):
        np.testing.assert_allclose(losses[name, 1], losses[name, 3], rtol=1e-5)
    assert np.abs(losses["noise", 1] - losses["none", 1]).min() > 1e-4
