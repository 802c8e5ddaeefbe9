"""All that a picture shows: what stands in the middle, and the galaxies and stars around it.

Every picture is the same `Scene`: a fixed number of galaxies, swirls, stars and one lensed source,
whose flux is zero where a slot is not used. So one compiled program draws them all. Numbers here
were chosen by eye, unless a source is named. Angles in arcsec, fluxes in survey units. The last
axis of all arrays is that of pictures, n.
"""

from typing import Any, NamedTuple

import numpy as np

from lensjax.sky.kinds import CENTRE_UNIFORMS, Centre, Sky, draw_centres
from lensjax.sky.lenses import Lens
from lensjax.sky.lensing import Galaxies, Mass
from lensjax.sky.population import Array, between, lens_redshift, number_count_magnitude
from lensjax.sky.slots import Stars, Swirls, dark, joined, lit_first
from lensjax.sky.survey import half_width

FIELD_GALAXIES, FIELD_STARS = 6, 2
# Random numbers between 0 and 1 that a picture is made of.
FIELD_UNIFORMS = 11 * FIELD_GALAXIES + 5 * FIELD_STARS
SCENE_UNIFORMS = CENTRE_UNIFORMS + FIELD_UNIFORMS + 6


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


def empty_field(sky: Sky) -> tuple[Galaxies, Stars]:
    """Returns no galaxies and no stars, as `field` returns those that there are."""
    shape = sky.observation.fwhm.shape
    return dark(Galaxies, 0, *shape), dark(Stars, 0, *shape)


def compose(
    centre: Centre, around: tuple[Galaxies, Stars], uniform: Array, x: Array, y: Array
) -> Scene:
    """Returns scenes of what stands in the middle, at x and y (n,), and of the field around it.

    `uniform` (3, n) makes the angles of stamps and spikes, and how bright spikes are.
    """
    galaxies, stars = around
    at_centre = np.zeros((1, len(x)))
    return Scene(
        galaxies=lit_first(joined(centre.galaxies, galaxies)),
        swirls=centre.swirls,
        source=lit_first(centre.source),
        mass=centre.mass,
        stars=joined(Stars(centre.star_flux[None], at_centre, at_centre), stars),
        stamp_angle=2 * np.pi * uniform[0],
        spike_angle=np.pi * uniform[1],
        spike_fraction=between(uniform[2], 0.02, 0.08),
        x=x,
        y=y,
    )
