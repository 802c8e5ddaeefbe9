"""Published populations of galaxies, each number with its source.

Where no paper is named a number was chosen, by eye, for pictures like those of real surveys.
Lengths are in arcsec, velocities in km/s, magnitudes in the AB system.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lensjax.sky.lensing import Scalar
from lensjax.sky.survey import Observation, Survey

SPEED_OF_LIGHT = 299792.458
ARCSEC_PER_RADIAN = 206264.806

# Choi, Park & Vogeley (2007), velocity dispersion function of early types:
# dn/dsigma ~ (sigma / sigma*)^alpha exp(-(sigma / sigma*)^beta) / sigma.
VDF_SIGMA, VDF_ALPHA, VDF_BETA = 161.0, 2.32, 2.67

# Spectra of a quiescent and a star-forming galaxy: AB magnitude against rest wavelength (nm),
# relative to 620 nm. Round numbers, chosen so that an elliptical follows the g-r and r-i of red
# galaxies in the Dark Energy Survey between redshift 0.1 and 0.8, and that star-forming galaxies
# are as blue as lensed arcs.
WAVELENGTHS = (
    90, 115, 135, 200, 250, 300, 355, 400, 440,
    475, 620, 755, 895, 1020, 1250, 1600, 2200,
)  # fmt: skip
QUIESCENT = (
    9.0, 8.0, 7.0, 5.5, 4.6, 3.5, 2.45, 1.50, 0.98,
    0.75, 0.0, -0.36, -0.64, -0.82, -1.08, -1.36, -1.20,
)  # fmt: skip
STAR_FORMING = (
    4.5, 2.2, 0.75, 0.62, 0.60, 0.62, 0.58, 0.30, 0.16,
    0.12, 0.0, -0.08, -0.12, -0.18, -0.25, -0.30, -0.20,
)  # fmt: skip


class Table(NamedTuple):
    """A function at evenly spaced points from `first` to `last`."""

    first: float
    last: float
    values: np.ndarray


def lookup(table: Table, x: jax.Array) -> jax.Array:
    """Returns the function between its points, linearly, and its end values beyond them.

    Even spacing needs no search, which `jnp.interp` compiles to a loop.
    """
    last = len(table.values) - 1
    place = jnp.clip((x - table.first) / (table.last - table.first) * last, 0, last)
    left = jnp.minimum(place.astype(int), last - 1)
    values = jnp.asarray(table.values, jnp.result_type(x, float))
    return values[left] + (place - left) * (values[left + 1] - values[left])


class Tables(NamedTuple):
    """Functions of redshift (Mpc, mag), of probability (inverse distributions), of ln(nm)."""

    comoving_distance: Table
    distance_modulus: Table
    source_cumulative: Table
    source_redshift: Table
    lens_redshift: Table
    velocity_dispersion: Table
    quiescent: Table
    star_forming: Table


def _inverse(values: np.ndarray, density: np.ndarray) -> Table:
    """Returns the inverse of the distribution function of a density."""
    cumulative = np.cumsum(density)
    cumulative = (cumulative - cumulative[0]) / (cumulative[-1] - cumulative[0])
    return Table(0.0, 1.0, np.interp(np.linspace(0, 1, 1024), cumulative, values))


@lru_cache(maxsize=1)
def tables() -> Tables:
    """Returns all tables, in a flat universe with H0 = 70 km/s/Mpc and Omega_m = 0.3."""
    from astropy.cosmology import FlatLambdaCDM  # takes half a second to import

    cosmology = FlatLambdaCDM(H0=70, Om0=0.3)
    redshift = np.linspace(0.0, 5.0, 1001)
    # The form of Smail, Ellis & Fitchett (1994), z^2 exp(-(z / z0)^1.5), with z0 chosen.
    sources = redshift**2 * np.exp(-((redshift / 0.9) ** 1.5))
    dispersion = np.linspace(120.0, 420.0, 1500)
    scaled = dispersion / VDF_SIGMA
    # The cross-section of an isothermal sphere goes as sigma^4.
    lensing = scaled ** (VDF_ALPHA - 1 + 4) * np.exp(-(scaled**VDF_BETA))
    lenses = np.linspace(0.2, 1.0, 500)
    modulus = cosmology.distmod(np.maximum(redshift, 1e-3)).value
    logarithm = np.linspace(np.log(WAVELENGTHS[0]), np.log(WAVELENGTHS[-1]), 512)
    spectra = [
        Table(logarithm[0], logarithm[-1], np.interp(np.exp(logarithm), WAVELENGTHS, magnitudes))
        for magnitudes in (QUIESCENT, STAR_FORMING)
    ]
    return Tables(
        comoving_distance=Table(0.0, 5.0, cosmology.comoving_distance(redshift).value),
        distance_modulus=Table(0.0, 5.0, modulus),
        source_cumulative=Table(0.0, 5.0, np.cumsum(sources) / np.sum(sources)),
        source_redshift=_inverse(redshift, sources),
        lens_redshift=_inverse(lenses, cosmology.differential_comoving_volume(lenses).value),
        velocity_dispersion=_inverse(dispersion, lensing),
        quiescent=spectra[0],
        star_forming=spectra[1],
    )


def velocity_dispersion(uniform: jax.Array) -> jax.Array:
    """Returns velocity dispersions: the function of Choi et al. (2007) times sigma^4."""
    return lookup(tables().velocity_dispersion, uniform)


def axis_ratio(uniform: jax.Array, dispersion: jax.Array) -> jax.Array:
    """Returns axis ratios q > 0.2: 1 - q is Rayleigh, after Collett (2015), eq. 4.

    The scale is 0.38 - 5.7e-4 sigma: the paper prints a plus sign, but says that massive galaxies
    are rounder, and its code (LensPop) has the minus.
    """
    scale = 0.38 - 5.7e-4 * dispersion
    below_cut = 1 - jnp.exp(-0.5 * (0.8 / scale) ** 2)
    return 1 - scale * jnp.sqrt(-2 * jnp.log1p(-uniform * below_cut))


def source_redshift(uniform: jax.Array, lens_redshift: jax.Array) -> jax.Array:
    """Returns redshifts of sources at least 0.2 behind their lens."""
    first = lookup(tables().source_cumulative, lens_redshift + 0.2)
    return lookup(tables().source_redshift, first + uniform * (0.999 - first))


def einstein_radius(dispersion: jax.Array, lens: jax.Array, source: jax.Array) -> jax.Array:
    """Returns theta_E = 4 pi (sigma / c)^2 D_ls / D_s of an isothermal sphere, arcsec.

    In a flat universe D_ls / D_s is the ratio of comoving distances, 1 - chi_l / chi_s.
    """
    distance = tables().comoving_distance
    ratio = 1 - lookup(distance, lens) / lookup(distance, source)
    return ARCSEC_PER_RADIAN * 4 * jnp.pi * (dispersion / SPEED_OF_LIGHT) ** 2 * ratio


def arcsec(kiloparsec: jax.Array, redshift: jax.Array) -> jax.Array:
    """Returns the angle under which a length is seen."""
    distance = lookup(tables().comoving_distance, redshift) / (1 + redshift)
    return ARCSEC_PER_RADIAN * kiloparsec / (1000 * distance)


def distance_modulus(redshift: jax.Array) -> jax.Array:
    """Returns 5 log10 of the luminosity distance over 10 pc."""
    return lookup(tables().distance_modulus, redshift)


def spectrum(young: Scalar, redshift: Scalar, wavelengths: tuple[float, ...]) -> jax.Array:
    """Returns AB magnitudes (band,) relative to rest 620 nm of a mix of the two spectra.

    `young` is the share of the light at 620 nm that comes from the star-forming one.
    """
    rest = jnp.log(jnp.asarray(wavelengths) / (1 + redshift))
    old_flux = 10 ** (-0.4 * lookup(tables().quiescent, rest))
    young_flux = 10 ** (-0.4 * lookup(tables().star_forming, rest))
    return -2.5 * jnp.log10(young * young_flux + (1 - young) * old_flux)


def apparent(
    selection_magnitude: Scalar, young: Scalar, redshift: Scalar, survey: Survey
) -> jax.Array:
    """Returns magnitudes (band,) of a galaxy that has the first in the selection band."""
    colours = spectrum(young, redshift, survey.wavelengths)
    return selection_magnitude + colours - colours[survey.selection_index]


def flux(magnitudes: jax.Array, observation: Observation) -> jax.Array:
    """Returns fluxes (band,) in the units of the observation."""
    return 10 ** (-0.4 * (magnitudes - observation.zero_points))


def lens_absolute_magnitude(dispersion: jax.Array) -> jax.Array:
    """Returns the r-band absolute magnitude today, L ~ sigma^4 (Faber & Jackson 1976).

    The zero point, -22.2 at 250 km/s, is chosen: with one magnitude of passive fading since
    redshift one (chosen too) red galaxies have the fluxes of those in the Dark Energy Survey.
    """
    return -22.2 - 10 * jnp.log10(dispersion / 250)


def early_type_radius(absolute_magnitude: jax.Array, redshift: jax.Array) -> jax.Array:
    """Returns the median half-light radius in kpc of early types of some luminosity today.

    Shen et al. (2003), eq. 14, measured near redshift 0.1, shrinking with redshift as (1 + z)^-1.48
    (van der Wel et al. 2014).
    """
    return 10 ** (-0.4 * 0.60 * absolute_magnitude - 4.63) * ((1 + redshift) / 1.1) ** -1.48


def source_radius(absolute_magnitude: jax.Array, redshift: jax.Array) -> jax.Array:
    """Returns the median half-light radius in kpc of star-forming galaxies, Shibuya et al. (2015).

    r_e = 6.9 (1 + z)^-1.20 kpc (L / L0)^0.27, where L0 is M_UV = -21.
    """
    return 6.9 * (1 + redshift) ** -1.2 * 10 ** (-0.4 * 0.27 * (absolute_magnitude + 21))


def number_count_magnitude(
    uniform: jax.Array, bright: Scalar, faint: Scalar, slope: float = 0.3
) -> jax.Array:
    """Returns magnitudes between two limits whose counts rise as 10^(slope m) (slope chosen)."""
    rise = 10 ** (slope * (faint - bright)) - 1
    return bright + jnp.log10(1 + uniform * rise) / slope


def between(uniform: Scalar, low: Scalar, high: Scalar) -> jax.Array:
    """Returns `uniform`, from 0 to 1, stretched to reach from `low` to `high`."""
    return low + (high - low) * jnp.asarray(uniform)
