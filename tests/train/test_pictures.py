"""Colour pictures of cutouts: what an 8-bit file would hold, and the same objects."""

import numpy as np

from lensjax.data.brightness import measure
from lensjax.train.pictures import as_picture, with_pictures
from tests.train.test_loop import blobs

LEVEL = np.array([5.0, 7.0, 9.0], np.float32)
SCALE = np.array([1.0, 2.0, 4.0], np.float32)


def galaxy() -> np.ndarray:
    y, x = np.mgrid[:24, :24] - 11.5
    light = np.exp(-np.hypot(x, y) / 4)[..., None] * np.array([30.0, 90.0, 200.0])
    noise = np.random.default_rng(0).standard_normal((24, 24, 3)) * SCALE
    return (light + noise + LEVEL).astype(np.float32)


def picture(image, level=LEVEL, scale=SCALE, seed=1) -> np.ndarray:
    return as_picture(image, level, scale, np.random.default_rng(seed))


def test_a_picture_holds_whole_numbers_of_eight_bits():
    shown = picture(galaxy())
    assert shown.shape == (24, 24, 3) and shown.dtype == np.float32
    np.testing.assert_array_equal(shown, shown.astype(np.uint8))
    assert shown[10:14, 10:14].mean() > 1.5 * shown[:2].mean()


def test_the_unit_of_flux_does_not_matter():
    tiny = np.float32(2.0**-40)
    np.testing.assert_array_equal(
        picture(galaxy()), picture(galaxy() * tiny, LEVEL * tiny, SCALE * tiny)
    )


def test_settings_are_drawn_and_brighter_stays_brighter():
    assert not np.array_equal(picture(galaxy(), seed=1), picture(galaxy(), seed=2))
    bright, faint = picture(galaxy() + 20 * SCALE), picture(galaxy())
    assert (bright.mean(-1) >= faint.mean(-1) - 1).mean() > 0.99


def test_each_cutout_is_followed_by_its_picture():
    data = blobs(12)
    both = with_pictures(data, 0)
    assert len(both) == 24 and both.image_spec == data.image_spec
    first, second = np.arange(12), 12 + np.arange(12)
    for name in ("label", "images", "brightness"):
        np.testing.assert_array_equal(both.arrays[name][first], data.arrays[name])
    shown = both.arrays["images"][second]
    np.testing.assert_array_equal(both.labels[second], data.labels)
    measured = measure(shown, *data.transform.measured)
    np.testing.assert_array_equal(both.arrays["brightness"][second], measured)
    np.testing.assert_array_equal(both.group[12:], data.group)
    image = data.arrays["images"][3]
    level = np.median(image)
    noise = np.full(1, 1.4826 * np.median(np.abs(image - level)))
    expected = as_picture(image, np.full(1, level), noise, np.random.default_rng([0, 3]))
    shown = both.arrays["images"][np.array([15, 3])]
    np.testing.assert_allclose(shown[0], expected, atol=1)
    np.testing.assert_array_equal(shown[1], image)
    again = with_pictures(data, 0).arrays["images"][np.arange(24)]
    np.testing.assert_array_equal(again[15], shown[0])
