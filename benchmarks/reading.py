"""Files to be read, the same for every program, and lensjax reading them."""

import itertools
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
from lensjax.data.preprocess import Preprocessing
from lensjax.data.source import Source


def make(folder: Path, size: int, count: int) -> None:
    """Writes `count` cutouts of `size` pixels in three bands to `fits` and `shards` in a folder."""
    images = workload.images(min(count, 64), size)
    (folder / "fits").mkdir()
    for number in range(count):
        image = np.roll(images[number % 64], number // 64, axis=0)  # all differ, at no cost
        fits.PrimaryHDU(np.moveaxis(image, 2, 0).copy()).writeto(folder / f"fits/{number:06}.fits")
    shards.pack(_opened(folder / "fits"), folder / "shards")


def cutouts(folder: str, size: int, batch: int) -> Program:
    """Returns cutouts read, batched, brought to the device and stretched there, again and again."""
    source, names = _opened(Path(folder)), workload.BAND_NAMES
    stretch = Preprocessing.unnormalised(names, size, None, "asinh", workload.SOFTENING)
    means = jax.jit(lambda inputs: on_device.prepare(inputs)[0].mean((1, 2, 3)))
    batches = (
        each.inputs
        for _ in itertools.count()
        for each in pipeline.batches(source, [stretch], how="auto", batch_size=batch)
        if each.count == batch
    )

    def run(count: int) -> Outputs:
        for values in runtime.one_ahead(lambda _: means(next(batches)), range(count)):
            last = np.asarray(values)
        return Outputs(last[None])

    return Program(run, batch)


def _opened(folder: Path) -> Source:
    names = workload.BAND_NAMES
    return open_source(str(folder), needed=names, bands=",".join(names))
