"""Lens systems are those that a search would keep and a person would recognise."""

from functools import partial

import jax
import numpy as np
import pytest

from lensjax.sky import lenses
from lensjax.sky.survey import GROUND, SURVEYS, observation_uniforms, observe
from lensjax.sky.visibility import margin

COUNT = 200


def observations(survey, count):
    uniform = jax.random.uniform(jax.random.key(0), (count, observation_uniforms(survey)))
    return jax.vmap(partial(observe, survey=survey))(uniform)


@pytest.fixture(scope="module")
def observed():
    return observations(GROUND, COUNT)


@pytest.fixture(scope="module")
def drawn(observed):
    draw = jax.jit(jax.vmap(partial(lenses.draw_lens, survey=GROUND)))
    return draw(jax.random.split(jax.random.key(3), COUNT), observation=observed)


def test_they_are_lenses_that_a_search_would_keep(drawn, observed):
    smallest, largest = jax.vmap(partial(lenses.einstein_radius_limits, GROUND))(observed)
    radius = drawn.system.einstein_radius
    assert ((radius > smallest) & (radius < largest)).mean() > 0.99
    magnitude = drawn.system.lens_magnitudes[:, GROUND.selection_index]
    assert (magnitude < observed.magnitude_limit).mean() > 0.99
    assert (drawn.system.source_redshift > drawn.system.lens_redshift + 0.19).all()
    assert radius.min() >= 0.6 and np.median(radius) < 2.5
    assert drawn.system.slope.min() >= 1.7 and drawn.system.slope.max() <= 2.4


def test_a_person_would_see_their_arcs(drawn):
    plain = jax.vmap(partial(margin, survey=GROUND))(drawn.seen) >= 1
    assert plain.mean() > 0.9
    np.testing.assert_allclose(drawn.seen.arc_snr, drawn.arc_snr, rtol=0.3)
    assert drawn.arc_snr.min() >= GROUND.arc_snr and drawn.arc_snr.max() <= 10 * GROUND.arc_snr
    assert 30 < np.median(drawn.arc_snr) < 60


def test_they_lie_in_published_ranges(drawn):
    system = drawn.system
    assert 230 < np.median(system.velocity_dispersion) < 320
    assert 0.35 < np.median(system.lens_redshift) < 0.65
    assert 1.2 < np.median(system.source_redshift) < 2.5
    assert 0.6 < np.median(system.axis_ratio) < 0.85
    assert 0.02 < np.hypot(system.gamma1, system.gamma2).mean() < 0.08
    assert 0.4 < np.median(system.lens_radius) < 1.5


def test_companions_weigh_what_they_shine(drawn):
    share = drawn.mass.perturber_theta_E / drawn.mass.theta_E[:, None]
    light = drawn.galaxies.flux[:, 1:, 2] / drawn.galaxies.flux[:, :1, 2]
    np.testing.assert_allclose(light, share**2, rtol=1e-4)
    assert 0.2 < (share[:, 0] > 0).mean() < 0.5


def test_a_source_keeps_its_flux_however_clumpy(drawn, observed):
    flux = 10 ** (-0.4 * (drawn.system.source_magnitudes - observed.zero_points))
    np.testing.assert_allclose(drawn.source.flux.sum(axis=1), flux, rtol=1e-4)


@pytest.mark.parametrize("survey", SURVEYS.values(), ids=SURVEYS)
def test_some_candidate_is_always_accepted(survey):
    @jax.jit
    @jax.vmap
    def accepted(uniform, observation):
        system = lenses.candidate(uniform, survey, observation)
        return lenses.accepted(system, survey, observation)

    uniform = jax.random.uniform(jax.random.key(0), (2000, lenses.CANDIDATE_UNIFORMS))
    share = accepted(uniform, observations(survey, 2000)).mean()
    assert float((1 - share) ** lenses.CANDIDATES) < (1e-3 if survey is GROUND else 1e-4)
