"""The camera against integrals."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import dblquad

from lensjax.sky import render
from lensjax.sky.lenses import pictures_first
from lensjax.sky.slots import Stars
from lensjax.sky.survey import DECAM, observation_uniforms, observe

SMALL = replace(DECAM, name="small", size=32)
MIDDLE = observe(np.full((observation_uniforms(DECAM), 1), 0.5), DECAM)
SEEN = jax.tree.map(lambda values: values[0], pictures_first(MIDDLE))


def gaussians(observation, band):
    """The PSF as a function of the distance in pixels."""
    sigmas, shares = (np.asarray(v) for v in render.psf_gaussians(observation))
    heights = shares / (2 * np.pi * sigmas[band] ** 2)
    return lambda radius: (
        np.exp(-0.5 * (np.asarray(radius)[..., None] / sigmas[band]) ** 2) @ heights
    )


@pytest.mark.parametrize("beta", [2.3, 2.9, 3.5, 5.0])
def test_psf_is_nearly_a_moffat(beta):
    radius = np.linspace(0, 4, 400)
    scale = 0.5 / np.sqrt(2 ** (1 / beta) - 1)
    moffat = (beta - 1) / (np.pi * scale**2) * (1 + (radius / scale) ** 2) ** -beta
    unit = SEEN._replace(moffat_beta=jnp.asarray(beta), fwhm=jnp.ones(1), pixel_scale=jnp.ones(()))
    assert np.abs(gaussians(unit, 0)(radius) - moffat).max() < 0.01 * moffat.max()
    assert float(render.psf_gaussians(unit)[1].sum()) == pytest.approx(1, abs=1e-3)


def test_flux_survives_psf_and_pixels():
    light = jnp.zeros((3, 136, 136)).at[:, 68, 73].set(1.0)
    image = render.blur(light, SEEN, DECAM)
    np.testing.assert_allclose(image.sum(axis=(1, 2)), 1.0, atol=3e-4)


def test_even_light_stays_even_but_for_the_edges():
    image = render.blur(jnp.full((3, 136, 136), 0.25), SEEN, DECAM)
    np.testing.assert_allclose(image[:, 16:-16, 16:-16], 1.0, atol=3e-3)
    assert image[:, 0, 0].min() > 0.6


def test_one_sample_is_imaged_like_a_star_at_its_place():
    x, y = render.grid(render.samples(SMALL), SEEN)
    light = jnp.zeros((3, *x.shape)).at[:, 30, 41].set(2.0)
    star = Stars(jnp.full((1, 3), 2.0), x[30, 41][None], y[30, 41][None])
    np.testing.assert_allclose(
        render.blur(light, SEEN, SMALL), render.star_images(star, SEEN, SMALL), atol=1e-6
    )


def test_star_is_the_integral_of_the_psf_over_each_pixel():
    position = np.array([0.31, -0.52])
    star = Stars(jnp.ones((1, 3)), jnp.asarray(position[:1]), jnp.asarray(position[1:]))
    image = render.star_images(star, SEEN, SMALL)
    in_pixels = position / SMALL.pixel_scale + (SMALL.size - 1) / 2
    psf = gaussians(SEEN, 1)
    for row, column in [(14, 16), (13, 17), (20, 10)]:
        expected = dblquad(
            lambda y, x: psf(np.hypot(x - in_pixels[0], y - in_pixels[1])),
            column - 0.5, column + 0.5, row - 0.5, row + 0.5, epsrel=1e-3,
        )[0]  # fmt: skip
        assert float(image[1, row, column]) == pytest.approx(expected, rel=2e-3)


def test_noise_has_unit_variance_and_the_correlation_of_coadds():
    noise = render.unit_noise(jax.random.key(0), jnp.asarray(DECAM.noise_width), 64)
    noise = np.asarray(noise)[4:-4, 4:-4]
    assert noise.std() == pytest.approx(1, abs=0.02)
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean() / (noise**2).mean()
    assert neighbours == pytest.approx(0.25, abs=0.03)


def test_noise_is_that_of_sky_and_photons_and_leaves_missing_pixels():
    image = jnp.full((64, 64, 1), 12.0).at[:, :5].set(0.0)
    noisy = render.add_noise(
        jax.random.key(1), image, jnp.full(1, 2.0), jnp.full(1, 0.2), jnp.full(1, 3.0)
    )
    assert (noisy[:, :5] == 0).all()
    assert float(noisy[:, 5:].std()) == pytest.approx(np.sqrt(4 + 12 / 3), rel=0.05)


def test_stamp_keeps_its_flux_wherever_it_is_turned():
    stamp = jnp.zeros((15, 15)).at[4:11, 5:10].set(1 / 35)
    x, y = render.grid(render.samples(DECAM), SEEN)
    for angle in (0.0, 2.0):
        source = SimpleNamespace(flux=jnp.ones((1, 3)), x=jnp.full(1, 0.6), y=jnp.full(1, -0.35))
        scene = SimpleNamespace(source=source, stamp_angle=angle)
        light = render.stamp_light(x, y, scene, stamp, 0.2)[0]
        step = DECAM.pixel_scale / render.SUPERSAMPLING
        assert float(light.sum()) * step**2 == pytest.approx(1, abs=0.03)
        assert float((x * light).sum() / light.sum()) == pytest.approx(0.6, abs=0.02)
        assert float((y * light).sum() / light.sum()) == pytest.approx(-0.35, abs=0.02)
