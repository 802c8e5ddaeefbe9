"""Sources of known places, fluxes and sizes are found and measured; noise and masks are none."""

import numpy as np
import pytest
from astropy.modeling.models import Sersic2D
from scipy.spatial import cKDTree
from scipy.special import gammaincinv

from lensjax.data import photometry
from lensjax.data.planes import Unreadable
from tests.data import skies

SHAPE, NOISE, SCALE = (400, 400), 1.0, 0.2


def spread(count: int, apart: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Returns places on a lattice of `count` a side, each moved by up to half a pixel."""
    rng = np.random.default_rng(seed)
    y, x = (apart * (np.mgrid[:count, :count] + 0.6)).reshape(2, -1)
    return x + rng.uniform(-0.5, 0.5, x.size), y + rng.uniform(-0.5, 0.5, x.size), rng


def found_in(image, sigma=5.0, seed=9):
    """Returns the columns of the sources in an image with noise and a sloping sky."""
    rng = np.random.default_rng(seed)
    sky = 100 + 0.02 * np.arange(image.shape[1])
    plane = photometry.subtracted((image + sky + rng.normal(0, NOISE, image.shape)).astype("f4"))
    return photometry.measured(plane, photometry.sources(plane, sigma), SCALE)


def nearest(found, x, y):
    """Returns which of the sources is nearest to each place, and how far away it is, pixels."""
    distance, row = cKDTree(np.stack([found["x"], found["y"]], 1)).query(np.stack([x, y], 1))
    return row, distance


@pytest.fixture(scope="module")
def stars():
    """Gaussians of sigma 2 pixels, their fluxes from 15 to 700 times the noise within them."""
    x, y, rng = spread(8, 48, seed=0)
    flux = 10 ** rng.uniform(2.2, 4, x.size)
    return x, y, flux, found_in(skies.gaussians(SHAPE, x, y, flux, np.full(x.size, 2.0)))


def test_every_source_is_found_where_it_is_and_nothing_else(stars):
    x, y, flux, found = stars
    row, distance = nearest(found, x, y)
    assert len(found["x"]) == len(x) == len(set(row.tolist()))
    # The error of a centroid is sigma over S/N, or a little more.
    assert (distance < 0.02 + 4 * 2.0 / found["snr"][row]).all()
    assert np.median(distance) < 0.1


def test_fluxes_and_sizes_of_gaussians_are_theirs(stars):
    x, y, flux, found = stars
    row, _ = nearest(found, x, y)
    magnitude = -2.5 * np.log10(found["flux"][row] / flux)
    bright = found["snr"][row] > 100
    assert bright.sum() > 20 and np.abs(magnitude[bright]).max() < 0.03
    clear = found["snr"][row] > 20
    assert (np.abs(magnitude) < 0.03 + 4 * 1.086 / found["snr"][row])[clear].all()
    half = 2.0 * np.sqrt(2 * np.log(2)) * SCALE
    np.testing.assert_allclose(found["half_light_radius"][row][bright], half, rtol=0.02)
    np.testing.assert_allclose(found["size_ratio"][row][bright], 1.0, atol=0.06)
    # By the noise in the ellipse, whose area is at least that of 3.5 sigma.
    assert (found["snr"][row] < flux / (NOISE * np.sqrt(np.pi) * 3.5 * 2.0) * 1.1).all()


def test_noise_alone_has_no_sources():
    assert len(found_in(np.zeros((1000, 1000)))["x"]) == 0


def test_galaxies_are_larger_than_stars_and_have_nearly_all_their_light():
    x, y, rng = spread(6, 64, seed=2)
    is_galaxy = np.arange(x.size) % 2 == 1
    radius, flux = 8.0, 2e4
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = skies.gaussians(SHAPE, x[~is_galaxy], y[~is_galaxy], [flux] * 18, [2.0] * 18)
    image += skies.gaussians(SHAPE, x[:4] + 32, y[:4] + 30, [flux] * 4, [2.0] * 4)
    b = gammaincinv(2, 0.5)
    at_radius = flux / (2 * np.pi * radius**2 * np.exp(b) / b**2)  # n = 1: the flux of a disc
    for at_x, at_y in zip(x[is_galaxy], y[is_galaxy], strict=True):
        image += Sersic2D(at_radius, radius, 1, at_x, at_y)(columns, rows)
    found = found_in(image)
    row, distance = nearest(found, x[is_galaxy], y[is_galaxy])
    assert distance.max() < radius / 20 and len(found["x"]) == 40
    assert np.abs(2.5 * np.log10(found["flux"][row] / flux)).max() < 0.06
    np.testing.assert_allclose(found["half_light_radius"][row], radius * SCALE, rtol=0.08)
    assert (found["size_ratio"][row] > 3).all()


def test_a_neighbour_adds_nothing_to_a_source():
    x, y, rng = spread(5, 75, seed=3)
    flux, width = np.full(x.size, 3000.0), np.full(x.size, 2.0)
    image = skies.gaussians(SHAPE, x, y, flux, width)
    alone = found_in(image)
    beside = found_in(image + skies.gaussians(SHAPE, x + 14, y, 3 * flux, width))
    one, _ = nearest(alone, x, y)
    other, distance = nearest(beside, x, y)
    assert distance.max() < 0.3
    np.testing.assert_allclose(beside["flux"][other], alone["flux"][one], rtol=0.05)


def test_pixels_that_cannot_be_used_are_no_sources():
    x, y = np.array([100.0, 300.0, 300.0, 200.0]), np.array([100.0, 100.0, 300.0, 320.0])
    image = skies.gaussians(SHAPE, x, y, np.full(4, 1e4), np.full(4, 2.0))
    image[80:121, 80:121] = np.nan  # a masked star
    image[60, 300:340] = 1e30  # what no brightness is
    rng = np.random.default_rng(4)
    image += rng.normal(0, NOISE, SHAPE)
    image[:, :50] = 0  # a part of the tile without data
    plane = photometry.subtracted(image.astype(np.float32))
    assert plane.bad[:, :49].all() and plane.bad[100, 100] and not plane.bad[200, 100:].any()
    found = photometry.measured(plane, photometry.sources(plane, 5.0), SCALE)
    row, distance = nearest(found, x[1:], y[1:])
    assert len(found["x"]) == 3 and distance.max() < 0.1
    # Too few bright sources to know what stars look like.
    assert np.isnan(found["size_ratio"]).all()


def test_a_source_whose_centre_is_masked_or_that_touches_a_pixel_is_told():
    x, y = np.array([100.0, 300.0, 100.0, 300.0]), np.array([100.0, 100.0, 300.0, 300.0])
    image = skies.gaussians(SHAPE, x, y, np.full(4, 2e4), np.full(4, 4.0))
    image[98:103, 98:103] = np.nan  # of a star that saturates
    image[100, 300] = np.nan  # of a cosmic ray
    image += np.random.default_rng(4).normal(0, NOISE, SHAPE)
    plane = photometry.subtracted(image.astype(np.float32))
    them = photometry.sources(plane, 5.0)
    found = photometry.measured(plane, them, SCALE)
    row, distance = nearest(found, x, y)
    assert sorted(row) == [0, 1, 2, 3] and distance.max() < 0.5
    assert found["masked"][row].tolist() == [True, False, False, False]
    pixels = np.zeros(SHAPE, bool)
    pixels[305, 97] = pixels[200, 200] = True
    assert photometry.touched(them, pixels)[row].tolist() == [False, False, True, False]


def test_the_size_of_stars_is_that_of_the_many_small_bright_sources():
    rng = np.random.default_rng(5)
    radius = np.concatenate([rng.normal(2.0, 0.04, 30), rng.uniform(2.5, 9.0, 120), [0.5] * 50])
    snr = np.concatenate([np.full(150, 60.0), np.full(50, 10.0)])
    ratio = photometry.size_ratios(radius, snr, np.ones(200, bool))
    np.testing.assert_allclose(radius / ratio, 2.0, rtol=0.02)
    assert np.isnan(photometry.size_ratios(radius, snr, np.arange(200) < 19)).all()


def test_what_sep_gives_up_is_no_end_of_a_run(monkeypatch):
    image = skies.gaussians(SHAPE, [200.0], [200.0], [1e6], [20.0])
    plane = photometry.subtracted((image + np.ones(SHAPE)).astype(np.float32))
    monkeypatch.setattr(photometry, "MOST_PIXELS", 100)
    with pytest.raises(Unreadable, match="sources cannot be told apart: .*pixel buffer"):
        photometry.sources(plane, 5.0)
