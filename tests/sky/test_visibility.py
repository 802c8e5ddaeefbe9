"""Whether arcs are seen, on pictures whose answer is known."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.sky.render import unit_noise
from lensjax.sky.survey import GROUND
from lensjax.sky.visibility import Visibility, margin, smooth_noise, visibility

AXIS = np.linspace(-4, 4, 81, dtype=np.float32)
X, Y = (jnp.asarray(grid) for grid in np.meshgrid(AXIS, AXIS))
ONE = jnp.ones(1)


def spot(x: float, y: float, fwhm: float = 1.0) -> jnp.ndarray:
    """(1, y, x): light of the PSF's shape and unit peak."""
    return jnp.exp(-0.5 * ((X - x) ** 2 + (Y - y) ** 2) * (2.3548 / fwhm) ** 2)[None]


def seen(arcs, front=None, sky=0.1) -> Visibility:
    front = jnp.zeros_like(arcs) if front is None else front
    return visibility(arcs, front, sky * ONE, 1e9 * ONE, ONE, X, Y)


def test_two_points_are_an_image_and_a_counter_image():
    two = seen(spot(2, 0) + 0.5 * spot(-1, 0))
    alone = np.sqrt(np.sum(np.asarray(spot(2, 0)) ** 2)) / 0.1
    assert float(two.arc_snr) == pytest.approx(alone * np.sqrt(1.25), rel=0.01)
    assert float(two.peak_snr) == pytest.approx(1 / 0.1 / 0.1, rel=0.01)
    assert float(two.counter_snr) == pytest.approx(alone / 2, rel=0.01)
    assert float(two.arc_extent) == pytest.approx(1, abs=0.05)


def test_an_arc_is_as_long_as_it_is():
    angles = np.linspace(-0.6, 0.6, 61)
    arc = sum(spot(2 * np.cos(a), 2 * np.sin(a)) for a in angles)
    # Of a uniform stroke of 2.4 arcsec, sigma 0.69, convolved with the PSF: the square is narrower.
    assert 2 < float(seen(arc).arc_extent) < 3.2


@pytest.mark.parametrize("width", [0.2, 0.45, 0.8])
def test_correlated_noise_hides_more_than_its_pixels_say(width):
    """On large scales noise is that of white noise of the sigma that is said."""
    noise = np.asarray(unit_noise(jax.random.key(0), jnp.full(8, width), 160))[8:-8, 8:-8]
    blocks = noise.reshape(6, 24, 6, 24, 8).mean(axis=(1, 3))
    taken = SimpleNamespace(sky_sigma=2.0 * ONE, noise_width=width * ONE)
    assert float(smooth_noise(taken)[0]) == pytest.approx(2 * 24 * blocks.std(), rel=0.12)


def test_the_light_in_front_hides_arcs():
    arc, galaxy = spot(1, 0), 40 * spot(0, 0, 2.0)
    assert float(seen(arc, galaxy).arc_snr) < 0.3 * float(seen(arc).arc_snr)


def test_the_margin_asks_for_length_and_for_a_counter_image_or_great_length():
    def passes(counter, extent, strictness=1.0, peak=20.0):
        survey = replace(GROUND, strictness=strictness)
        values = (np.array(value) for value in (50.0, peak, counter, extent))
        return bool(margin(Visibility(*values), survey) >= 1)

    assert passes(9.0, 2.4) and passes(0.0, 5.0) and passes(0.0, 1.0, strictness=0.0)
    assert not passes(9.0, 2.4, peak=7.0)
    assert not passes(9.0, 1.1) and not passes(1.0, 2.4) and not passes(9.0, 2.4, strictness=2.0)
