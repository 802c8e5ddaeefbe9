"""Labelled cutouts in memory, split so that no object stands in both training and validation."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np

from lensjax import runtime
from lensjax.data import loader
from lensjax.data.on_device import Canvas, View, seen
from lensjax.data.preprocess import Preparation
from lensjax.data.source import Source
from lensjax.data.splits import held_back
from lensjax.errors import UsageError

READING_BATCH = 256


@dataclass(frozen=True)
class Labelled:
    """Cutouts as they travel to the device: `arrays` holds images (n, height, width, band) and
    `inside` (n, 4) of the canvas that `view` is taken of, and label (n,) float32; `id` and `group`
    (n,) say which objects they are."""

    view: View
    arrays: dict[str, np.ndarray]
    id: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.id)

    @property
    def preparation(self) -> Preparation:
        return self.view.preparation

    @property
    def labels(self) -> np.ndarray:
        return self.arrays["label"]

    @property
    def canvas(self) -> Canvas:
        images = self.arrays["images"]
        return Canvas(images.shape[1:], images.dtype.name)

    @property
    def record(self) -> dict[str, Any]:
        """What `member.json` says of the data."""
        lenses = int(self.labels.sum())
        return {"cutouts": len(self), "lenses": lenses, "first_id": str(self.id[0])}

    def batches(self, batch_size: int) -> grain.DatasetIterator[dict[str, Any]]:
        """Returns batches without end, each of images, inside, label, and `row` of these data.

        One order for all seeds: members that share batches see what each would see alone.
        """
        rows = {"row": np.arange(len(self))}
        return loader.shuffled(self.arrays | rows, batch_size, seed=0)

    def take(self, rows: np.ndarray) -> "Labelled":
        """Returns the chosen rows, by index or mask."""
        arrays = {name: values[rows] for name, values in self.arrays.items()}
        return Labelled(self.view, arrays, self.id[rows], self.group[rows])


def read_labelled(source: Source, preparation: Preparation, fit: str) -> Labelled:
    """Returns the readable cutouts of `source` that have a label, their pixels normalised.

    Objects without a `group` are groups of their own. Raises UsageError without labels.
    """
    label = _labels(source)
    parts: list[tuple[np.ndarray, ...]] = []
    with runtime.progress("reading", len(source), "cutouts") as advance:
        for batch in loader.batches(source, (preparation,), how=fit, batch_size=READING_BATCH):
            kept = np.flatnonzero(batch.readable[: batch.count])
            columns = (batch.inputs.images[0], batch.inputs.inside[0], batch.rows)
            parts.append(tuple(values[kept] for values in columns))
            advance(batch.count)
    images, inside, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    arrays = {"images": images, "inside": inside, "label": label[rows]}
    ids = np.asarray(source.table["id"])[rows]
    grouped = "group" in source.table.colnames
    group = np.asarray(source.table["group"])[rows] if grouped else ids
    (view,) = loader.layout(source, (preparation,), fit).views
    data = Labelled(view, arrays, ids, group).take(np.isin(arrays["label"], (0.0, 1.0)))
    measured = dataclasses.replace(view, preparation=measure_normalisation(data))
    return dataclasses.replace(data, view=measured)


def split(data: Labelled, fraction: float) -> tuple[Labelled, Labelled]:
    """Returns the training and the validation part, whole groups in either.

    Raises UsageError where a part lacks a class.
    """
    chosen = held_back(data.group, fraction, "validation")
    training, validation = data.take(~chosen), data.take(chosen)
    for name, part in (("training", training), ("validation", validation)):
        check_classes(name, part.labels)
    return training, validation


def check_classes(name: str, labels: np.ndarray) -> None:
    """Raises UsageError where `labels` (n,) lack lenses or non-lenses."""
    if len(np.unique(labels)) < 2:
        raise UsageError(f"the {name} data ({len(labels)} cutouts) need lenses and non-lenses")


def measure_normalisation(data: Labelled) -> Preparation:
    """Returns the preparation of `data` with the mean and the standard deviation, per band, of its
    stretched pixels, over at most 1024 cutouts."""
    bands = len(data.preparation.bands)
    plain = data.preparation.normalised((0.0,) * bands, (1.0,) * bands)
    view = dataclasses.replace(data.view, preparation=plain)
    images, inside = (data.arrays[name][:1024] for name in ("images", "inside"))
    stretched = np.asarray(jax.jit(seen, static_argnums=0)(view, images, inside), np.float64)
    mean, std = stretched.mean((0, 1, 2)), np.maximum(stretched.std((0, 1, 2)), 1e-6)
    return plain.normalised(mean, std)


def _labels(source: Source) -> np.ndarray:
    """Returns the labels (n,) float32: 1 a lens, 0 none, anything else unknown."""
    if "label" not in source.table.colnames:
        raise UsageError(
            "the training data carry no labels; give a catalogue with a `label` column, an .npz "
            "with `label`, or class folders (lens/, nonlens/)"
        )
    return np.asarray(source.table["label"], np.float32)
