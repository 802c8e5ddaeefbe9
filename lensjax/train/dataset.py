"""Labelled cutouts, read once, split so that no object stands in both training and validation."""

import dataclasses
import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from lensjax import runtime
from lensjax.data import pipeline
from lensjax.data.on_device import Canvas, View, seen
from lensjax.data.preprocess import Preprocessing
from lensjax.data.source import Picked, Source
from lensjax.data.splits import held_back
from lensjax.errors import LensjaxError, UsageError, one_line
from lensjax.files import make_folder

READING_BATCH = 256
MEASURED = 1024

# Images that would take more lie on disk, and in memory as far as there is room.
MOST_IN_MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


@dataclass(frozen=True)
class Labelled:
    """Cutouts as they travel to the device: `arrays` holds the images (n, height, width, band) that
    `view` is taken of, their brightness (n, band, 4) and label (n,) float32; `id` and `group` (n,)
    say which objects they are. `origin`: of which data they are, and how these were read.
    `flagged`: how many of those read lack data in some band."""

    view: View
    arrays: dict[str, Any]
    id: np.ndarray
    group: np.ndarray
    origin: dict[str, Any] = field(default_factory=dict)
    flagged: int = 0

    def __len__(self) -> int:
        return len(self.id)

    @property
    def preprocessing(self) -> Preprocessing:
        return self.view.preprocessing

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
        counts = {"cutouts": len(self), "lenses": lenses, "first_id": str(self.id[0])}
        return counts | self.origin

    def batches(self, batch_size: int) -> grain.DatasetIterator[dict[str, Any]]:
        """Returns batches without end, each of images, brightness, label, and `row` of these data.

        One order for all seeds: members that share batches see what each would see alone.
        """
        rows = {"row": np.arange(len(self))}
        return pipeline.shuffled(self.arrays | rows, batch_size, seed=0)

    def take(self, rows: np.ndarray) -> "Labelled":
        """Returns the chosen rows, by index or mask."""
        images = self.arrays["images"]
        arrays = {name: v[rows] for name, v in self.arrays.items() if name != "images"}
        # The images of both sides of a split would take the memory twice.
        whole = isinstance(images, Picked)
        arrays["images"] = Picked(images.array, images.rows[rows]) if whole else images[rows]
        return dataclasses.replace(self, arrays=arrays, id=self.id[rows], group=self.group[rows])


def first_of_each_class(source: Source, count: int) -> Source:
    """Returns the first `count` lenses and the first `count` others of a source, in their order."""
    label = _labels(source)
    rows = np.sort(np.concatenate([np.flatnonzero(label == one)[:count] for one in (0, 1)]))
    if len(rows) == len(source):
        return source
    return dataclasses.replace(
        source,
        table=source.table[rows],
        read=lambda row: source.read(int(rows[row])),
        stack=None,
    )


def read_labelled(source: Source, preprocessing: Preprocessing, fit: str, folder: Path) -> Labelled:
    """Returns the readable cutouts of `source` that have a label, their pixels not normalised.

    Objects without a `group` are groups of their own. What the memory does not hold lies in
    `folder`, in a file without a name, which ends with the process. Raises UsageError without
    labels, LensjaxError where there is no room.
    """
    label = _labels(source)
    known = np.isin(label, (0.0, 1.0))
    layout = pipeline.layout(source, (preprocessing,), fit)
    (view,) = layout.views
    count, canvas, bands = len(source), layout.canvases[0], len(view.channels)
    images = room((count, *canvas.shape[:2], bands), np.dtype(canvas.dtype), folder)
    brightness = np.empty((count, bands, 4), np.float32)
    rows, filled, flagged = np.empty(count, np.int64), 0, 0
    with runtime.progress("reading", count, "cutouts") as advance:
        for batch in pipeline.batches(source, (preprocessing,), how=fit, batch_size=READING_BATCH):
            kept = np.flatnonzero(batch.readable[: batch.count])
            kept = kept[known[batch.rows[kept]]]
            new = slice(filled, filled + len(kept))
            images[new] = batch.inputs.images[0][kept][..., list(view.channels)]
            brightness[new] = batch.inputs.brightness[0][kept]
            rows[new] = batch.rows[kept]
            flagged += sum(bool(batch.flags[place]) for place in kept)
            filled = new.stop
            advance(batch.count)
    rows = rows[:filled]
    arrays = {
        "images": Picked(images, np.arange(filled)),
        "brightness": brightness[:filled],
        "label": label[rows],
    }
    ids = np.asarray(source.table["id"])[rows]
    grouped = "group" in source.table.colnames
    group = np.asarray(source.table["group"])[rows] if grouped else ids
    view = dataclasses.replace(view, channels=tuple(range(bands)))
    return Labelled(view, arrays, ids, group, flagged=flagged)


def room(shape: tuple[int, ...], dtype: np.dtype, folder: Path, taken: int = 0) -> np.ndarray:
    """Returns an array to write images to, in memory, of which so many bytes are `taken` already,
    or on disk. Raises LensjaxError where the disk is full."""
    size = math.prod(shape) * dtype.itemsize
    if size + taken <= MOST_IN_MEMORY:
        return np.empty(shape, dtype)
    make_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Found out later, a full disk would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise LensjaxError(
            f"the cutouts take {size / 1e9:.1f} GB, more than half of the memory, and {folder} has "
            f"no room for them either ({one_line(error)}): make some, or train on fewer"
        ) from error


def split(data: Labelled, fraction: float) -> tuple[Labelled, Labelled]:
    """Returns the training and the validation part, whole groups in either, both normalised by the
    pixels of the training part.

    Raises UsageError where a part lacks a class.
    """
    chosen = held_back(data.group, fraction, "validation")
    training, validation = data.take(~chosen), data.take(chosen)
    for name, part in (("training", training), ("validation", validation)):
        check_classes(name, part.labels)
    view = dataclasses.replace(data.view, preprocessing=measure_normalisation(training))
    return dataclasses.replace(training, view=view), dataclasses.replace(validation, view=view)


def check_classes(name: str, labels: np.ndarray) -> None:
    """Raises UsageError where `labels` (n,) lack lenses or non-lenses."""
    if len(np.unique(labels)) < 2:
        raise UsageError(f"the {name} data ({len(labels)} cutouts) need lenses and non-lenses")


def measure_normalisation(data: Labelled) -> Preprocessing:
    """Returns the preprocessing of `data` with the mean and standard deviation, per band, of its
    stretched pixels, over at most MEASURED cutouts, drawn by a fixed seed: what comes first in a
    file may be of one kind."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(data))[:MEASURED])
    bands = len(data.preprocessing.bands)
    plain = data.preprocessing.normalised((0.0,) * bands, (1.0,) * bands)
    view = dataclasses.replace(data.view, preprocessing=plain)
    images, brightness = (data.arrays[name][chosen] for name in ("images", "brightness"))
    stretched = np.asarray(jax.jit(seen, static_argnums=0)(view, images, brightness), np.float64)
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
