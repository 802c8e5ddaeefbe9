"""Colour pictures of cutouts: what an 8-bit file would hold, and the same objects."""

import dataclasses

import numpy as np

from lensjax.data.brightness import measure
from lensjax.data.source import Picked
from lensjax.train import dataset
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


def test_each_cutout_is_followed_by_its_picture(tmp_path):
    data = blobs(12)
    both = with_pictures(data, 0, tmp_path)
    assert len(both) == 24
    for name in ("label", "images", "brightness"):
        np.testing.assert_array_equal(both.arrays[name][:12], data.arrays[name])
    np.testing.assert_array_equal(both.arrays["label"][12:], data.arrays["label"])
    np.testing.assert_array_equal(both.group[12:], data.group)
    shown = both.arrays["images"][12:]
    measured = measure(shown.astype(np.uint8), *data.view.measured)
    np.testing.assert_array_equal(both.arrays["brightness"][12:], measured)
    pixels = np.median(data.arrays["images"][3])
    noise = 1.4826 * np.median(np.abs(data.arrays["images"][3] - pixels))
    rng = np.random.default_rng(0)
    for image in data.arrays["images"][:3]:
        as_picture(image, pixels, noise, rng)  # each draws its settings from the same source
    one = np.full(1, noise)
    np.testing.assert_allclose(
        shown[3], as_picture(data.arrays["images"][3], np.full(1, pixels), one, rng), atol=1
    )
    np.testing.assert_array_equal(with_pictures(data, 0, tmp_path).arrays["images"][12:], shown)


def test_cutouts_on_disk_stay_there_and_so_do_their_pictures(tmp_path, monkeypatch):
    """No more of them is read at once than a batch."""
    data = blobs(40)
    expected = with_pictures(data, 0, tmp_path)
    np.save(tmp_path / "images.npy", data.arrays["images"])
    most = []

    class Counted(Picked):
        def __getitem__(self, places):
            most.append(len(found := super().__getitem__(places)))
            return found

        __array__ = None

    on_disk = Counted(np.load(tmp_path / "images.npy", mmap_mode="r"), np.arange(40))
    monkeypatch.setattr(dataset, "MOST_IN_MEMORY", 0)
    there = dataclasses.replace(data, arrays=data.arrays | {"images": on_disk})
    found = with_pictures(there, 0, tmp_path / "output")
    assert isinstance(found.arrays["images"].pictures, np.memmap)
    for one, other in zip(
        *(map(next, [d.batches(8)] * 10) for d in (found, expected)), strict=True
    ):
        for name, values in other.items():
            np.testing.assert_array_equal(one[name], values, err_msg=name)
    assert max(most) <= 8 and found.canvas == expected.canvas
