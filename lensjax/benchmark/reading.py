"""Files to be read, the same for all contenders, and lensjax reading them."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from astropy.io import fits
from astropy.table import Table
from jax.sharding import NamedSharding
from PIL import Image

from lensjax import runtime
from lensjax.benchmark import drawn, ours, page_cache
from lensjax.benchmark.contract import Loaded, Outputs, Program, is_there
from lensjax.data import on_device, pipeline
from lensjax.data.catalog import open_source
from lensjax.data.formats import arrow, shards
from lensjax.data.on_device import Inputs
from lensjax.data.pipeline import Batch
from lensjax.data.preprocess import Preprocessing
from lensjax.data.source import Source
from lensjax.ensemble import sharding
from lensjax.ensemble.stack import stack
from lensjax.ensemble.step import ensemble_step, place_weights
from lensjax.errors import UsageError
from lensjax.files import make_folder, replacing
from lensjax.train.dataset import read_labelled
from lensjax.train.step import Examples

KINDS = ("fits", "png", "shards")


def make(folder: Path, size: int, count: int) -> dict[str, str]:
    """Returns the folder of each of KINDS, with `count` cutouts of `size` pixels in three bands.

    What is there already is kept. The shards hold what the FITS files hold. Raises UsageError where
    the disk has no room for all of them.
    """
    folders = {kind: folder / f"{kind}-{size}-{count}" for kind in KINDS}
    are_made = shards.are_shards(folders["shards"])
    if not are_made:
        _check_room(folder, size, count)
    images = drawn.images(min(count, 64), size)
    writers = {"fits": _write_fits, "png": _write_png}
    for kind, write in writers.items():
        folders[kind].mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = folders[kind] / f"{number:06d}.{kind}"
            if not path.exists():
                # No two are the same, and drawing them takes no time.
                write(path, np.roll(images[number % 64], number // 64, axis=0))
    if not are_made:
        shards.pack(_opened(folders["fits"]), folders["shards"])
    return {kind: str(path) for kind, path in folders.items()}


def make_catalogue(files: str, rows: int) -> str:
    """Returns a catalogue of so many rows: id, place and path of the files in a folder, again and
    again."""
    folder, path = Path(files), Path(f"{files}-{rows}.csv")
    if path.exists():
        return str(path)
    names = sorted(f"{folder.name}/{file.name}" for file in folder.iterdir())
    rng = np.random.default_rng(0)
    columns = {
        "id": 10**15 + np.arange(rows),
        "ra": rng.uniform(0, 360, rows),
        "dec": rng.uniform(-90, 90, rows),
        "path": np.resize(np.array(names), rows),
    }
    table = arrow.from_table(Table(columns))
    with replacing(path, table.nbytes) as file:
        arrow.write_csv(file, table)
    return str(path)


def _check_room(folder: Path, size: int, count: int) -> None:
    make_folder(folder)
    # Pixels of four bytes as FITS and in shards, of one byte as PNG.
    wanted, free = 9 * drawn.BANDS * size**2 * count, shutil.disk_usage(folder).free
    if wanted > free:
        raise UsageError(
            f"{count} cutouts of {size} pixels take {wanted / 1e9:.1f} GB in {folder}, which has "
            f"{free / 1e9:.1f} GB left: fewer --items, or another --output"
        )


def _write_fits(path: Path, image: np.ndarray) -> None:
    fits.PrimaryHDU(np.ascontiguousarray(np.moveaxis(image, 2, 0))).writeto(path)


def _write_png(path: Path, image: np.ndarray) -> None:
    levels = np.clip(image * 40 + 128, 0, 255).astype(np.uint8)
    Image.fromarray(levels).save(path)


def opening(path: str, rows: int) -> Loaded:
    """Returns a catalogue opened: its columns in memory, its first cutout read."""

    def run(count: int) -> Outputs:
        for _ in range(count):
            source = _opened(path)
        ra, _ = source.places
        return Outputs(np.array([[len(source), ra.sum()]]))

    return Loaded(lambda: Program(run, rows), ours.device())


def lensjax(folder: str, size: int) -> Loaded:
    """Returns cutouts read, batched, brought to the device and stretched there."""
    preprocessing = Preprocessing.unnormalised(
        drawn.BAND_NAMES, size, None, "asinh", drawn.SOFTENING
    )

    def prepare(batch: int) -> Program:
        endless, ready = batches(folder, [preprocessing], batch)
        seen = jax.jit(on_device.prepare)
        # What one thread launches a CPU does in turn: each batch has its own, as PyTorch's workers.
        pool = ThreadPoolExecutor(os.cpu_count())

        def means(inputs: Inputs) -> np.ndarray:
            return np.asarray(seen(inputs)[0].mean((1, 2, 3)))

        def launch(_: int) -> Future[np.ndarray]:
            return pool.submit(means, next(endless).inputs)

        def run(count: int) -> Outputs:
            for stretched in runtime.one_ahead(launch, range(count)):
                values = stretched.result()
            return Outputs(values[None])

        return Program(run, batch, ready=ready)

    return Loaded(prepare, ours.device(), ours.device_peak_bytes)


def fed(folder: str | None, size: int) -> Loaded:
    """Returns the scores of a resnet18 of cutouts read from a folder; of the same batch, in memory,
    without one."""
    mesh = sharding.mesh_of(jax.local_devices()[:1])
    ensemble = stack({"resnet18.0": ours.member("resnet18.0", size)}, stacked=False)

    def prepare(batch: int) -> Program:
        weights = place_weights(ensemble, mesh, seed=0, samples=1, precision="float32")
        step = ensemble_step(ensemble, mesh, samples=1, fusion="stacked", precision="float32")
        in_place = NamedSharding(mesh, sharding.BY_CUTOUT)
        if folder is None:
            given = ours.inputs(drawn.images(batch, size))
            endless: Iterator[Inputs] = itertools.repeat(given)
            ready: Callable[[int], None] = is_there
        else:
            read, ready = batches(folder, ensemble.preprocessings, batch)
            endless = (each.inputs for each in read)

        def launch(_: int) -> jax.Array:
            return step(weights, jax.device_put(next(endless), in_place)).logit

        def run(count: int) -> Outputs:
            for logits in runtime.one_ahead(launch, range(count)):
                values = np.asarray(logits)
            return _finite(values[None])

        return Program(run, batch, ready=ready)

    return Loaded(prepare, ours.device(), ours.device_peak_bytes)


def trained(folder: str | None, size: int) -> Loaded:
    """Returns training steps of a resnet18 on the cutouts in a folder, as train.py has them; on the
    same batch each time, in memory, without one."""
    step, start = ours.training_step("resnet18.0", size)

    def prepare(batch: int) -> Program:
        if folder is None:
            endless: Iterator[Examples] = itertools.repeat(ours.examples(batch, size))
        else:
            endless = _examples(folder, size, batch)
        program = ours.trained(step, start, batch, endless)

        def run(count: int) -> Outputs:
            return _finite(program.run(count).values)

        return Program(run, batch)

    return Loaded(prepare, ours.device(), ours.device_peak_bytes)


def _examples(folder: str, size: int, batch: int) -> Iterator[Examples]:
    """Yields batches to learn from without end, every other file of the folder a lens."""
    source = _opened(folder)
    source.table["label"] = np.arange(len(source)) % 2
    preprocessing = Preprocessing.unnormalised(drawn.BAND_NAMES, size, None, "none", 1.0)
    data = read_labelled(source, preprocessing, "auto", Path(folder).parent)
    weight = np.ones((1, batch), np.float32)
    for arrays in data.batches(batch):
        del arrays["row"]
        yield Examples(**arrays, weight=weight)


def batches(
    folder: str, preprocessings: Sequence[Preprocessing], batch: int
) -> tuple[Iterator[Batch], Callable[[int], None]]:
    """Returns full batches without end, and what brings so many more into the page cache."""
    source = _opened(folder)

    def endless() -> Iterator[Batch]:
        while True:
            for each in pipeline.batches(source, preprocessings, how="auto", batch_size=batch):
                if each.count == batch:
                    yield each

    return endless(), page_cache.ahead(folder, len(source), batch)


def _finite(values: np.ndarray) -> Outputs:
    """Returns all that outputs of different images have in common."""
    return Outputs(np.isfinite(values).astype(float))


def _opened(folder: str | Path) -> Source:
    return open_source(folder, needed=drawn.BAND_NAMES, bands=",".join(drawn.BAND_NAMES))
