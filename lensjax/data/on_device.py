"""The preprocessing of a batch of cutouts in the compiled step.

Cutouts travel as they are where all of them have one size, else fitted by the host; in the type
of their files where that is narrower than float32. The rest is done here, once for training,
validation and inference: geometry, stretch, normalisation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lensjax.data import on_tile
from lensjax.data.brightness import LEVEL, measure_in_step, sorted_quantile, stretched
from lensjax.data.on_tile import Places, Sheet, SheetSpec
from lensjax.data.preprocess import Geometry, Preprocessing


@dataclass(frozen=True)
class ImageSpec:
    """Images on their way to the device: (height, width, channel) and the name of their type.

    `noise_free`: whether their noise is drawn there.
    """

    shape: tuple[int, int, int]
    dtype: str
    noise_free: bool = False

    @property
    def nbytes(self) -> int:
        """Of one image."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Transform:
    """How a batch's images become what a member sees.

    `image`: which array of images, by number. `channels`: those of the preprocessing's bands.
    `geometry`: from the images to the member's grid; `as is` where the host has fitted them.
    """

    preprocessing: Preprocessing
    image: int
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

    `images`: arrays (batch, height, width, channel) without NaN. `brightness`: per transform,
    (batch, band, 4) float32, as `brightness.measure` has it; none where the step is to measure it.
    `transforms`: one per preprocessing, static in what is compiled. `logits`: (batch, member,
    sample) float32 of members that have seen the cutouts before, None where there are none. Where
    cutouts are cut from tiles, `places` says where they lie in the `sheets`, of which a batch has
    no axis, and which of the images stand for them. The arrays are NumPy's as long as they are on
    the host.
    """

    images: tuple[np.ndarray, ...]
    brightness: tuple[np.ndarray, ...]
    transforms: tuple[Transform, ...] = field(metadata={"static": True})
    logits: np.ndarray | None = None
    places: Places | None = None
    sheets: tuple[Sheet, ...] = ()

    def mapped(self, each: Callable, of_sheets: Callable = lambda array: array) -> "Inputs":
        """Returns the inputs with `each` done to every array that has the batch in front, and
        `of_sheets` to the others."""
        of_batch = jax.tree.map(each, replace(self, sheets=()))
        return replace(of_batch, sheets=jax.tree.map(of_sheets, self.sheets))


@dataclass(frozen=True)
class InputSpec:
    """The form of the batches of a run, known before the first is read.

    `logits`: the number of members whose logits come with the cutouts, and of their samples.
    `sheets`: the form of the tiles that cutouts are cut from, None where they come as they are.
    `measured`: whether the host measures their brightness.
    """

    image_specs: tuple[ImageSpec, ...]
    transforms: tuple[Transform, ...]
    logits: tuple[int, int] | None = None
    sheets: SheetSpec | None = None
    measured: bool = True

    def blank(self, batch_size: int) -> Inputs:
        """Returns a batch of zeros."""
        bands = [len(transform.channels) for transform in self.transforms if self.measured]
        return Inputs(
            tuple(np.zeros((batch_size, *c.shape), c.dtype) for c in self.image_specs),
            tuple(np.zeros((batch_size, count, 4), np.float32) for count in bands),
            self.transforms,
            np.zeros((batch_size, *self.logits), np.float32) if self.logits else None,
            self.sheets and self.sheets.places(batch_size),
            (self.sheets.blank(),) * on_tile.SHEETS if self.sheets else (),
        )


def completed(inputs: Inputs) -> Inputs:
    """Returns inputs whose cutouts are cut out of the tiles, and their brightness measured, where
    the host has left that to the step."""
    images: Any = inputs.images
    if inputs.places is not None:
        images = (on_tile.cut(inputs.sheets, inputs.places, images[0]),)
    brightness: Any = inputs.brightness
    if not brightness:
        brightness = tuple(
            measure_in_step(
                images[transform.image][..., np.array(transform.channels)],
                transform.geometry,
                sorted_quantile,
            )
            for transform in inputs.transforms
        )
    return replace(inputs, images=images, brightness=brightness, places=None, sheets=())


def prepare(inputs: Inputs) -> list[Array]:
    """Returns per transform what its network sees, (batch, S, S, band) float32."""
    inputs = completed(inputs)
    pairs = zip(inputs.transforms, inputs.brightness, strict=True)
    return [
        seen(transform, inputs.images[transform.image], brightness)
        for transform, brightness in pairs
    ]


def seen(transform: Transform, images: ArrayLike, brightness: ArrayLike) -> Array:
    """Returns what a network sees, (batch, S, S, band) float32, of images and their brightness
    (batch, band, 4): (stretched - mean) / std per band."""
    preprocessing = transform.preprocessing
    images = on_grid(transform, images, brightness)
    images = stretched(preprocessing, images, brightness, transform.geometry.noise)
    mean, std = (
        jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return (images - mean) / std


def on_grid(transform: Transform, images: ArrayLike, brightness: ArrayLike) -> Array:
    """Returns images on the grid of a transform, (batch, S, S, band) float32, as `preprocess.fit`
    does it, to rounding."""
    images, geometry = jnp.asarray(images), transform.geometry
    if transform.channels != tuple(range(images.shape[-1])):
        images = images[..., np.array(transform.channels)]
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
    padded = jnp.broadcast_to(level, (images.shape[0], size, size, images.shape[-1]))
    return padded.at[:, *geometry.bounds].set(sky)
