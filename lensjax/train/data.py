"""Labelled cutouts to train on, split so that no object stands in both training and validation.

They are read once, to find those that can be read and to measure them. Their images stay in memory
where that holds them; else each batch reads its own again, in the order of a global shuffle.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grain
import jax
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset
from jax import Array
from jax.sharding import Mesh, NamedSharding

from lensjax import runtime
from lensjax.cluster import hosts
from lensjax.data import pipeline
from lensjax.data.brightness import measure
from lensjax.data.formats.tables import UNKNOWN_LABEL
from lensjax.data.noise_free import noise_of
from lensjax.data.on_device import ImageSpec, Transform, seen
from lensjax.data.preprocess import Preprocessing, geometry
from lensjax.data.source import Picked, Source
from lensjax.data.splits import held_back
from lensjax.ensemble import sharding
from lensjax.errors import LensjaxError, UsageError, refuse
from lensjax.memory import host_bytes_left
from lensjax.sky.noise import with_noise

READING_BATCH = 256
MEASURED = 1024

# Of the noise that noise-free cutouts have in validation; not a seed that a user is likely to give.
NOISE_SEED = 1_000_000_001

# Places in a batch that a process reads.
Places = slice | np.ndarray

# Of the memory that is left; the rest is for batches, the network and its gradient.
SHARE_FOR_IMAGES = 0.5


@dataclass(frozen=True)
class Labelled:
    """Cutouts as they travel to the device: `arrays` holds images (n, height, width, band), their
    brightness (n, band, 4) and label (n,) float32; `transform` makes of them what networks see;
    `id` and `group` (n,) say which objects they are. Noise-free images have their `sky` (n, band,
    3) beside them, by which each training step draws their noise; their brightness says nothing.
    `weight` (n,) float32, above 0 and at most 1: how much each counts in training (None: all 1).
    `origin`: of which data they are, and how these were read.
    `flagged`: how many of those read lack data in some band. `threads`: how many read batches
    ahead, 0 where the images are in memory. `has_artefact` (n,) bool, None where it is not known.
    """

    transform: Transform
    arrays: dict[str, Any]
    id: np.ndarray
    group: np.ndarray
    weight: np.ndarray | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    flagged: int = 0
    threads: int = 0
    has_artefact: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.id)

    @property
    def epoch_length(self) -> int:
        """Returns how many cutouts an epoch shows."""
        return len(self)

    @property
    def weights(self) -> np.ndarray:
        """Returns how much each cutout counts in training, (n,) float32."""
        return np.ones(len(self), np.float32) if self.weight is None else self.weight

    @property
    def preprocessing(self) -> Preprocessing:
        return self.transform.preprocessing

    @property
    def labels(self) -> np.ndarray:
        return self.arrays["label"]

    @property
    def image_spec(self) -> ImageSpec:
        images = self.arrays["images"]
        return ImageSpec(images.shape[1:], images.dtype.name, "sky" in self.arrays)

    @property
    def record(self) -> dict[str, Any]:
        """Returns what `member.json` says of the data."""
        lenses = int(self.labels.sum())
        counts = {"cutouts": len(self), "lenses": lenses, "first_id": str(self.id[0])}
        return counts | self.origin

    def batches(
        self, batch_size: int, own: Places = slice(None)
    ) -> grain.IterDataset[dict[str, Any]]:
        """Returns endless batches: of each the images, brightness, label, and maybe sky at its
        `own` places, and `row`, the rows of these data at all places.

        Each epoch has another order, the same for all seeds: members that share batches see what
        each would see alone. What remains of an epoch and fills no batch is left out. Raises
        UsageError where there are fewer cutouts than a batch.
        """
        if len(self) < batch_size:
            raise UsageError(
                f"{len(self)} training cutouts do not fill a batch of {batch_size}; "
                "lower --batch-size"
            )
        rows = grain.MapDataset.range(len(self)).seed(0).shuffle()
        epochs = rows.batch(batch_size, drop_remainder=True).repeat()
        batches = epochs.map(lambda rows: self._gather(rows[own]) | {"row": rows})
        return batches.to_iter_dataset(grain.ReadOptions(self.threads, self.threads))

    def in_order(
        self, batch_size: int, own: Places = slice(None)
    ) -> grain.DatasetIterator[dict[str, Any]]:
        """Returns an iterator over all cutouts, of each batch those at its `own` places; the last
        batch is filled up with some once more."""

        def gather(start: int) -> dict[str, Any]:
            rows = np.arange(start, min(start + batch_size, len(self)))
            return self._gather(np.resize(rows, batch_size)[own])

        batches = grain.MapDataset.range(0, len(self), batch_size).map(gather)
        return iter(batches.to_iter_dataset(grain.ReadOptions(self.threads, self.threads)))

    def _gather(self, rows: np.ndarray) -> dict[str, Any]:
        return {name: values[rows] for name, values in self.arrays.items()}

    def observed(self) -> "Labelled":
        """Returns the same with noise, always the same; what has noise already as it is."""
        if "sky" not in self.arrays:
            return self
        arrays = {name: values for name, values in self.arrays.items() if name != "sky"}
        arrays["images"] = WithNoise(self.arrays["images"], self.arrays["sky"])
        starts = range(0, len(self), READING_BATCH)
        parts = [
            measure(arrays["images"][part], *self.transform.measured)
            for part in (np.arange(at, min(at + READING_BATCH, len(self))) for at in starts)
        ]
        arrays["brightness"] = np.concatenate(parts)
        return dataclasses.replace(self, arrays=arrays)

    def take(self, rows: np.ndarray) -> "Labelled":
        """Returns the chosen rows, by index or mask."""
        images = self.arrays["images"]
        arrays = {name: v[rows] for name, v in self.arrays.items() if name != "images"}
        # The images of both sides of a split would take the memory twice.
        whole = isinstance(images, Picked)
        arrays["images"] = Picked(images.array, images.rows[rows]) if whole else images[rows]
        named = {name: getattr(self, name) for name in ("id", "group", "weight", "has_artefact")}
        of_rows = {name: known[rows] for name, known in named.items() if known is not None}
        return dataclasses.replace(self, arrays=arrays, **of_rows)


@dataclass(frozen=True)
class ImagesOnDisk:
    """The images of a source as an array (row, height, width, band): read whenever they are
    needed, by `pipeline.reader`."""

    source: Source
    read: Callable[[range, int], pipeline.Batch]
    transform: Transform
    image_spec: ImageSpec

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.source), *self.image_spec.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.image_spec.dtype)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), *self.image_spec.shape), self.dtype)
        for place, row in enumerate(rows.tolist()):
            batch = self.read(range(row, row + 1), 1)
            if not batch.readable[0]:
                name, reason = self.source.table["id"][row], batch.reasons[0]
                raise LensjaxError(f"cutout {name} could be read before: {reason}")
            images[place] = batch.inputs.images[0][0][..., list(self.transform.channels)]
        return images


@dataclass(frozen=True)
class WithNoise:
    """Noise-free images (n, height, width, band) with the noise of their `sky` (n, band, 3), which
    is added whenever they are needed."""

    images: Any
    sky: np.ndarray

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images.shape

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return with_noise(self.images[rows], self.sky[rows], rows, NOISE_SEED)


def prefetched(
    batches: grain.IterDataset[dict[str, Any]], weights: np.ndarray, mesh: Mesh
) -> grain.DatasetIterator[tuple[np.ndarray, dict[str, Array]]]:
    """Returns an iterator over the rows (batch,) of batches, and their arrays on the devices, with
    the `weight` (member, batch) of `weights` (member, cutout): the next ones are read and sent
    while a step computes. Each process reads its `hosts.own_rows`.

    Its state is that of what has been taken from it, whatever the number of processes.
    """
    both = NamedSharding(mesh, sharding.BY_MEMBER_AND_CUTOUT)

    def placed(batch: dict[str, Any]) -> tuple[np.ndarray, dict[str, Array]]:
        rows, arrays = batch["row"], {name: batch[name] for name in batch if name != "row"}
        own = weights[:, rows[hosts.own_rows(len(rows), mesh)]]
        weight = hosts.from_own_rows(own, both, len(weights), len(rows))
        return rows, on_devices(arrays, len(rows), mesh) | {"weight": weight}

    placing = ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1).map(placed)
    return iter(ThreadPrefetchIterDataset(placing, prefetch_buffer_size=1))


def on_devices(arrays: dict[str, Any], batch_size: int, mesh: Mesh) -> dict[str, Array]:
    """Returns the arrays of a batch, of which this process holds its `hosts.own_rows`, on the
    devices of all processes."""
    place = NamedSharding(mesh, sharding.BY_CUTOUT)
    return {
        name: hosts.from_own_rows(leaf, place, batch_size, *leaf.shape[1:])
        for name, leaf in arrays.items()
    }


def transforms_at(transform: Transform, sizes: Sequence[int]) -> tuple[Transform, ...]:
    """Returns what networks of these input sizes, ascending, see of the images of `transform`.

    All show the same part of the sky and share bands, stretch and normalisation; `seen` brings a
    image_spec to the size of a transform, antialiased. Raises UsageError for sizes that are none.
    """
    if not sizes or any(size < 1 for size in sizes) or len(set(sizes)) < len(sizes):
        raise UsageError(f"--scales wants different sizes of at least 1, not {list(sizes)}")
    transforms = []
    for size in sorted(sizes):
        if size == transform.preprocessing.input_size:
            transforms.append(transform)
            continue
        preprocessing = dataclasses.replace(transform.preprocessing, input_size=size)
        of_image = geometry(transform.geometry.shape, None, preprocessing, "resize")
        transforms.append(
            dataclasses.replace(transform, preprocessing=preprocessing, geometry=of_image)
        )
    return tuple(transforms)


def first_of_each_class(source: Source, count: int) -> Source:
    """Returns the first `count` lenses and the first `count` others of a source, in their order."""
    label = _labels(source)
    rows = np.sort(np.concatenate([np.flatnonzero(label == one)[:count] for one in (0, 1)]))
    return source if len(rows) == len(source) else source.take(rows)


def read_labelled(source: Source, preprocessing: Preprocessing, how: str) -> Labelled:
    """Returns the readable cutouts of `source` that have a label and count, their pixels not
    normalised.

    A column `weight`, from 0 to 1, says how much each counts; where it says nothing it is 1, and
    what does not count is left out. Objects without a `group` are groups of their own. Raises
    UsageError without labels, for other weights, and for noise-free cutouts that cannot get their
    noise in the training step.
    """
    label, sky = _labels(source), noise_of(source.table, preprocessing.bands)
    weight = _weights(source)
    if weight is not None:
        label = np.where(weight > 0, label, UNKNOWN_LABEL)
    input_spec = pipeline.input_spec(source, (preprocessing,), how)
    (transform,), count, bands = input_spec.transforms, len(source), len(preprocessing.bands)
    image_spec = ImageSpec(
        (*input_spec.image_specs[0].shape[:2], bands), input_spec.image_specs[0].dtype
    )
    if sky is not None:
        _check_noise_free(source, image_spec, preprocessing)
    in_memory = count * image_spec.nbytes <= SHARE_FOR_IMAGES * host_bytes_left()
    images = np.empty((count if in_memory else 0, *image_spec.shape), image_spec.dtype)
    brightness, rows = np.empty((count, bands, 4), np.float32), np.empty(count, np.int64)
    filled = flagged = 0
    with runtime.progress("reading", count, "cutouts") as advance:
        for batch in pipeline.batches(source, (preprocessing,), how=how, batch_size=READING_BATCH):
            kept = np.flatnonzero(batch.readable[: batch.count])
            kept = kept[np.isin(label[batch.rows[kept]], (0.0, 1.0))]
            new = slice(filled, filled + len(kept))
            if in_memory:
                images[new] = batch.inputs.images[0][kept][..., list(transform.channels)]
            brightness[new], rows[new] = batch.inputs.brightness[0][kept], batch.rows[kept]
            flagged += sum(bool(batch.flags[place]) for place in kept)
            filled = new.stop
            advance(batch.count)
    brightness, rows = brightness[:filled], rows[:filled]
    found = Picked(images, np.arange(filled))
    if not in_memory:
        read = pipeline.reader(source, (preprocessing,), how)
        found = Picked(ImagesOnDisk(source, read, transform, image_spec), rows)
    arrays = {"images": found, "brightness": brightness, "label": label[rows]}
    if sky is not None:
        arrays["sky"] = sky[rows]
    ids = np.asarray(source.table["id"])[rows]
    grouped = "group" in source.table.colnames
    group = np.asarray(source.table["group"])[rows] if grouped else ids
    transform = dataclasses.replace(transform, channels=tuple(range(bands)))
    threads = 0 if in_memory else max(1, source.threads)
    of_rows: dict[str, Any] = {"weight": weight if weight is None else weight[rows]}
    if "artefact" in source.table.colnames:
        of_rows["has_artefact"] = np.asarray(source.table["artefact"])[rows] != ""
    return Labelled(transform, arrays, ids, group, flagged=flagged, threads=threads, **of_rows)


def split(data: Labelled, fraction: float) -> tuple[Labelled, Labelled]:
    """Returns the training and the validation part, whole groups in either, both normalised by the
    pixels of the training part.

    Raises UsageError where a part lacks a class.
    """
    training, validation = sides(data, fraction)
    for name, part in (("training", training), ("validation", validation)):
        check_classes(name, part.labels)
    validation = validation.observed()
    transform = dataclasses.replace(data.transform, preprocessing=measure_normalisation(training))
    return dataclasses.replace(training, transform=transform), dataclasses.replace(
        validation, transform=transform
    )


def sides(data: Labelled, fraction: float) -> tuple[Labelled, Labelled]:
    """Returns the training and the validation part, whole groups in either."""
    chosen = held_back(data.group, fraction, "validation")
    return data.take(~chosen), data.take(chosen)


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
    transform = dataclasses.replace(data.transform, preprocessing=plain)
    shown, rows = data.take(chosen).observed().arrays, np.arange(len(chosen))
    images, brightness = (shown[name][rows] for name in ("images", "brightness"))
    stretched = np.asarray(
        jax.jit(seen, static_argnums=0)(transform, images, brightness), np.float64
    )
    mean, std = stretched.mean((0, 1, 2)), np.maximum(stretched.std((0, 1, 2)), 1e-6)
    return plain.normalised(mean, std)


def _check_noise_free(source: Source, image_spec: ImageSpec, preprocessing: Preprocessing) -> None:
    """Raises UsageError where noise that is added in the training step would be wrong."""
    wrong = {
        "noise-free cutouts must be as simulate.py wrote them, not in files of their own, and not "
        "far larger than --scales": (
            source.stack is None or source.stack.shape[:2] != image_spec.shape[:2]
        ),
        "--stretch zscale wants cutouts with noise": preprocessing.stretch == "zscale",
    }
    refuse(wrong)


def _labels(source: Source) -> np.ndarray:
    """Returns the labels (n,) float32: 1 a lens, 0 none, anything else unknown."""
    if "label" not in source.table.colnames:
        raise UsageError(
            "the training data carry no labels; give a catalogue with a `label` column, an .npz "
            "with `label`, or class folders (lens/, nonlens/)"
        )
    return np.asarray(source.table["label"], np.float32)


def _weights(source: Source) -> np.ndarray | None:
    """Returns the column `weight` (n,) float32, 1 where it says nothing; None without one."""
    if "weight" not in source.table.colnames:
        return None
    try:
        given = np.ma.asarray(source.table["weight"]).astype(np.float32)
    except ValueError:
        given = np.ma.asarray([np.inf])
    found = np.ma.filled(given, np.nan)
    found = np.where(np.isnan(found), np.float32(1), found)
    if ((found < 0) | (found > 1)).any():
        raise UsageError(
            "column weight of the training data must hold numbers from 0 to 1, how much each "
            "cutout counts: correct or rename it"
        )
    return found
