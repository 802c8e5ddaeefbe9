"""Colour pictures of cutouts: what an 8-bit file would hold."""

import jax
import numpy as np

from lensjax.train.pictures import as_picture

LEVEL = np.array([5.0, 7.0, 9.0], np.float32)
SCALE = np.array([1.0, 2.0, 4.0], np.float32)
draw = jax.jit(as_picture)


def galaxy() -> np.ndarray:
    y, x = np.mgrid[:24, :24] - 11.5
    light = np.exp(-np.hypot(x, y) / 4)[..., None] * np.array([30.0, 90.0, 200.0])
    noise = np.random.default_rng(0).standard_normal((24, 24, 3)) * SCALE
    return (light + noise + LEVEL).astype(np.float32)


def picture(image, level=LEVEL, scale=SCALE, seed=1) -> np.ndarray:
    return np.asarray(draw(jax.random.key(seed), image, level, scale))


def test_a_picture_holds_whole_numbers_of_eight_bits():
    shown = picture(galaxy())
    assert shown.shape == (24, 24, 3) and shown.dtype == np.float32
    np.testing.assert_array_equal(shown, shown.astype(np.uint8))
    assert shown[10:14, 10:14].mean() > 1.5 * shown[:2].mean()


def test_the_unit_of_flux_does_not_matter():
    tiny = np.float32(2.0**-40)
    again = picture(galaxy() * tiny, LEVEL * tiny, SCALE * tiny)
    np.testing.assert_allclose(picture(galaxy()), again, atol=1)


def test_settings_are_drawn_and_brighter_stays_brighter():
    """Stretch and balance of the colours, as ratios of what bands show of the same light."""
    grey = np.broadcast_to(LEVEL + 6 * SCALE, (24, 24, 3)).astype(np.float32)
    shown = np.array([picture(grey, seed=seed)[0, 0] for seed in range(30)])
    assert shown.mean(1).std() > 10
    assert (shown[:, 2] / shown[:, 0]).std() > 0.2
    bright, faint = picture(galaxy() + 20 * SCALE), picture(galaxy())
    assert (bright.mean(-1) >= faint.mean(-1) - 1).mean() > 0.99
