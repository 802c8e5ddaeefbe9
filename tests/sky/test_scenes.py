"""Each kind of picture holds what its name says."""

import jax
import numpy as np
import pytest

from lensjax.sky import kinds, lenses, scenes
from lensjax.sky.survey import DECAM, SURVEYS, observation_uniforms, observe

COUNT = 48


def uniforms(count, numbers, seed):
    return np.random.default_rng(seed).uniform(1e-6, 1 - 1e-6, (count, numbers))


@pytest.fixture(scope="module")
def made():
    """Lenses, and the centres of every kind made of them."""
    sky = kinds.Sky(DECAM, observe(uniforms(observation_uniforms(DECAM), COUNT, 7), DECAM))
    drawn = lenses.draw_lenses(uniforms(lenses.LENS_UNIFORMS, COUNT, 5), DECAM, sky.observation)
    own = uniforms(kinds.CENTRE_UNIFORMS, COUNT, 6)
    return drawn, {kind: build(own, drawn, sky) for kind, build in kinds.KINDS.items()}


@pytest.fixture(scope="module")
def centres(made):
    return made[1]


def total_light(centre):
    """Flux (band, picture) of all that the centre is made of."""
    slots = (centre.galaxies, centre.swirls, centre.source)
    lit = [part.flux.sum(axis=0) for part in slots if part is not None]
    return sum(lit) + (0.0 if centre.star_flux is None else centre.star_flux)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_every_kind_is_made_of_light(centres, kind):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(centres[kind]))
    assert (total_light(centres[kind]) > 0).all()
    assert (centres[kind].mass is not None) == (kind == "lens")


def test_a_scene_holds_the_centre_and_the_field_with_dark_slots_last(made):
    lens, centres = made
    kind = np.tile(np.arange(len(kinds.KINDS)), COUNT)[:COUNT]
    names = np.array(list(kinds.KINDS))[kind]
    sky = kinds.Sky(DECAM, observe(uniforms(observation_uniforms(DECAM), COUNT, 7), DECAM))
    uniform = uniforms(scenes.SCENE_UNIFORMS, COUNT, 6)
    lensed = np.flatnonzero(np.isin(names, kinds.OF_DEFLECTOR))
    scene = scenes.draw_scenes(uniform, kind, lenses.take(lens, lensed), lensed, sky)
    np.testing.assert_array_equal(scene.mass.theta_E > 0, names == "lens")
    np.testing.assert_array_equal(scene.stars.flux[0, 0] > 0, names == "star")
    np.testing.assert_array_equal(scene.source.flux[0, 0] > 0, np.isin(names, ["lens", "unlensed"]))
    lit = scene.galaxies.flux.sum(axis=1) > 0
    assert lit.any() and not (lit[1:] & ~lit[:-1]).any()
    edge_on = names == "edge_on"
    np.testing.assert_allclose(scene.galaxies.axis_ratio[1][edge_on], 0.8)
    assert np.isfinite(scene.galaxies.flux).all() and (scene.swirls.area > 0).all()


@pytest.mark.parametrize("kind", ["unlensed", "satellites", "ring", "merger", "red"])
def test_look_alikes_share_the_lens_galaxy(centres, kind):
    for name in ("flux", "radius", "n_sersic"):
        mine = getattr(centres[kind].galaxies, name)[0]
        np.testing.assert_array_equal(mine, getattr(centres["lens"].galaxies, name)[0])


@pytest.mark.parametrize("kind", ["unlensed", "satellites"])
def test_companions_are_about_as_bright_as_the_arcs(made, kind):
    lens, centres = made
    arcs = lens.source.flux.sum(axis=0) * lens.system.magnification
    ratio = (total_light(centres[kind]) - lens.galaxies.flux.sum(axis=0)) / arcs
    assert (ratio > 0.45).all() and (ratio < 2.1).all()


def test_satellites_are_two_to_four(centres):
    lit = (centres["satellites"].galaxies.flux[4:, 0] > 0).sum(axis=0)
    assert set(lit.tolist()) == {2, 3, 4}


def test_every_share_is_of_a_kind_and_they_add_up():
    for survey in SURVEYS.values():
        assert sum(share for _, share in survey.shares) == pytest.approx(1)
        assert {kind for kind, _ in survey.shares} < set(kinds.KINDS)


def test_field_is_strewn_over_the_cutout():
    seen = observe(np.full((observation_uniforms(DECAM), COUNT), 0.5), DECAM)
    uniform = uniforms(scenes.FIELD_UNIFORMS, COUNT, 1)
    galaxies, stars = scenes.field(uniform, np.full(COUNT, 0.5), kinds.Sky(DECAM, seen))
    half = DECAM.size * DECAM.pixel_scale / 2
    for slots in (galaxies, stars):
        assert (slots.flux >= 0).all()
        assert (np.abs(slots.x[1:]) <= half).all() and (np.abs(slots.y[1:]) <= half).all()
    assert 2.5 < (galaxies.flux[:, 0] > 0).sum(axis=0).mean() < 5.5
    assert galaxies.x[1:].std() == pytest.approx(half / np.sqrt(3), rel=0.15)
