"""Stamps become clean, normalised sources."""

import numpy as np
import pytest
from astropy.io import fits

from lensjax.data.splits import held_back
from lensjax.errors import UsageError
from lensjax.sky.stamps import SIDE, Stamps, hubble_stamps, prepare_stamp, read_stamps


def galaxy(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    light = 50 * np.exp(-((x - width // 2) ** 2 + (y - height // 2) ** 2) / 18)
    return light + 3.0 + 0.1 * np.random.default_rng(0).standard_normal((height, width))


@pytest.mark.parametrize("shape", [(60, 61), (200, 90), (128, 128), (131, 300)])
def test_the_galaxy_stays_in_the_middle_and_the_sky_goes(shape):
    stamp = prepare_stamp(galaxy(*shape))
    y, x = np.mgrid[:SIDE, :SIDE]
    assert stamp.shape == (SIDE, SIDE) and stamp.min() == 0.0
    assert abs((stamp * x).sum() / stamp.sum() - SIDE / 2) < 1.5
    assert abs((stamp * y).sum() / stamp.sum() - SIDE / 2) < 1.5
    assert (stamp > 0).mean() < 0.1
    np.testing.assert_allclose(stamp.sum(), 50 * np.pi * 18, rtol=0.03)


def test_every_image_extension_is_a_stamp(tmp_path):
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(galaxy(50, 50)), fits.ImageHDU(galaxy(80, 70))]
    hdus.append(fits.ImageHDU(np.zeros((9, 9))))
    fits.HDUList(hdus).writeto(tmp_path / "stamps.fits")
    stamps = read_stamps(tmp_path / "stamps.fits", 0.03).images
    assert stamps.shape == (2, SIDE, SIDE)
    np.testing.assert_allclose(stamps.sum((1, 2)), 1.0, rtol=1e-5)


def test_a_stack_is_read(tmp_path):
    np.save(tmp_path / "few.npy", np.stack([galaxy(40, 40), galaxy(40, 44)[:, 2:-2]] * 2))
    stamps = read_stamps(tmp_path / "few.npy", 0.05)
    # What stands there twice is the same galaxy.
    assert stamps.name.tolist() == ["few-0000", "few-0001"] and stamps.pixel_scale == 0.05
    assert len(stamps.images) == 2


def test_groups_show_galaxies_of_their_own_side():
    name = np.array([f"galaxy-{number}" for number in range(20)])
    stamps = Stamps(np.ones((20, 1, 1), np.float32), 0.05, name)
    groups = np.arange(300)
    shown = name[stamps.of_own_side(groups, 0.3, "test")]
    is_held = held_back(groups, 0.3, "test")
    ours, others = set(shown[is_held]), set(shown[~is_held])
    assert not ours & others and ours | others == set(name)
    training, test = stamps.split(0.3, "test")
    assert set(test.name) == ours and set(training.name) == others
    np.testing.assert_array_equal(stamps.of_own_side(groups, 0.0, "test"), groups % 20)
    with pytest.raises(UsageError, match="of 1 source galaxies [01] would be held back for test"):
        stamps.take(slice(1)).of_own_side(groups, 0.3, "test")


def test_the_deep_field_gives_galaxies_with_structure():
    stamps = hubble_stamps().images
    assert 30 < len(stamps) < 200 and stamps.shape[1:] == (SIDE, SIDE) and stamps.min() == 0
    np.testing.assert_allclose(stamps.sum((1, 2)), 1.0, rtol=1e-5)
    lit = (stamps > 0).sum((1, 2))
    assert lit.min() > 100 and lit.max() < 1600


@pytest.mark.parametrize("content", [b"", b"SIMPLE  = nonsense"])
def test_what_holds_no_stamps_is_one_line(tmp_path, content):
    (tmp_path / "bad.fits").write_bytes(content)
    with pytest.raises(UsageError, match="--sources"):
        read_stamps(tmp_path / "bad.fits", 0.03)
