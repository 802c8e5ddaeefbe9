"""Statistics of pixels against noise and artefacts that are known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lensjax.data.brightness import measure
from lensjax.data.pixel_statistics import STATISTICS, statistics_of
from lensjax.data.preprocess import Geometry

SIZE, COUNT = 48, 6


def found(images):
    """Returns the mean of each statistic over images."""
    same = Geometry((SIZE, SIZE), SIZE, 1.0, "as is")
    brightness = measure(images, same, tuple(range(images.shape[-1])), "asinh")
    values = np.asarray(statistics_of(images, brightness))
    assert values.shape == (len(STATISTICS), len(images)) and np.isfinite(values).all()
    return dict(zip(STATISTICS, values.mean(1), strict=True))


@pytest.fixture
def sky():
    """White noise, of which the last band has four times as much, on a level far above it."""
    noise = np.random.default_rng(0).normal(size=(COUNT, SIZE, SIZE, 3)) * [1, 2, 4]
    return (100 + noise).astype(np.float32)


def test_white_noise_is_rough_and_its_unit_does_not_matter(sky):
    plain = found(sky)
    assert plain["roughness"] == pytest.approx(1, abs=0.05)
    assert plain["roughness_ratio"] < 1.2 and plain["equal"] < 1e-3
    assert plain["signal"] < 1e-3 and plain["one_band"] < 1e-3 and plain["column"] == 0
    assert plain["dark"] < 1e-3 and plain["plateau"] < 3 / SIZE**2 and plain["middle"] < 0.3
    scaled = found(sky * np.float32(1e-3))
    assert scaled == pytest.approx(plain, rel=0.01, abs=1e-3)


def test_noise_that_is_smoothed_has_the_correlation_of_its_kernel(sky):
    smooth = np.stack([gaussian_filter(image, (1, 1, 0)) for image in sky])
    # A Gaussian kernel of sigma 1 leaves neighbours a correlation of exp(-1/4).
    assert found(smooth)["roughness"] == pytest.approx(1 - np.exp(-0.25), rel=0.15)


def test_each_artefact_shows_in_its_statistic(sky):
    black, column, trail = sky.copy(), sky.copy(), sky.copy()
    black[:, :12] = 0
    assert found(black)["equal"] == pytest.approx(0.25, abs=0.03)
    column[:, 10:, 30:32] += 400
    assert found(column)["column"] > 50 and found(column)["one_band"] < 1e-3
    trail[:, 20:24, :, 1] += 60
    assert found(trail)["one_band"] == pytest.approx(4 / SIZE, rel=0.2)
    assert found(trail)["signal"] == pytest.approx(4 / SIZE / 3, rel=0.2)


def test_what_is_in_the_middle_and_what_is_dark_shows(sky):
    light, hole = sky.copy(), sky.copy()
    light[:, 18:30, 18:30, 1] += 18  # nine times the noise of that band
    assert found(light)["middle"] == pytest.approx(0.9, abs=0.02) and found(light)["dark"] < 1e-3
    hole[:, :12] -= 100
    assert found(hole)["dark"] == pytest.approx(0.25, abs=0.01)


def test_pictures_are_told_from_fluxes(sky):
    picture = np.clip(np.round(sky - 95), 0, 255)
    saturated = picture.copy()
    saturated[:, 10:26, 10:26] = 255
    assert found(picture)["picture"] == found(saturated)["picture"] == 1
    assert found(saturated)["plateau"] == pytest.approx(16**2 / SIZE**2, rel=0.01)
    empty = sky - 100
    empty[:, :30] = 0  # the median of the pixels
    for flux in (sky, sky - 100, empty, np.round(sky) * 10):
        assert found(flux.astype(np.float32))["picture"] == 0


def test_one_band_and_no_data_are_no_error(sky):
    assert found(sky[..., :1])["one_band"] == 0
    assert found(sky[..., :1])["roughness_ratio"] == 1
    assert found(np.zeros_like(sky))["equal"] == pytest.approx(1)
