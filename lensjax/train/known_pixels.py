"""What a member keeps of the pixels of cutouts that it was validated on: scoring tells by it which
cutouts are unlike all that the member knows.
"""

import dataclasses

import jax
import numpy as np

from lensjax.data.brightness import LEVEL, measure, noise_unit
from lensjax.data.on_device import Inputs, Transform
from lensjax.data.pixel_statistics import STATISTICS, pixel_statistics
from lensjax.train.data import READING_BATCH, Labelled
from lensjax.train.pictures import as_picture

MOST_KNOWN = 4000
# The side of a member's pixel over that of the pixels of a picture, where it is resampled.
FINER = 0.85
PICTURE = list(STATISTICS).index("picture")

_pixel_statistics = jax.jit(pixel_statistics)
_as_pictures = jax.jit(jax.vmap(as_picture))


def known_pixels(data: Labelled, pictures: bool) -> np.ndarray:
    """Returns the `pixel_statistics` (m, statistic) float32 of cutouts without an artefact, at most
    MOST_KNOWN of them, drawn by a fixed seed.

    With `pictures`, those of 8-bit colour pictures of the same cutouts come after them, of which
    every second is resampled, as users' are where their pixels are not those of the member.
    """
    is_clean = np.ones(len(data), bool) if data.has_artefact is None else ~data.has_artefact
    rows = np.random.default_rng(0).permutation(np.flatnonzero(is_clean))[:MOST_KNOWN]
    data = data.take(np.sort(rows))
    known = statistics(data, data.transform)
    if not pictures:
        return known
    fluxes = np.flatnonzero(known[:, PICTURE] == 0)
    same, other = (pictured(data.take(own)) for own in (fluxes[::2], fluxes[1::2]))
    of_pictures = statistics(same, data.transform), statistics(other, resampled(data.transform))
    return np.concatenate([known, *of_pictures])


def statistics(data: Labelled, transform: Transform) -> np.ndarray:
    """Returns the `pixel_statistics` (n, statistic) float32 of cutouts as a transform has them."""
    parts = [np.empty((len(STATISTICS), 0), np.float32)]
    for batch in data.in_order(min(READING_BATCH, len(data))) if len(data) else ():
        inputs = Inputs((batch["images"],), (batch["brightness"],), (transform,))
        parts.append(np.asarray(_pixel_statistics(inputs)))
    return np.concatenate(parts, axis=1)[:, : len(data)].T


def pictured(data: Labelled) -> Labelled:
    """Returns pictures of cutouts, each drawn by a fixed seed, and their brightness."""
    images = np.empty(data.arrays["images"].shape, np.uint8)
    keys = jax.random.split(jax.random.key(0), len(data))
    for start in range(0, len(data), READING_BATCH):
        rows = np.arange(start, min(start + READING_BATCH, len(data)))
        brightness = data.arrays["brightness"][rows]
        level, unit = brightness[..., LEVEL], noise_unit(brightness)
        images[rows] = _as_pictures(keys[rows], data.arrays["images"][rows], level, unit)
    brightness = measure(images, *data.transform.measured)
    arrays = data.arrays | {"images": images, "brightness": brightness}
    return dataclasses.replace(data, arrays=arrays)


def resampled(transform: Transform) -> Transform:
    """Returns a transform to pixels FINER times as large."""
    geometry = transform.geometry
    other = dataclasses.replace(geometry, ratio=FINER * geometry.ratio, action="resampled")
    return dataclasses.replace(transform, geometry=other)
