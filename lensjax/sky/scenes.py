"""What stands in each picture: lenses, ordinary galaxies, and what fools networks.

Every picture is the same `Scene`: a fixed number of galaxies, swirls, stars and one lensed
source, whose flux is zero where a slot is not used. So one compiled program draws them all.

Look-alikes share the deflectors, companions, seeing and noise of the lenses, and what surrounds
their centre is about as bright and blue as arcs are: only the geometry tells them apart. Numbers
here were chosen by eye, unless a source is named. Angles in arcsec, fluxes in survey units. The
last axis of all arrays is that of pictures, n.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import i0e

from lensjax.sky.lenses import PERTURBERS, SOURCE_COMPONENTS, Lens, put, source_galaxy, take
from lensjax.sky.lensing import Galaxies, Mass
from lensjax.sky.population import (
    Array,
    apparent,
    between,
    flux,
    lens_redshift,
    number_count_magnitude,
)
from lensjax.sky.survey import Observation, Survey, half_width

CENTRAL_GALAXIES, FIELD_GALAXIES = 6 + PERTURBERS, 6
SWIRLS = 2
FIELD_STARS = 2
# Random numbers between 0 and 1 that a picture is made of. In the middle a kind takes its own from
# the front, companions that look like sources theirs from the back.
CENTRE_UNIFORMS = 50
FIELD_UNIFORMS = 11 * FIELD_GALAXIES + 5 * FIELD_STARS
SCENE_UNIFORMS = CENTRE_UNIFORMS + FIELD_UNIFORMS + 6


class Swirls(NamedTuple):
    """Discs with arms, rings and tails, a slot each: flux (slot, band, n), the rest (slot, n).

    Light falls off as exp(-R / width) from the centre (is_ring 0), or as a Gaussian of sigma
    `width` about radius `ring` (is_ring 1). Along the angle it is `smooth` plus lobes:
    exp(sharpness (cos(lobes (theta - winding ln R) - phase) - 1)). `area` is the integral of that.
    """

    flux: Any
    x: Any
    y: Any
    axis_ratio: Any
    angle: Any
    is_ring: Any
    ring: Any
    width: Any
    smooth: Any
    sharpness: Any
    lobes: Any
    winding: Any
    phase: Any
    area: Any


class Stars(NamedTuple):
    """Points: flux (slot, band, n), position (slot, n)."""

    flux: Any
    x: Any
    y: Any


class Centre(NamedTuple):
    """What a kind of picture puts in the middle, None for nothing; the field is added to all."""

    galaxies: Any = None
    swirls: Any = None
    source: Any = None
    mass: Any = None
    star_flux: Any = None


class Scene(NamedTuple):
    """All that pictures show; positions are relative to the central galaxy, which stands at
    `x`, `y` from the middle of the cutout."""

    galaxies: Galaxies
    swirls: Swirls
    source: Galaxies
    mass: Mass
    stars: Stars
    stamp_angle: Any
    spike_angle: Any
    spike_fraction: Any
    x: Any
    y: Any


class Sky(NamedTuple):
    """What the builders below draw by: a survey and how it took these cutouts."""

    survey: Survey
    observation: Observation

    def galaxy_flux(
        self, magnitude: Array, young: Array | float, redshift: Array, dust: Array | float = 0.0
    ) -> Array:
        """Returns the flux (..., band, n) of galaxies (..., n) of these magnitudes in the selection
        band."""
        return flux(apparent(magnitude, young, redshift, self.survey, dust), self.observation)

    def star_flux(self, magnitude: Array, uniform: Array) -> Array:
        """Returns the flux (..., band, n) of stars, hot to cool as `uniform` rises: black bodies.

        Temperatures of 3200 to 8500 K, M to A dwarfs.
        """
        temperature = between(uniform, 8500.0, 3200.0)[..., None, :]
        wavelength = np.array(self.survey.wavelengths)[:, None]
        # h c / k = 1.4388e7 nm K; flux per frequency ~ 1 / (wavelength^3 (exp(...) - 1)).
        body = 7.5 * np.log10(wavelength) + 2.5 * np.log10(
            np.expm1(1.4388e7 / (wavelength * temperature))
        )
        selected = body[..., self.survey.selection_index, :]
        return flux((magnitude - selected)[..., None, :] + body, self.observation)


def _slots(kind: Any, flux: Array, **shape: Array | float) -> Any:
    """Returns one slot of a kind, flux (band, n), the rest numbers or (n,)."""
    filled = {name: np.broadcast_to(value, flux.shape[1:])[None] for name, value in shape.items()}
    return kind(flux=flux[None], **filled)


def _galaxy(
    flux: Array, x: Array | float, y: Array | float, axis_ratio: Array | float,
    angle: Array | float, radius: Array | float, n_sersic: Array | float,
) -> Galaxies:  # fmt: skip
    """Returns one galaxy as a slot."""
    return _slots(
        Galaxies, flux, x=x, y=y, axis_ratio=axis_ratio, angle=angle, radius=radius,
        n_sersic=n_sersic,
    )  # fmt: skip


def _swirl(flux: Array, **given: Array | float) -> Swirls:
    """Returns one swirl as a slot; what is not given is round, smooth and centred."""
    shape: dict[str, Any] = dict(
        x=0.0, y=0.0, axis_ratio=1.0, angle=0.0, is_ring=0.0, ring=1.0, width=1.0, smooth=1.0,
        sharpness=0.0, lobes=1.0, winding=0.0, phase=0.0,
    )  # fmt: skip
    shape |= given
    ring_area = (2 * np.pi) ** 1.5 * shape["ring"] * shape["width"]
    area = np.where(shape["is_ring"] == 1, ring_area, 2 * np.pi * shape["width"] ** 2)
    mean = shape["smooth"] + (1 - shape["smooth"]) * i0e(shape["sharpness"])
    return _slots(Swirls, flux, **shape, area=area * shape["axis_ratio"] * mean)


def _dark(kind: Any, slots: int, sky: Sky) -> Any:
    """Returns slots of a kind without flux: ones, so that their profiles are zero, never NaN."""
    count = sky.observation.fwhm.shape[1]
    of_bands = np.zeros((slots, len(sky.survey.bands), count))
    return kind(of_bands, *(np.ones((slots, count)) for _ in kind._fields[1:]))


def _join(*slots: Any) -> Any:
    """Returns all slots one after the other."""
    return type(slots[0])(*(np.concatenate(values) for values in zip(*slots, strict=True)))


def _lit_first(slots: Any) -> Any:
    """Returns the slots of each picture, those without flux last."""
    order = np.argsort(slots.flux.sum(axis=1) <= 0, axis=0, kind="stable")
    return type(slots)(
        *(np.take_along_axis(v, order if v.ndim == 2 else order[:, None], axis=0) for v in slots)
    )


def _arc_light(uniform: Array, lens: Lens) -> Array:
    """Returns about the flux of the lens's arcs (band, n), for a look-alike to spend."""
    scatter = 10 ** between(uniform[-1], -0.3, 0.3)
    return scatter * lens.system.magnification * np.sum(lens.source.flux, axis=0)


def lens(uniform: Array, lens: Lens, sky: Sky) -> Centre:
    """Returns a galaxy and the arcs, ring or images that it makes of the one behind it."""
    return Centre(galaxies=lens.galaxies, source=lens.source, mass=lens.mass)


def unlensed(uniform: Array, lens: Lens, sky: Sky) -> Centre:
    """Returns the same galaxy with one blue galaxy beside it, as bright as the arcs, not lensed."""
    distance = lens.system.einstein_radius * between(uniform[0], 0.8, 2.0)
    direction = 2 * np.pi * uniform[1]
    beside = source_galaxy(
        uniform[-5 * SOURCE_COMPONENTS - 1 : -1],
        _arc_light(uniform, lens),
        distance * np.cos(direction),
        distance * np.sin(direction),
        lens.system.source_radius * between(uniform[2], 1.0, 2.5),
    )
    return Centre(galaxies=lens.galaxies, source=beside)


def red(uniform: Array, lens: Lens, sky: Sky) -> Centre:
    """Returns the same galaxy alone."""
    return Centre(galaxies=lens.galaxies)


def satellites(uniform: Array, lens: Lens, sky: Sky) -> Centre:
    """Returns the same galaxy among two to four small blue ones, about where arcs would lie.

    Some point at the centre, most anywhere: arcs would lie across.
    """
    own = uniform[:24].reshape(6, 4, -1)
    share = (0.3 + own[0]) * (np.arange(4)[:, None] < 2 + np.floor(3 * uniform[24]))
    direction = 2 * np.pi * own[1]
    distance = lens.system.einstein_radius * between(own[2], 0.7, 1.7)
    small = Galaxies(
        flux=(share / np.sum(share, axis=0))[:, None] * _arc_light(uniform, lens),
        x=distance * np.cos(direction),
        y=distance * np.sin(direction),
        axis_ratio=between(own[4], 0.2, 0.9),
        angle=np.where(own[3] < 0.35, direction, np.pi * own[3] * 7),
        radius=between(own[5], 0.15, 0.5),
        n_sersic=np.ones(share.shape),
    )
    return Centre(galaxies=_join(lens.galaxies, small))


def group(uniform: Array, lens: Lens, sky: Sky) -> Centre:
    """Returns the same galaxy among four more red ones, as in the middle of a group or cluster."""
    own = uniform[:24].reshape(6, 4, -1)
    reach = half_width(sky.observation, sky.survey)
    return Centre(
        galaxies=_join(
            lens.galaxies,
            Galaxies(
                flux=between(own[0], 0.1, 1.0)[:, None] * lens.galaxies.flux[:1],
                x=reach * between(own[1], -0.8, 0.8),
                y=reach * between(own[2], -0.8, 0.8),
                axis_ratio=between(own[3], 0.5, 1.0),
                angle=np.pi * own[4],
                radius=lens.system.lens_radius * between(own[5], 0.4, 1.0),
                n_sersic=np.full(own[0].shape, 3.5),
            ),
        ),
    )


def ordinary(uniform: Array, lens: Lens, sky: Sky) -> Centre:
    """Returns any galaxy: an elliptical, perhaps with a disc, or a disc with a bulge; one in four
    has a neighbour."""
    faint = sky.observation.magnitude_limit + 0.5
    magnitude, redshift = number_count_magnitude(uniform[0], 17.0, faint, 0.2), uniform[1] + 0.05
    is_elliptical = uniform[2] < 0.35
    bulge_share = np.where(is_elliptical, 1 - 0.5 * uniform[3] ** 2, 0.6 * uniform[3] ** 2)
    bulge = bulge_share * sky.galaxy_flux(magnitude, 0.1 * uniform[4] ** 3, redshift)
    young, dust = between(uniform[5], 0.1, 1), 0.6 * uniform[18]
    disc = (1 - bulge_share) * sky.galaxy_flux(magnitude, young, redshift, dust)
    # Half-light radii of 0.6 arcsec at magnitude 21, 1.2 at 18, scattered by a factor of 1.5.
    radius = 0.6 * 10 ** (-0.1 * (magnitude - 21)) * 1.5 ** between(uniform[6], -1, 1)
    angle, distance = np.pi * uniform[7], between(uniform[8], 0.8, 4.0)
    direction, beside = 2 * np.pi * uniform[9], np.where(uniform[10] < 0.25, 1.0, 0.0)
    neighbour = sky.galaxy_flux(magnitude + 2 * uniform[11], uniform[12], redshift, dust)
    return Centre(
        galaxies=_join(
            _galaxy(
                bulge, 0.0, 0.0, between(uniform[13], 0.5, 1.0), angle,
                radius * np.where(is_elliptical, 1.0, 0.4), between(uniform[14], 2.0, 5.0),
            ),
            _galaxy(disc, 0.0, 0.0, between(uniform[15], 0.25, 1.0), angle, radius, 1.0),
            _galaxy(
                beside * neighbour, distance * np.cos(direction), distance * np.sin(direction),
                between(uniform[16], 0.3, 1.0), np.pi * uniform[17], 0.7 * radius, 1.5,
            ),
        ),
    )  # fmt: skip


def _nearby(uniform: Array, bright: float, faint: float) -> tuple[Array, Array]:
    """Returns the selection-band magnitude and the redshift of a galaxy of the foreground."""
    return between(uniform[0] ** 0.6, bright, faint), between(uniform[1], 0.08, 0.5)


def spiral(uniform: Array, lens: Lens, sky: Sky) -> Centre:
    """Returns a red bulge in a blue disc with two to four logarithmic arms, or a bar of light."""
    magnitude, redshift = _nearby(uniform, 17.0, 21.0)
    bulge_share = between(uniform[2], 0.1, 0.5)
    bulge = sky.galaxy_flux(magnitude, 0.03 * uniform[9], redshift)
    disc = sky.galaxy_flux(magnitude, between(uniform[10], 0.3, 1.0), redshift, 0.5 * uniform[13])
    width = between(uniform[3], 0.9, 1.8) * 10 ** (-0.12 * (magnitude - 18.5))
    axis_ratio, angle = between(uniform[4], 0.4, 1.0), np.pi * uniform[5]
    return Centre(
        galaxies=_galaxy(
            bulge_share * bulge, 0.0, 0.0, between(uniform[6], 0.75, 1.0), angle, 0.35 * width, 2.5
        ),
        swirls=_swirl(
            (1 - bulge_share) * disc, axis_ratio=axis_ratio, angle=angle, width=width,
            smooth=between(uniform[12], 0.05, 0.5), sharpness=between(uniform[7], 2.0, 6.0),
            lobes=2.0 + np.floor(2.4 * uniform[8]),
            # Pitch angles of 12 to 35 degrees.
            winding=1 / np.tan(between(uniform[11], 0.2, 0.6)),
        ),
    )  # fmt: skip


def ring(uniform: Array, lens: Lens, sky: Sky) -> Centre:
    """Returns a red galaxy inside a blue ring, inclined and uneven, as collisions and bars make
    them."""
    radius = lens.system.einstein_radius * between(uniform[0], 1.1, 2.2)
    inclined = between(uniform[1], 0.35, 0.95)
    angle = np.pi * uniform[2]
    light = _arc_light(uniform, lens) * between(uniform[3], 1.0, 3.0)
    disc_radius = radius * np.sqrt(inclined)
    return Centre(
        galaxies=_join(
            lens.galaxies,
            _galaxy(0.2 * light, 0.0, 0.0, inclined, angle, disc_radius, 1.0),
        ),
        swirls=_swirl(
            0.8 * light, axis_ratio=inclined, angle=angle, is_ring=1.0, ring=radius,
            width=radius * between(uniform[4], 0.1, 0.3),
            smooth=between(uniform[5], 0.3, 0.9), sharpness=3.0,
            lobes=1.0 + np.floor(3 * uniform[6]), phase=2 * np.pi * uniform[7],
        ),
    )  # fmt: skip


def merger(uniform: Array, lens: Lens, sky: Sky) -> Centre:
    """Returns two nuclei and the tails that the tide has drawn out of them."""
    apart = between(uniform[0], 0.8, 2.5)
    direction = 2 * np.pi * uniform[1]
    x, y = apart * np.cos(direction), apart * np.sin(direction)
    magnitude = lens.system.lens_magnitudes[sky.survey.selection_index] + 2 * uniform[2]
    second = sky.galaxy_flux(magnitude, 0.6 * uniform[3] ** 2, lens.system.lens_redshift)
    light = _arc_light(uniform, lens)
    tail_radius = between(uniform[4:6], 1.5, 4.0)

    def tail(light: Array, which: int, x: Array, y: Array) -> Swirls:
        return _swirl(
            light, x=x, y=y, axis_ratio=between(uniform[6 + which], 0.4, 1.0),
            angle=np.pi * uniform[8 + which], is_ring=1.0, ring=tail_radius[which],
            width=0.16 * tail_radius[which], smooth=0.02, sharpness=2.0,
            phase=2 * np.pi * uniform[10 + which],
        )  # fmt: skip

    return Centre(
        galaxies=_join(
            lens.galaxies,
            _galaxy(
                second, x, y, between(uniform[12], 0.4, 1.0), np.pi * uniform[13],
                between(uniform[14], 0.3, 0.9), 2.5,
            ),
        ),
        swirls=_join(tail(0.6 * light, 0, x / 2, y / 2), tail(0.4 * light, 1, x, y)),
    )  # fmt: skip


def edge_on(uniform: Array, lens: Lens, sky: Sky) -> Centre:
    """Returns a thin disc seen from its side, with a red bulge."""
    magnitude, redshift = _nearby(uniform, 17.8, 21.5)
    disc = sky.galaxy_flux(magnitude, between(uniform[2], 0.1, 0.8), redshift, 0.8 * uniform[7])
    bulge = sky.galaxy_flux(magnitude, 0.03, redshift)
    bulge_share = between(uniform[3], 0.15, 0.6)
    angle = np.pi * uniform[4]
    length = between(uniform[5], 1.0, 2.0) * 10 ** (-0.1 * (magnitude - 19))
    axis_ratio = between(uniform[6], 0.1, 0.3)
    return Centre(
        galaxies=_join(
            _galaxy(
                (1 - bulge_share) * disc, 0.0, 0.0, axis_ratio, angle,
                length * np.sqrt(axis_ratio), 1.0,
            ),
            _galaxy(bulge_share * bulge, 0.0, 0.0, 0.8, angle, 0.3 * length, 2.5),
        ),
    )  # fmt: skip


def star(uniform: Array, lens: Lens, sky: Sky) -> Centre:
    """Returns a star; a bright one has diffraction spikes."""
    magnitude = between(uniform[0], 15.0, sky.observation.magnitude_limit)
    return Centre(star_flux=sky.star_flux(magnitude, uniform[1]))


KINDS: dict[str, Callable[[Array, Lens, Sky], Centre]] = {
    build.__name__: build
    for build in (
        lens, unlensed, satellites, spiral, ring, merger, edge_on, star, red, group, ordinary,
    )
}  # fmt: skip
LENS = list(KINDS).index("lens")
OF_DEFLECTOR = ("lens", "unlensed", "satellites", "ring", "merger", "red", "group")
"""Kinds that show the galaxy of a lens system."""


def field(uniform: Array, redshift: Array, sky: Sky) -> tuple[Galaxies, Stars]:
    """Returns galaxies (FIELD_GALAXIES) and stars (FIELD_STARS) strewn over any cutout alike.

    Their counts per square arcsec are chosen to match cutouts of the Dark Energy Survey: each
    slot is taken with a chance that grows with the area. The first slot is the light of a bright
    galaxy or the halo of a bright star at the edge or outside, in one cutout of ten. A third are
    at `redshift` (n,), that of the lens.
    """
    own = uniform[: 11 * FIELD_GALAXIES].reshape(11, FIELD_GALAXIES, -1)
    reach = half_width(sky.observation, sky.survey)
    is_halo = np.arange(FIELD_GALAXIES)[:, None] == 0
    by_area = (2 * reach) ** 2 / 283
    taken = own[0] < np.where(is_halo, 0.1, np.minimum(1.0, 0.75 * by_area))
    magnitude = np.where(
        is_halo, between(own[1], 14.5, 18.0), number_count_magnitude(own[1], 19.5, 25.0)
    )
    # A third are red and, lenses living in groups, at the deflector's redshift.
    is_red = own[2] < 0.33
    redshift = np.where(is_red, redshift, between(own[3], 0.1, 1.2))
    redshift = np.where(is_halo, 0.1, redshift)
    young = np.where(is_red, 0.05 * own[4], between(own[4], 0.3, 1.0))
    young = np.where(is_halo, 0.5 * own[4] ** 2, young)
    light = sky.galaxy_flux(magnitude, young, redshift, np.where(is_red, 0.0, 0.9 * own[10] ** 1.5))
    distance, direction = reach * between(own[5], 0.8, 1.6), 2 * np.pi * own[6]
    galaxies = Galaxies(
        flux=np.where(taken[:, None], light, 0.0),
        x=np.where(is_halo, distance * np.cos(direction), reach * between(own[5], -1, 1)),
        y=np.where(is_halo, distance * np.sin(direction), reach * between(own[6], -1, 1)),
        axis_ratio=between(own[7], 0.3, 1.0),
        angle=np.pi * own[8],
        radius=between(own[9], 0.2, 0.6) * 10 ** (-0.08 * (magnitude - 22)),
        n_sersic=np.where(is_red | is_halo, 3.0, 1.0),
    )
    own = uniform[11 * FIELD_GALAXIES :].reshape(5, FIELD_STARS, -1)
    taken = own[0] < np.minimum(1.0, 0.12 * by_area)
    light = sky.star_flux(number_count_magnitude(own[1], 16.5, 23.0, 0.12), own[2])
    stars = Stars(
        flux=np.where(taken[:, None], light, 0.0),
        x=reach * between(own[3], -1, 1),
        y=reach * between(own[4], -1, 1),
    )
    return galaxies, stars


def draw_scenes(uniform: Array, kind: Array, lens: Lens, lens_rows: Array, sky: Sky) -> Scene:
    """Returns the scenes of pictures of the kinds KINDS[kind] (n,), the field around them included.

    `lens` are the deflectors of the pictures `lens_rows`, and the sources whose light they spend;
    `uniform` (SCENE_UNIFORMS, n) is all else that is random.
    """
    own, around, rest = np.split(uniform, [CENTRE_UNIFORMS, CENTRE_UNIFORMS + FIELD_UNIFORMS])
    redshift = lens_redshift(rest[5])
    redshift[lens_rows] = lens.system.lens_redshift
    centre = draw_centres(own, kind, lens, lens_rows, sky)
    # The middle of a cutout lies within a pixel of its galaxy.
    x, y = sky.observation.pixel_scale * between(rest[3:5], -1, 1)
    return compose(centre, field(around, redshift, sky), rest[:3], x, y)


def draw_centres(uniform: Array, kind: Array, lens: Lens, lens_rows: Array, sky: Sky) -> Centre:
    """Returns what stands in the middle of such pictures; `uniform` is (CENTRE_UNIFORMS, n)."""
    whole = dark_centre(sky)
    for number, (name, build) in enumerate(KINDS.items()):
        rows = np.flatnonzero(kind == number)
        if len(rows):
            shown = np.searchsorted(lens_rows, rows) if name in OF_DEFLECTOR else slice(0)
            seen = Sky(sky.survey, take(sky.observation, rows))
            centre = build(uniform[:, rows], take(lens, shown), seen)
            for into, part in zip(whole, centre, strict=True):
                if part is not None:
                    put(into, rows, part)
    return whole


def dark_centre(sky: Sky) -> Centre:
    """Returns pictures with nothing in the middle."""
    return Centre(
        galaxies=_dark(Galaxies, CENTRAL_GALAXIES, sky),
        swirls=_dark(Swirls, SWIRLS, sky),
        source=_dark(Galaxies, SOURCE_COMPONENTS, sky),
        mass=no_mass(sky.observation.fwhm.shape[1]),
        star_flux=np.zeros_like(sky.observation.fwhm),
    )


def empty_field(sky: Sky) -> tuple[Galaxies, Stars]:
    """Returns no galaxies and no stars, as `field` returns those that there are."""
    return _dark(Galaxies, 0, sky), _dark(Stars, 0, sky)


def compose(
    centre: Centre, around: tuple[Galaxies, Stars], uniform: Array, x: Array, y: Array
) -> Scene:
    """Returns scenes of what stands in the middle, at x and y (n,), and of the field around it.

    `uniform` (3, n) makes the angles of stamps and spikes, and how bright spikes are.
    """
    galaxies, stars = around
    at_centre = np.zeros((1, len(x)))
    return Scene(
        galaxies=_lit_first(_join(centre.galaxies, galaxies)),
        swirls=centre.swirls,
        source=_lit_first(centre.source),
        mass=centre.mass,
        stars=_join(Stars(centre.star_flux[None], at_centre, at_centre), stars),
        stamp_angle=2 * np.pi * uniform[0],
        spike_angle=np.pi * uniform[1],
        spike_fraction=between(uniform[2], 0.02, 0.08),
        x=x,
        y=y,
    )


def no_mass(count: int) -> Mass:
    """Returns the mass of pictures (count,) without a lens."""
    zero, one, none = np.zeros(count), np.ones(count), np.zeros((PERTURBERS, count))
    return Mass(*(v.copy() for v in (zero, 2 * one, one, zero, zero, zero, none, none, none)))
