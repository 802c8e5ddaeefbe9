"""What stands in the middle of a picture: lenses, ordinary galaxies, and what fools networks.

Look-alikes share the deflectors, companions, seeing and noise of the lenses, and what surrounds
their centre is about as bright and blue as arcs are: only the geometry tells them apart. Numbers
here were chosen by eye, unless a source is named. Angles in arcsec, fluxes in survey units. The
last axis of all arrays is that of pictures, n.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lensjax.sky.lenses import PERTURBERS, SOURCE_COMPONENTS, Lens, put, source_galaxy, take
from lensjax.sky.lensing import Galaxies, Mass
from lensjax.sky.population import Array, apparent, between, flux, number_count_magnitude
from lensjax.sky.slots import Swirls, dark, galaxy, joined, swirl
from lensjax.sky.survey import Observation, Survey, half_width

CENTRAL_GALAXIES, SWIRLS = 6 + PERTURBERS, 2
# Random numbers between 0 and 1 that the middle is made of. A kind takes its own from the front,
# companions that look like sources theirs from the back.
CENTRE_UNIFORMS = 50


class Centre(NamedTuple):
    """What a kind of picture puts in the middle, None for nothing; the field is added to all."""

    galaxies: Any = None
    swirls: Any = None
    source: Any = None
    mass: Any = None
    star_flux: Any = None


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
    return Centre(galaxies=joined(lens.galaxies, small))


def group(uniform: Array, lens: Lens, sky: Sky) -> Centre:
    """Returns the same galaxy among four more red ones, as in the middle of a group or cluster."""
    own = uniform[:24].reshape(6, 4, -1)
    reach = half_width(sky.observation, sky.survey)
    return Centre(
        galaxies=joined(
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
        galaxies=joined(
            galaxy(
                bulge, 0.0, 0.0, between(uniform[13], 0.5, 1.0), angle,
                radius * np.where(is_elliptical, 1.0, 0.4), between(uniform[14], 2.0, 5.0),
            ),
            galaxy(disc, 0.0, 0.0, between(uniform[15], 0.25, 1.0), angle, radius, 1.0),
            galaxy(
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
        galaxies=galaxy(
            bulge_share * bulge, 0.0, 0.0, between(uniform[6], 0.75, 1.0), angle, 0.35 * width, 2.5
        ),
        swirls=swirl(
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
        galaxies=joined(
            lens.galaxies,
            galaxy(0.2 * light, 0.0, 0.0, inclined, angle, disc_radius, 1.0),
        ),
        swirls=swirl(
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
        return swirl(
            light, x=x, y=y, axis_ratio=between(uniform[6 + which], 0.4, 1.0),
            angle=np.pi * uniform[8 + which], is_ring=1.0, ring=tail_radius[which],
            width=0.16 * tail_radius[which], smooth=0.02, sharpness=2.0,
            phase=2 * np.pi * uniform[10 + which],
        )  # fmt: skip

    return Centre(
        galaxies=joined(
            lens.galaxies,
            galaxy(
                second, x, y, between(uniform[12], 0.4, 1.0), np.pi * uniform[13],
                between(uniform[14], 0.3, 0.9), 2.5,
            ),
        ),
        swirls=joined(tail(0.6 * light, 0, x / 2, y / 2), tail(0.4 * light, 1, x, y)),
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
        galaxies=joined(
            galaxy(
                (1 - bulge_share) * disc, 0.0, 0.0, axis_ratio, angle,
                length * np.sqrt(axis_ratio), 1.0,
            ),
            galaxy(bulge_share * bulge, 0.0, 0.0, 0.8, angle, 0.3 * length, 2.5),
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


def draw_centres(uniform: Array, kind: Array, lens: Lens, lens_rows: Array, sky: Sky) -> Centre:
    """Returns what stands in the middle of pictures of the kinds KINDS[kind] (n,).

    `lens` are the deflectors of the pictures `lens_rows`; `uniform` is (CENTRE_UNIFORMS, n).
    """
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
    shape = sky.observation.fwhm.shape
    return Centre(
        galaxies=dark(Galaxies, CENTRAL_GALAXIES, *shape),
        swirls=dark(Swirls, SWIRLS, *shape),
        source=dark(Galaxies, SOURCE_COMPONENTS, *shape),
        mass=no_mass(shape[1]),
        star_flux=np.zeros_like(sky.observation.fwhm),
    )


def no_mass(count: int) -> Mass:
    """Returns the mass of pictures (count,) without a lens."""
    zero, one, none = np.zeros(count), np.ones(count), np.zeros((PERTURBERS, count))
    return Mass(*(v.copy() for v in (zero, 2 * one, one, zero, zero, zero, none, none, none)))
