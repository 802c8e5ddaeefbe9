"""Stamps become clean, normalised sources."""

import numpy as np
import pytest
from astropy.io import fits

from lensjax.errors import UsageError
from lensjax.sky.stamps import SIDE, hubble_stamps, prepare_stamp, read_stamps


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
    stamps = read_stamps(tmp_path / "stamps.fits")
    assert stamps.shape == (2, SIDE, SIDE)
    np.testing.assert_allclose(stamps.sum((1, 2)), 1.0, rtol=1e-5)


def test_a_stack_is_read(tmp_path):
    np.save(tmp_path / "stamps.npy", np.stack([galaxy(40, 40)] * 3))
    assert len(read_stamps(tmp_path / "stamps.npy")) == 3


def test_the_deep_field_gives_galaxies_with_structure():
    stamps = hubble_stamps()
    assert 30 < len(stamps) < 200 and stamps.shape[1:] == (SIDE, SIDE) and stamps.min() == 0
    np.testing.assert_allclose(stamps.sum((1, 2)), 1.0, rtol=1e-5)
    lit = (stamps > 0).sum((1, 2))
    assert lit.min() > 100 and lit.max() < 1600


@pytest.mark.parametrize("content", [b"", b"SIMPLE  = nonsense"])
def test_what_holds_no_stamps_is_one_line(tmp_path, content):
    (tmp_path / "bad.fits").write_bytes(content)
    with pytest.raises(UsageError, match="--sources"):
        read_stamps(tmp_path / "bad.fits")
