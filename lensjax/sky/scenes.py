"""What stands in each picture: lenses, ordinary galaxies, and what fools networks.

Every picture is the same `Scene`: a fixed number of galaxies, swirls, stars and one lensed
source, whose flux is zero where a slot is not used. So one compiled program draws them all.

Look-alikes share the deflectors, companions, seeing and noise of the lenses, and what surrounds
their centre is about as bright and blue as arcs are: only the geometry tells them apart. Numbers
here were chosen by eye, unless a source is named. Angles in arcsec, fluxes in survey units.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from lensjax.sky.lenses import PERTURBERS, SOURCE_COMPONENTS, Lens, source_galaxy
from lensjax.sky.lensing import Galaxies, Mass, Scalar
from lensjax.sky.population import apparent, between, flux, number_count_magnitude
from lensjax.sky.survey import Observation, Survey, half_width

CENTRAL_GALAXIES, FIELD_GALAXIES = 5 + PERTURBERS, 6
SWIRLS = 2
FIELD_STARS = 2
# Random numbers between 0 and 1 that a picture is made of, all drawn at once: every call of the
# generator costs a quarter of a second to compile. In the middle a kind takes its own from the
# front, companions that look like sources theirs from the back.
CENTRE_UNIFORMS = 50
FIELD_UNIFORMS = 10 * FIELD_GALAXIES + 5 * FIELD_STARS
SCENE_UNIFORMS = CENTRE_UNIFORMS + FIELD_UNIFORMS + 5


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


class Stars(NamedTuple):
    """Points: flux (slot, band), position (slot,)."""

    flux: jax.Array
    x: jax.Array
    y: jax.Array


class Centre(NamedTuple):
    """What a kind of picture puts in the middle; the field is added to all alike."""

    galaxies: Galaxies
    swirls: Swirls
    source: Galaxies
    mass: Mass
    star_flux: jax.Array


class Scene(NamedTuple):
    """All that one picture shows; positions are relative to the central galaxy, which stands at
    `x`, `y` from the middle of the cutout."""

    galaxies: Galaxies
    swirls: Swirls
    source: Galaxies
    mass: Mass
    stars: Stars
    stamp_angle: jax.Array
    spike_angle: jax.Array
    spike_fraction: jax.Array
    x: jax.Array
    y: jax.Array


class Sky(NamedTuple):
    """What the builders below draw by: a survey and how it took this cutout."""

    survey: Survey
    observation: Observation

    def galaxy_flux(self, magnitude: Scalar, young: Scalar, redshift: Scalar) -> jax.Array:
        """Returns the flux (band,) of a galaxy with this magnitude in the selection band."""
        return flux(apparent(magnitude, young, redshift, self.survey), self.observation)

    def star_flux(self, magnitude: Scalar, uniform: Scalar) -> jax.Array:
        """Returns the flux (band,) of a star, hot to cool as `uniform` rises: a black body.

        Temperatures of 3200 to 6500 K, M to F dwarfs.
        """
        temperature = between(uniform, 6500.0, 3200.0)
        wavelength = jnp.asarray(self.survey.wavelengths)
        # h c / k = 1.4388e7 nm K; flux per frequency ~ 1 / (wavelength^3 (exp(...) - 1)).
        body = 7.5 * jnp.log10(wavelength) + 2.5 * jnp.log10(
            jnp.expm1(1.4388e7 / (wavelength * temperature))
        )
        return flux(magnitude + body - body[self.survey.selection_index], self.observation)


Slots = TypeVar("Slots", Galaxies, Swirls, Stars)


def _pad(slots: Slots, count: int) -> Slots:
    """Returns the slots followed by dark ones, `count` in all."""
    missing = count - slots.flux.shape[0]
    # A dark slot repeats a valid shape, so that zero times its profile is zero, never NaN.
    padded = jax.tree.map(lambda v: jnp.concatenate([v, jnp.repeat(v[:1], missing, 0)]), slots)
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


def _centre(
    sky: Sky,
    galaxies: Galaxies | None = None,
    swirls: Swirls | None = None,
    source: Galaxies | None = None,
    mass: Mass | None = None,
    star_flux: jax.Array | None = None,
) -> Centre:
    """Returns the centre made of what is given, all other slots dark."""
    dark = jnp.zeros(len(sky.survey.bands))
    nothing = _galaxy(dark, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0)
    zero, none = jnp.zeros(()), jnp.zeros(PERTURBERS)
    no_mass = Mass(zero, zero + 2, zero + 1, zero, zero, zero, none, none, none)
    return Centre(
        galaxies=_pad(nothing if galaxies is None else galaxies, CENTRAL_GALAXIES),
        swirls=_pad(_swirl(dark) if swirls is None else swirls, SWIRLS),
        source=_pad(nothing if source is None else source, SOURCE_COMPONENTS),
        mass=no_mass if mass is None else mass,
        star_flux=dark if star_flux is None else star_flux,
    )


def _arc_light(uniform: jax.Array, lens: Lens) -> jax.Array:
    """Returns about the flux of the lens's arcs (band,), for a look-alike to spend."""
    scatter = 10 ** between(uniform[-1], -0.3, 0.3)
    return scatter * lens.system.magnification * jnp.sum(lens.source.flux, axis=0)


def lens(uniform: jax.Array, lens: Lens, sky: Sky) -> Centre:
    """Returns a galaxy and the arcs, ring or images that it makes of the one behind it."""
    return _centre(sky, galaxies=lens.galaxies, source=lens.source, mass=lens.mass)


def unlensed(uniform: jax.Array, lens: Lens, sky: Sky) -> Centre:
    """Returns the same galaxy with one blue galaxy beside it, as bright as the arcs, not lensed."""
    distance = lens.system.einstein_radius * between(uniform[0], 0.8, 2.0)
    direction = 2 * jnp.pi * uniform[1]
    beside = source_galaxy(
        uniform[-5 * SOURCE_COMPONENTS - 1 : -1],
        _arc_light(uniform, lens),
        distance * jnp.cos(direction),
        distance * jnp.sin(direction),
        lens.system.source_radius * between(uniform[2], 1.0, 2.5),
    )
    return _centre(sky, galaxies=lens.galaxies, source=beside)


def red(uniform: jax.Array, lens: Lens, sky: Sky) -> Centre:
    """Returns the same galaxy alone."""
    return _centre(sky, galaxies=lens.galaxies)


def satellites(uniform: jax.Array, lens: Lens, sky: Sky) -> Centre:
    """Returns the same galaxy among two to four small blue ones, about where arcs would lie.

    Some point at the centre, most anywhere: arcs would lie across.
    """
    own = uniform[:24].reshape(6, 4)
    share = (0.3 + own[0]) * (jnp.arange(4) < 2 + jnp.floor(3 * uniform[24]))
    direction = 2 * jnp.pi * own[1]
    distance = lens.system.einstein_radius * between(own[2], 0.7, 1.7)
    small = Galaxies(
        flux=(share / jnp.sum(share))[:, None] * _arc_light(uniform, lens)[None, :],
        x=distance * jnp.cos(direction),
        y=distance * jnp.sin(direction),
        axis_ratio=between(own[4], 0.2, 0.9),
        angle=jnp.where(own[3] < 0.35, direction, jnp.pi * own[3] * 7),
        radius=between(own[5], 0.15, 0.5),
        n_sersic=jnp.ones(4),
    )
    return _centre(sky, galaxies=_join(lens.galaxies, small))


def group(uniform: jax.Array, lens: Lens, sky: Sky) -> Centre:
    """Returns the same galaxy among four more red ones, as in the middle of a group or cluster."""
    own = uniform[:24].reshape(6, 4)
    reach = half_width(sky.observation, sky.survey)
    return _centre(
        sky,
        galaxies=_join(
            lens.galaxies,
            Galaxies(
                flux=between(own[0], 0.1, 1.0)[:, None] * lens.galaxies.flux[:1],
                x=reach * between(own[1], -0.8, 0.8),
                y=reach * between(own[2], -0.8, 0.8),
                axis_ratio=between(own[3], 0.5, 1.0),
                angle=jnp.pi * own[4],
                radius=lens.system.lens_radius * between(own[5], 0.4, 1.0),
                n_sersic=jnp.full(4, 3.5),
            ),
        ),
    )


def ordinary(uniform: jax.Array, lens: Lens, sky: Sky) -> Centre:
    """Any galaxy of the sky: an elliptical or a disc with a bulge, one in four with a neighbour."""
    faint = sky.observation.magnitude_limit + 1.5
    magnitude, redshift = number_count_magnitude(uniform[0], 17.0, faint, 0.2), uniform[1] + 0.05
    is_elliptical = uniform[2] < 0.35
    bulge_share = jnp.where(is_elliptical, 1.0, 0.6 * uniform[3] ** 2)
    bulge = bulge_share * sky.galaxy_flux(magnitude, 0.1 * uniform[4] ** 3, redshift)
    disc = (1 - bulge_share) * sky.galaxy_flux(magnitude, between(uniform[5], 0.1, 1), redshift)
    # Half-light radii of 0.6 arcsec at magnitude 21, 1.2 at 18, scattered by a factor of 1.5.
    radius = 0.6 * 10 ** (-0.1 * (magnitude - 21)) * 1.5 ** between(uniform[6], -1, 1)
    angle, distance = jnp.pi * uniform[7], between(uniform[8], 0.8, 4.0)
    direction, beside = 2 * jnp.pi * uniform[9], jnp.where(uniform[10] < 0.25, 1.0, 0.0)
    neighbour = sky.galaxy_flux(magnitude + 2 * uniform[11], uniform[12], redshift)
    return _centre(
        sky,
        galaxies=_join(
            _galaxy(
                bulge, 0.0, 0.0, between(uniform[13], 0.5, 1.0), angle,
                radius * jnp.where(is_elliptical, 1.0, 0.4), between(uniform[14], 2.0, 5.0),
            ),
            _galaxy(disc, 0.0, 0.0, between(uniform[15], 0.25, 1.0), angle, radius, 1.0),
            _galaxy(
                beside * neighbour, distance * jnp.cos(direction), distance * jnp.sin(direction),
                between(uniform[16], 0.3, 1.0), jnp.pi * uniform[17], 0.7 * radius, 1.5,
            ),
        ),
    )  # fmt: skip


def _nearby(uniform: jax.Array, bright: float, faint: float) -> tuple[jax.Array, jax.Array]:
    """Returns the selection-band magnitude and the redshift of a galaxy of the foreground."""
    return between(uniform[0] ** 0.6, bright, faint), between(uniform[1], 0.08, 0.5)


def spiral(uniform: jax.Array, lens: Lens, sky: Sky) -> Centre:
    """Returns a red bulge in a blue disc with two to four logarithmic arms, or a bar of light."""
    magnitude, redshift = _nearby(uniform, 17.0, 21.0)
    bulge_share = between(uniform[2], 0.1, 0.5)
    bulge = sky.galaxy_flux(magnitude, 0.03 * uniform[9], redshift)
    disc = sky.galaxy_flux(magnitude, between(uniform[10], 0.3, 1.0), redshift)
    width = between(uniform[3], 0.9, 1.8) * 10 ** (-0.12 * (magnitude - 18.5))
    axis_ratio, angle = between(uniform[4], 0.4, 1.0), jnp.pi * uniform[5]
    return _centre(
        sky,
        galaxies=_galaxy(
            bulge_share * bulge, 0.0, 0.0, between(uniform[6], 0.75, 1.0), angle, 0.35 * width, 2.5
        ),
        swirls=_swirl(
            (1 - bulge_share) * disc, axis_ratio=axis_ratio, angle=angle, width=width,
            smooth=between(uniform[12], 0.05, 0.5), sharpness=between(uniform[7], 2.0, 6.0),
            lobes=2.0 + jnp.floor(2.4 * uniform[8]),
            # Pitch angles of 12 to 35 degrees.
            winding=1 / jnp.tan(between(uniform[11], 0.2, 0.6)),
        ),
    )  # fmt: skip


def ring(uniform: jax.Array, lens: Lens, sky: Sky) -> Centre:
    """Returns a red galaxy inside a blue ring, inclined and uneven, as collisions and bars make
    them."""
    radius = lens.system.einstein_radius * between(uniform[0], 1.1, 2.2)
    inclined = between(uniform[1], 0.35, 0.95)
    angle = jnp.pi * uniform[2]
    light = _arc_light(uniform, lens) * between(uniform[3], 1.0, 3.0)
    disc_radius = radius * jnp.sqrt(inclined)
    return _centre(
        sky,
        galaxies=_join(
            lens.galaxies,
            _galaxy(0.2 * light, 0.0, 0.0, inclined, angle, disc_radius, 1.0),
        ),
        swirls=_swirl(
            0.8 * light, axis_ratio=inclined, angle=angle, is_ring=1.0, ring=radius,
            width=radius * between(uniform[4], 0.1, 0.3),
            smooth=between(uniform[5], 0.3, 0.9), sharpness=3.0,
            lobes=1.0 + jnp.floor(3 * uniform[6]), phase=2 * jnp.pi * uniform[7],
        ),
    )  # fmt: skip


def merger(uniform: jax.Array, lens: Lens, sky: Sky) -> Centre:
    """Returns two nuclei and the tails that the tide has drawn out of them."""
    apart = between(uniform[0], 0.8, 2.5)
    direction = 2 * jnp.pi * uniform[1]
    x, y = apart * jnp.cos(direction), apart * jnp.sin(direction)
    magnitude = lens.system.lens_magnitudes[sky.survey.selection_index] + 2 * uniform[2]
    second = sky.galaxy_flux(magnitude, 0.6 * uniform[3] ** 2, lens.system.lens_redshift)
    light = _arc_light(uniform, lens)
    tail_radius = between(uniform[4:6], 1.5, 4.0)

    def tail(light: jax.Array, which: int, x: jax.Array, y: jax.Array) -> Swirls:
        return _swirl(
            light, x=x, y=y, axis_ratio=between(uniform[6 + which], 0.4, 1.0),
            angle=jnp.pi * uniform[8 + which], is_ring=1.0, ring=tail_radius[which],
            width=0.16 * tail_radius[which], smooth=0.02, sharpness=2.0,
            phase=2 * jnp.pi * uniform[10 + which],
        )  # fmt: skip

    return _centre(
        sky,
        galaxies=_join(
            lens.galaxies,
            _galaxy(
                second, x, y, between(uniform[12], 0.4, 1.0), jnp.pi * uniform[13],
                between(uniform[14], 0.3, 0.9), 2.5,
            ),
        ),
        swirls=_join(tail(0.6 * light, 0, x / 2, y / 2), tail(0.4 * light, 1, x, y)),
    )  # fmt: skip


def edge_on(uniform: jax.Array, lens: Lens, sky: Sky) -> Centre:
    """Returns a thin disc seen from its side, with a red bulge."""
    magnitude, redshift = _nearby(uniform, 17.8, 21.5)
    disc = sky.galaxy_flux(magnitude, between(uniform[2], 0.1, 0.8), redshift)
    bulge = sky.galaxy_flux(magnitude, 0.03, redshift)
    bulge_share = between(uniform[3], 0.15, 0.6)
    angle = jnp.pi * uniform[4]
    length = between(uniform[5], 1.0, 2.0) * 10 ** (-0.1 * (magnitude - 19))
    axis_ratio = between(uniform[6], 0.1, 0.3)
    return _centre(
        sky,
        galaxies=_join(
            _galaxy(
                (1 - bulge_share) * disc, 0.0, 0.0, axis_ratio, angle,
                length * jnp.sqrt(axis_ratio), 1.0,
            ),
            _galaxy(bulge_share * bulge, 0.0, 0.0, 0.8, angle, 0.3 * length, 2.5),
        ),
    )  # fmt: skip


def star(uniform: jax.Array, lens: Lens, sky: Sky) -> Centre:
    """Returns a star; a bright one has diffraction spikes."""
    magnitude = between(uniform[0], 15.0, sky.observation.magnitude_limit)
    return _centre(sky, star_flux=sky.star_flux(magnitude, uniform[1]))


KINDS: dict[str, Callable[[jax.Array, Lens, Sky], Centre]] = {
    build.__name__: build
    for build in (
        lens, unlensed, satellites, spiral, ring, merger, edge_on, star, red, group, ordinary,
    )
}  # fmt: skip
LENS = list(KINDS).index("lens")
OF_DEFLECTOR = ("lens", "unlensed", "satellites", "ring", "merger", "red", "group")
"""Kinds that show the galaxy of a lens system."""


def field(all_uniform: jax.Array, redshift: jax.Array, sky: Sky) -> tuple[Galaxies, Stars]:
    """Returns galaxies (FIELD_GALAXIES) and stars (FIELD_STARS) strewn over any cutout alike.

    Their counts per square arcsec are chosen to match cutouts of the Dark Energy Survey: each
    slot is taken with a chance that grows with the area. The first slot is the light of a bright
    galaxy or the halo of a bright star at the edge or outside, in one cutout of ten. A third are
    at `redshift`, that of the lens.
    """
    uniform = all_uniform[: 10 * FIELD_GALAXIES].reshape(10, FIELD_GALAXIES)
    reach = half_width(sky.observation, sky.survey)
    is_halo = jnp.arange(FIELD_GALAXIES) == 0
    by_area = (2 * reach) ** 2 / 283
    taken = uniform[0] < jnp.where(is_halo, 0.1, jnp.minimum(1.0, 0.75 * by_area))
    magnitude = jnp.where(
        is_halo, between(uniform[1], 14.5, 18.0), number_count_magnitude(uniform[1], 19.5, 25.0)
    )
    # A third are red and, lenses living in groups, at the deflector's redshift.
    is_red = uniform[2] < 0.33
    redshift = jnp.where(is_red, redshift, between(uniform[3], 0.1, 1.2))
    redshift = jnp.where(is_halo, 0.1, redshift)
    young = jnp.where(is_red, 0.05 * uniform[4], between(uniform[4], 0.3, 1.0))
    light = jax.vmap(sky.galaxy_flux)(magnitude, young, redshift)
    distance, direction = reach * between(uniform[5], 0.8, 1.6), 2 * jnp.pi * uniform[6]
    galaxies = Galaxies(
        flux=jnp.where(taken[:, None], light, 0.0),
        x=jnp.where(is_halo, distance * jnp.cos(direction), reach * between(uniform[5], -1, 1)),
        y=jnp.where(is_halo, distance * jnp.sin(direction), reach * between(uniform[6], -1, 1)),
        axis_ratio=between(uniform[7], 0.3, 1.0),
        angle=jnp.pi * uniform[8],
        radius=between(uniform[9], 0.2, 0.6) * 10 ** (-0.08 * (magnitude - 22)),
        n_sersic=jnp.where(is_red | is_halo, 3.0, 1.0),
    )
    uniform = all_uniform[10 * FIELD_GALAXIES :].reshape(5, FIELD_STARS)
    taken = uniform[0] < jnp.minimum(1.0, 0.12 * by_area)
    magnitude = number_count_magnitude(uniform[1], 16.5, 23.0, 0.12)
    light = jax.vmap(sky.star_flux)(magnitude, uniform[2])
    stars = Stars(
        flux=jnp.where(taken[:, None], light, 0.0),
        x=reach * between(uniform[3], -1, 1),
        y=reach * between(uniform[4], -1, 1),
    )
    return galaxies, stars


def draw_scene(uniform: jax.Array, kind: jax.Array, lens: Lens, sky: Sky) -> Scene:
    """Returns the scene of one picture of the kind KINDS[kind].

    `lens` is the deflector that it shows, and the source whose light it spends; `uniform`
    (SCENE_UNIFORMS,) all else that is random.
    """
    own, around, rest = jnp.split(uniform, [CENTRE_UNIFORMS, CENTRE_UNIFORMS + FIELD_UNIFORMS])
    # Under vmap all branches are computed, but they make a few numbers each and no pixels.
    branches = [lambda own, lens, build=build: build(own, lens, sky) for build in KINDS.values()]
    centre = jax.lax.switch(kind, branches, own, lens)
    field_galaxies, field_stars = field(around, lens.system.lens_redshift, sky)
    at_centre = jnp.zeros(1)
    # The middle of a cutout lies within a pixel of its galaxy.
    x, y = sky.observation.pixel_scale * between(rest[3:], -1, 1)
    return Scene(
        galaxies=_join(centre.galaxies, field_galaxies),
        swirls=centre.swirls,
        source=centre.source,
        mass=centre.mass,
        stars=_join(Stars(centre.star_flux[None], at_centre, at_centre), field_stars),
        stamp_angle=2 * jnp.pi * rest[0],
        spike_angle=jnp.pi * rest[1],
        spike_fraction=between(rest[2], 0.02, 0.08),
        x=x,
        y=y,
    )
