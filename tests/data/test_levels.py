"""Pictures become light and pictures again, by the formulas of those who draw them."""

import numpy as np
import pytest
from astropy.visualization import make_lupton_rgb

from lensjax.data import levels

Q, GREY = 20.0, 0.03
NOISE = np.array([2.0, 3.0, 5.0])


def drawn(flux: np.ndarray, grey: float = GREY) -> np.ndarray:
    """Returns levels, float64, as the viewer of the Legacy Surveys makes them of scaled fluxes."""
    light = flux + grey
    mean = light.mean(-1, keepdims=True)
    return 255 * light * np.arcsinh(Q * mean) / np.sqrt(Q) / mean


def sky(sigma: float = 0.006, side: int = 80, peak: float = 1.5) -> np.ndarray:
    """Returns scaled fluxes of a galaxy on a noisy sky, redder than it is blue."""
    axis = np.arange(side) - (side - 1) / 2
    light = np.exp(-np.hypot(axis[:, None], axis)[..., None] / (2.0, 2.5, 3.0)) * peak
    return light * (1.0, 0.6, 0.2) + np.random.default_rng(1).normal(0, sigma, light.shape)


def picture(flux: np.ndarray, grey: float = GREY) -> np.ndarray:
    return np.round(np.clip(drawn(flux, grey), 0, 255)).astype(np.uint8)


def test_light_is_what_the_viewer_of_the_legacy_surveys_was_given() -> None:
    flux = sky()
    light = levels.light_of(drawn(flux))
    np.testing.assert_allclose(light, np.sqrt(Q) * (flux + GREY), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(levels.levels_of(light), drawn(flux), rtol=1e-12, atol=1e-11)


def test_levels_are_those_of_astropy_to_one() -> None:
    flux = np.abs(sky(peak=12))
    softening = 10 * np.sinh(0.1 * levels.SOFTENING)  # for the same slope at black and as far
    made = make_lupton_rgb(*np.moveaxis(flux, 2, 0), minimum=0, stretch=1, Q=softening)
    shown = levels.levels_of(flux * softening / levels.SOFTENING)
    inside = (shown < 255).all(-1)
    assert 0 < inside.mean() < 1
    assert np.abs(shown - made)[inside].max() <= 1


@pytest.mark.parametrize("grey", [GREY, 0.006, 0.0, -0.003])
def test_the_noise_of_the_sky_is_measured_however_much_of_it_is_black(grey: float) -> None:
    seen = picture(sky(0.006), grey)
    truth = 0.006 * 255 * np.sqrt(Q)
    found = levels.sky_of_levels(seen)
    np.testing.assert_allclose(found.sigma, truth, rtol=0.2)
    np.testing.assert_allclose(found.level, grey * 255 * np.sqrt(Q), atol=0.25 * truth)
    flux = levels.flux_of(seen, NOISE, np.random.default_rng(0))
    # Below the sky there is nothing but noise.
    below = [channel[channel < np.median(channel)] for channel in np.moveaxis(flux, 2, 0)]
    spread = [1.4826 * np.median(channel.max() - channel) for channel in below]
    np.testing.assert_allclose(spread, NOISE, rtol=0.2)


@pytest.mark.parametrize("seed", range(3))
def test_a_picture_to_which_nothing_is_added_stays_as_it_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.normal((20, 2, 90), (15, 5, 30), (64, 64, 3))
    bright = rng.integers(0, 256, (64, 64, 3)) * (rng.random((64, 64, 1)) < 0.3)
    before = np.clip(noise + bright, 0, 255).round()
    assert (before == 0).any() and (before == 255).any()
    flux = levels.flux_of(before, NOISE, rng)
    np.testing.assert_array_equal(levels.picture_of(flux, NOISE, before), before)


def test_an_arc_is_as_bright_as_in_a_picture_that_was_drawn_with_it() -> None:
    flux = sky()
    arc = np.zeros_like(flux)
    arc[20:24, 15:60] = (0.03, 0.06, 0.09)
    before, truth = picture(flux), drawn(flux + arc)
    unit = NOISE / 0.006  # what the noise of the sky says
    light = levels.flux_of(before, NOISE, np.random.default_rng(0)) + arc * unit
    found = levels.picture_of(light, NOISE, before)
    lit = arc > 0
    np.testing.assert_array_equal(found[~lit.any(-1)], before[~lit.any(-1)])
    assert set(np.unique(found)) <= set(range(256))
    # The noise, and with it the unit, is known to some percent.
    assert (found - before)[lit].mean() == pytest.approx((truth - drawn(flux))[lit].mean(), rel=0.1)
    # The grain is that of the picture: black pixels did not become smooth light.
    grain = np.std(found[20:24, 15:60], axis=(0, 1)) / np.std(truth[20:24, 15:60], axis=(0, 1))
    np.testing.assert_allclose(grain, 1, atol=0.15)


def test_a_black_sky_tells_no_noise_and_white_stays_white() -> None:
    black = np.where(np.hypot(*np.indices((32, 32)) - 16)[..., None] < 5, 200, 0) * np.ones(3)
    assert not levels.sky_of_levels(black).sigma.any()
    white = picture(sky(peak=40))
    flux = levels.flux_of(white, NOISE, np.random.default_rng(0))
    again = levels.picture_of(flux + 100 * NOISE, NOISE, white)
    assert (white == 255).any() and (again[white == 255] == 255).all()


def test_levels_are_told_by_their_values() -> None:
    assert levels.are_levels(np.array([0.0, 255.0, np.nan]))
    for other in ([0.5, 3], [-1, 3], [3, 256], [np.nan]):
        assert not levels.are_levels(np.array(other, np.float32))
