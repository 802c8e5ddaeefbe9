"""Cutouts as colour pictures show them, so that a member learns to read pictures too.

Sky servers hand out PNG and JPEG, not flux: stretched, clipped and cut to 256 levels. A member that
has seen flux alone takes the stretch for structure.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lensjax.data.brightness import LEVEL, measure, noise_unit
from lensjax.train.dataset import Labelled, room


@dataclass(frozen=True)
class Followed:
    """Images (n, height, width, band) and then their pictures, in memory or on disk, float32 when
    they are asked for."""

    images: Any
    pictures: np.ndarray

    dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return 2 * len(self.pictures)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.pictures.shape[1:])

    def __getitem__(self, places: Any) -> np.ndarray:
        places = np.arange(len(self))[places]
        count, is_picture = len(self.pictures), places >= len(self.pictures)
        chosen = np.empty((len(places), *self.shape[1:]), self.dtype)
        chosen[~is_picture] = self.images[places[~is_picture]]
        chosen[is_picture] = self.pictures[places[is_picture] - count]
        return chosen


def with_pictures(data: Labelled, seed: int, folder: Path) -> Labelled:
    """Returns `data` followed by a colour picture of each of its cutouts, its settings drawn. What
    the memory does not hold lies in `folder`, as `read_labelled` has it."""
    rng = np.random.default_rng(seed)
    view, arrays, count = data.view, data.arrays, len(data)
    images, brightness = arrays["images"], arrays["brightness"]
    taken = count * data.canvas.nbytes
    pictures = room(images.shape, np.dtype(np.uint8), folder, taken)
    of_pictures, units = np.empty_like(brightness), np.asarray(noise_unit(brightness))
    for row in range(count):
        (image,) = images[row : row + 1]
        pictures[row] = as_picture(image, brightness[row, :, LEVEL], units[row], rng)
        of_pictures[row] = measure(pictures[row][None], *view.measured)[0]
    added = {
        "brightness": np.concatenate([brightness, of_pictures]),
        "label": np.concatenate([arrays["label"]] * 2),
    }
    return dataclasses.replace(
        data,
        arrays={"images": Followed(images, pictures)} | added,
        id=np.concatenate([data.id, data.id]),
        group=np.concatenate([data.group, data.group]),
    )


def as_picture(
    image: np.ndarray, level: np.ndarray, scale: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Returns a picture (S, S, band) float32 of whole numbers in 0..255 of `image` (S, S, band).

    The scheme of Lupton et al. (2004, PASP 116, 133): all bands of a pixel are scaled by the
    arcsinh of their mean, which keeps the colour. `level` and `scale` (band,) are sky and noise.
    Drawn from `rng`, in ranges chosen to hold what surveys publish: how much bands are balanced
    (by equal flux or by equal noise), the sky's grey, the linear range and the white level.
    """
    balance = (scale / scale.mean()) ** rng.uniform(0.0, 1.0)
    sky, linear = rng.uniform(0.0, 2.0), np.exp(rng.uniform(np.log(1.0), np.log(8.0)))
    white = np.exp(rng.uniform(np.log(20.0), np.log(400.0)))
    light = (image - level) / scale * balance + sky
    mean = np.maximum(light.mean(axis=-1, keepdims=True), 1e-3)
    shown = light / mean * np.arcsinh(mean / linear) / np.arcsinh(white / linear)
    return np.round(255.0 * np.clip(shown, 0.0, 1.0)).astype(np.float32)
