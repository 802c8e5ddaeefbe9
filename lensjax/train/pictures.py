"""Cutouts as colour pictures show them, so that a member learns to read pictures too.

Sky servers hand out PNG and JPEG, not flux: stretched, clipped and cut to 256 levels. A member that
has seen flux alone takes the stretch for structure.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from lensjax.data.brightness import LEVEL, measure, noise_unit
from lensjax.train.data import Labelled

MEASURED_TOGETHER = 256


@dataclass(frozen=True)
class WithPictures:
    """Images (n, height, width, band) and then a picture of each, float32. Pictures are made when
    they are needed, from settings drawn by `seed` and row; `level` and `noise` (n, band) are those
    of the skies."""

    images: Any
    level: np.ndarray
    noise: np.ndarray
    seed: int

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return (2 * len(self.level), *self.images.shape[1:])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        count = len(self.level)
        found = self.images[rows % count].astype(self.dtype)
        for place in np.flatnonzero(rows >= count):
            row = rows[place] - count
            rng = np.random.default_rng([self.seed, row])
            found[place] = as_picture(found[place], self.level[row], self.noise[row], rng)
        return found


def with_pictures(data: Labelled, seed: int) -> Labelled:
    """Returns `data` followed by a colour picture of each of its cutouts, its settings drawn."""
    brightness, count = data.arrays["brightness"], len(data)
    noise = np.asarray(noise_unit(brightness))
    images = WithPictures(data.arrays["images"], brightness[..., LEVEL], noise, seed)
    parts = np.array_split(count + np.arange(count), -(-count // MEASURED_TOGETHER))
    of_pictures = [measure(images[part], *data.transform.measured) for part in parts]
    return dataclasses.replace(
        data,
        arrays={
            "images": images,
            "brightness": np.concatenate([brightness, *of_pictures]),
            "label": np.concatenate([data.labels] * 2),
        },
        id=np.concatenate([data.id] * 2),
        group=np.concatenate([data.group] * 2),
        threads=max(1, data.threads),
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
