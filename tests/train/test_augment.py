"""Each change of a cutout against its closed form; none at all is none, bit for bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from lensjax.data.brightness import measure
from lensjax.data.on_device import Transform, seen
from lensjax.data.preprocess import Geometry, Preprocessing
from lensjax.train import augment
from lensjax.train.augment import Augmentation
from lensjax.train.member_step import ResolutionGroup, TrainBatch
from lensjax.train.step import train_step
from tests.networks import Convolutional
from tests.train.small import config_and_state

augmented = jax.jit(augment.augmented, static_argnums=(0, 5))

NONE = Augmentation(0, 0, 0, 0, 0, 0, 0)
LEVEL = np.array([5.0, -20.0], np.float32)
NOISE = np.array([2.0, 4.0], np.float32)
SIDE = 32


def sky(count: int, side: int = SIDE) -> np.ndarray:
    """Level and noise alone."""
    drawn = np.random.default_rng(1).standard_normal((count, side, side, 2))
    return (LEVEL + NOISE * drawn).astype(np.float32)


def measured(images: np.ndarray) -> np.ndarray:
    """The brightness of images that are sky alone."""
    return measure(images, as_it_is(images), (0, 1), "asinh")


def as_it_is(images: np.ndarray) -> Geometry:
    return Geometry(images.shape[1:3], images.shape[1], 1.0, "as is")


def keys(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(3), count)


def shown(augmentation, images, sky=None, key=None) -> tuple[jax.Array, jax.Array]:
    """Images and brightness of a step."""
    drawn = keys(len(images)) if key is None else key
    return augmented(augmentation, drawn, images, measured(images), sky, as_it_is(images))


def only(**strengths: float) -> Augmentation:
    return dataclasses.replace(NONE, **strengths)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_no_strength_is_no_change(dtype):
    images = np.arange(2 * SIDE * SIDE).reshape(1, SIDE, SIDE, 2).astype(dtype)
    found, brightness = shown(NONE, images)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(brightness, measured(images))


def test_whole_shifts_move_pixels_and_leave_the_sky_beyond():
    image = sky(1)[0] - LEVEL
    weights = [jax.jit(augment.interpolation)(jnp.arange(SIDE) - shift) for shift in (3.0, -2.0)]
    moved = augment.resampled(image, *weights)
    np.testing.assert_allclose(moved[3:, :-2], image[:-3, 2:], atol=1e-5)
    np.testing.assert_array_equal(moved[:3], 0)
    np.testing.assert_array_equal(moved[:, -2:], 0)


def gaussian(rows, columns, middle, sigma) -> np.ndarray:
    distance = (rows[:, None] - middle[0]) ** 2 + (columns[None] - middle[1]) ** 2
    return np.exp(-distance / (2 * sigma**2))


def test_a_galaxy_is_where_shift_zoom_and_seeing_put_it():
    """Against the formula of a Gaussian, which stays one."""
    augmentation = only(augment_shift=0.1, augment_zoom=0.15, augment_seeing=1.0)
    across, image = np.arange(48.0), None
    image = gaussian(across, across, (22.3, 25.8), 2.5)[..., None].astype(np.float32)

    @jax.jit
    def move(key):
        draw = augment.Draw.of(augmentation, key, image.shape)
        return draw, augment.resampled(image, *draw.resampling())

    shifts = []
    for key in keys(6):
        draw, found = move(key)
        rows, columns = (np.asarray(place, np.float64) for place in draw.places)
        wider = np.hypot(2.5, draw.blur)
        expected = gaussian(rows, columns, (22.3, 25.8), wider) * (2.5 / wider) ** 2
        np.testing.assert_allclose(found[..., 0], expected, atol=5e-3)
        np.testing.assert_allclose(np.diff(rows), 1 / draw.zoom, rtol=1e-3)
        assert np.abs(draw.zoom - 1) < 0.17 and draw.blur < 1
        shifts.append([rows.mean() - 23.5, columns.mean() - 23.5])
    assert np.abs(shifts).max() < 0.1 * 48 * 1.17
    assert np.abs(np.round(shifts) - shifts).max() > 0.2  # not by whole pixels


def test_a_blur_leaves_a_uniform_sky():
    weights = jax.jit(augment.gaussian, static_argnums=1)(0.8, SIDE)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "augmentation",
    [
        only(augment_shift=0.04, augment_zoom=0.1),
        only(augment_seeing=1.0),
        only(augment_flux=1.0, augment_colour=1.0),
    ],
)
def test_the_noise_that_fainter_or_smoother_light_lacks_is_put_back(augmentation):
    images = sky(8, 128)
    found = np.asarray(shown(augmentation, images)[0])
    np.testing.assert_allclose(found.std((0, 1, 2)), NOISE, rtol=0.03)
    np.testing.assert_allclose(found[:, :4].std((0, 1, 2)), NOISE, rtol=0.1)  # at an edge, too
    assert np.abs(found - images).mean() > 0.1


def test_noise_is_added_up_to_its_strength():
    found, _ = shown(only(augment_noise=1.0), sky(400))
    added = (np.asarray(found) - sky(400)).std((1, 2)) / NOISE
    np.testing.assert_allclose(added[:, 0], added[:, 1], rtol=0.2, atol=0.02)  # one draw an image
    assert added.max() < 1.1 and abs(added.mean() - 0.5) < 0.05


@pytest.mark.slow
def test_an_image_is_changed_by_its_key_alone():
    images, default = sky(6), Augmentation()
    together, changed = shown(default, images)
    order = np.array([4, 1, 4])
    again, same = shown(default, images[order], key=keys(6)[order])
    np.testing.assert_allclose(again, together[order], atol=1e-5)
    np.testing.assert_allclose(same, changed[order], rtol=1e-6)
    assert np.abs(np.asarray(together) - images).max((1, 2, 3)).min() > 0.1


@pytest.mark.parametrize(
    "augmentation",
    [
        only(augment_shift=0.04, augment_zoom=0.1, augment_noise=1.0),
        only(augment_seeing=1.0),
        only(augment_flux=1.0, augment_colour=0.5, augment_noise=0.5),
    ],
)
def test_the_brightness_of_a_changed_image_is_what_would_be_measured(augmentation):
    """A small galaxy on noise."""
    images = sky(16, 64)
    y, x = np.mgrid[:64, :64] - 31.5
    images += 40 * NOISE * np.exp(-((y**2 + x**2) / 2 / 3**2))[..., None].astype(np.float32)
    found, brightness = shown(augmentation, images)
    level, noise, low, high = np.moveaxis(np.asarray(brightness), -1, 0)
    expected = np.moveaxis(measured(np.asarray(found)), -1, 0)
    np.testing.assert_allclose(level, expected[0], atol=0.15 * NOISE.max())
    np.testing.assert_allclose(noise, expected[1], rtol=0.2)
    np.testing.assert_allclose(low - level, expected[2] - expected[0], rtol=0.35)
    np.testing.assert_allclose(high - level, expected[3] - expected[0], rtol=0.3)


# --- noise-free cutouts ---

WIDTH, GAIN = np.array([0.45, 0.7]), np.array([8.0, 20.0])


def bare(count: int, side: int = 64) -> np.ndarray:
    """Noise-free galaxies of many sizes and brightnesses, in two bands."""
    rng, (y, x) = np.random.default_rng(5), np.mgrid[:side, :side] - (side - 1) / 2
    size, peak = rng.uniform(1.5, 8, (count, 1, 1)), 10 ** rng.uniform(0.5, 3, (count, 1, 1, 2))
    profile = np.exp(-np.hypot(y, x)[None] / size)[..., None]
    return (NOISE * peak * profile).astype(np.float32)


def skies(count: int) -> np.ndarray:
    return np.tile(np.stack([NOISE, WIDTH, GAIN], -1), (count, 1, 1)).astype(np.float32)


def taken(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The images as a file holds them, by SciPy: smoothed white noise of the sky's and the
    photons' variance."""
    found = images.astype(np.float64)
    for band, width in enumerate(WIDTH):
        white = rng.standard_normal(images.shape[:3])
        smooth = ndimage.gaussian_filter(white, (0, width, width), mode="wrap", truncate=8)
        variance = NOISE[band] ** 2 + found[..., band] / GAIN[band]
        found[..., band] += np.sqrt(variance) * smooth / smooth.std()
    return found.astype(np.float32)


@pytest.fixture(scope="module")
def both() -> tuple[tuple, tuple]:
    """Images and brightness: those of a step that changes nothing else, and those of a file."""
    images = bare(192)
    inside = tuple(map(np.asarray, shown(NONE, images, skies(192))))
    file = taken(images, np.random.default_rng(6))
    return inside, (file, measured(file))


def test_the_brightness_in_the_step_is_what_the_host_measures(both):
    (images, brightness), _ = both
    expected = measured(images)
    np.testing.assert_allclose(brightness, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("stretch", ["asinh", "percentile"])
def test_a_network_sees_what_it_would_see_of_files_with_noise(both, stretch):
    preprocessing = Preprocessing.unnormalised(("g", "r"), 64, None, stretch, 2.0)
    transform = Transform(preprocessing, 0, (0, 1), as_it_is(both[0][0]))
    of_step, of_file = (np.asarray(seen(transform, *each)) for each in both)
    for band in (0, 1):
        mine, theirs = of_step[..., band], of_file[..., band]
        assert stats.ks_2samp(mine.ravel(), theirs.ravel()).statistic < 0.006
        corners = mine[:, :10, :10], theirs[:, :10, :10]
        assert stats.ks_2samp(*map(np.ravel, corners)).statistic < 0.03
        for moment in (np.mean, np.std, stats.skew, stats.kurtosis):
            a, b = (moment(each, axis=(1, 2)) for each in (mine, theirs))
            assert stats.ks_2samp(a, b).pvalue > 1e-3, moment
        # Neighbouring pixels are as much alike.
        steps = [np.diff(each[:, :10, :10], axis=1).std() for each in (mine, theirs)]
        assert steps[0] == pytest.approx(steps[1], rel=0.03)
    for ours, file in zip(both[0][1].T.reshape(8, -1), both[1][1].T.reshape(8, -1), strict=True):
        assert stats.ks_2samp(ours, file).pvalue > 1e-3


def test_the_noise_is_drawn_anew_at_another_depth():
    images = np.full((200, 32, 32, 2), 1e-20, np.float32)
    found = np.asarray(shown(only(augment_depth=0.5), images, skies(200))[0])
    sigma = found.std((1, 2)) / NOISE
    np.testing.assert_allclose(sigma[:, 0], sigma[:, 1], rtol=0.25)  # one depth an image
    in_magnitudes = 2.5 * np.log10(sigma.mean(1))
    assert np.abs(in_magnitudes).max() < 0.6
    assert stats.kstest(in_magnitudes, stats.uniform(-0.5, 1).cdf).statistic < 0.12
    again, _ = shown(
        only(augment_depth=0.5), images, skies(200), jax.random.split(jax.random.key(9), 200)
    )
    assert np.abs(np.asarray(again) - found).mean((1, 2, 3)).min() > 0.3 * NOISE.min()


def test_smaller_pixels_get_less_light_each():
    """The same exposure: signal over noise of all pixels together stays, in the sky's noise."""
    images = np.full((64, 32, 32, 2), 1e-20, np.float32)
    augmentation = only(augment_zoom=0.3)
    found = np.asarray(shown(augmentation, images, skies(64))[0])
    zoom = [augment.Draw.of(augmentation, key, (32, 32, 2)).zoom for key in keys(64)]
    np.testing.assert_allclose(found.std((1, 2)) / NOISE, np.stack([zoom] * 2, -1), rtol=0.15)


def test_light_is_changed_and_pixels_without_data_stay_zero():
    images = bare(8)
    images[:, :9] = 0.0
    images[:, ..., 1] = 0.0
    without_noise = skies(8) * np.array([1e-6, 1.0, 1e12], np.float32)
    found = np.asarray(shown(only(augment_flux=0.3), images, without_noise)[0])
    np.testing.assert_array_equal(found == 0, images == 0)
    ratio = found[:, 32, 32, 0] / images[:, 32, 32, 0]
    assert ratio.min() < 1 < ratio.max() and np.abs(2.5 * np.log10(ratio)).max() < 0.31
    moved = np.asarray(shown(only(augment_shift=0.1, pictures=True), images, skies(8))[0])
    is_picture = (moved == np.round(moved)).all((1, 2, 3))
    assert 0 < is_picture.sum() < 8
    moved = moved[~is_picture]
    assert (moved[0, 20:, :, 0] != 0).all()
    edges = (moved[:, :32, 32, 0] == 0).sum(1)
    assert (moved[..., 1] == 0).all() and edges.min() >= 3 and np.ptp(edges) > 1


def test_half_of_the_cutouts_are_shown_as_pictures():
    images = sky(100, 16)
    found, brightness = map(np.asarray, shown(only(pictures=True), images))
    is_picture = (found == np.round(found)).all((1, 2, 3))
    assert 33 < is_picture.sum() < 67
    assert found[is_picture].min() >= 0 and found[is_picture].max() <= 255
    np.testing.assert_allclose(found[~is_picture], images[~is_picture], atol=1e-4)
    np.testing.assert_allclose(brightness, measured(found), rtol=1e-3, atol=2e-3)


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
