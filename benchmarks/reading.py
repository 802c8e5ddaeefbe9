"""Files to be read, the same for every program, and lensjax reading them."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from astropy.io import fits

from benchmarks import workload
from benchmarks.worker import Outputs, Program
from lensjax import runtime
from lensjax.data import on_device, pipeline
from lensjax.data.catalog import open_source
from lensjax.data.formats import shards
from lensjax.data.on_device import Inputs
from lensjax.data.preprocess import Preprocessing
from lensjax.data.source import Source


def make(folder: Path, size: int, count: int) -> dict[str, str]:
    """Returns the folders of `fits` files and of `shards` with the same `count` cutouts of `size`
    pixels in three bands. What is there already is kept."""
    files, packed = (folder / f"{kind}-{size}-{count}" for kind in ("fits", "shards"))
    files.mkdir(parents=True, exist_ok=True)
    images = workload.images(min(count, 64), size)
    for number in range(count):
        path = files / f"{number:06d}.fits"
        if not path.exists():
            # All differ, at no cost.
            image = np.roll(images[number % 64], number // 64, axis=0)
            fits.PrimaryHDU(np.ascontiguousarray(np.moveaxis(image, 2, 0))).writeto(path)
    if not shards.are_shards(packed):
        shards.pack(_opened(files), packed)
    return {"fits": str(files), "shards": str(packed)}


def cutouts(folder: str, size: int, batch: int) -> Program:
    """Returns cutouts read, batched, brought to the device and stretched there, again and again."""
    source = _opened(Path(folder))
    stretch = Preprocessing.unnormalised(
        workload.BAND_NAMES, size, None, "asinh", workload.SOFTENING
    )
    means = jax.jit(lambda inputs: on_device.prepare(inputs)[0].mean((1, 2, 3)))

    def endless() -> Iterator[Inputs]:
        while True:
            for each in pipeline.batches(source, [stretch], how="auto", batch_size=batch):
                if each.count == batch:
                    yield each.inputs

    batches = endless()

    def run(count: int) -> Outputs:
        for values in runtime.one_ahead(lambda _: means(next(batches)), range(count)):
            last = np.asarray(values)
        return Outputs(last[None])

    return Program(run, batch)


def _opened(folder: Path) -> Source:
    names = workload.BAND_NAMES
    return open_source(str(folder), needed=names, bands=",".join(names))
