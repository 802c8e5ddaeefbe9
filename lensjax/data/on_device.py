"""What the compiled step makes of a batch of cutouts before a network sees them.

Cutouts travel as they are where all of them have one size, else fitted by the host; in the type
of their files where that is narrower than float32. The rest is done here, once for training,
validation and inference: geometry, level and noise, stretch, normalisation.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import DTypeLike

from lensjax.data.order_statistics import count_not_above, order_statistic
from lensjax.data.preprocess import Geometry, Preprocessing, border, centred, dense_weights
from lensjax.data.zscale import zscale_limits

# The noise cannot be told from less than one grey level of an eight-bit picture.
NOISE_FLOOR = 1.0 / 256.0

# A standard deviation from a median absolute deviation, for normal noise.
_SIGMA_PER_MAD = 1.4826

# Arrays that begin at a multiple of so many bytes are taken by a CPU's device without a copy.
_ALIGNMENT = 64

# On a CPU planes of so many bytes are done with before the next, since each is read many times. On
# two cores or fewer it is one plane: about half the work, all of it done by one core.
_CORES = os.cpu_count() or 1
_CACHED = 2**22 * _CORES if _CORES > 2 else 0


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
    """What a preprocessing takes of the canvases of a batch.

    `canvas`: which of them. `channels`: those of the preprocessing's bands. `geometry`: from the
    canvas to the member's grid, which are the same where the host has fitted the cutouts.
    """

    preprocessing: Preprocessing
    canvas: int
    channels: tuple[int, ...]
    geometry: Geometry


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inputs:
    """A batch on its way to the device, every array with the batch in front.

    `images`: per canvas, (batch, height, width, channel) without NaN. `bounds`: per canvas,
    (batch, 4) int32, first and last but one row, then column, that hold sky and no padding.
    `views`: one per preprocessing, static in what is compiled. The arrays are NumPy's as long as
    they are on the host.
    """

    images: tuple[np.ndarray, ...]
    bounds: tuple[np.ndarray, ...]
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
            tuple(aligned_zeros((batch_size, *c.shape), c.dtype) for c in self.canvases),
            tuple(np.tile(np.array(edges, np.int32), (batch_size, 1)) for edges in whole),
            self.views,
        )


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Zeros that begin at a multiple of `_ALIGNMENT` bytes."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(nbytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + nbytes].view(dtype).reshape(shape)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins there, which a CPU's device takes without another one."""
    room = aligned_zeros(array.shape, array.dtype)
    room[...] = array
    return room


def prepare(inputs: Inputs) -> list[Array]:
    """Per view, images (batch, S, S, band) float32 as `seen` makes them; views that differ in mean
    and standard deviation alone share the rest."""
    commons = [_common(view) for view in inputs.views]
    found = {
        common: seen(common, inputs.images[common.canvas], inputs.bounds[common.canvas])
        for common in dict.fromkeys(commons)
    }
    pairs = zip(commons, inputs.views, strict=True)
    return [_normalised(found[common], view.preprocessing) for common, view in pairs]


def _common(view: View) -> View:
    """The view with a mean of zero and a standard deviation of one."""
    bands = len(view.preprocessing.bands)
    return replace(view, preprocessing=view.preprocessing.normalised([0.0] * bands, [1.0] * bands))


def seen(view: View, images: ArrayLike, bounds: ArrayLike) -> Array:
    """What a network sees, (batch, S, S, band) float32, of the images and `bounds` of a canvas:
    (stretched - mean) / std per band."""
    preprocessing = view.preprocessing
    x = stretched(preprocessing.stretch, preprocessing.softening, *on_grid(view, images, bounds))
    return _normalised(x, preprocessing)


def _normalised(x: Array, preprocessing: Preprocessing) -> Array:
    mean = jnp.asarray(preprocessing.mean, jnp.float32).reshape(1, 1, 1, -1)
    std = jnp.asarray(preprocessing.std, jnp.float32).reshape(1, 1, 1, -1)
    return (x - mean) / std


def stretched(stretch: str, softening: float, images: Array, bounds: Array) -> Array:
    """Images (batch, S, S, band) float32 with their brightness on another scale, band by band.

    With the signal (image - level) / (softening * noise), level and noise as `level_and_noise` has
    them: `asinh` is arcsinh(signal), linear in the noise and logarithmic in the bright cores
    (Lupton et al. 2004, PASP 116, 133); `log` log(1 + signal), what lies below the level as the
    level; `linear` the signal itself. `percentile` is linear from 0 at the 0.5th to 1 at the 99.5th
    percentile of what is `bounds`, and clipped there; `zscale` likewise between `zscale_limits`.
    `none` leaves the images as they are.
    """
    if stretch == "none":
        return images
    if stretch in LIMITS:
        low, high = (limit[:, None, None, :] for limit in LIMITS[stretch](images, bounds))
        return jnp.clip((images - low) / jnp.where(high > low, high - low, 1.0), 0.0, 1.0)
    level, noise = (value[:, None, None, :] for value in level_and_noise(images, bounds))
    signal = (images - level) / noise / softening
    if stretch == "log":
        return jnp.log1p(jnp.maximum(signal, 0.0))
    return _arcsinh(signal) if stretch == "asinh" else signal


def _arcsinh(x: Array) -> Array:
    """The inverse hyperbolic sine, by its definition: in half the time of XLA's, which keeps more
    digits of what is close to zero than any noise has."""
    size = jnp.abs(x)
    # Beyond, the square may be infinite and the one added to it is lost long since.
    is_large = size > 1e9
    argument = jnp.where(is_large, size, size + jnp.sqrt(size * size + 1.0))
    return jnp.copysign(jnp.log(argument) + jnp.where(is_large, math.log(2.0), 0.0), x)


def percentile_limits(images: Array, bounds: Array) -> tuple[Array, Array]:
    """The 0.5th and 99.5th percentile, each (batch, band) float32, of what is `bounds` of images
    (batch, height, width, band), between two values as NumPy has it."""

    def limit(sky: Array, count: Array, share: int) -> Array:
        # In whole numbers: in float32 the place of a pixel among many would be off by one.
        place = share * (count - 1)
        value, following = order_statistic(sky, place // 200)
        part = (place % 200) / 200.0
        return jnp.where(part > 0, value + part * (following - value), value)

    def limits(plane: Array, edges: Array) -> tuple[Array, Array]:
        sky, count = _sky(plane, edges)
        return limit(sky, count, 1), limit(sky, count, 199)

    return _of_planes(limits, images, bounds)


LIMITS = {"percentile": percentile_limits, "zscale": zscale_limits}
"""Stretches that are linear between two limits, and where these are found."""


def on_grid(view: View, images: ArrayLike, bounds: ArrayLike) -> tuple[Array, Array]:
    """The images of a canvas on the grid of a view, (batch, S, S, band) float32, and `bounds`.

    As `preprocess.fit` does it, to rounding.
    """
    images, geometry = jnp.asarray(images), view.geometry
    if view.channels != tuple(range(images.shape[-1])):
        images = images[..., np.array(view.channels)]
    images = images.astype(jnp.float32)
    if geometry.action == "as is":
        return images, jnp.asarray(bounds)
    if geometry.ratio == 1.0:
        rows, columns = (centred(length, geometry.size)[0] for length in geometry.shape)
        sky = images[:, rows, columns]
    else:
        # All of float32: the units for matrices would round to fewer bits.
        product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        by_row, by_column = dense_weights(geometry)
        sky = product("sw,bhwc->bhsc", by_column, product("sh,bhwc->bswc", by_row, images))
    # What the step fits is sky from edge to edge.
    edges = np.array([(axis.start, axis.stop) for axis in geometry.bounds], np.int32).reshape(1, 4)
    new_inside = jnp.tile(edges, (images.shape[0], 1))
    if not geometry.pads:
        return sky, new_inside
    margins = [(axis.start, geometry.size - axis.stop) for axis in geometry.bounds]
    padded = jnp.pad(sky, ((0, 0), *margins, (0, 0)))
    is_sky = sky_mask(new_inside[0], (geometry.size, geometry.size))[None, :, :, None]
    return jnp.where(is_sky, padded, background_level(images)[:, None, None, :]), new_inside


def background_level(images: Array) -> Array:
    """(batch, band) float32: the median of the border of images (batch, height, width, band)."""
    batch, height, width, bands = images.shape
    strips = [images[:, *strip].reshape(batch, 1, -1, bands) for strip in border((height, width))]
    edge = jnp.concatenate(strips, axis=2)
    whole = jnp.array([[0, 1, 0, edge.shape[2]]], jnp.int32)
    return _of_planes(
        lambda line, edges: _median(*_sky(line, edges)), edge, jnp.tile(whole, (batch, 1))
    )


def level_and_noise(images: ArrayLike, bounds: ArrayLike) -> tuple[Array, Array]:
    """Level and noise of images (batch, height, width, band), each (batch, band) float32.

    Per band the median and 1.4826 times the median absolute deviation of what is `bounds`, and no
    less noise than a 256th of what the 99.5th percentile (or, in an emptier picture, the maximum)
    rises above the level: the sky of an eight-bit picture is clipped to black and has no deviation
    at all. Both scale with the flux, so that the stretched image does not depend on its unit.
    """
    images, bounds = jnp.asarray(images, jnp.float32), jnp.asarray(bounds)
    level, noise, is_clear = _of_planes(_level_and_deviation, images, bounds)
    # Most skies are so noisy that the floor does not count: it takes a search of its own.
    floor = jax.lax.cond(
        is_clear.all(),
        lambda: jnp.zeros_like(noise),
        lambda: _of_planes(_noise_floor, images, bounds, level),
    )
    scale = jnp.maximum(noise, floor)
    return level, jnp.where(scale > 0, scale, 1.0)


def _level_and_deviation(plane: Array, edges: Array) -> tuple[Array, Array, Array]:
    """The level of a plane, its median absolute deviation as a noise, and whether it is certain,
    whatever rounding does, that the latter is above the floor."""
    sky, count = _sky(plane, edges)
    level = _median(sky, count)
    noise = _SIGMA_PER_MAD * _median(jnp.abs(sky - level), count)
    rank = _bright_rank(count)
    near, at_most = (
        count_not_above(sky, limit) for limit in (level + noise / (2 * NOISE_FLOOR), level)
    )
    return level, noise, (near > rank) & (at_most <= rank)


def _noise_floor(plane: Array, edges: Array, level: Array) -> Array:
    """The least noise of a plane of this level."""
    sky, count = _sky(plane, edges)
    bright, _ = order_statistic(sky, _bright_rank(count))
    highest = jnp.where(sky < jnp.inf, sky, -jnp.inf).max()
    return NOISE_FLOOR * (jnp.where(bright > level, bright, highest) - level)


def _of_planes(function: Callable[..., Any], images: Array, bounds: Array, *of_band: Array) -> Any:
    """What `function` makes, (batch, band), of each plane (height, width) of images (batch, height,
    width, band), the edges of its image, (4,), and its own value `of_band` (batch, band)."""
    batch, height, width, bands = images.shape

    def in_blocks(images: Array, bounds: Array, *of_band: Array) -> Any:
        def of_image(row: Array) -> Any:
            def of_plane(band: Array) -> Any:
                # Taken out where it lies: to move all bands to the front first takes longer.
                here = jax.lax.dynamic_slice(images, (row, 0, 0, band), (1, height, width, 1))
                of_it = (each[row, band] for each in of_band)
                return function(here[0, :, :, 0], bounds[row], *of_it)

            return jax.lax.map(of_plane, jnp.arange(bands))

        at_once = _CACHED // (4 * height * width) or None
        return jax.lax.map(of_image, jnp.arange(batch), batch_size=at_once)

    together = jax.vmap(jax.vmap(function, (2, None, *(0 for _ in of_band))))
    return jax.lax.platform_dependent(images, bounds, *of_band, cpu=in_blocks, default=together)


def _sky(plane: Array, edges: Array) -> tuple[Array, Array]:
    """A plane, infinite outside of its edges, and the number of pixels inside."""
    # Padding is no sky: it would hide the noise. Infinite, it ends the order.
    top, bottom, left, right = edges
    return jnp.where(sky_mask(edges, plane.shape), plane, jnp.inf), (bottom - top) * (right - left)


def _bright_rank(count: Array) -> Array:
    """Where the 99.5th percentile of so many stands."""
    return (199 * (count - 1) + 100) // 200


def _median(plane: Array, count: Array) -> Array:
    """The median of the lowest `count` pixels of a plane."""
    lower, upper = order_statistic(plane, (count - 1) // 2)
    return jnp.where(count % 2 == 0, (lower + upper) / 2, lower)


def sky_mask(edges: Array, shape: tuple[int, ...]) -> Array:
    """(*shape,) bool: the pixels between the edges (4,)."""
    row, column = (jnp.arange(length) for length in shape)
    rows = (row >= edges[0]) & (row < edges[1])
    columns = (column >= edges[2]) & (column < edges[3])
    return rows[:, None] & columns[None, :]
