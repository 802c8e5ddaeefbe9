"""Graded cutouts mixed with a sky that is replayed, so that learning from a few hundred grades does
not cost what was learned from thousands of others (rehearsal: Robins 1995, Connection Science 7).

Both come on the grid of the members, whatever their own pixels are: they then share batches.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import grain
import numpy as np

from lensjax.data.brightness import LEVEL, NOISE
from lensjax.data.on_device import Transform
from lensjax.data.preprocess import Geometry, Preprocessing, fit, geometry
from lensjax.errors import UsageError
from lensjax.train.data import Labelled, Places, check_classes, sides


@dataclass(frozen=True)
class Replayed(Labelled):
    """The cutouts that somebody graded, so many first, and after them those of the sky that is
    replayed, which has this `share` of every batch."""

    graded: int = 0
    share: Fraction = Fraction(0)

    @property
    def epoch_length(self) -> int:
        """Returns how many cutouts are shown while each graded one is seen once."""
        return int(self.graded // (1 - self.share))

    @property
    def record(self) -> dict[str, Any]:
        """Returns what `member.json` says of the data: of the graded ones, and of the sky."""
        parts = np.split(np.arange(len(self)), [self.graded])
        of_graded, of_sky = (
            {"cutouts": len(rows), "lenses": int(self.labels[rows].sum())} for rows in parts
        )
        return of_graded | self.origin | {"replayed": of_sky | self.origin["replayed"]}

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Returns which row (n,) stands at each place of the endless order of training.

        Of the first n places, floor(share n) are of the replayed sky: its share is exact over any
        number of batches, and even within each. Either part is shown in an order that is new in
        each of its own epochs.
        """
        before, after = (
            (places + step) * self.share.numerator // self.share.denominator for step in (0, 1)
        )
        is_replay, rows = after > before, np.empty_like(places)
        rows[is_replay] = _shuffled(before[is_replay], len(self) - self.graded, 1) + self.graded
        rows[~is_replay] = _shuffled((places - before)[~is_replay], self.graded, 0)
        return rows

    def batches(
        self, batch_size: int, own: Places = slice(None)
    ) -> grain.IterDataset[dict[str, Any]]:
        """Returns endless batches as `Labelled.batches` does."""

        def batch(number: int) -> dict[str, Any]:
            rows = self.rows(np.arange(number * batch_size, (number + 1) * batch_size))
            return self._gather(rows[own]) | {"row": rows}

        numbers = grain.MapDataset.range(2**62).map(batch)
        return numbers.to_iter_dataset(grain.ReadOptions(self.threads, self.threads))


def replayed(
    graded: Labelled, sky: Labelled, share: float, fraction: float, preprocessing: Preprocessing
) -> tuple[Replayed, Replayed]:
    """Returns the training and the validation part of both, whole groups in either, as `together`
    mixes them; `fraction` of either validates. Raises UsageError where a part has none."""
    of_graded, of_sky = sides(graded, fraction), sides(sky, fraction)
    for name, part in zip(("training", "validation"), of_graded, strict=True):
        if not len(part):
            raise UsageError(
                f"none of the {len(graded)} graded cutouts are for {name}: change "
                "--validation-fraction, or grade more"
            )
    training, validation = (
        together(part, replay, share, preprocessing)
        for part, replay in zip(of_graded, of_sky, strict=True)
    )
    return training, validation


def together(
    graded: Labelled, sky: Labelled, share: float, preprocessing: Preprocessing
) -> Replayed:
    """Returns graded cutouts mixed with those of a sky, as members of this preprocessing see them.

    The sky needs lenses and non-lenses; what was graded may lack either. Raises UsageError.
    """
    check_classes("replayed", sky.labels)
    graded, sky = graded.observed(), sky.observed()
    size, parts = preprocessing.input_size, (_on_grid(graded), _on_grid(sky))
    as_is = geometry((size, size), preprocessing.pixel_scale, preprocessing)
    arrays = {
        name: np.concatenate([part[name] for part in parts]) for name in ("brightness", "label")
    }
    weights = np.concatenate([graded.weights, sky.weights])
    return Replayed(
        Transform(preprocessing, 0, tuple(range(len(preprocessing.bands))), as_is),
        {"images": Joined(tuple(part["images"] for part in parts))} | arrays,
        np.concatenate([part.id.astype(str) for part in (graded, sky)]),
        np.concatenate([part.group.astype(str) for part in (graded, sky)]),
        weights,
        graded.origin | {"replayed": sky.origin},
        graded.flagged + sky.flagged,
        max(graded.threads, sky.threads),
        graded=len(graded),
        share=Fraction(share).limit_denominator(1000),
    )


def _on_grid(data: Labelled) -> dict[str, Any]:
    """Returns the arrays of cutouts on the grid of their transform; `on_device.seen` shows them as
    it would have shown the cutouts themselves."""
    of_image, brightness = data.transform.geometry, np.array(data.arrays["brightness"])
    images = OnGrid(data.arrays["images"], brightness[..., LEVEL].copy(), of_image)
    brightness[..., NOISE] *= of_image.noise
    return {"images": images, "brightness": brightness, "label": data.labels}


@dataclass(frozen=True)
class OnGrid:
    """Images (n, height, width, band) brought to a grid whenever they are needed; what holds no sky
    there has the `level` (n, band)."""

    images: Any
    level: np.ndarray
    geometry: Geometry

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        size = self.geometry.size
        return len(self.level), size, size, self.level.shape[1]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        images = np.asarray(self.images[rows], np.float32)
        if self.geometry.action == "as is":
            return images
        pairs = zip(images, self.level[rows], strict=True)
        return np.stack([fit(image, self.geometry, level) for image, level in pairs])


@dataclass(frozen=True)
class Joined:
    """Images (n, size, size, band) of several parts, one after the other."""

    parts: Sequence[OnGrid]

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        rows = np.arange(self.shape[0])[rows]
        found, first = np.empty((len(rows), *self.shape[1:]), self.dtype), 0
        for part in self.parts:
            own = (rows >= first) & (rows < first + part.shape[0])
            if own.any():
                found[own] = part[rows[own] - first]
            first += part.shape[0]
        return found


def _shuffled(numbers: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns what stands at these places (n,) of an endless list of 0 to count - 1, shuffled anew
    each time that it begins again."""
    epoch, place = np.divmod(numbers, count)
    found = np.empty_like(numbers)
    for each in np.unique(epoch):
        own = epoch == each
        found[own] = _order(count, seed, int(each))[place[own]]
    return found


@functools.lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
