"""Deflection of light by elliptical galaxies, and the light of galaxies, as pure functions.

Angles are in arcsec, position angles in radians. As in lenstronomy (Birrer & Amara 2018) theta_E
and half-light radii are the geometric means of those along the two axes. Every function of one
object takes scalars and a grid of any shape, and works in the precision it is given.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

Scalar = jax.Array | float

SERIES_TERMS = 16  # of the deflection: exact to 1e-5 of theta_E for axis ratios from 0.35


class Galaxies(NamedTuple):
    """Sersic profiles, one a slot: total flux (slot, band), the rest (slot,).

    Of many pictures, on the host, each array has one more axis, the last.
    """

    flux: Any
    x: Any
    y: Any
    axis_ratio: Any
    angle: Any
    radius: Any
    n_sersic: Any


class Mass(NamedTuple):
    """An elliptical power law at the origin, external shear, and round perturbers (perturber,).

    theta_E is 0 where there is no lens; `slope` is that of the density, 2 for isothermal. Of many
    pictures, on the host, each array has one more axis, the last.
    """

    theta_E: Any
    slope: Any
    axis_ratio: Any
    angle: Any
    gamma1: Any
    gamma2: Any
    perturber_theta_E: Any
    perturber_x: Any
    perturber_y: Any


def aligned(
    x: jax.Array, y: jax.Array, center_x: Scalar, center_y: Scalar, angle: Scalar
) -> tuple[jax.Array, jax.Array]:
    """Returns coordinates about a centre, the first along the direction of `angle` (radians)."""
    x, y = x - center_x, y - center_y
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x


def epl_deflection(
    x: jax.Array, y: jax.Array, theta_E: Scalar, slope: Scalar, axis_ratio: Scalar, angle: Scalar
) -> tuple[jax.Array, jax.Array]:
    """Returns the deflection (alpha_x, alpha_y) in arcsec of an elliptical power law at the origin.

    The density falls as r^-slope. Tessore & Metcalf (2015), eq. 13 and 29: in the frame of the
    major axis, with R e^(i phi) = q x + i y, f = (1 - q) / (1 + q) and t = slope - 1,
    alpha = 2 b / (1 + q) (b / R)^(t - 1) sum_n a_n (-f)^n e^(i (2n + 1) phi).
    """
    along, across = aligned(x, y, 0.0, 0.0, angle)
    tiny = jnp.finfo(along.dtype).tiny ** 0.25
    radius = jnp.sqrt((axis_ratio * along) ** 2 + across**2 + tiny)
    direction = jax.lax.complex(axis_ratio * along / radius, across / radius)
    step = -(1 - axis_ratio) / (1 + axis_ratio) * direction**2
    exponent = slope - 1
    series = jnp.ones_like(direction)
    for n in reversed(range(1, SERIES_TERMS)):
        series = 1 + (2 * n - 2 + exponent) / (2 * n + 2 - exponent) * step * series
    scale = jnp.maximum(jnp.sqrt(axis_ratio) * theta_E, tiny)
    strength = 2 * scale / (1 + axis_ratio) * (scale / radius) ** (exponent - 1)
    alpha = strength * direction * series
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return cosine * alpha.real - sine * alpha.imag, sine * alpha.real + cosine * alpha.imag


def shear_deflection(
    x: jax.Array, y: jax.Array, gamma1: Scalar, gamma2: Scalar
) -> tuple[jax.Array, jax.Array]:
    """Returns the deflection in arcsec of an external shear about the origin."""
    return gamma1 * x + gamma2 * y, gamma2 * x - gamma1 * y


def trace(x: jax.Array, y: jax.Array, mass: Mass) -> tuple[jax.Array, jax.Array]:
    """Returns where in the source plane the ray through each point of the image comes from."""
    alpha_x, alpha_y = epl_deflection(x, y, mass.theta_E, mass.slope, mass.axis_ratio, mass.angle)
    shear_x, shear_y = shear_deflection(x, y, mass.gamma1, mass.gamma2)
    x_source, y_source = x - alpha_x - shear_x, y - alpha_y - shear_y
    for which in range(mass.perturber_theta_E.shape[0]):
        dx, dy = x - mass.perturber_x[which], y - mass.perturber_y[which]
        # An isothermal sphere deflects by theta_E everywhere; its centre is rounded off.
        strength = mass.perturber_theta_E[which] * jax.lax.rsqrt(dx**2 + dy**2 + 1e-4)
        x_source, y_source = x_source - strength * dx, y_source - strength * dy
    return x_source, y_source


def sersic_b(n_sersic: Scalar) -> Scalar:
    """Returns b_n by the linear fit of Capaccioli (1989), good for 0.5 < n < 10."""
    return 1.9992 * n_sersic - 0.3271


def sersic(
    x: jax.Array,
    y: jax.Array,
    amp: Scalar,
    R_sersic: Scalar,
    n_sersic: Scalar,
    axis_ratio: Scalar,
    angle: Scalar,
    center_x: Scalar,
    center_y: Scalar,
    softening: Scalar = 0.0,
) -> jax.Array:
    """Returns the surface brightness of an elliptical Sersic profile (Sersic 1968).

    `amp` is the brightness at the half-light radius `R_sersic` (arcsec), which is the geometric
    mean of the two axes of that isophote. `softening` (arcsec) rounds off the cusp, as a grid of
    finite step needs.
    """
    along, across = aligned(x, y, center_x, center_y, angle)
    tiny = jnp.finfo(along.dtype).tiny ** 0.25
    squared = axis_ratio * along**2 + across**2 / axis_ratio + softening**2 + tiny
    # One logarithm and two exponentials a pixel: the cheapest form of (R / R_e)^(1 / n).
    scaled = jnp.exp((0.5 * jnp.log(squared) - jnp.log(R_sersic)) / n_sersic)
    return amp * jnp.exp(-sersic_b(n_sersic) * (scaled - 1))


def sersic_amplitude(R_sersic: Scalar, n_sersic: Scalar) -> jax.Array:
    """Returns the `amp` (arcsec^-2) that gives a Sersic profile unit flux.

    The integral to infinity is given by Graham & Driver (2005).
    """
    b = sersic_b(n_sersic)
    log_flux = (
        jnp.log(2 * jnp.pi * n_sersic)
        + 2 * jnp.log(R_sersic)
        + b
        - 2 * n_sersic * jnp.log(b)
        + gammaln(2 * n_sersic)
    )
    return jnp.exp(-log_flux)


def sersic_light(
    x: jax.Array, y: jax.Array, galaxies: Galaxies, softening: Scalar = 0.0
) -> jax.Array:
    """Returns the summed brightness (band, *grid) of all slots, flux per square arcsec.

    Dark slots cost nothing where they come last.
    """
    _, center_x, center_y, axis_ratio, angle, radius, n_sersic = galaxies
    amplitude = sersic_amplitude(radius, n_sersic)
    shapes = (amplitude, radius, n_sersic, axis_ratio, angle, center_x, center_y)
    one = partial(sersic, x, y, softening=softening)

    def add(slot: jax.Array, light: jax.Array) -> jax.Array:
        profile = one(*(shape[slot] for shape in shapes))
        return light + galaxies.flux[slot][:, None, None] * profile[None]

    return add_lit(add, galaxies.flux, x)


def add_lit(
    add: Callable[[jax.Array, jax.Array], jax.Array], flux: jax.Array, x: jax.Array
) -> jax.Array:
    """Returns light (band, *grid) after `add(slot, light)` of all slots up to the last lit one."""
    lit = jnp.max(jnp.where(flux > 0, jnp.arange(1, len(flux) + 1)[:, None], 0))
    return jax.lax.fori_loop(0, lit, add, jnp.zeros((flux.shape[1], *x.shape), flux.dtype))
