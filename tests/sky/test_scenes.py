"""Each kind of picture holds what its name says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.sky import lenses, scenes
from lensjax.sky.survey import DECAM, SURVEYS, observation_uniforms, observe

COUNT = 48


@pytest.fixture(scope="module")
def made():
    """For each picture a lens and how it is observed, and the centre of every kind made of it."""
    uniform = jax.random.uniform(jax.random.key(6), (COUNT, scenes.CENTRE_UNIFORMS))
    weather = jax.random.uniform(jax.random.key(7), (COUNT, observation_uniforms(DECAM)))

    @jax.jit
    @jax.vmap
    def build_all(uniform, weather):
        sky = scenes.Sky(DECAM, observe(weather, DECAM))
        own = jax.random.uniform(jax.random.key(5), (lenses.CANDIDATE_UNIFORMS,))
        system = lenses.candidate((own + uniform[: len(own)]) % 1, DECAM, sky.observation)
        details = jnp.tile(uniform, 2)[: lenses.DETAIL_UNIFORMS]
        lens = lenses.light_and_mass(details, system, jnp.asarray(50.0), sky.observation)
        return lens, {kind: build(uniform, lens, sky) for kind, build in scenes.KINDS.items()}

    return build_all(uniform, weather)


@pytest.fixture(scope="module")
def centres(made):
    return made[1]


def total_light(centre):
    """Flux (picture, band) of all that the centre is made of."""
    slots = (centre.galaxies, centre.swirls, centre.source)
    return sum(part.flux.sum(axis=1) for part in slots) + centre.star_flux


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_every_kind_fills_the_same_slots(centres, kind):
    shapes = jax.tree.map(jnp.shape, centres[kind])
    assert shapes == jax.tree.map(jnp.shape, centres["lens"])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(centres[kind]))
    assert (total_light(centres[kind]) > 0).all()
    assert (centres[kind].galaxies.flux >= 0).all()


def test_only_lenses_have_mass(centres):
    for kind, centre in centres.items():
        assert bool((centre.mass.theta_E > 0).all()) == (kind == "lens")


@pytest.mark.parametrize("kind", ["unlensed", "satellites", "ring", "merger", "red"])
def test_look_alikes_share_the_lens_galaxy(centres, kind):
    for name in ("flux", "radius", "n_sersic"):
        mine = getattr(centres[kind].galaxies, name)[:, 0]
        np.testing.assert_array_equal(mine, getattr(centres["lens"].galaxies, name)[:, 0])


@pytest.mark.parametrize("kind", ["unlensed", "satellites"])
def test_companions_are_about_as_bright_as_the_arcs(made, kind):
    lens, centres = made
    arcs = lens.source.flux.sum(axis=1) * lens.system.magnification[:, None]
    galaxies = lens.galaxies.flux.sum(axis=1)
    ratio = np.asarray((total_light(centres[kind]) - galaxies) / arcs)
    assert (ratio > 0.45).all() and (ratio < 2.1).all()


def test_satellites_are_two_to_four(centres):
    lit = (centres["satellites"].galaxies.flux[:, 3:, 0] > 0).sum(axis=1)
    assert set(np.asarray(lit).tolist()) == {2, 3, 4}


def test_every_share_is_of_a_kind_and_they_add_up():
    for survey in SURVEYS.values():
        assert sum(share for _, share in survey.shares) == pytest.approx(1)
        assert {kind for kind, _ in survey.shares} < set(scenes.KINDS)


def test_field_is_strewn_over_the_cutout():
    uniform = jax.random.uniform(jax.random.key(1), (COUNT, scenes.FIELD_UNIFORMS))
    seen = observe(jnp.full(observation_uniforms(DECAM), 0.5), DECAM)
    draw = jax.vmap(lambda u: scenes.field(u, jnp.asarray(0.5), scenes.Sky(DECAM, seen)))
    galaxies, stars = jax.jit(draw)(uniform)
    half = DECAM.size * DECAM.pixel_scale / 2
    for slots in (galaxies, stars):
        assert (slots.flux >= 0).all()
        assert (jnp.abs(slots.x[:, 1:]) <= half).all() and (jnp.abs(slots.y[:, 1:]) <= half).all()
    lit = (galaxies.flux[..., 0] > 0).sum(axis=1)
    assert 2.5 < lit.mean() < 5.5
    assert galaxies.x[:, 1:].std() == pytest.approx(half / np.sqrt(3), rel=0.15)
