"""An endless stream of simulated cutouts: no files; each batch is drawn on the host, and rendered
on the device, when it is needed."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from lensjax.data.brightness import measure
from lensjax.data.on_device import ImageSpec, Transform
from lensjax.data.preprocess import Preprocessing, geometry
from lensjax.sky.draw import Assignment, assign, draw, simulate
from lensjax.sky.kinds import LENS
from lensjax.sky.stamps import Stamps
from lensjax.sky.survey import Survey
from lensjax.train.data import (
    MEASURED,
    Labelled,
    Places,
    check_classes,
    measure_normalisation,
)

# What is fixed, as the validation set, has a seed of its own, which no user is likely to give.
FIXED_SEED = 1_000_000_000


@dataclass(frozen=True)
class Sky:
    """What simulated data show: `stamps` are real galaxies as sources, or None; see
    `simulation.simulate`."""

    survey: Survey
    lens_fraction: float
    seed: int
    stamps: Stamps | None

    def fixed(self, transform: Transform, count: int, seed: int) -> Labelled:
        """Returns `count` cutouts that no training shows, in memory."""
        drawn = simulate(
            self.survey,
            count=count,
            lens_fraction=self.lens_fraction,
            seed=seed,
            sources=self.stamps,
        )
        arrays = {
            "images": drawn.images,
            "brightness": measure(drawn.images, *transform.measured),
            "label": drawn.truth["label"].astype(np.float32),
        }
        has_artefact = drawn.truth["artefact"] != ""
        return Labelled(
            transform, arrays, drawn.truth["id"], drawn.truth["group"], has_artefact=has_artefact
        )


@dataclass(frozen=True)
class Simulated:
    """An endless training set, of which so many cutouts make an epoch: each epoch shows the kinds
    of pictures in the same order, but no picture ever returns."""

    transform: Transform
    sky: Sky
    assignment: Assignment

    def __len__(self) -> int:
        return len(self.assignment.kind)

    @property
    def epoch_length(self) -> int:
        """Returns how many cutouts an epoch shows."""
        return len(self)

    @property
    def weights(self) -> np.ndarray:
        """(n,) float32, of an epoch: all count alike."""
        return np.ones(len(self), np.float32)

    @property
    def preprocessing(self) -> Preprocessing:
        return self.transform.preprocessing

    @property
    def labels(self) -> np.ndarray:
        """(n,) float32, of an epoch."""
        return (self.assignment.kind == LENS).astype(np.float32)

    @property
    def id(self) -> np.ndarray:
        """(n,) what the cutouts of an epoch are called."""
        sky = self.sky
        return np.array([f"{sky.survey.name}-{sky.seed}-{row:07d}" for row in range(len(self))])

    @property
    def image_spec(self) -> ImageSpec:
        size = self.sky.survey.size
        return ImageSpec((size, size, len(self.sky.survey.bands)), "float32")

    @property
    def record(self) -> dict[str, Any]:
        """Returns what `member.json` says of the data."""
        survey, stamps = dataclasses.asdict(self.sky.survey), self.sky.stamps
        return {
            "cutouts": len(self),
            "lenses": int(self.labels.sum()),
            "simulated": {k: list(v) if isinstance(v, tuple) else v for k, v in survey.items()}
            | {"seed": self.sky.seed, "source_stamps": 0 if stamps is None else len(stamps.name)},
        }

    def batches(
        self, batch_size: int, own: Places = slice(None)
    ) -> grain.IterDataset[dict[str, Any]]:
        """Returns endless batches as `Labelled.batches` does, their images on the device."""
        sources = self.sky.stamps
        labels, of_epoch = self.labels, len(self) // batch_size

        def batch(number: int) -> dict[str, Any]:
            epoch, place = divmod(number, of_epoch)
            batch_rows = np.arange(place * batch_size, (place + 1) * batch_size)
            rows = batch_rows[own]
            first = epoch * len(self)
            group = self.assignment.group[rows] + first
            images, _ = draw(
                self.sky.survey,
                index=rows + first,
                group=group,
                kind=self.assignment.kind[rows],
                seed=self.sky.seed,
                sources=sources,
                stamp_rows=None if sources is None else group % len(sources.name),
            )
            brightness = measure(np.asarray(images), *self.transform.measured)
            arrays = {"images": images, "brightness": brightness, "label": labels[rows]}
            return arrays | {"row": batch_rows}

        numbers = grain.MapDataset.range(2**62).map(batch)
        return numbers.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


def simulated(
    sky: Sky, count: int, validation: int, preprocessing: Preprocessing
) -> tuple[Simulated, Labelled]:
    """Returns training data of `count` cutouts per epoch, and a fixed validation set of its kind,
    as networks see them: the normalisation is measured. No real galaxy is a source in both.

    Raises UsageError for what cannot be simulated, and where either lacks a class.
    """
    survey, other = sky.survey, sky
    if sky.stamps is not None:
        own, held = sky.stamps.split(validation / count, "validation")
        sky, other = (dataclasses.replace(sky, stamps=stamps) for stamps in (own, held))
    of_image = geometry((survey.size, survey.size), survey.pixel_scale, preprocessing)
    transform = Transform(preprocessing, 0, tuple(range(len(survey.bands))), of_image)
    measured = sky.fixed(transform, MEASURED, 2 * FIXED_SEED + sky.seed)
    transform = dataclasses.replace(transform, preprocessing=measure_normalisation(measured))
    training = Simulated(transform, sky, assign(survey, count, sky.lens_fraction, sky.seed))
    fixed = other.fixed(transform, validation, FIXED_SEED + sky.seed)
    for name, data in (("training", training), ("validation", fixed)):
        check_classes(name, data.labels)
    return training, fixed
