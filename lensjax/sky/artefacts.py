"""What goes wrong with pictures: columns that bleed, trails, and pixels without data.

They come upon lenses and others alike, so that none of them tells a class. Pixels without data are
exactly zero. Numbers were chosen by eye.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lensjax.sky.population import between
from lensjax.sky.survey import Observation, Survey

ARTEFACTS = ("", "saturated", "trail", "edge", "missing_band", "border")
ARTEFACT_UNIFORMS = 9


def with_artefact(
    uniform: jax.Array, image: jax.Array, observation: Observation, survey: Survey
) -> tuple[jax.Array, jax.Array]:
    """Returns an image (size, size, band) with one artefact or none, and which of ARTEFACTS.

    `uniform` is (ARTEFACT_UNIFORMS,).
    """
    share = uniform[0] / max(survey.artefact_fraction, 1e-9)
    which = jnp.where(share < 1, 1 + jnp.floor(5 * share), 0).astype(int)
    size, bands = survey.size, len(survey.bands)
    y, x = (axis[:, :, None] for axis in np.mgrid[:size, :size].astype(np.float32))
    angle = 2 * jnp.pi * uniform[1]
    from_middle = x - size / 2, y - size / 2
    across = jnp.cos(angle) * from_middle[0] + jnp.sin(angle) * from_middle[1]
    band = (jnp.arange(bands) == jnp.floor(bands * uniform[2]))[None, None]
    sky_sigma = observation.sky_sigma[None, None]

    # A column from some row on, far above the sky, in every band otherwise.
    column = jnp.abs(x - size * uniform[3]) < between(uniform[4], 0.6, 2.6)
    beyond = (y - size * uniform[5]) * (uniform[6] - 0.5) > 0
    by_band = uniform[7] * jnp.arange(1, bands + 1) % 1
    bright = sky_sigma * 10 ** between(by_band, 1, 3)[None, None]
    # A line in one band: what moved during its exposures.
    place = size * between(uniform[3], -0.4, 0.4)
    line = jnp.exp(-0.5 * ((across - place) / between(uniform[4], 0.7, 2.0)) ** 2)
    trail = line * band * sky_sigma * between(uniform[7], 3, 30)
    added = jnp.where(which == 1, column * beyond * bright, jnp.where(which == 2, trail, 0.0))

    widths = jnp.floor(0.25 * size * uniform[5:9] ** 2)
    border = (x < widths[0]) | (y < widths[1]) | (x >= size - widths[2]) | (y >= size - widths[3])
    lost = (
        ((which == 3) & (across > size * between(uniform[3], 0.12, 0.5)))
        | ((which == 4) & band)
        | ((which == 5) & border)
    )
    return jnp.where(lost, 0.0, image + added), which
