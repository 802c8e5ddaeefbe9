"""Populations against the distributions they are meant to follow."""

from types import SimpleNamespace

import numpy as np
import pytest
from astropy import constants
from astropy import units as u
from astropy.cosmology import FlatLambdaCDM
from scipy import stats

from lensjax.sky import population
from lensjax.sky.survey import DECAM

COSMOLOGY = FlatLambdaCDM(H0=70, Om0=0.3)
UNIFORM = (np.arange(2000) + 0.5) / 2000


def test_velocity_dispersions_follow_choi_weighted_by_cross_section():
    def density(sigma):
        return (sigma / 161) ** (2.32 + 3) * np.exp(-((sigma / 161) ** 2.67))

    grid = np.linspace(120, 420, 20001)
    cumulative = np.cumsum(density(grid))
    drawn = population.velocity_dispersion(UNIFORM)
    distance = stats.kstest(drawn, lambda x: np.interp(x, grid, cumulative / cumulative[-1]))
    assert distance.statistic < 0.005


def test_redshifts_follow_their_densities():
    lenses = np.linspace(0.2, 1.0, 2001)
    cumulative = np.cumsum(COSMOLOGY.differential_comoving_volume(lenses).value)
    drawn = population.lens_redshift(UNIFORM)
    distance = stats.kstest(drawn, lambda z: np.interp(z, lenses, cumulative / cumulative[-1]))
    assert distance.statistic < 0.005
    sources = np.linspace(0.7, 5.0, 20001)
    cumulative = np.cumsum(sources**2 * np.exp(-((sources / 0.9) ** 1.5)))
    drawn = population.source_redshift(UNIFORM, 0.5)
    distance = stats.kstest(drawn, lambda z: np.interp(z, sources, cumulative / cumulative[-1]))
    assert distance.statistic < 0.005


@pytest.mark.parametrize("dispersion", [150.0, 250.0, 350.0])
def test_axis_ratios_are_truncated_rayleigh(dispersion):
    scale = 0.38 - 5.7e-4 * dispersion
    whole = stats.rayleigh(scale=scale)
    drawn = population.axis_ratio(UNIFORM, dispersion)
    statistic = stats.kstest(1 - drawn, lambda x: whole.cdf(x) / whole.cdf(0.8)).statistic
    assert statistic < 0.005
    assert drawn.min() >= 0.2


@pytest.mark.parametrize("lens, source", [(0.2, 0.9), (0.5, 2.0), (0.9, 3.5)])
def test_einstein_radius_is_that_of_astropy(lens, source):
    # Distances to the source as seen from the lens and from here, in a flat universe.
    between = COSMOLOGY.comoving_distance(source) - COSMOLOGY.comoving_distance(lens)
    ratio = between / (1 + source) / COSMOLOGY.angular_diameter_distance(source)
    expected = 4 * np.pi * (250 * u.km / u.s / constants.c) ** 2 * ratio * u.rad
    found = population.einstein_radius(250.0, lens, source)
    assert float(found) == pytest.approx(expected.to_value(u.arcsec), rel=2e-3)


@pytest.mark.parametrize("redshift", [0.1, 0.6, 2.5])
def test_angles_and_distance_moduli_are_those_of_astropy(redshift):
    expected = (5 * u.kpc * COSMOLOGY.arcsec_per_kpc_proper(redshift)).to_value(u.arcsec)
    assert float(population.arcsec(5.0, redshift)) == pytest.approx(expected, rel=1e-3)
    modulus = COSMOLOGY.distmod(redshift).value
    assert float(population.distance_modulus(redshift)) == pytest.approx(modulus, abs=0.01)


def test_sizes_are_those_of_the_papers():
    # 10 ** (0.24 * 22 - 4.63) kpc, and 6.9 kpc at L0 today.
    assert population.early_type_radius(-22.0, 0.1) == pytest.approx(4.47, abs=0.01)
    assert population.source_radius(-21.0, 0.0) == pytest.approx(6.9, abs=0.01)


def test_red_galaxies_have_the_colours_of_real_ones():
    """g-r and r-i of luminous red galaxies in the Dark Energy Survey: 1.5 to 2.1, 0.5 to 1.3."""
    redshift = np.array([0.35, 0.5, 0.65])
    g, r, i = population.spectrum(0.0, redshift, DECAM.wavelengths)
    assert (g - r > 1.4).all() and (g - r < 2.2).all()
    assert (r - i > 0.45).all() and (r - i < 1.4).all()
    g, r, _ = population.spectrum(1.0, redshift, DECAM.wavelengths)
    assert (g - r < 0.6).all()


def test_dust_reddens_as_one_over_the_wavelength():
    redshift = np.zeros(1)
    bare, dusty = (population.spectrum(0.5, redshift, (310.0, 620.0), d) for d in (0.0, 0.4))
    np.testing.assert_allclose(dusty - bare, [[0.4], [0.0]], atol=1e-6)


def test_number_counts_rise_as_asked():
    magnitudes = population.number_count_magnitude(UNIFORM, 20.0, 25.0)
    counts, _ = np.histogram(magnitudes, [20, 21, 22, 23, 24, 25])
    np.testing.assert_allclose(np.diff(np.log10(counts)), 0.3, atol=0.05)
    assert magnitudes.min() >= 20 and magnitudes.max() <= 25


def test_apparent_keeps_the_selection_band():
    magnitudes = population.apparent(np.full(2, 20.0), 0.4, np.full(2, 0.3), DECAM)
    np.testing.assert_allclose(magnitudes[DECAM.selection_index], 20.0)
    observation = SimpleNamespace(zero_points=np.array(DECAM.zero_points)[:, None])
    np.testing.assert_allclose(population.flux(magnitudes, observation)[2], 1e4)
