"""Lensing against lenstronomy's numbers and against closed forms."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from lensjax.sky.lensing import (
    Mass,
    epl_deflection,
    sersic,
    sersic_amplitude,
    shear_deflection,
    trace,
)


def own_terms(lens):
    """Returns lenstronomy's parameters as ours: an ellipticity (e1, e2) has modulus
    (1 - q) / (1 + q) and phase twice the position angle."""
    lens = dict(lens)
    e1, e2 = lens.pop("e1"), lens.pop("e2")
    modulus = jnp.hypot(e1, e2)
    return lens | {"axis_ratio": (1 - modulus) / (1 + modulus), "angle": jnp.arctan2(e2, e1) / 2}


def deflected(x, y, *, center_x, center_y, gamma=2.0, **lens):
    """Returns the deflection by a power law with lenstronomy's parameters."""
    return epl_deflection(x - center_x, y - center_y, slope=gamma, **own_terms(lens))


@pytest.fixture(scope="module", params=["float64", "float32"])
def computed(request, reference):
    """Deflections and images of the twelve reference cases, and the reference itself."""
    expected = np.load(Path(reference) / "sie_shear_sersic.npz")
    cases = json.loads((Path(reference) / "sie_shear_sersic.json").read_text())
    with jax.enable_x64(request.param == "float64"):
        x, y = (jnp.asarray(expected[name], request.param) for name in "xy")
        deflection, lensed, unlensed = [], [], []
        for case in cases:
            sie, shear = ({k: jnp.asarray(v, x.dtype) for k, v in p.items()} for p in case["lens"])
            source = {k: jnp.asarray(v, x.dtype) for k, v in case["source"][0].items()}
            sie_x, sie_y = deflected(x, y, **sie)
            shear_x, shear_y = shear_deflection(x, y, shear["gamma1"], shear["gamma2"])
            deflection.append((sie_x + shear_x, sie_y + shear_y))
            source = own_terms(source)
            lensed.append(sersic(x - deflection[-1][0], y - deflection[-1][1], **source))
            unlensed.append(sersic(x, y, **source))
        images = {"lensed": np.array(lensed), "unlensed": np.array(unlensed)}
        return request.param, np.array(deflection), images, expected


def test_deflections_agree_with_lenstronomy(computed):
    dtype, deflection, _, expected = computed
    assert deflection.dtype == dtype
    tolerance = {"float64": 1e-6, "float32": 1e-4}[dtype]
    assert np.abs(deflection - expected["deflection"]).max() < tolerance


@pytest.mark.parametrize("dtype, tolerance", [("float64", 2e-6), ("float32", 2e-5)])
def test_power_laws_deflect_as_in_lenstronomy(reference, dtype, tolerance):
    """Slopes of 1.7 to 2.4, axis ratios from 0.35; `made_by` in the file says how it was made."""
    expected = np.load(Path(reference) / "epl.npz")
    names = ("theta_E", "gamma", "e1", "e2", "center_x", "center_y")
    with jax.enable_x64(dtype == "float64"):
        x, y = (jnp.asarray(expected[name], dtype) for name in "xy")
        lenses = [jnp.asarray(expected[name], dtype) for name in names]
        cases = [dict(zip(names, case, strict=True)) for case in zip(*lenses, strict=True)]
        found = jnp.stack([jnp.stack(deflected(x, y, **case)) for case in cases])
    assert np.abs(found - expected["deflection"]).max() < tolerance


def test_a_perturber_deflects_towards_itself():
    zero, one = jnp.zeros(()), jnp.ones(())
    mass = Mass(zero, 2 * one, one, zero, zero, zero, *(jnp.full(1, v) for v in (0.3, 1.0, 0.0)))
    x, y = trace(jnp.asarray([3.0, 1.0]), jnp.asarray([0.0, -2.0]), mass)
    np.testing.assert_allclose(x, [2.7, 1.0], atol=1e-4)
    np.testing.assert_allclose(y, [0.0, -1.7], atol=1e-4)


@pytest.mark.parametrize("image", ["lensed", "unlensed"])
def test_sersic_images_agree_with_lenstronomy(computed, image):
    _, _, images, expected = computed
    peak = expected[image].max(axis=(1, 2), keepdims=True)
    assert np.abs((images[image] - expected[image]) / peak).max() < 1e-3


def test_round_lens_is_an_isothermal_sphere():
    x, y = jnp.asarray([0.3, -1.0, 2.0]), jnp.asarray([0.4, 0.1, -1.5])
    radius = jnp.hypot(x, y)
    for axis_ratio in (1.0, 0.99999):
        alpha_x, alpha_y = epl_deflection(x, y, 1.3, 2.0, axis_ratio, 0.4)
        np.testing.assert_allclose(alpha_x, 1.3 * x / radius, atol=3e-5)
        np.testing.assert_allclose(alpha_y, 1.3 * y / radius, atol=3e-5)


def test_without_mass_nothing_is_deflected_not_even_at_the_centre():
    alpha = epl_deflection(jnp.zeros(2), jnp.asarray([0.0, 1.0]), 0.0, 2.3, 0.7, 0.3)
    np.testing.assert_allclose(alpha, 0.0, atol=1e-5)


def test_magnification_of_isothermal_ellipsoid():
    """Without shear an isothermal lens has det(d beta / d theta) = 1 - 2 kappa, exactly."""
    axis_ratio, angle, theta_E = 0.6, 0.8, 1.2

    def source_position(position):
        return position - jnp.stack(
            epl_deflection(position[0], position[1], theta_E, 2.0, axis_ratio, angle)
        )

    for x, y in [(0.5, 0.2), (1.5, -0.3), (-0.2, 2.0)]:
        along = np.cos(angle) * x + np.sin(angle) * y
        across = np.cos(angle) * y - np.sin(angle) * x
        kappa = theta_E / (2 * np.sqrt(axis_ratio * along**2 + across**2 / axis_ratio))
        jacobian = jax.jacfwd(source_position)(jnp.asarray([x, y]))
        assert jnp.linalg.det(jacobian) == pytest.approx(1 - 2 * kappa, abs=1e-4)


@pytest.mark.parametrize(
    "offset, expected", [(0.4, 2 / 0.4), (0.8, 2 / 0.8), (1.4, 1 + 1 / 1.4), (2.5, 1 + 1 / 2.5)]
)
def test_images_of_small_source_are_magnified_as_by_a_sphere(offset, expected):
    """Total magnification behind a sphere: 2 / beta inside theta_E = 1, 1 + 1 / beta outside."""
    axis = np.linspace(-4, 4, 1600, dtype=np.float32)
    x, y = (jnp.asarray(grid) for grid in np.meshgrid(axis, axis))
    alpha_x, alpha_y = epl_deflection(x, y, 1.0, 2.0, 1.0, 0.0)
    # Of index 0.7 the profile has no cusp and hardly any wings.
    shape = dict(
        R_sersic=0.04, n_sersic=0.7, axis_ratio=1.0, angle=0.0, center_x=offset, center_y=0.0
    )
    light = sersic(x - alpha_x, y - alpha_y, sersic_amplitude(0.04, 0.7), **shape)
    assert float(light.sum()) * (8 / 1599) ** 2 == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("n_sersic", [0.7, 1.0, 2.5, 4.0])
def test_unit_amplitude_gives_unit_flux(n_sersic):
    amp = float(sersic_amplitude(0.5, n_sersic))

    def ring(radius):
        light = sersic(jnp.asarray(radius), jnp.zeros(()), amp, 0.5, n_sersic, 1.0, 0.0, 0.0, 0.0)
        return 2 * np.pi * radius * float(light)

    total = quad(ring, 0, 2, limit=200, epsrel=1e-4)[0] + quad(ring, 2, 400, limit=200)[0]
    assert total == pytest.approx(1, abs=5e-3)
    assert quad(ring, 0, 0.5, limit=200, epsrel=1e-4)[0] == pytest.approx(0.5, abs=5e-3)
