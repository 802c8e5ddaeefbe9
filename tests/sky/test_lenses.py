"""Lens systems are those that a search would keep and a person would recognise."""

import numpy as np
import pytest

from lensjax.sky import lenses
from lensjax.sky.survey import GROUND, SURVEYS, observation_uniforms, observe
from lensjax.sky.visibility import margin

COUNT = 200


def uniforms(count, numbers, seed):
    return np.random.default_rng(seed).uniform(1e-6, 1 - 1e-6, (count, numbers))


@pytest.fixture(scope="module")
def observed():
    return observe(uniforms(observation_uniforms(GROUND), COUNT, 0), GROUND)


@pytest.fixture(scope="module")
def drawn(observed):
    return lenses.draw_lenses(uniforms(lenses.LENS_UNIFORMS, COUNT, 3), GROUND, observed)


def test_they_are_lenses_that_a_search_would_keep(drawn, observed):
    smallest, largest = lenses.einstein_radius_limits(GROUND, observed)
    radius = drawn.system.einstein_radius
    assert ((radius > smallest) & (radius < largest)).mean() > 0.99
    magnitude = drawn.system.lens_magnitudes[GROUND.selection_index]
    assert (magnitude < observed.magnitude_limit).mean() > 0.99
    assert (drawn.system.source_redshift > drawn.system.lens_redshift + 0.19).all()
    assert radius.min() >= 0.6 and np.median(radius) < 2.5
    assert drawn.system.slope.min() >= 1.7 and drawn.system.slope.max() <= 2.4


def test_a_person_would_see_their_arcs(drawn):
    plain = margin(drawn.seen, GROUND) >= 1
    assert plain.mean() > 0.9
    # The photon noise of bright arcs takes up to a third of what was wanted.
    faint = drawn.arc_snr < 10 * GROUND.arc_snr
    np.testing.assert_allclose(drawn.seen.arc_snr[faint], drawn.arc_snr[faint], rtol=0.3)
    np.testing.assert_allclose(drawn.seen.arc_snr, drawn.arc_snr, rtol=0.4)
    assert drawn.arc_snr.min() >= GROUND.arc_snr and drawn.arc_snr.max() <= 20 * GROUND.arc_snr
    assert 45 < np.median(drawn.arc_snr) < 75


def test_they_lie_in_published_ranges(drawn):
    system = drawn.system
    assert 230 < np.median(system.velocity_dispersion) < 320
    assert 0.35 < np.median(system.lens_redshift) < 0.65
    assert 1.2 < np.median(system.source_redshift) < 2.5
    assert 0.6 < np.median(system.axis_ratio) < 0.85
    assert 0.02 < np.hypot(system.gamma1, system.gamma2).mean() < 0.08
    assert 0.4 < np.median(system.lens_radius) < 1.5


def test_companions_weigh_what_they_shine(drawn):
    share = drawn.mass.perturber_theta_E / drawn.mass.theta_E
    light = drawn.galaxies.flux[2:, 2] / drawn.galaxies.flux[:2, 2].sum(axis=0)
    np.testing.assert_allclose(light, share**2, rtol=1e-4)
    assert 0.2 < (share[0] > 0).mean() < 0.5


def test_a_deflector_keeps_its_flux_in_body_and_envelope(drawn, observed):
    flux = 10 ** (-0.4 * (drawn.system.lens_magnitudes - observed.zero_points))
    body, envelope = drawn.galaxies.flux[:2]
    np.testing.assert_allclose(body + envelope, flux, rtol=1e-4)
    assert (body > 0).all() and (envelope > 0).all()
    # Bluer outside, on the whole; larger outside, always.
    bluer = envelope[0] / envelope[-1] > body[0] / body[-1]
    assert 0.7 < bluer.mean() < 0.9
    assert (drawn.galaxies.radius[1] > drawn.galaxies.radius[0]).all()


def test_a_source_keeps_its_flux_however_clumpy(drawn, observed):
    flux = 10 ** (-0.4 * (drawn.system.source_magnitudes - observed.zero_points))
    np.testing.assert_allclose(drawn.source.flux.sum(axis=0), flux, rtol=1e-4)


@pytest.mark.parametrize("survey", SURVEYS.values(), ids=SURVEYS)
def test_some_candidate_is_always_accepted(survey):
    observation = observe(uniforms(observation_uniforms(survey), 2000, 0), survey)
    system = lenses.candidate(uniforms(lenses.CANDIDATE_UNIFORMS, 2000, 1), survey, observation)
    share = lenses.accepted(system, survey, observation).mean()
    assert float((1 - share) ** lenses.CANDIDATES) < (1e-3 if survey is GROUND else 1e-4)
