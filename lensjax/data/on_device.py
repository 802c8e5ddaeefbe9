"""The preprocessing of a batch of cutouts in the compiled step.

Cutouts travel as they are where all of them have one size, else fitted by the host; in the type
of their files where that is narrower than float32. The rest is done here, once for training,
validation and inference: geometry, stretch, normalisation.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import DTypeLike

from lensjax.data.brightness import LEVEL, stretched
from lensjax.data.preprocess import Geometry, Preprocessing

# Arrays that begin at a multiple of so many bytes are taken by a CPU's device without a copy.
_ALIGNMENT = 64


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

    @property
    def measured(self) -> tuple[Geometry, tuple[int, ...], str]:
        """Returns how the brightness of its images is measured, as `brightness.measure` takes it:
        for all stretches alike, but for zscale."""
        is_zscale = self.preprocessing.stretch == "zscale"
        return self.geometry, self.channels, "zscale" if is_zscale else "percentile"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inputs:
    """A batch on its way to the device, every array with the batch in front.

    `images`: per canvas, (batch, height, width, channel) without NaN. `brightness`: per view,
    (batch, band, 4) float32, as `brightness.measure` has it. `views`: one per preprocessing, static
    in what is compiled. The arrays are NumPy's as long as they are on the host.
    """

    images: tuple[np.ndarray, ...]
    brightness: tuple[np.ndarray, ...]
    views: tuple[View, ...] = field(metadata={"static": True})


@dataclass(frozen=True)
class Layout:
    """The form of the batches of a run, known before the first is read."""

    canvases: tuple[Canvas, ...]
    views: tuple[View, ...]

    def blank(self, batch_size: int) -> Inputs:
        """Returns a batch of zeros."""
        bands = [len(view.channels) for view in self.views]
        return Inputs(
            tuple(np.zeros((batch_size, *c.shape), c.dtype) for c in self.canvases),
            tuple(np.zeros((batch_size, count, 4), np.float32) for count in bands),
            self.views,
        )


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Returns zeros that begin at a multiple of `_ALIGNMENT` bytes."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(nbytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + nbytes].view(dtype).reshape(shape)


def prepare(inputs: Inputs) -> list[Array]:
    """Returns per view what its network sees, (batch, S, S, band) float32."""
    pairs = zip(inputs.views, inputs.brightness, strict=True)
    return [seen(view, inputs.images[view.canvas], brightness) for view, brightness in pairs]


def seen(view: View, images: ArrayLike, brightness: ArrayLike) -> Array:
    """Returns what a network sees, (batch, S, S, band) float32, of the images of a canvas and their
    brightness (batch, band, 4): (stretched - mean) / std per band."""
    preprocessing = view.preprocessing
    images = on_grid(view, images, brightness)
    images = stretched(preprocessing, images, brightness, view.geometry.noise)
    mean, std = (
        jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return (images - mean) / std


def on_grid(view: View, images: ArrayLike, brightness: ArrayLike) -> Array:
    """Returns the images of a canvas on the grid of a view, (batch, S, S, band) float32, as
    `preprocess.fit` does it, to rounding."""
    images, geometry = jnp.asarray(images), view.geometry
    if view.channels != tuple(range(images.shape[-1])):
        images = images[..., np.array(view.channels)]
    images = images.astype(jnp.float32)
    if geometry.action == "as is":
        return images
    if geometry.ratio == 1.0:
        sky = images[:, *geometry.shown]
    else:
        # All of float32: the units for matrices would round to fewer bits.
        product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        by_row, by_column = geometry.weights
        sky = product("sw,bhwc->bhsc", by_column, product("sh,bhwc->bswc", by_row, images))
    if not geometry.pads:
        return sky
    size = geometry.size
    level = jnp.asarray(brightness)[:, None, None, :, LEVEL]
    padded = jnp.broadcast_to(level, (len(images), size, size, images.shape[-1]))
    return padded.at[:, *geometry.bounds].set(sky)
