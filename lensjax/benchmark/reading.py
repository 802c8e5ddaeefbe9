"""Files to be read, the same for all contenders, and lensjax reading them."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from astropy.io import fits
from jax.sharding import NamedSharding
from PIL import Image

from lensjax import runtime
from lensjax.benchmark import drawn, ours
from lensjax.benchmark.contract import Loaded, Outputs, Program
from lensjax.data import loader, on_device, shards
from lensjax.data.catalog import open_source
from lensjax.data.loader import Batch
from lensjax.data.on_device import Inputs
from lensjax.data.preprocess import Preparation
from lensjax.ensemble import placement, predict
from lensjax.ensemble.stack import stack

KINDS = ("fits", "png", "shards")


def make(folder: Path, size: int, count: int) -> dict[str, str]:
    """Returns the folder of each of KINDS, with `count` cutouts of `size` pixels in three bands.

    What is there already is kept. The shards hold what the FITS files hold.
    """
    folders = {kind: folder / f"{kind}-{size}-{count}" for kind in KINDS}
    images = drawn.images(min(count, 64), size)
    writers = {"fits": _write_fits, "png": _write_png}
    for kind, write in writers.items():
        folders[kind].mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = folders[kind] / f"{number:06d}.{kind}"
            if not path.exists():
                # No two are the same, and drawing them takes no time.
                write(path, np.roll(images[number % 64], number // 64, axis=0))
    if not shards.are_shards(folders["shards"]):
        source = open_source(
            folders["fits"], needed=drawn.BAND_NAMES, bands=",".join(drawn.BAND_NAMES)
        )
        shards.pack(source, folders["shards"])
    return {kind: str(path) for kind, path in folders.items()}


def _write_fits(path: Path, image: np.ndarray) -> None:
    fits.PrimaryHDU(np.ascontiguousarray(np.moveaxis(image, 2, 0))).writeto(path)


def _write_png(path: Path, image: np.ndarray) -> None:
    levels = np.clip(image * 40 + 128, 0, 255).astype(np.uint8)
    Image.fromarray(levels).save(path)


def lensjax(folder: str, size: int) -> Loaded:
    """Returns cutouts read, batched, brought to the device and stretched there."""
    preparation = Preparation.unnormalised(drawn.BAND_NAMES, size, None, "asinh", drawn.SOFTENING)

    def prepare(batch: int) -> Program:
        endless = batches(folder, [preparation], batch)
        seen = jax.jit(on_device.prepare)

        def launch(_: int) -> jax.Array:
            return seen(next(endless).inputs)[0].mean((1, 2, 3))

        def run(count: int) -> Outputs:
            for means in runtime.one_ahead(launch, range(count)):
                values = np.asarray(means)
            return Outputs(values[None])

        return Program(run, batch)

    return Loaded(prepare, ours.device(), ours.device_peak_bytes)


def fed(folder: str | None, size: int) -> Loaded:
    """Returns the scores of a resnet18 of cutouts read from a folder; of the same batch, in memory,
    without one."""
    mesh = placement.mesh_of(jax.local_devices()[:1])
    ensemble = stack({"resnet18.0": ours.member("resnet18.0", size)}, stacked=False)

    def prepare(batch: int) -> Program:
        weights = predict.place_weights(ensemble, mesh, seed=0, samples=1, precision="float32")
        step = predict.ensemble_step(
            ensemble, mesh, samples=1, fusion="stacked", precision="float32"
        )
        in_place = NamedSharding(mesh, placement.BY_CUTOUT)
        if folder is None:
            endless: Iterator[Inputs] = itertools.repeat(ours.inputs(drawn.images(batch, size)))
        else:
            endless = (each.inputs for each in batches(folder, ensemble.preparations, batch))

        def launch(_: int) -> jax.Array:
            return step(weights, jax.device_put(next(endless), in_place)).logit

        def run(count: int) -> Outputs:
            for logits in runtime.one_ahead(launch, range(count)):
                values = np.asarray(logits)
            return Outputs(np.isfinite(values).astype(float)[None])

        return Program(run, batch)

    return Loaded(prepare, ours.device(), ours.device_peak_bytes)


def batches(folder: str, preparations: Sequence[Preparation], batch: int) -> Iterator[Batch]:
    """Yields full batches without end."""
    source = open_source(folder, needed=drawn.BAND_NAMES, bands=",".join(drawn.BAND_NAMES))
    while True:
        for each in loader.batches(source, preparations, how="auto", batch_size=batch):
            if each.count == batch:
                yield each
