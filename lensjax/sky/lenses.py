"""Lens systems: deflectors and sources picked as a search and a person would pick them.

Numbers without a paper were chosen, by eye. Lengths are in arcsec, velocities in km/s.

Rejection does not compile, so a system is picked, not rejected: of `CANDIDATES` systems drawn at
once a few that a search would look for are traced on a coarse grid, and one is kept whose arcs a
person would see.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from lensjax.sky import population
from lensjax.sky.lensing import Galaxies, Mass, Scalar, sersic_light, trace
from lensjax.sky.population import apparent, between, flux
from lensjax.sky.survey import Observation, Survey, half_width
from lensjax.sky.visibility import Visibility, margin, visibility

CANDIDATES, SHORTLIST = 192, 4
CANDIDATE_UNIFORMS = 19
PERTURBERS = 2
SOURCE_COMPONENTS = 4
DETAIL_UNIFORMS = 3 + 5 * PERTURBERS + 5 * SOURCE_COMPONENTS
COARSE = 32  # pixels along a side of the grid on which the shortlist is traced

# Einstein radii that are kept: at most this share of half the cutout, at least this share of the
# sharpest seeing. Chosen.
LARGEST_OVER_HALF_WIDTH = 0.6
SMALLEST_OVER_SEEING = 1.2
# Brighter than its faintest deflector by this many magnitudes a survey has few (chosen).
MAGNITUDE_RANGE = 3.6
# Searches train on more large Einstein radii than nature has (Canameras et al. 2020 on as many as
# small ones): a candidate's chance to be kept goes as this power of its Einstein radius (chosen).
EINSTEIN_RADIUS_WEIGHT = 4.0
# Wanted S/N of arcs: their logarithm reaches from the smallest to ten times that, and this power
# of a uniform number favours faint ones (chosen).
LARGEST_ARC_SNR, FAINT_ARCS = 10.0, 1.1


class System(NamedTuple):
    """One deflector and the galaxy behind it; scalars but for the magnitudes (band,)."""

    velocity_dispersion: jax.Array
    lens_redshift: jax.Array
    source_redshift: jax.Array
    einstein_radius: jax.Array
    slope: jax.Array
    axis_ratio: jax.Array
    angle: jax.Array
    mass_axis_ratio: jax.Array
    mass_angle: jax.Array
    gamma1: jax.Array
    gamma2: jax.Array
    lens_magnitudes: jax.Array
    lens_radius: jax.Array
    lens_n_sersic: jax.Array
    source_magnitudes: jax.Array
    source_radius: jax.Array
    source_x: jax.Array
    source_y: jax.Array
    magnification: jax.Array
    arc_snr: jax.Array


class Lens(NamedTuple):
    """A lens system as light and mass.

    `galaxies` are the deflector, first, and its companions; `arc_snr` is the S/N that the arcs are
    to have, `seen` how well they are seen on a coarse grid.
    """

    system: System
    galaxies: Galaxies
    mass: Mass
    source: Galaxies
    arc_snr: jax.Array
    seen: Visibility


def forecast_arc_snr(
    arcs: jax.Array,
    magnification: jax.Array,
    radius: jax.Array,
    einstein: jax.Array,
    observation: Observation,
) -> jax.Array:
    """Returns a forecast of the S/N of arcs of flux `arcs` (band,) in the best band.

    An arc is taken as a Gaussian stroke: as wide as the source and the seeing, as long as the
    source magnified but no longer than the ring.
    """
    width = jnp.sqrt((observation.fwhm / 2.3548) ** 2 + (0.5 * radius) ** 2)
    length = jnp.minimum(1.5 * magnification * radius, 2 * jnp.pi * einstein)
    area = 4 * jnp.pi * width**2 + 2 * jnp.sqrt(jnp.pi) * width * length
    return jnp.max(arcs * observation.pixel_scale / (observation.sky_sigma * jnp.sqrt(area)))


def candidate(uniform: jax.Array, survey: Survey, observation: Observation) -> System:
    """Returns one system, its deflector drawn by lensing cross-section, not yet selected.

    `uniform` (CANDIDATE_UNIFORMS,) are the random numbers between 0 and 1 that it is made of.
    """
    uniform = jnp.clip(uniform, 1e-6, 1 - 1e-6)
    normal = ndtri(uniform)  # all at once: each call of it takes long to compile
    dispersion = population.velocity_dispersion(uniform[0])
    lens_z = population.lookup(population.tables().lens_redshift, uniform[1])
    source_z = population.source_redshift(uniform[2], lens_z)
    # Dark matter of groups adds to some: up to 2.5 times, one in ten 1.8 times and more (chosen).
    in_halo = 1 + 1.5 * uniform[18] ** 6
    einstein = in_halo * population.einstein_radius(dispersion, lens_z, source_z)

    luminosity = population.lens_absolute_magnitude(dispersion) + 0.3 * normal[3]
    # Nearly all lenses are red: one in ten has more than 17 per cent of young stars (chosen).
    colours = population.spectrum(0.4 * uniform[4] ** 8, lens_z, survey.wavelengths)
    dimming = population.distance_modulus(lens_z) - 2.5 * jnp.log10(1 + lens_z)
    # Scatter of ln(size) at the bright end: Shen et al. (2003).
    size = population.early_type_radius(luminosity, lens_z) * jnp.exp(0.25 * normal[5])
    light_ratio = population.axis_ratio(uniform[6], dispersion)
    angle = jnp.pi * uniform[7]

    # Limits chosen: brighter sources are rare, fainter ones stay unseen however magnified.
    magnitude = population.number_count_magnitude(uniform[12], 20.5, 25.5)
    # Most lensed arcs are blue; one in eight has more old than young light (chosen).
    young = 1 - 0.9 * uniform[13] ** 4
    source_magnitudes = apparent(magnitude, young, source_z, survey)
    # A flat spectrum carries the observed magnitude to the ultraviolet.
    ultraviolet = magnitude - population.distance_modulus(source_z) + 2.5 * jnp.log10(1 + source_z)
    # Scatter of ln(size) between 0.45 and 0.75: Shibuya et al. (2015).
    kiloparsec = population.source_radius(ultraviolet, source_z) * jnp.exp(0.6 * normal[14])
    # A source smaller than this would fall between the rays that are traced.
    radius = jnp.clip(population.arcsec(kiloparsec, source_z), 0.4 * observation.pixel_scale, 0.8)

    # Uniform over the disc in which an isothermal sphere makes two images, less its rim, where
    # the second is too faint to tell.
    offset = 0.7 * einstein * jnp.sqrt(uniform[15])
    direction = 2 * jnp.pi * uniform[16]
    # 2 theta_E / beta for a point behind a sphere; a finite source and an ellipse cap it.
    softened = jnp.sqrt(offset**2 + (0.8 * radius) ** 2 + (0.1 * einstein) ** 2)
    magnification = 2 * einstein / softened
    arcs = magnification * flux(source_magnitudes, observation)
    return System(
        velocity_dispersion=dispersion,
        lens_redshift=lens_z,
        source_redshift=source_z,
        einstein_radius=einstein,
        # 2.08 with a scatter of 0.16 (Auger et al. 2010), its bounds chosen.
        slope=jnp.clip(2.05 + 0.16 * normal[17], 1.7, 2.4),
        axis_ratio=light_ratio,
        angle=angle,
        # Mass is about as flat as light and aligned with it (Koopmans et al. 2006); the scatter
        # is chosen.
        mass_axis_ratio=jnp.clip(light_ratio + 0.1 * normal[8], 0.4, 0.99),
        mass_angle=angle + 0.15 * normal[9],
        # Two Gaussian components of 0.04 make a mean shear of 0.05, within the few per cent that
        # Keeton, Kochanek & Seljak (1997) expect of a lens's surroundings.
        gamma1=0.04 * normal[10],
        gamma2=0.04 * normal[11],
        lens_magnitudes=luminosity - lens_z + dimming + colours,
        lens_radius=population.arcsec(size, lens_z),
        # Larger galaxies have larger indices, with scatter (chosen).
        lens_n_sersic=jnp.clip(4 * (1 + normal[5] / 5), 2.5, 6.0),
        source_magnitudes=source_magnitudes,
        source_radius=radius,
        source_x=offset * jnp.cos(direction),
        source_y=offset * jnp.sin(direction),
        magnification=magnification,
        arc_snr=forecast_arc_snr(arcs, magnification, radius, einstein, observation),
    )


def einstein_radius_limits(survey: Survey, observation: Observation) -> tuple[jax.Array, jax.Array]:
    """Returns the smallest and the largest Einstein radius that a search would keep."""
    smallest = SMALLEST_OVER_SEEING * jnp.min(observation.fwhm)
    largest = LARGEST_OVER_HALF_WIDTH * half_width(observation, survey)
    return jnp.maximum(survey.einstein_radius, smallest), largest


def accepted(system: System, survey: Survey, observation: Observation) -> jax.Array:
    """Returns whether a search would look for the system, however faint its arcs (bool scalar)."""
    smallest, largest = einstein_radius_limits(survey, observation)
    fainter = system.lens_magnitudes[survey.selection_index] - observation.magnitude_limit
    return (
        (system.einstein_radius > smallest)
        & (system.einstein_radius < largest)
        & (fainter < 0)
        & (fainter > -MAGNITUDE_RANGE)
        & (system.magnification > 3)
    )


def source_galaxy(
    uniform: jax.Array, light: jax.Array, x: Scalar, y: Scalar, radius: Scalar
) -> Galaxies:
    """Returns a blue galaxy of flux `light` (band,): a body, and up to three knots beside it.

    `uniform` is (5 * SOURCE_COMPONENTS,); half of the knots are dark.
    """
    own = uniform.reshape(5, SOURCE_COMPONENTS)
    is_body = jnp.arange(SOURCE_COMPONENTS) == 0
    share = jnp.where(is_body, 1.0, jnp.where(own[0] < 0.5, 0.0, 0.6 * (own[0] - 0.4)))
    distance = jnp.where(is_body, 0.0, radius * (0.4 + 1.2 * own[1]))
    # Knots are bluer than the body, or redder: colour runs along the wavelength (chosen).
    tilt = (
        jnp.where(is_body, 0.0, own[4] - 0.6)[:, None] * jnp.linspace(-0.6, 0.6, len(light))[None]
    )
    shares = share[:, None] * jnp.exp(tilt)
    return Galaxies(
        flux=shares / jnp.sum(shares, axis=0, keepdims=True) * light[None],
        x=x + distance * jnp.cos(2 * jnp.pi * own[2]),
        y=y + distance * jnp.sin(2 * jnp.pi * own[2]),
        axis_ratio=jnp.where(is_body, between(own[3], 0.3, 1.0), 0.9),
        angle=jnp.pi * own[2],
        radius=jnp.where(is_body, 1.0, 0.35) * radius,
        # Median index 1.5 at all redshifts (Shibuya et al. 2015).
        n_sersic=jnp.where(is_body, between(own[4], 0.8, 2.2), 1.0),
    )


def companions(
    uniform: jax.Array, system: System, observation: Observation
) -> tuple[Galaxies, jax.Array]:
    """Returns galaxies that belong to the deflector, and their Einstein radii (perturber,).

    One deflector in eight lies in a group, a quarter have small satellites, the others none
    (chosen). `uniform` is (1 + 5 * PERTURBERS,).
    """
    own = uniform[1:].reshape(5, PERTURBERS)
    is_group = uniform[0] < 0.12
    share = jnp.where(is_group, between(own[0], 0.25, 0.8), between(own[0], 0.05, 0.2))
    share = jnp.where(uniform[0] < 0.35, share, 0.0)
    distance = system.einstein_radius * jnp.where(
        is_group, between(own[1], 1.6, 4.0), between(own[1], 0.5, 2.5)
    )
    # Light goes as sigma^4 and the Einstein radius as sigma^2.
    light = share[:, None] ** 2 * flux(system.lens_magnitudes, observation)[None]
    galaxies = Galaxies(
        flux=light,
        x=distance * jnp.cos(2 * jnp.pi * own[2]),
        y=distance * jnp.sin(2 * jnp.pi * own[2]),
        axis_ratio=between(own[3], 0.5, 1.0),
        angle=jnp.pi * own[4],
        radius=system.lens_radius * jnp.maximum(share, 0.1),
        n_sersic=jnp.full(PERTURBERS, 3.0),
    )
    return galaxies, share * system.einstein_radius


def deflector(system: System, observation: Observation) -> Galaxies:
    """Returns the light of the lens galaxy, one slot."""
    values = (
        flux(system.lens_magnitudes, observation), 0.0, 0.0, system.axis_ratio, system.angle,
        system.lens_radius, system.lens_n_sersic,
    )  # fmt: skip
    return Galaxies(*(jnp.asarray(value)[None] for value in values))


def light_and_mass(
    uniform: jax.Array, system: System, arc_snr: jax.Array, observation: Observation
) -> Lens:
    """Returns a system as light and mass, its source as bright as `arc_snr` asks.

    `uniform` is (DETAIL_UNIFORMS,).
    """
    beside, perturber_theta_E = companions(uniform[: 1 + 5 * PERTURBERS], system, observation)
    source = source_galaxy(
        uniform[-5 * SOURCE_COMPONENTS :],
        flux(system.source_magnitudes, observation),
        system.source_x,
        system.source_y,
        system.source_radius,
    )
    galaxies = jax.tree.map(
        lambda *slots: jnp.concatenate(slots), deflector(system, observation), beside
    )
    mass = Mass(
        system.einstein_radius, system.slope, system.mass_axis_ratio, system.mass_angle,
        system.gamma1, system.gamma2, perturber_theta_E, beside.x, beside.y,
    )  # fmt: skip
    arcs, front, step = coarse_images(galaxies, mass, source, observation)
    x, y = jnp.meshgrid(coarse_axis() * step, coarse_axis() * step)
    noise = observation.sky_sigma * step / observation.pixel_scale

    def seen(factor: Scalar) -> Visibility:
        return visibility(factor * arcs, front, noise, observation.gains, observation.fwhm, x, y)

    factor = arc_snr / seen(1.0).arc_snr
    brighter = -2.5 * jnp.log10(factor)
    return Lens(
        system._replace(source_magnitudes=system.source_magnitudes + brighter),
        galaxies,
        mass,
        source._replace(flux=factor * source.flux),
        arc_snr,
        seen(factor),
    )


def coarse_axis() -> np.ndarray:
    """Returns the coordinates (COARSE,) of the coarse grid, in units of its step."""
    return np.arange(COARSE, dtype=np.float32) - (COARSE - 1) / 2


def coarse_images(
    galaxies: Galaxies, mass: Mass, source: Galaxies, observation: Observation
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns arcs and the light in front (band, COARSE, COARSE), flux, and the grid's step.

    The grid is 5.2 Einstein radii wide, the PSF one Gaussian.
    """
    step = 5.2 * mass.theta_E / COARSE
    axis = coarse_axis()
    x, y = jnp.meshgrid(axis * step, axis * step)
    arcs = sersic_light(*trace(x, y, mass), source, 0.3 * step)
    front = sersic_light(x, y, galaxies, 0.3 * step)
    sigma = jnp.maximum(jnp.mean(observation.fwhm) / 2.3548 / step, 0.5)
    kernel = jnp.exp(-0.5 * ((axis[:, None] - axis[None, :]) / sigma) ** 2)
    kernel = kernel / jnp.sum(kernel[COARSE // 2])
    blurred = kernel @ jnp.stack([arcs, front]) @ kernel
    return blurred[0] * step**2, blurred[1] * step**2, step


def draw_lens(key: jax.Array, survey: Survey, observation: Observation) -> Lens:
    """Returns one lens that a search of the survey would keep and a person would recognise.

    Where none of the candidates passes, the best one is returned, which is rare.
    """
    many = CANDIDATES * (CANDIDATE_UNIFORMS + 1)
    uniform = jax.random.uniform(key, (many + SHORTLIST * DETAIL_UNIFORMS + 1,), minval=1e-6)
    own, details = uniform[:many].reshape(CANDIDATES, -1), uniform[many:-1]
    wanted = survey.arc_snr * LARGEST_ARC_SNR ** (uniform[-1] ** FAINT_ARCS)
    systems = jax.vmap(lambda u: candidate(u, survey, observation))(own[:, 1:])
    keep = jax.vmap(lambda system: accepted(system, survey, observation))(systems)
    # Sources that come near the wanted S/N as they are, then need little change of brightness.
    fits = -0.5 * (jnp.log(systems.arc_snr / wanted) / 0.5) ** 2
    weight = EINSTEIN_RADIUS_WEIGHT * jnp.log(systems.einstein_radius) + jnp.maximum(fits, -20.0)
    # The largest of log weight and Gumbel noise is a draw in proportion to the weight.
    gumbel = -jnp.log(-jnp.log(jnp.minimum(own[:, 0], 1 - 1e-6)))
    _, chosen = jax.lax.top_k(jnp.where(keep, weight, weight - 100.0) + gumbel, SHORTLIST)
    shortlist = jax.tree.map(lambda values: values[chosen], systems)
    lenses = jax.vmap(lambda u, system: light_and_mass(u, system, wanted, observation))(
        details.reshape(SHORTLIST, -1), shortlist
    )
    passes = jax.vmap(lambda seen: margin(seen, survey))(lenses.seen)
    # The first that passes, in the order of the draw, else the plainest.
    best = jnp.where(jnp.any(passes >= 1), jnp.argmax(passes >= 1), jnp.argmax(passes))
    return jax.tree.map(lambda values: values[best], lenses)
