"""Each kind of picture holds what its name says."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.sky import scenes
from lensjax.sky.population import draw_system, flux
from lensjax.sky.survey import DECAM

COUNT = 48


@pytest.fixture(scope="module")
def systems():
    draw = jax.jit(jax.vmap(partial(draw_system, survey=DECAM)))
    return draw(jax.random.split(jax.random.key(5), COUNT))


@pytest.fixture(scope="module")
def centres(systems):
    uniform = jax.random.uniform(jax.random.key(6), (COUNT, scenes.CENTRE_UNIFORMS))

    @jax.jit
    @jax.vmap
    def build_all(uniform, system):
        return {kind: build(uniform, system, DECAM) for kind, build in scenes.KINDS.items()}

    return build_all(uniform, systems)


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
def test_companions_are_about_as_bright_as_the_arcs(systems, centres, kind):
    source = jax.vmap(partial(flux, survey=DECAM))(systems.source_magnitudes)
    arcs = source * systems.magnification[:, None]
    galaxy = centres[kind].galaxies.flux[:, 0]
    ratio = np.asarray((total_light(centres[kind]) - galaxy) / arcs)
    assert (ratio > 0.45).all() and (ratio < 2.1).all()


def test_satellites_are_two_to_four(centres):
    lit = (centres["satellites"].galaxies.flux[:, 1:, 0] > 0).sum(axis=1)
    assert set(np.asarray(lit).tolist()) == {2, 3, 4}


def test_source_keeps_its_flux_however_clumpy(systems, centres):
    expected = jax.vmap(partial(flux, survey=DECAM))(systems.source_magnitudes)
    np.testing.assert_allclose(centres["lens"].source.flux.sum(axis=1), expected, rtol=1e-5)


def test_shares_of_look_alikes_add_up():
    assert sum(scenes.LOOK_ALIKES.values()) == pytest.approx(1)
    assert set(scenes.LOOK_ALIKES) | {"lens"} == set(scenes.KINDS)


def test_field_is_strewn_over_the_cutout(systems):
    uniform = jax.random.uniform(jax.random.key(1), (COUNT, scenes.FIELD_UNIFORMS))
    galaxies, stars = jax.jit(jax.vmap(partial(scenes.field, survey=DECAM)))(uniform, systems)
    for slots in (galaxies, stars):
        assert (slots.flux >= 0).all()
        assert (jnp.abs(slots.x) <= DECAM.half_width).all()
        assert (jnp.abs(slots.y) <= DECAM.half_width).all()
    lit = (galaxies.flux[..., 0] > 0).sum(axis=1)
    assert 2.5 < lit.mean() < 5.5
    assert galaxies.x.std() == pytest.approx(DECAM.half_width / np.sqrt(3), rel=0.15)
