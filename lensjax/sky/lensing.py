"""Deflection of light by an elliptical galaxy, and the light of galaxies, as pure functions.

Angles are in arcsec. Parameters follow lenstronomy's conventions (Birrer & Amara 2018): an
ellipticity (e1, e2) has modulus (1 - q) / (1 + q) and phase twice the position angle of the
major axis; theta_E is the Einstein radius of the galaxy averaged as sqrt(q) times that along the
major axis. Every function takes scalars for one object and a grid of any shape, works in the
precision it is given, and has finite gradients everywhere, the centre and the round case included.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Scalar = jax.Array | float


def axis_ratio_and_angle(e1: Scalar, e2: Scalar) -> tuple[jax.Array, jax.Array]:
    """Returns the axis ratio q in (0, 1] and the position angle (radians) of an ellipticity.

    An exactly round object has no angle: it is made flatter by less than rounding shows, so that
    the angle and all gradients exist.
    """
    nearly_zero = jnp.finfo(jnp.result_type(e1, float)).eps ** 0.7
    round_object = e1**2 + e2**2 < nearly_zero**2
    e1 = jnp.where(round_object, e1 + nearly_zero, e1)
    modulus = jnp.minimum(jnp.sqrt(e1**2 + e2**2), 0.9999)
    return (1 - modulus) / (1 + modulus), jnp.arctan2(e2, e1) / 2


def ellipticity(axis_ratio: Scalar, angle: Scalar) -> tuple[jax.Array, jax.Array]:
    """Returns (e1, e2) of an axis ratio and a position angle (radians)."""
    modulus = (1 - axis_ratio) / (1 + axis_ratio)
    return modulus * jnp.cos(2 * angle), modulus * jnp.sin(2 * angle)


def aligned(
    x: jax.Array, y: jax.Array, center_x: Scalar, center_y: Scalar, angle: Scalar
) -> tuple[jax.Array, jax.Array]:
    """Returns coordinates about a centre, the first along the direction of `angle` (radians)."""
    x, y = x - center_x, y - center_y
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x


def _over(
    function: Callable, odd_series: tuple[float, float], u: jax.Array, e: jax.Array
) -> jax.Array:
    """Returns function(e u) / e, by its series u + a e^2 u^3 + b e^4 u^5 where e u is small."""
    small = jnp.abs(e * u) < 0.02
    squared = (e * u) ** 2
    series = u * (1 + squared * (odd_series[0] + squared * odd_series[1]))
    safe_e = jnp.where(small, jnp.ones_like(e), e)
    return jnp.where(small, series, function(jnp.where(small, 0.0, e * u)) / safe_e)


def sie_deflection(
    x: jax.Array,
    y: jax.Array,
    theta_E: Scalar,
    e1: Scalar,
    e2: Scalar,
    center_x: Scalar,
    center_y: Scalar,
) -> tuple[jax.Array, jax.Array]:
    """Returns the deflection (alpha_x, alpha_y) in arcsec of a singular isothermal ellipsoid.

    The convergence is theta_E / (2 sqrt(q x^2 + y^2 / q)) in the frame of the major axis; the
    deflection in closed form is that of Kormann, Schneider & Bartelmann (1994).
    """
    axis_ratio, angle = axis_ratio_and_angle(e1, e2)
    along, across = aligned(x, y, center_x, center_y, angle)
    tiny = jnp.finfo(jnp.result_type(x, float)).tiny ** 0.25
    radius = jnp.sqrt((axis_ratio * along) ** 2 + across**2 + tiny)
    flattening = jnp.sqrt(1 - axis_ratio**2)
    strength = theta_E * jnp.sqrt(axis_ratio)
    alpha_along = strength * _over(jnp.arctan, (-1 / 3, 1 / 5), along / radius, flattening)
    alpha_across = strength * _over(jnp.arctanh, (1 / 3, 1 / 5), across / radius, flattening)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return cosine * alpha_along - sine * alpha_across, sine * alpha_along + cosine * alpha_across


def shear_deflection(
    x: jax.Array, y: jax.Array, gamma1: Scalar, gamma2: Scalar
) -> tuple[jax.Array, jax.Array]:
    """Returns the deflection in arcsec of an external shear about the origin."""
    return gamma1 * x + gamma2 * y, gamma2 * x - gamma1 * y


def sersic_b(n_sersic: Scalar) -> Scalar:
    """Returns b_n by the linear fit of Capaccioli (1989), good for 0.5 < n < 10."""
    return 1.9992 * n_sersic - 0.3271


def sersic(
    x: jax.Array,
    y: jax.Array,
    amp: Scalar,
    R_sersic: Scalar,
    n_sersic: Scalar,
    e1: Scalar,
    e2: Scalar,
    center_x: Scalar,
    center_y: Scalar,
    softening: float = 0.0,
) -> jax.Array:
    """Returns the surface brightness of an elliptical Sersic profile (Sersic 1968).

    `amp` is the brightness at the half-light radius `R_sersic` (arcsec), which is the geometric
    mean of the two axes of that isophote. `softening` (arcsec) rounds off the cusp, as a grid of
    finite step needs.
    """
    axis_ratio, angle = axis_ratio_and_angle(e1, e2)
    along, across = aligned(x, y, center_x, center_y, angle)
    tiny = jnp.finfo(jnp.result_type(x, float)).tiny ** 0.25
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
        + jax.lax.lgamma(2 * n_sersic)
    )
    return jnp.exp(-log_flux)
