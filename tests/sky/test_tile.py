"""What a tile shows lies where it should, with all of its light, and with the noise of its sky."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from lensjax.sky import lenses, tile
from lensjax.sky.draw import assign
from lensjax.sky.layout import Layout, place
from lensjax.sky.render import unit_noise
from lensjax.sky.survey import GROUND

# All tiles have the same PSF, but not the same depth.
SURVEY = tile.one_survey(
    replace(GROUND, size=32, seeing_range=0.0, seeing_scatter=0.0, moffat_beta=(3.0, 3.0))
)
LAYOUT = Layout(2, 300, 60, SURVEY.pixel_scale, (34.5, -5.0))


@pytest.fixture(autouse=True)
def two_programs(monkeypatch):
    """Has fewer sizes be compiled for few scenes."""
    monkeypatch.setattr(tile, "STAMPS", ((1.0, 16), (2.5, 16)))


@pytest.fixture
def noise_free(monkeypatch):
    monkeypatch.setattr(tile.TileSky, "_expose", lambda *_: None)


@pytest.fixture
def alone(monkeypatch):
    """Has nothing stand between the objects."""
    monkeypatch.setattr(tile.TileSky, "_between", lambda *_: iter(()))


def sky_of(places: np.ndarray, prevalence: float) -> tile.TileSky:
    """Returns a sky of lenses and stars at places (n, 2), degrees."""
    survey = replace(SURVEY, shares=(("star", 1.0),))
    kind = assign(survey, len(places), prevalence, 3).kind
    objects = tile.Objects(places, kind, LAYOUT.depths(places).argmax(axis=0))
    return tile.TileSky(survey, LAYOUT, objects, tile.observe_tiles(survey, 2, 3), None, 3)


@pytest.fixture
def stars():
    return sky_of(place(LAYOUT, 30, 24, 16, 3), prevalence=0.0)


def test_stars_are_where_the_projection_says_with_all_of_their_light(noise_free, alone, stars):
    image, rows, truth = stars.tile(0)
    x, y = LAYOUT.wcs(0).world_to_pixel_values(*stars.objects.place[rows].T)
    assert len(rows) > 10 and len(truth["seeing_g"]) == len(rows)
    light = image.sum(axis=0)
    within = np.arange(-9, 10)
    measured, others = 0, np.stack([x, y], axis=1)
    for own in others:
        is_alone = (np.hypot(*(others - own).T) < 40).sum() == 1
        if not is_alone or own.min() < 20 or own.max() > 280:
            continue
        left, low = np.round(own).astype(int)
        window = light[low - 9 : low + 10, left - 9 : left + 10]
        centroid = [(window.sum(axis) @ within) / window.sum() for axis in (0, 1)]
        np.testing.assert_allclose(np.array([left, low]) + centroid, own, atol=0.05)
        measured += 1
    assert measured >= 3
    drawn = stars._drawn(rows, LAYOUT.pixels(0, stars.objects.place[rows])).picture.scene
    emitted = ((1 + drawn.spike_fraction)[:, None] * drawn.stars.flux[:, 0]).sum(axis=0)
    np.testing.assert_allclose(image.sum(axis=(1, 2)), emitted, rtol=0.02)


def test_neighbours_show_the_same_where_they_overlap(noise_free):
    # Of lenses whose light falls on what both share, two lie there, and each tile is home of two.
    pixels = np.array([[256.0, 60.3], [285.0, 150.0], [225.2, 230.0], [315.0, 240.7]])
    sky = sky_of(LAYOUT.wcs(0).wcs_pix2world(pixels, 0), prevalence=1.0)
    np.testing.assert_array_equal(sky.objects.home, [0, 1, 0, 1])
    left, right = sky.tile(0)[0][:, :, 240:], sky.tile(1)[0][:, :, :60]
    sigma = sky.observation.sky_sigma[:, :1, None]
    assert (left.max(axis=(1, 2)) > 20 * sigma[:, 0, 0]).all()
    difference = np.abs(left - right) / np.hypot(sigma, 0.02 * left)
    assert difference.max() < 0.5


def test_noise_is_that_of_sky_and_photons_and_correlated_as_that_of_cutouts(stars):
    taken = lenses.take(stars.observation, 1)
    sigma, gain = taken.sky_sigma[0], taken.gains[0]
    bright = 3 * sigma**2 * gain
    assert bright + 10 * sigma < stars.saturation(1)[0]
    for level in (0.0, bright):
        plane = np.full((300, 300), level, np.float32)
        stars._expose(plane, 1, 0)
        assert plane.mean() == pytest.approx(level, abs=0.05 * np.sqrt(sigma**2 + level / gain))
        assert plane.std() == pytest.approx(np.sqrt(sigma**2 + level / gain), rel=0.015)
    noise = tile.correlated_noise(np.random.default_rng(0), (300, 300), 0.8)
    expected = np.asarray(unit_noise(jax.random.key(0), np.array([0.8], np.float32), 300))[..., 0]
    for shift in (1, 2):
        for one in (noise, noise.T):
            here = (one[shift:] * one[:-shift]).mean()
            there = (expected[shift:] * expected[:-shift]).mean()
            assert here == pytest.approx(there, abs=0.03)
    assert np.var(noise[:1]) == pytest.approx(1, abs=0.3)  # also at the edge


def test_stars_saturate(stars):
    image, _, _ = stars.tile(1)
    full = stars.saturation(1)
    np.testing.assert_allclose(image.max(axis=(1, 2)), full, rtol=1e-5)
    assert (image == full[:, None, None].astype(np.float32)).sum() < 0.02 * image.size
