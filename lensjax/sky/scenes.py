"""What stands in each picture: lenses, and the look-alikes that fool networks.

Every picture is the same `Scene`: a fixed number of galaxies, swirls, points and one lensed
source, whose flux is zero where a slot is not used. So one compiled program draws them all.

Look-alikes share the deflectors, seeing, noise and companions of the lenses, and what surrounds
their centre is about as bright and blue as arcs are: only the geometry tells them apart. Numbers
here were chosen by eye, unless a source is named. Angles in arcsec, fluxes in survey units.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from lensjax.sky.lensing import Scalar
from lensjax.sky.population import (
    System,
    apparent,
    flux,
    number_count_magnitude,
)
from lensjax.sky.survey import Survey

CENTRAL_GALAXIES, FIELD_GALAXIES = 5, 6
SWIRLS = 2
CLUMPS = 3
FIELD_STARS = 2
# Random numbers between 0 and 1 that a picture is made of, all drawn at once: every call of the
# generator costs a quarter of a second to compile. In the middle a kind takes its own from the
# front, `_clumps` and `_arc_light` theirs from the back.
CENTRE_UNIFORMS = 40
FIELD_UNIFORMS = 10 * FIELD_GALAXIES + 5 * FIELD_STARS
SCENE_UNIFORMS = CENTRE_UNIFORMS + FIELD_UNIFORMS + 3


class Galaxies(NamedTuple):
    """Sersic profiles, a slot each: flux (slot, band), the rest (slot,)."""

    flux: jax.Array
    x: jax.Array
    y: jax.Array
    axis_ratio: jax.Array
    angle: jax.Array
    radius: jax.Array
    n_sersic: jax.Array


class Swirls(NamedTuple):
    """Discs with arms, rings and tails, a slot each: flux (slot, band), the rest (slot,).

    Light falls off as exp(-R / width) from the centre (is_ring 0), or as a Gaussian of sigma
    `width` about radius `ring` (is_ring 1). Along the angle it is `smooth` plus lobes:
    exp(sharpness (cos(lobes (theta - winding ln R) - phase) - 1)).
    """

    flux: jax.Array
    x: jax.Array
    y: jax.Array
    axis_ratio: jax.Array
    angle: jax.Array
    is_ring: jax.Array
    ring: jax.Array
    width: jax.Array
    smooth: jax.Array
    sharpness: jax.Array
    lobes: jax.Array
    winding: jax.Array
    phase: jax.Array


class Mass(NamedTuple):
    """A singular isothermal ellipsoid and external shear, scalars; theta_E is 0 for no lens."""

    theta_E: jax.Array
    axis_ratio: jax.Array
    angle: jax.Array
    gamma1: jax.Array
    gamma2: jax.Array


class Points(NamedTuple):
    """Stars: flux (slot, band), position and strength of the diffraction spikes (slot,)."""

    flux: jax.Array
    x: jax.Array
    y: jax.Array


class Scene(NamedTuple):
    """All that one picture shows; positions are relative to the central galaxy."""

    galaxies: Galaxies
    swirls: Swirls
    source: Galaxies
    stamp_angle: jax.Array
    mass: Mass
    stars: Points
    spike_angle: jax.Array
    spike_fraction: jax.Array


Slots = TypeVar("Slots", Galaxies, Swirls, Points)


def _between(uniform: jax.Array, low: float, high: float) -> jax.Array:
    return low + (high - low) * uniform


def _pad(slots: Slots, count: int) -> Slots:
    """Returns the slots followed by dark ones, `count` in all."""

    def pad(values: jax.Array) -> jax.Array:
        missing = count - values.shape[0]
        # A dark slot repeats a valid shape, so that zero times its profile is zero, never NaN.
        return jnp.concatenate([values, jnp.repeat(values[:1], missing, axis=0)])

    padded = jax.tree.map(pad, slots)
    dark = jnp.arange(count) >= slots.flux.shape[0]
    return padded._replace(flux=jnp.where(dark[:, None], 0.0, padded.flux))


def _galaxy(
    flux: jax.Array, x: Scalar, y: Scalar, axis_ratio: Scalar, angle: Scalar,
    radius: Scalar, n_sersic: Scalar,
) -> Galaxies:  # fmt: skip
    """Returns one galaxy as a slot."""
    values = (flux, x, y, axis_ratio, angle, radius, n_sersic)
    return Galaxies(*(jnp.asarray(value, jnp.float32)[None] for value in values))


def _swirl(flux: jax.Array, **shape: Scalar) -> Swirls:
    """Returns one swirl as a slot; what is not given is round, smooth and centred."""
    values: dict[str, Scalar] = dict(
        flux=flux, x=0.0, y=0.0, axis_ratio=1.0, angle=0.0, is_ring=0.0, ring=1.0, width=1.0,
        smooth=1.0, sharpness=0.0, lobes=1.0, winding=0.0, phase=0.0,
    )  # fmt: skip
    values |= shape
    return Swirls(**{name: jnp.asarray(value)[None] for name, value in values.items()})


def _join(*slots: Slots) -> Slots:
    """Returns all slots one after the other."""
    return jax.tree.map(lambda *values: jnp.concatenate(values), *slots)


def _deflector(system: System, survey: Survey) -> Galaxies:
    """Returns the light of the lens galaxy."""
    return _galaxy(
        flux(system.lens_magnitudes, survey), 0.0, 0.0, system.axis_ratio, system.angle,
        system.lens_radius, system.lens_n_sersic,
    )  # fmt: skip


def _clumps(
    uniform: jax.Array, light: jax.Array, x: jax.Array, y: jax.Array, radius: jax.Array
) -> Galaxies:
    """Returns a blue galaxy: a body of flux `light` (band,) less one or two knots, or none."""
    uniform = uniform[-9:]
    share = jnp.where(uniform[:2] < 0.5, 0.0, 0.4 * (uniform[:2] - 0.5))
    distance = radius * (0.4 + uniform[2:4])
    direction = 2 * jnp.pi * uniform[4:6]
    first = jnp.zeros(1)
    return Galaxies(
        flux=jnp.concatenate([1 - jnp.sum(share)[None], share])[:, None] * light[None, :],
        x=x + jnp.concatenate([first, distance * jnp.cos(direction)]),
        y=y + jnp.concatenate([first, distance * jnp.sin(direction)]),
        axis_ratio=jnp.concatenate([_between(uniform[6:7], 0.3, 1.0), jnp.full(2, 0.9)]),
        angle=jnp.pi * jnp.concatenate([uniform[7:8], jnp.zeros(2)]),
        radius=jnp.concatenate([radius[None], jnp.full(2, 0.35) * radius]),
        # Median index 1.5 at all redshifts (Shibuya et al. 2015).
        n_sersic=jnp.concatenate([_between(uniform[8:9], 0.8, 2.2), jnp.ones(2)]),
    )


class Centre(NamedTuple):
    """What a kind of picture puts in the middle; companions are added to all alike."""

    galaxies: Galaxies
    swirls: Swirls
    source: Galaxies
    mass: Mass
    star_flux: jax.Array


def _centre(
    system: System,
    survey: Survey,
    galaxies: Galaxies | None = None,
    swirls: Swirls | None = None,
    source: Galaxies | None = None,
    mass: Mass | None = None,
    star_flux: jax.Array | None = None,
) -> Centre:
    """Returns the centre made of what is given, all other slots dark."""
    dark = jnp.zeros(len(survey.bands))
    nothing = _galaxy(dark, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0)
    zero = jnp.zeros(())
    return Centre(
        galaxies=_pad(nothing if galaxies is None else galaxies, CENTRAL_GALAXIES),
        swirls=_pad(_swirl(dark) if swirls is None else swirls, SWIRLS),
        source=_pad(nothing if source is None else source, CLUMPS),
        mass=Mass(zero, zero + 1, zero, zero, zero) if mass is None else mass,
        star_flux=dark if star_flux is None else star_flux,
    )


def _arc_light(uniform: jax.Array, system: System, survey: Survey) -> jax.Array:
    """Returns about the flux of the system's arcs (band,), for a look-alike to spend."""
    scatter = 10 ** _between(uniform[-10], -0.3, 0.3)
    return scatter * system.magnification * flux(system.source_magnitudes, survey)


def lens(uniform: jax.Array, system: System, survey: Survey) -> Centre:
    """A galaxy and the arcs, ring or images that it makes of the one behind it."""
    return _centre(
        system,
        survey,
        galaxies=_deflector(system, survey),
        source=_clumps(
            uniform,
            flux(system.source_magnitudes, survey),
            system.source_x,
            system.source_y,
            system.source_radius,
        ),
        mass=Mass(
            system.einstein_radius,
            system.mass_axis_ratio,
            system.mass_angle,
            system.gamma1,
            system.gamma2,
        ),
    )


def unlensed(uniform: jax.Array, system: System, survey: Survey) -> Centre:
    """The same galaxy with one blue galaxy beside it, as bright as the arcs, not lensed."""
    distance = system.einstein_radius * _between(uniform[0], 0.8, 2.0)
    direction = 2 * jnp.pi * uniform[1]
    return _centre(
        system,
        survey,
        galaxies=_deflector(system, survey),
        source=_clumps(
            uniform,
            _arc_light(uniform, system, survey),
            distance * jnp.cos(direction),
            distance * jnp.sin(direction),
            system.source_radius * _between(uniform[2], 1.0, 2.5),
        ),
    )


def red(uniform: jax.Array, system: System, survey: Survey) -> Centre:
    """The same galaxy alone."""
    return _centre(system, survey, galaxies=_deflector(system, survey))


def satellites(uniform: jax.Array, system: System, survey: Survey) -> Centre:
    """The same galaxy among two to four small blue ones, about where arcs would lie.

    Some point at the centre, most anywhere: arcs would lie across.
    """
    count = CENTRAL_GALAXIES - 1
    own = uniform[: 6 * count].reshape(6, count)
    share = (0.3 + own[0]) * (jnp.arange(count) < 2 + jnp.floor(3 * uniform[6 * count]))
    direction = 2 * jnp.pi * own[1]
    distance = system.einstein_radius * _between(own[2], 0.7, 1.7)
    radial = own[3] < 0.35
    companions = Galaxies(
        flux=(share / jnp.sum(share))[:, None] * _arc_light(uniform, system, survey)[None, :],
        x=distance * jnp.cos(direction),
        y=distance * jnp.sin(direction),
        axis_ratio=_between(own[4], 0.2, 0.9),
        angle=jnp.where(radial, direction, jnp.pi * own[3] * 7),
        radius=_between(own[5], 0.15, 0.5),
        n_sersic=jnp.full(count, 1.0),
    )
    return _centre(system, survey, galaxies=_join(_deflector(system, survey), companions))


def _nearby(uniform: jax.Array, bright: float, faint: float) -> tuple[jax.Array, jax.Array]:
    """Returns the selection-band magnitude and the redshift of a galaxy of the foreground."""
    return _between(uniform[0] ** 0.6, bright, faint), _between(uniform[1], 0.08, 0.5)


def spiral(uniform: jax.Array, system: System, survey: Survey) -> Centre:
    """A red bulge in a blue disc with two to four logarithmic arms, or a bar of light."""
    magnitude, redshift = _nearby(uniform, 17.0, 19.8)
    bulge_share = _between(uniform[2], 0.15, 0.5)
    bulge = flux(apparent(magnitude, 0.03 * uniform[9], redshift, survey), survey)
    disc = flux(apparent(magnitude, _between(uniform[10], 0.4, 0.9), redshift, survey), survey)
    width = _between(uniform[3], 0.9, 1.8) * 10 ** (-0.12 * (magnitude - 18.5))
    axis_ratio, angle = _between(uniform[4], 0.4, 1.0), jnp.pi * uniform[5]
    return _centre(
        system,
        survey,
        galaxies=_galaxy(
            bulge_share * bulge, 0.0, 0.0, _between(uniform[6], 0.75, 1.0), angle,
            0.35 * width, 2.5,
        ),
        swirls=_swirl(
            (1 - bulge_share) * disc, axis_ratio=axis_ratio, angle=angle, width=width,
            smooth=0.08, sharpness=_between(uniform[7], 2.0, 6.0),
            lobes=2.0 + jnp.floor(2.4 * uniform[8]),
            # Pitch angles of 12 to 35 degrees.
            winding=1 / jnp.tan(_between(uniform[11], 0.2, 0.6)),
        ),
    )  # fmt: skip


def ring(uniform: jax.Array, system: System, survey: Survey) -> Centre:
    """A red galaxy inside a blue ring, inclined and uneven, as collisions and bars make them."""
    radius = system.einstein_radius * _between(uniform[0], 1.1, 2.2)
    inclined = _between(uniform[1], 0.35, 0.95)
    angle = jnp.pi * uniform[2]
    light = _arc_light(uniform, system, survey) * _between(uniform[3], 1.0, 3.0)
    disc_radius = radius * jnp.sqrt(inclined)
    return _centre(
        system,
        survey,
        galaxies=_join(
            _deflector(system, survey),
            _galaxy(0.2 * light, 0.0, 0.0, inclined, angle, disc_radius, 1.0),
        ),
        swirls=_swirl(
            0.8 * light, axis_ratio=inclined, angle=angle, is_ring=1.0, ring=radius,
            width=radius * _between(uniform[4], 0.1, 0.3),
            smooth=_between(uniform[5], 0.3, 0.9), sharpness=3.0,
            lobes=1.0 + jnp.floor(3 * uniform[6]), phase=2 * jnp.pi * uniform[7],
        ),
    )  # fmt: skip


def merger(uniform: jax.Array, system: System, survey: Survey) -> Centre:
    """Two nuclei and the tails that the tide has drawn out of them."""
    apart = _between(uniform[0], 0.8, 2.5)
    direction = 2 * jnp.pi * uniform[1]
    x, y = apart * jnp.cos(direction), apart * jnp.sin(direction)
    magnitude = system.lens_magnitudes[survey.selection_index]
    second = apparent(
        magnitude + 2 * uniform[2], 0.6 * uniform[3] ** 2, system.lens_redshift, survey
    )
    light = _arc_light(uniform, system, survey)
    tail_radius = _between(uniform[4:6], 1.5, 4.0)

    def tail(light: jax.Array, which: int, x: jax.Array, y: jax.Array) -> Swirls:
        return _swirl(
            light, x=x, y=y, axis_ratio=_between(uniform[6 + which], 0.4, 1.0),
            angle=jnp.pi * uniform[8 + which], is_ring=1.0, ring=tail_radius[which],
            width=0.16 * tail_radius[which], smooth=0.02, sharpness=2.0,
            phase=2 * jnp.pi * uniform[10 + which],
        )  # fmt: skip

    return _centre(
        system,
        survey,
        galaxies=_join(
            _deflector(system, survey),
            _galaxy(
                flux(second, survey), x, y, _between(uniform[12], 0.4, 1.0), jnp.pi * uniform[13],
                _between(uniform[14], 0.3, 0.9), 2.5,
            ),
        ),
        swirls=_join(tail(0.6 * light, 0, x / 2, y / 2), tail(0.4 * light, 1, x, y)),
    )  # fmt: skip


def edge_on(uniform: jax.Array, system: System, survey: Survey) -> Centre:
    """A thin disc seen from its side, with a red bulge."""
    magnitude, redshift = _nearby(uniform, 17.8, 20.5)
    disc = flux(apparent(magnitude, _between(uniform[2], 0.15, 0.8), redshift, survey), survey)
    bulge = flux(apparent(magnitude, 0.03, redshift, survey), survey)
    bulge_share = _between(uniform[3], 0.15, 0.6)
    angle = jnp.pi * uniform[4]
    length = _between(uniform[5], 1.0, 2.0) * 10 ** (-0.1 * (magnitude - 19))
    axis_ratio = _between(uniform[6], 0.1, 0.3)
    return _centre(
        system,
        survey,
        galaxies=_join(
            _galaxy(
                (1 - bulge_share) * disc, 0.0, 0.0, axis_ratio, angle,
                length * jnp.sqrt(axis_ratio), 1.0,
            ),
            _galaxy(bulge_share * bulge, 0.0, 0.0, 0.8, angle, 0.3 * length, 2.5),
        ),
    )  # fmt: skip


def star(uniform: jax.Array, system: System, survey: Survey) -> Centre:
    """A star bright enough for diffraction spikes."""
    magnitude = _between(uniform[0], 15.0, 19.0)
    return _centre(
        system, survey, star_flux=flux(_star_magnitudes(magnitude, uniform[1], survey), survey)
    )


def _star_magnitudes(magnitude: jax.Array, uniform: jax.Array, survey: Survey) -> jax.Array:
    """Returns magnitudes (band,) of a star, hot to cool as `uniform` rises: a black body.

    Temperatures of 3200 to 6500 K, M to F dwarfs.
    """
    temperature = _between(uniform, 6500.0, 3200.0)
    wavelength = jnp.asarray(survey.wavelengths)
    # h c / k = 1.4388e7 nm K; flux per frequency ~ 1 / (wavelength^3 (exp(...) - 1)).
    body = 7.5 * jnp.log10(wavelength) + 2.5 * jnp.log10(
        jnp.expm1(1.4388e7 / (wavelength * temperature))
    )
    return magnitude + body - body[survey.selection_index]


KINDS: dict[str, Callable[..., Centre]] = {
    "lens": lens,
    "unlensed": unlensed,
    "satellites": satellites,
    "spiral": spiral,
    "ring": ring,
    "merger": merger,
    "edge_on": edge_on,
    "star": star,
    "red": red,
}
LENS = list(KINDS).index("lens")

# Share of each kind among look-alikes (chosen: the hardest come most often).
LOOK_ALIKES = {
    "unlensed": 0.24,
    "satellites": 0.20,
    "spiral": 0.14,
    "ring": 0.10,
    "merger": 0.10,
    "edge_on": 0.06,
    "star": 0.04,
    "red": 0.12,
}


def field(all_uniform: jax.Array, system: System, survey: Survey) -> tuple[Galaxies, Points]:
    """Returns galaxies (FIELD_GALAXIES) and stars (FIELD_STARS) strewn over any cutout alike.

    Their counts per square arcsec are chosen to match cutouts of the Dark Energy Survey: each
    slot is taken with a chance that grows with the area.
    """
    uniform = all_uniform[: 10 * FIELD_GALAXIES].reshape(10, FIELD_GALAXIES)
    area = (2 * survey.half_width) ** 2
    taken = uniform[0] < jnp.minimum(1.0, 0.65 * area / 283)
    magnitude = number_count_magnitude(uniform[1], 19.5, 24.8)
    # A third are red and, lenses living in groups, at the deflector's redshift.
    is_red = uniform[2] < 0.33
    redshift = jnp.where(is_red, system.lens_redshift, _between(uniform[3], 0.1, 1.2))
    young = jnp.where(is_red, 0.05 * uniform[4], _between(uniform[4], 0.3, 1.0))
    magnitudes = jax.vmap(lambda m, young, z: apparent(m, young, z, survey))(
        magnitude, young, redshift
    )
    light = jax.vmap(lambda m: flux(m, survey))(magnitudes)
    galaxies = Galaxies(
        flux=jnp.where(taken[:, None], light, 0.0),
        x=survey.half_width * (2 * uniform[5] - 1),
        y=survey.half_width * (2 * uniform[6] - 1),
        axis_ratio=_between(uniform[7], 0.3, 1.0),
        angle=jnp.pi * uniform[8],
        radius=_between(uniform[9], 0.2, 0.6) * 10 ** (-0.08 * (magnitude - 22)),
        n_sersic=jnp.where(is_red, 3.0, 1.0),
    )
    uniform = all_uniform[10 * FIELD_GALAXIES :].reshape(5, FIELD_STARS)
    taken = uniform[0] < jnp.minimum(1.0, 0.12 * area / 283)
    magnitude = number_count_magnitude(uniform[1], 16.5, 23.0, 0.12)
    light = jax.vmap(lambda m, u: flux(_star_magnitudes(m, u, survey), survey))(
        magnitude, uniform[2]
    )
    stars = Points(
        flux=jnp.where(taken[:, None], light, 0.0),
        x=survey.half_width * (2 * uniform[3] - 1),
        y=survey.half_width * (2 * uniform[4] - 1),
    )
    return galaxies, stars


def draw_scene(system: System, uniform: jax.Array, kind: jax.Array, survey: Survey) -> Scene:
    """Returns the scene of one picture of the kind KINDS[kind].

    `system` is the deflector that it shows, and the source whose light it spends; `uniform`
    (SCENE_UNIFORMS,) all else that is random.
    """
    own, around, turned = jnp.split(uniform, [CENTRE_UNIFORMS, CENTRE_UNIFORMS + FIELD_UNIFORMS])
    # Under vmap all branches are computed, but they make a few numbers each and no pixels.
    branches = [partial(build, survey=survey) for build in KINDS.values()]
    centre = jax.lax.switch(kind, branches, own, system)
    field_galaxies, field_stars = field(around, system, survey)
    at_centre = jnp.zeros(1)
    return Scene(
        galaxies=_join(centre.galaxies, field_galaxies),
        swirls=centre.swirls,
        source=centre.source,
        stamp_angle=2 * jnp.pi * turned[0],
        mass=centre.mass,
        stars=_join(Points(centre.star_flux[None], at_centre, at_centre), field_stars),
        spike_angle=jnp.pi * turned[1],
        spike_fraction=_between(turned[2], 0.02, 0.08),
    )
