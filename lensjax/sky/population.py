"""Published populations of galaxies, each number with its source.

Where no paper is named a number was chosen, by eye, for pictures like those of real surveys.
Lengths are in arcsec, velocities in km/s, magnitudes in the AB system. The last axis of all arrays
is that of pictures, n; before it stands that of bands, where there is one.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc, gammaincinv

from lensjax.sky.survey import Observation, Survey

Array = NDArray[Any]

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


@lru_cache(maxsize=1)
def _distances() -> tuple[Array, Array]:
    """Returns redshifts from 0 to 5 and comoving distances (Mpc) in a flat universe with H0 = 70
    km/s/Mpc and Omega_m = 0.3."""
    from astropy.cosmology import FlatLambdaCDM  # takes half a second to import

    redshift = np.linspace(0.0, 5.0, 1001)
    return redshift, FlatLambdaCDM(H0=70, Om0=0.3).comoving_distance(redshift).value


def comoving_distance(redshift: Array) -> Array:
    """Returns comoving distances, Mpc."""
    return np.interp(redshift, *_distances())


def velocity_dispersion(uniform: Array) -> Array:
    """Returns velocity dispersions, 120 to 420 km/s: the function of Choi et al. (2007) times
    sigma^4, which the cross-section of an isothermal sphere goes as.

    (sigma / sigma*)^beta is then distributed as gamma.
    """
    shape = (VDF_ALPHA + 4) / VDF_BETA
    first, last = gammainc(shape, (np.array([120.0, 420.0]) / VDF_SIGMA) ** VDF_BETA)
    return VDF_SIGMA * gammaincinv(shape, between(uniform, first, last)) ** (1 / VDF_BETA)


def axis_ratio(uniform: Array, dispersion: Array) -> Array:
    """Returns axis ratios q > 0.2: 1 - q is Rayleigh, after Collett (2015), eq. 4.

    The scale is 0.38 - 5.7e-4 sigma: the paper prints a plus sign, but says that massive galaxies
    are rounder, and its code (LensPop) has the minus.
    """
    scale = 0.38 - 5.7e-4 * dispersion
    below_cut = 1 - np.exp(-0.5 * (0.8 / scale) ** 2)
    return 1 - scale * np.sqrt(-2 * np.log1p(-uniform * below_cut))


def lens_redshift(uniform: Array) -> Array:
    """Returns redshifts of deflectors, 0.2 to 1, of constant density in comoving volume."""
    nearest, farthest = comoving_distance(np.array([0.2, 1.0])) ** 3
    redshift, distance = _distances()
    return np.interp(between(uniform, nearest, farthest) ** (1 / 3), distance, redshift)


def source_redshift(uniform: Array, lens_redshift: Array) -> Array:
    """Returns redshifts of sources at least 0.2 behind their lens.

    Their density has the form of Smail, Ellis & Fitchett (1994), z^2 exp(-(z / z0)^1.5), with z0
    chosen: (z / z0)^1.5 is distributed as gamma.
    """
    first = gammainc(2, ((lens_redshift + 0.2) / 0.9) ** 1.5)
    return 0.9 * gammaincinv(2, between(uniform, first, 0.999)) ** (1 / 1.5)


def einstein_radius(dispersion: Array, lens: Array, source: Array) -> Array:
    """Returns theta_E = 4 pi (sigma / c)^2 D_ls / D_s of an isothermal sphere, arcsec.

    In a flat universe D_ls / D_s is the ratio of comoving distances, 1 - chi_l / chi_s.
    """
    ratio = 1 - comoving_distance(lens) / comoving_distance(source)
    return ARCSEC_PER_RADIAN * 4 * np.pi * (dispersion / SPEED_OF_LIGHT) ** 2 * ratio


def arcsec(kiloparsec: Array, redshift: Array) -> Array:
    """Returns the angle under which a length is seen."""
    distance = comoving_distance(redshift) / (1 + redshift)
    return ARCSEC_PER_RADIAN * kiloparsec / (1000 * distance)


def distance_modulus(redshift: Array) -> Array:
    """Returns 5 log10 of the luminosity distance over 10 pc."""
    return 5 * np.log10(comoving_distance(redshift) * (1 + redshift)) + 25


def spectrum(
    young: Array | float, redshift: Array, wavelengths: tuple[float, ...], dust: Array | float = 0.0
) -> Array:
    """Returns AB magnitudes (..., band, n), relative to rest 620 nm, of mixes (..., n) of the two.

    `young` is the share of the light at 620 nm that comes from the star-forming one, `dust` the
    extinction there (mag), which goes as one over the wavelength.
    """
    rest = np.array(wavelengths)[:, None] / (1 + redshift[..., None, :])
    young, dust = (np.broadcast_to(v, redshift.shape)[..., None, :] for v in (young, dust))
    old_flux, young_flux = (
        10 ** (-0.4 * np.interp(np.log(rest), np.log(WAVELENGTHS), magnitudes))
        for magnitudes in (QUIESCENT, STAR_FORMING)
    )
    mixed = -2.5 * np.log10(young * young_flux + (1 - young) * old_flux)
    return mixed + dust * (620 / rest - 1)


def apparent(
    selection_magnitude: Array,
    young: Array | float,
    redshift: Array,
    survey: Survey,
    dust: Array | float = 0.0,
) -> Array:
    """Returns magnitudes (..., band, n) of galaxies that have the first in the selection band."""
    colours = spectrum(young, redshift, survey.wavelengths, dust)
    selected = colours[..., survey.selection_index, :]
    return colours + (selection_magnitude - selected)[..., None, :]


def flux(magnitudes: Array, observation: Observation) -> Array:
    """Returns fluxes (..., band, n) in the units of the observation."""
    return 10 ** (-0.4 * (magnitudes - observation.zero_points))


def lens_absolute_magnitude(dispersion: Array) -> Array:
    """Returns the r-band absolute magnitude today, L ~ sigma^4 (Faber & Jackson 1976).

    The zero point, -22.2 at 250 km/s, is chosen: with one magnitude of passive fading since
    redshift one (chosen too) red galaxies have the fluxes of those in the Dark Energy Survey.
    """
    return -22.2 - 10 * np.log10(dispersion / 250)


def early_type_radius(absolute_magnitude: Array, redshift: Array) -> Array:
    """Returns the median half-light radius in kpc of early types of some luminosity today.

    Shen et al. (2003), eq. 14, measured near redshift 0.1, shrinking with redshift as (1 + z)^-1.48
    (van der Wel et al. 2014).
    """
    return 10 ** (-0.4 * 0.60 * absolute_magnitude - 4.63) * ((1 + redshift) / 1.1) ** -1.48


def source_radius(absolute_magnitude: Array, redshift: Array) -> Array:
    """Returns the median half-light radius in kpc of star-forming galaxies, Shibuya et al. (2015).

    r_e = 6.9 (1 + z)^-1.20 kpc (L / L0)^0.27, where L0 is M_UV = -21.
    """
    return 6.9 * (1 + redshift) ** -1.2 * 10 ** (-0.4 * 0.27 * (absolute_magnitude + 21))


def number_count_magnitude(
    uniform: Array, bright: float, faint: Array | float, slope: float = 0.3
) -> Array:
    """Returns magnitudes between two limits whose counts rise as 10^(slope m) (slope chosen)."""
    rise = 10 ** (slope * (faint - bright)) - 1
    return bright + np.log10(1 + uniform * rise) / slope


def between(uniform: Any, low: Any, high: Any) -> Any:
    """Returns `uniform`, an array from 0 to 1, stretched to reach from `low` to `high`."""
    return low + (high - low) * uniform
