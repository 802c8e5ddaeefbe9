"""Lens systems: deflectors and sources picked as a search and a person would pick them.

Numbers without a paper were chosen, by eye. Lengths are in arcsec, velocities in km/s. The last
axis of all arrays is that of pictures, n.

Of `CANDIDATES` systems drawn for each picture a few that a search would look for are traced on a
coarse grid, one after the other, until the arcs of one are such that a person would see them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from lensjax.sky import population
from lensjax.sky.lensing import Galaxies, Mass, sersic_light, trace
from lensjax.sky.population import Array, apparent, between, flux
from lensjax.sky.survey import Observation, Survey, half_width
from lensjax.sky.visibility import Visibility, margin, smooth_noise, visibility

CANDIDATES, SHORTLIST = 128, 8
CANDIDATE_UNIFORMS = 20
PERTURBERS = 2
SOURCE_COMPONENTS = 4
ENVELOPE_UNIFORMS = 5
DETAIL_UNIFORMS = ENVELOPE_UNIFORMS + 1 + 5 * PERTURBERS + 5 * SOURCE_COMPONENTS
LENS_UNIFORMS = CANDIDATES * (CANDIDATE_UNIFORMS + 1) + SHORTLIST * DETAIL_UNIFORMS + 1
COARSE = 32  # pixels along a side of the grid on which the shortlist is traced
AT_ONCE = 32  # systems that are traced at once

# Einstein radii that are kept: at most this share of half the cutout. Chosen.
LARGEST_OVER_HALF_WIDTH = 0.75
# Brighter than its faintest deflector by this many magnitudes a survey has few (chosen).
MAGNITUDE_RANGE = 4.5
# Einstein radii above this many arcsec are more often those of groups (chosen).
OF_GROUPS = 2.5
# The logarithm of the wanted S/N of arcs is uniform from the survey's smallest to this many times
# that (chosen).
LARGEST_ARC_SNR = 20.0


class System(NamedTuple):
    """Deflectors and the galaxies behind them (n,); magnitudes (band, n)."""

    velocity_dispersion: Any
    lens_redshift: Any
    source_redshift: Any
    einstein_radius: Any
    slope: Any
    axis_ratio: Any
    angle: Any
    mass_axis_ratio: Any
    mass_angle: Any
    gamma1: Any
    gamma2: Any
    lens_magnitudes: Any
    lens_radius: Any
    lens_n_sersic: Any
    source_magnitudes: Any
    source_radius: Any
    source_x: Any
    source_y: Any
    magnification: Any
    arc_snr: Any


class Lens(NamedTuple):
    """Lens systems as light and mass.

    `galaxies` are the deflector's body and envelope, and its companions; `arc_snr` is the S/N that
    the arcs are to have, `seen` how well they are seen on a coarse grid.
    """

    system: System
    galaxies: Galaxies
    mass: Mass
    source: Galaxies
    arc_snr: Any
    seen: Visibility


Tree = TypeVar("Tree", bound=tuple[Any, ...])


def take(tree: Tree, rows: Array | slice | int) -> Tree:
    """Returns some of the pictures, or one without that axis, of a tree of arrays (..., n)."""
    return jax.tree.map(lambda values: values[..., rows], tree)


def put(tree: Any, rows: Array, part: Any) -> None:
    """Writes `part` into some of the pictures of a tree of arrays (..., n).

    Arrays of slots (slot, ..., n) may have fewer in the part than in the tree.
    """
    for whole, values in zip(jax.tree.leaves(tree), jax.tree.leaves(part), strict=True):
        slots = whole if whole.ndim == 1 else whole[: len(values)]
        slots[..., rows] = values


def forecast_arc_snr(
    arcs: Array,
    magnification: Array,
    radius: Array,
    einstein: Array,
    observation: Observation,
) -> Array:
    """Returns a forecast of the S/N of arcs of flux `arcs` (band, n) in the best band.

    An arc is taken as a Gaussian stroke: as wide as the source and the seeing, as long as the
    source magnified but no longer than the ring.
    """
    width = np.sqrt((observation.fwhm / 2.3548) ** 2 + (0.5 * radius) ** 2)
    length = np.minimum(1.5 * magnification * radius, 2 * np.pi * einstein)
    area = 4 * np.pi * width**2 + 2 * np.sqrt(np.pi) * width * length
    return np.max(arcs * observation.pixel_scale / (observation.sky_sigma * np.sqrt(area)), axis=0)


def candidate(uniform: Array, survey: Survey, observation: Observation) -> System:
    """Returns systems, their deflectors drawn by lensing cross-section, not yet selected.

    `uniform` (CANDIDATE_UNIFORMS, n) are the random numbers between 0 and 1 that they are made of.
    """
    normal = ndtri(uniform)
    dispersion = population.velocity_dispersion(uniform[0])
    lens_z = population.lens_redshift(uniform[1])
    source_z = population.source_redshift(uniform[2], lens_z)
    # Dark matter of groups adds to some: up to four times, one in six 2.5 times and more. Galaxies
    # in the middle of groups are the brighter for it (chosen).
    in_halo = 1 + 3 * uniform[18] ** 4
    einstein = in_halo * population.einstein_radius(dispersion, lens_z, source_z)

    luminosity = population.lens_absolute_magnitude(dispersion) + 0.3 * normal[3]
    luminosity = luminosity - 2.5 * np.log10(in_halo)
    # Nearly all lenses are red: one in ten has more than 17 per cent of young stars (chosen).
    colours = population.spectrum(0.4 * uniform[4] ** 8, lens_z, survey.wavelengths)
    dimming = population.distance_modulus(lens_z) - 2.5 * np.log10(1 + lens_z)
    # Scatter of ln(size) at the bright end: Shen et al. (2003).
    size = population.early_type_radius(luminosity, lens_z) * np.exp(0.25 * normal[5])
    light_ratio = population.axis_ratio(uniform[6], dispersion)
    angle = np.pi * uniform[7]

    # Limits chosen: brighter sources are rare, fainter ones stay unseen however magnified.
    magnitude = population.number_count_magnitude(uniform[12], 20.5, 25.5)
    # Most lensed arcs are blue; one in eight has more old than young light (chosen).
    young = 1 - 0.9 * uniform[13] ** 4
    # Dust makes g - r of arcs 0 to 0.7, half of them bluer than 0.25 (chosen).
    source_magnitudes = apparent(magnitude, young, source_z, survey, 0.9 * uniform[19] ** 1.5)
    # A flat spectrum carries the observed magnitude to the ultraviolet.
    ultraviolet = magnitude - population.distance_modulus(source_z) + 2.5 * np.log10(1 + source_z)
    # Scatter of ln(size) between 0.45 and 0.75: Shibuya et al. (2015).
    kiloparsec = population.source_radius(ultraviolet, source_z) * np.exp(0.6 * normal[14])
    # A source smaller than this would fall between the rays that are traced.
    radius = np.clip(population.arcsec(kiloparsec, source_z), 0.4 * observation.pixel_scale, 0.8)

    # Uniform over the disc in which an isothermal sphere makes two images, less its rim, where
    # the second is too faint to tell.
    offset = 0.7 * einstein * np.sqrt(uniform[15])
    direction = 2 * np.pi * uniform[16]
    # 2 theta_E / beta for a point behind a sphere; a finite source and an ellipse cap it.
    softened = np.sqrt(offset**2 + (0.8 * radius) ** 2 + (0.1 * einstein) ** 2)
    magnification = 2 * einstein / softened
    arcs = magnification * flux(source_magnitudes, observation)
    return System(
        velocity_dispersion=dispersion,
        lens_redshift=lens_z,
        source_redshift=source_z,
        einstein_radius=einstein,
        # 2.08 with a scatter of 0.16 (Auger et al. 2010), its bounds chosen.
        slope=np.clip(2.05 + 0.16 * normal[17], 1.7, 2.4),
        axis_ratio=light_ratio,
        angle=angle,
        # Mass is about as flat as light and aligned with it (Koopmans et al. 2006); the scatter
        # is chosen.
        mass_axis_ratio=np.clip(light_ratio + 0.1 * normal[8], 0.4, 0.99),
        mass_angle=angle + 0.15 * normal[9],
        # Two Gaussian components of 0.04 make a mean shear of 0.05, within the few per cent that
        # Keeton, Kochanek & Seljak (1997) expect of a lens's surroundings.
        gamma1=0.04 * normal[10],
        gamma2=0.04 * normal[11],
        lens_magnitudes=luminosity - lens_z + dimming + colours,
        lens_radius=population.arcsec(size, lens_z),
        # Larger galaxies have larger indices, with scatter (chosen).
        lens_n_sersic=np.clip(4 * (1 + normal[5] / 5), 2.5, 6.0),
        source_magnitudes=source_magnitudes,
        source_radius=radius,
        source_x=offset * np.cos(direction),
        source_y=offset * np.sin(direction),
        magnification=magnification,
        arc_snr=forecast_arc_snr(arcs, magnification, radius, einstein, observation),
    )


def einstein_radius_limits(survey: Survey, observation: Observation) -> tuple[Array, Array]:
    """Returns the smallest and the largest Einstein radius that a search would keep."""
    smallest = survey.einstein_radius_over_seeing * np.min(observation.fwhm, axis=0)
    largest = LARGEST_OVER_HALF_WIDTH * half_width(observation, survey)
    return np.maximum(survey.einstein_radius, smallest), largest


def accepted(system: System, survey: Survey, observation: Observation) -> Array:
    """Returns whether a search would look for the systems (n,) bool, however faint their arcs."""
    smallest, largest = einstein_radius_limits(survey, observation)
    fainter = system.lens_magnitudes[survey.selection_index] - observation.magnitude_limit
    return (
        (system.einstein_radius > smallest)
        & (system.einstein_radius < largest)
        & (fainter < 0)
        & (fainter > -MAGNITUDE_RANGE)
        & (system.magnification > 3)
    )


def source_galaxy(uniform: Array, light: Array, x: Array, y: Array, radius: Array) -> Galaxies:
    """Returns blue galaxies of flux `light` (band, n): a body, and up to three knots beside it.

    `uniform` is (5 * SOURCE_COMPONENTS, n); half of the knots are dark.
    """
    own = uniform.reshape(5, SOURCE_COMPONENTS, -1)
    is_body = (np.arange(SOURCE_COMPONENTS) == 0)[:, None]
    share = np.where(is_body, 1.0, np.where(own[0] < 0.5, 0.0, 0.6 * (own[0] - 0.4)))
    distance = np.where(is_body, 0.0, radius * (0.4 + 1.2 * own[1]))
    # Knots are bluer than the body, or redder: colour runs along the wavelength (chosen).
    along = np.linspace(-0.6, 0.6, len(light))[:, None]
    shares = share[:, None] * np.exp(np.where(is_body, 0.0, own[4] - 0.6)[:, None] * along)
    return Galaxies(
        flux=shares / np.sum(shares, axis=0) * light,
        x=x + distance * np.cos(2 * np.pi * own[2]),
        y=y + distance * np.sin(2 * np.pi * own[2]),
        axis_ratio=np.where(is_body, between(own[3], 0.3, 1.0), 0.9),
        angle=np.pi * own[2],
        radius=np.where(is_body, 1.0, 0.35) * radius,
        # Median index 1.5 at all redshifts (Shibuya et al. 2015).
        n_sersic=np.where(is_body, between(own[4], 0.8, 2.2), 1.0),
    )


def companions(uniform: Array, system: System, observation: Observation) -> tuple[Galaxies, Array]:
    """Returns galaxies that belong to the deflector, and their Einstein radii (perturber, n).

    One deflector in eight lies in a group, and one in three of those with large Einstein radii; a
    quarter have small satellites, the others none (chosen). `uniform` is (1 + 5 * PERTURBERS, n).
    """
    own = uniform[1:].reshape(5, PERTURBERS, -1)
    in_groups = np.where(system.einstein_radius > OF_GROUPS, 0.35, 0.12)
    is_group = uniform[0] < in_groups
    share = np.where(is_group, between(own[0], 0.25, 0.8), between(own[0], 0.05, 0.2))
    share = np.where(uniform[0] < in_groups + 0.23, share, 0.0)
    distance = system.einstein_radius * np.where(
        is_group, between(own[1], 1.6, 4.0), between(own[1], 0.5, 2.5)
    )
    # Light goes as sigma^4 and the Einstein radius as sigma^2.
    light = share[:, None] ** 2 * flux(system.lens_magnitudes, observation)
    galaxies = Galaxies(
        flux=light,
        x=distance * np.cos(2 * np.pi * own[2]),
        y=distance * np.sin(2 * np.pi * own[2]),
        axis_ratio=between(own[3], 0.5, 1.0),
        angle=np.pi * own[4],
        radius=system.lens_radius * np.maximum(share, 0.1),
        n_sersic=np.full(share.shape, 3.0),
    )
    return galaxies, share * system.einstein_radius


def body_and_envelope(uniform: Array, galaxy: Galaxies) -> Galaxies:
    """Returns galaxies (n,) as two slots (2, n) that share their light: a body and its envelope.

    No elliptical is one Sersic profile of one colour. The envelope is larger, nearly exponential,
    turned and flattened a little otherwise, and mostly bluer than the body (all chosen). `uniform`
    is (ENVELOPE_UNIFORMS, n).
    """
    from_blue_to_red = np.linspace(1.0, -1.0, len(galaxy.flux))[:, None]
    share = 0.5 * uniform[0] * 10 ** (0.4 * between(uniform[1], -0.05, 0.2) * from_blue_to_red)
    envelope = Galaxies(
        flux=share * galaxy.flux,
        x=galaxy.x,
        y=galaxy.y,
        axis_ratio=np.clip(galaxy.axis_ratio + between(uniform[2], -0.2, 0.2), 0.3, 0.99),
        angle=galaxy.angle + between(uniform[3], -0.3, 0.3),
        radius=galaxy.radius * between(uniform[4], 1.2, 2.5),
        n_sersic=np.full(galaxy.n_sersic.shape, 1.2),
    )
    body = galaxy._replace(flux=(1 - share) * galaxy.flux)
    return Galaxies(*(np.stack(both) for both in zip(body, envelope, strict=True)))


def light_and_mass(uniform: Array, system: System, arc_snr: Array, taken: Observation) -> Lens:
    """Returns systems as light and mass, their sources as bright as `arc_snr` asks.

    `uniform` is (DETAIL_UNIFORMS, n), `taken` how they are observed.
    """
    shape, others = uniform[:ENVELOPE_UNIFORMS], uniform[ENVELOPE_UNIFORMS:]
    beside, perturber_theta_E = companions(others[: 1 + 5 * PERTURBERS], system, taken)
    source = source_galaxy(
        uniform[-5 * SOURCE_COMPONENTS :],
        flux(system.source_magnitudes, taken),
        system.source_x,
        system.source_y,
        system.source_radius,
    )
    zero = np.zeros_like(system.angle)
    deflector = Galaxies(
        flux(system.lens_magnitudes, taken), zero, zero, system.axis_ratio, system.angle,
        system.lens_radius, system.lens_n_sersic,
    )  # fmt: skip
    own = body_and_envelope(shape, deflector)
    galaxies = Galaxies(*(np.concatenate(both) for both in zip(own, beside, strict=True)))
    mass = Mass(
        system.einstein_radius, system.slope, system.mass_axis_ratio, system.mass_angle,
        system.gamma1, system.gamma2, perturber_theta_E, beside.x, beside.y,
    )  # fmt: skip
    factor, seen = _looked_at((galaxies, mass, source, taken, arc_snr))
    system = system._replace(source_magnitudes=system.source_magnitudes - 2.5 * np.log10(factor))
    source = source._replace(flux=factor * source.flux)
    return Lens(system, galaxies, mass, source, arc_snr, seen)


def _looked_at(systems: tuple) -> tuple[Array, Visibility]:
    """Returns `look` of all of some systems, always as many at once: one compiled program."""
    count, found = systems[-1].shape[-1], []
    for start in range(0, count, AT_ONCE):
        rows = np.resize(np.arange(start, min(start + AT_ONCE, count)), AT_ONCE)
        found.append(look(pictures_first(take(systems, rows))))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *found)


def pictures_first(tree: Tree) -> Tree:
    """Returns arrays (..., n) as (n, ...) float32, as the device takes them."""
    return jax.tree.map(lambda v: np.ascontiguousarray(np.moveaxis(v, -1, 0), np.float32), tree)


def map_pictures(one: Callable[[tuple], Any], pictures: tuple) -> Any:
    """Returns `one` of each picture (n, ...): one after the other on a CPU, so that they fit its
    cache and skip dark slots; many together on an accelerator."""
    together = None if jax.default_backend() == "cpu" else 64
    return jax.lax.map(one, pictures, batch_size=together)


@jax.jit
def look(systems: tuple) -> tuple[jax.Array, Visibility]:
    """Returns by which factor each source (n,) must be brighter, and how its arcs are seen then."""

    def one(system: tuple) -> tuple[jax.Array, Visibility]:
        galaxies, mass, source, taken, arc_snr = system
        arcs, front, step = coarse_images(galaxies, mass, source, taken)
        x, y = jnp.meshgrid(coarse_axis() * step, coarse_axis() * step)
        noise = smooth_noise(taken) * step / taken.pixel_scale

        def seen(factor: jax.Array | float) -> Visibility:
            return visibility(factor * arcs, front, noise, taken.gains, taken.fwhm, x, y)

        factor = arc_snr / seen(1.0).arc_snr
        return factor, seen(factor)

    return map_pictures(one, systems)


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


def draw_lenses(uniform: Array, survey: Survey, observation: Observation) -> Lens:
    """Returns lenses that a search of the survey would keep and a person would recognise.

    `uniform` is (LENS_UNIFORMS, n). Where no candidate passes, the best one is returned, which is
    rare.
    """
    count = uniform.shape[1]
    many = CANDIDATES * (CANDIDATE_UNIFORMS + 1)
    # The candidates of a picture stand `count` apart.
    own = uniform[:many].reshape(CANDIDATE_UNIFORMS + 1, CANDIDATES * count)
    details = uniform[many:-1].reshape(SHORTLIST, DETAIL_UNIFORMS, count)
    wanted = survey.arc_snr * LARGEST_ARC_SNR ** uniform[-1]
    repeated = take(observation, np.tile(np.arange(count), CANDIDATES))
    systems = candidate(own[1:], survey, repeated)
    keep = accepted(systems, survey, repeated)
    # Sources that come near the wanted S/N as they are, then need little change of brightness.
    fits = -0.5 * (np.log(systems.arc_snr / np.tile(wanted, CANDIDATES)) / 0.5) ** 2
    weight = survey.einstein_radius_weight * np.log(systems.einstein_radius)
    weight = weight + np.maximum(fits, -20.0)
    # The largest of log weight and Gumbel noise is a draw in proportion to the weight.
    place = (np.where(keep, weight, weight - 100.0) - np.log(-np.log(own[0]))).reshape(-1, count)
    order = np.argsort(-place, axis=0)[:SHORTLIST]

    def shortlisted(turn: int, rows: Array) -> tuple[Lens, Array]:
        chosen = order[turn, rows] * count + rows
        lens = light_and_mass(
            details[turn][:, rows], take(systems, chosen), wanted[rows], take(observation, rows)
        )
        return lens, margin(lens.seen, survey) * np.where(keep[chosen], 1.0, 0.01)

    best, plainness = shortlisted(0, np.arange(count))
    for turn in range(1, SHORTLIST):
        rows = np.flatnonzero(plainness < 1)
        if not len(rows):
            break
        lens, plainer = shortlisted(turn, rows)
        better = plainer > plainness[rows]
        put(best, rows[better], take(lens, better))
        plainness[rows] = np.maximum(plainer, plainness[rows])
    return best
