"""What the compiled step makes of a batch of cutouts before a network sees them.

Cutouts travel as they are where all of them have one size, else fitted by the host; in the type
of their files where that is narrower than float32. The rest is done here, once for training,
validation and inference: geometry, level and noise, stretch, normalisation.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lensjax.data.preprocess import Geometry, Preparation, border, centred, dense_weights
from lensjax.data.zscale import zscale_limits

# The noise cannot be told from less than one grey level of an eight-bit picture.
NOISE_FLOOR = 1.0 / 256.0

# A standard deviation from a median absolute deviation, for normal noise.
_SIGMA_PER_MAD = 1.4826

# Pixels are counted in bytes first, in `_PARTS` parts of a multiple of `_LANES` pixels each: the
# widest vectors that processors have, and sums that fit a signed byte.
_LANES, _PARTS = 64, 32

# On a CPU so many rows are done with before the next, since each is read 32 times.
_CACHED_ROWS = 32

_LOWEST, _HIGHEST = np.iinfo(np.int32).min, np.iinfo(np.int32).max


@dataclass(frozen=True)
class Canvas:
    """Images on their way to the device: (height, width, channel) and the name of their type."""

    shape: tuple[int, int, int]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Of one image."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class View:
    """What a preparation takes of the canvases of a batch.

    `canvas`: which of them. `channels`: those of the preparation's bands. `geometry`: from the
    canvas to the member's grid, which are the same where the host has fitted the cutouts.
    """

    preparation: Preparation
    canvas: int
    channels: tuple[int, ...]
    geometry: Geometry


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inputs:
    """A batch on its way to the device, every array with the batch in front.

    `images`: per canvas, (batch, height, width, channel) without NaN. `inside`: per canvas,
    (batch, 4) int32, first and last but one row, then column, that hold sky and no padding.
    `views`: one per preparation, static in what is compiled. The arrays are NumPy's as long as
    they are on the host.
    """

    images: tuple[np.ndarray, ...]
    inside: tuple[np.ndarray, ...]
    views: tuple[View, ...] = field(metadata={"static": True})


@dataclass(frozen=True)
class Layout:
    """The form of the batches of a run, known before the first is read."""

    canvases: tuple[Canvas, ...]
    views: tuple[View, ...]

    def blank(self, batch_size: int) -> Inputs:
        """A batch of zeros, all of it sky."""
        whole = [(0, canvas.shape[0], 0, canvas.shape[1]) for canvas in self.canvases]
        return Inputs(
            tuple(np.zeros((batch_size, *c.shape), c.dtype) for c in self.canvases),
            tuple(np.tile(np.array(edges, np.int32), (batch_size, 1)) for edges in whole),
            self.views,
        )


def prepare(inputs: Inputs) -> list[Array]:
    """Per view, images (batch, S, S, band) float32 as `seen` makes them."""
    return [seen(v, inputs.images[v.canvas], inputs.inside[v.canvas]) for v in inputs.views]


def seen(view: View, images: ArrayLike, inside: ArrayLike) -> Array:
    """What a network sees, (batch, S, S, band) float32, of the images and `inside` of a canvas:
    (stretched - mean) / std per band."""
    preparation = view.preparation
    x = stretched(preparation.stretch, preparation.softening, *on_grid(view, images, inside))
    mean = jnp.asarray(preparation.mean, jnp.float32).reshape(1, 1, 1, -1)
    std = jnp.asarray(preparation.std, jnp.float32).reshape(1, 1, 1, -1)
    return (x - mean) / std


def stretched(stretch: str, softening: float, images: Array, inside: Array) -> Array:
    """Images (batch, S, S, band) float32 with their brightness on another scale, band by band.

    With the signal (image - level) / (softening * noise), level and noise as `level_and_noise` has
    them: `asinh` is arcsinh(signal), linear in the noise and logarithmic in the bright cores
    (Lupton et al. 2004, PASP 116, 133); `log` log(1 + signal), what lies below the level as the
    level; `linear` the signal itself. `percentile` is linear from 0 at the 0.5th to 1 at the 99.5th
    percentile of what is `inside`, and clipped there; `zscale` likewise between `zscale_limits`.
    `none` leaves the images as they are.
    """
    if stretch == "none":
        return images
    if stretch in LIMITS:
        low, high = (limit[:, None, None, :] for limit in LIMITS[stretch](images, inside))
        return jnp.clip((images - low) / jnp.where(high > low, high - low, 1.0), 0.0, 1.0)
    level, noise = (value[:, None, None, :] for value in level_and_noise(images, inside))
    signal = (images - level) / noise / softening
    if stretch == "log":
        return jnp.log1p(jnp.maximum(signal, 0.0))
    return jnp.arcsinh(signal) if stretch == "asinh" else signal


def percentile_limits(images: Array, inside: Array) -> tuple[Array, Array]:
    """The 0.5th and 99.5th percentile, each (batch, band) float32, of what is `inside` of images
    (batch, height, width, band), between two values as NumPy has it."""
    rows, count = _sky_rows(images, inside)
    # In whole numbers: in float32 the place of a pixel among many would be off by one.
    whole = jnp.stack([(count - 1) // 200, (199 * (count - 1)) // 200], axis=1)
    part = jnp.stack([(count - 1) % 200, (199 * (count - 1)) % 200], axis=1) / 200.0
    above = jnp.minimum(whole + 1, (count - 1)[:, None])
    found = order_statistics(rows, jnp.concatenate([whole, above], axis=1))
    limits = found[:, :2] + part * (found[:, 2:] - found[:, :2])
    return limits[:, 0].reshape(len(images), -1), limits[:, 1].reshape(len(images), -1)


LIMITS = {"percentile": percentile_limits, "zscale": zscale_limits}
"""Stretches that are linear between two limits, and where these are found."""


def on_grid(view: View, images: ArrayLike, inside: ArrayLike) -> tuple[Array, Array]:
    """The images of a canvas on the grid of a view, (batch, S, S, band) float32, and `inside`.

    As `preprocess.fit` does it, to rounding.
    """
    images, geometry = jnp.asarray(images), view.geometry
    if view.channels != tuple(range(images.shape[-1])):
        images = images[..., np.array(view.channels)]
    images = images.astype(jnp.float32)
    if geometry.action == "as is":
        return images, jnp.asarray(inside)
    if geometry.ratio == 1.0:
        rows, columns = (centred(length, geometry.size)[0] for length in geometry.shape)
        sky = images[:, rows, columns]
    else:
        # All of float32: the units for matrices would round to fewer bits.
        product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        by_row, by_column = dense_weights(geometry)
        sky = product("sw,bhwc->bhsc", by_column, product("sh,bhwc->bswc", by_row, images))
    # What the step fits is sky from edge to edge.
    edges = np.array([(axis.start, axis.stop) for axis in geometry.inside], np.int32).reshape(1, 4)
    new_inside = jnp.tile(edges, (images.shape[0], 1))
    if not geometry.pads:
        return sky, new_inside
    margins = [(axis.start, geometry.size - axis.stop) for axis in geometry.inside]
    padded = jnp.pad(sky, ((0, 0), *margins, (0, 0)))
    is_sky = _mask(new_inside[:1], (geometry.size, geometry.size))
    return jnp.where(is_sky, padded, background_level(images)[:, None, None, :]), new_inside


def background_level(images: Array) -> Array:
    """(batch, band) float32: the median of the border of images (batch, height, width, band)."""
    batch, height, width, bands = images.shape
    strips = [images[:, *strip].reshape(batch, -1, bands) for strip in border((height, width))]
    edge = jnp.concatenate(strips, axis=1).swapaxes(1, 2).reshape(batch * bands, -1)
    middle = np.array([(edge.shape[1] - 1) // 2, edge.shape[1] // 2], np.int32)
    ranks = jnp.tile(middle, (batch * bands, 1))
    return _mean(*order_statistics(edge, ranks).T).reshape(batch, bands)


def level_and_noise(images: ArrayLike, inside: ArrayLike) -> tuple[Array, Array]:
    """Level and noise of images (batch, height, width, band), each (batch, band) float32.

    Per band the median and 1.4826 times the median absolute deviation of what is `inside`, and no
    less noise than a 256th of what the 99.5th percentile (or, in an emptier picture, the maximum)
    rises above the level: the sky of an eight-bit picture is clipped to black and has no deviation
    at all. Both scale with the flux, so that the stretched image does not depend on its unit.
    """
    images = jnp.asarray(images, jnp.float32)
    batch, bands = images.shape[0], images.shape[-1]
    rows, count = _sky_rows(images, jnp.asarray(inside))
    middle = jnp.stack([(count - 1) // 2, count // 2], axis=1)
    bright_ranks = jnp.stack([(199 * (count - 1) + 100) // 200, count - 1], axis=1)
    ranks = jnp.concatenate([middle, bright_ranks], axis=1)
    lower, upper, bright, highest = order_statistics(rows, ranks).T
    level = _mean(lower, upper)
    deviation = jnp.abs(rows - level[:, None])
    noise = _SIGMA_PER_MAD * _mean(*order_statistics(deviation, middle).T)
    rise = jnp.where(bright - level > 0, bright, highest) - level
    scale = jnp.maximum(noise, NOISE_FLOOR * rise)
    scale = jnp.where(scale > 0, scale, 1.0)
    return level.reshape(batch, bands), scale.reshape(batch, bands)


def _sky_rows(images: Array, inside: Array) -> tuple[Array, Array]:
    """The pixels of each image and band in a row, (batch * band, height * width), those that are
    not `inside` infinite, and how many are, (batch * band,)."""
    batch, height, width, bands = images.shape
    # Padding is no sky: it would hide the noise. Infinite, it ends the order.
    sky = jnp.where(_mask(inside, (height, width)), images, jnp.inf)
    count = jnp.repeat((inside[:, 1] - inside[:, 0]) * (inside[:, 3] - inside[:, 2]), bands)
    return jnp.moveaxis(sky, -1, 1).reshape(batch * bands, -1), count


def order_statistics(rows: Array, ranks: Array) -> Array:
    """(row, rank) float32: what stands at the `ranks` (row, rank) of each of the sorted `rows`.

    `rows` (row, value) float32 without NaN.
    """

    def blocks(rows: Array, ranks: Array) -> Array:
        return jax.lax.map(lambda row: _bisect(*row), (rows, ranks), batch_size=_CACHED_ROWS)

    return jax.lax.platform_dependent(rows, ranks, cpu=blocks, default=jax.vmap(_bisect))


def _bisect(row: Array, ranks: Array) -> Array:
    """(rank,) float32: the order statistics of one row (value,).

    Exact: the bits of a float, read as an integer, keep the order, so that 32 counts of what is
    not above a middle leave one value. Many times faster than XLA's sort on CPUs.
    """
    keys = _swap_order(jax.lax.bitcast_convert_type(row, jnp.int32))
    lanes = _LANES * math.ceil(row.size / (_LANES * _PARTS))
    parts = math.ceil(row.size / lanes)
    keys = jnp.pad(keys, (0, parts * lanes - row.size), constant_values=_HIGHEST)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)
        not_above = (keys[None, :] <= middle[:, None]).astype(jnp.int8)
        by_lane = not_above.reshape(-1, parts, lanes).sum(1, dtype=jnp.int8)
        enough = by_lane.sum(1, dtype=jnp.int32) > ranks
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    bounds = jnp.full_like(ranks, _LOWEST), jnp.full_like(ranks, _HIGHEST)
    found, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    return jax.lax.bitcast_convert_type(_swap_order(found), jnp.float32)


def _swap_order(bits: Array) -> Array:
    """int32 in the order of the floats that have these bits; from those, the bits again."""
    return bits ^ ((bits >> 31) & jnp.int32(_HIGHEST))


def _mean(lower: Array, upper: Array) -> Array:
    """The median, of the two values in the middle."""
    return (lower + upper) / 2


def _mask(inside: Array, shape: tuple[int, int]) -> Array:
    """(batch, *shape, 1) bool: the pixels between the edges (batch, 4)."""
    row, column = (jnp.arange(length)[None, :] for length in shape)
    rows = (row >= inside[:, 0:1]) & (row < inside[:, 1:2])
    columns = (column >= inside[:, 2:3]) & (column < inside[:, 3:4])
    return (rows[:, :, None] & columns[:, None, :])[..., None]
