"""How fast objects in survey tiles are scored: beside the same cutouts in memory, and beside
cutting each with Cutout2D and scoring.

    python -m benchmarks.tiles [--objects 20000] [--side 4000] [--tiles 4] [--rounds 2]

makes a sky of noise and galaxies and scores it, each way in a process of its own, in turns. It
prints the rate, the time of processors and the peak memory of each, and the ratios. Reading tiles
and cutting count, compiling does not. The time of processors is the better measure where a machine
is busy with other things.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.table import Table
from astropy.wcs import WCS

from lensjax import inference, runtime
from lensjax.cutouts import Cutouts
from lensjax.data.catalog import DataOptions
from lensjax.data.source import Source
from lensjax.ensemble import scoring, sharding
from lensjax.ledger import Ledger
from lensjax.members import Members, ScoringOptions, find_members

BANDS = ("g", "r", "i")
SCALE = 0.219
WAYS = ("tiles", "in memory", "Cutout2D, then scored")


def main(argv: Sequence[str]) -> None:
    """Prints rates, memory and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("objects", 20_000), ("side", 4000), ("tiles", 4), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--checkpoints", default="checkpoints")
    parser.add_argument("--ensemble", default="resnet18:1")
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--sky", type=Path)
    options = parser.parse_args(argv)
    if options.way:
        members = find_members(Path(options.checkpoints), options.ensemble)
        print(json.dumps(_measured(options.way, options.sky, members)))
        return
    with tempfile.TemporaryDirectory() as folder:
        sky = options.sky or Path(folder)
        if not (sky / "tiles.csv").exists():
            make(sky, options.side, options.tiles, options.objects)
        command = [sys.executable, "-m", "benchmarks.tiles", "--sky", str(sky)]
        command += ["--checkpoints", options.checkpoints, "--ensemble", options.ensemble]
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                ended = subprocess.run([*command, "--way", way], check=True, stdout=subprocess.PIPE)
                found[way].append(json.loads(ended.stdout.splitlines()[-1]))
    for way, runs in found.items():
        memory = max(each["memory"] for each in runs) / 2**20
        each = ", ".join(f"{each['rate']:.0f}" for each in runs)
        busy = np.median([each["milliseconds"] for each in runs])
        print(f"{way:<24} {each} cutouts/s, {busy:.3g} ms of processors a cutout, {memory:.0f} MiB")
    for other in WAYS[1:]:
        rate, busy = (
            np.median(
                [a[name] / b[name] for a, b in zip(found[WAYS[0]], found[other], strict=True)]
            )
            for name in ("rate", "milliseconds")
        )
        print(f"tiles over {other}: rate {rate:.3g}, processors' time {busy:.3g}")


def make(folder: Path, side: int, tiles: int, objects: int) -> None:
    """Writes tiles of noise and galaxies in three bands, and a catalogue of the galaxies."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, half = np.random.default_rng(0), 24
    down, across = np.mgrid[-half : half + 1, -half : half + 1]
    table: dict[str, list[str]] = {name: [] for name in ("tile", *BANDS)}
    places = []
    for tile in range(tiles):
        header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"})
        header.update(CRVAL1=10.0 + tile, CRVAL2=0.0, CRPIX1=side / 2, CRPIX2=side / 2)
        header.update(CDELT1=-SCALE / 3600, CDELT2=SCALE / 3600)
        planes = rng.normal(0, 1, (len(BANDS), side, side)).astype(np.float32)
        at = rng.uniform(40, side - 41, (objects // tiles, 2))
        for y, x in at:
            row, column = round(y), round(x)
            light = np.exp(-np.hypot(down + row - y, across + column - x) / rng.uniform(1.5, 5))
            box = planes[:, row - half : row + half + 1, column - half : column + half + 1]
            box += rng.gamma(1, 30) * rng.uniform(0.5, 1.5, (len(BANDS), 1, 1)) * light
        table["tile"].append(f"tile{tile}")
        for band, plane in zip(BANDS, planes, strict=True):
            table[band].append(f"tile{tile}_{band}.fits")
            fits.writeto(folder / table[band][-1], plane, header)
        places.append(WCS(header).all_pix2world(at[:, 1], at[:, 0], 0))
    Table(table).write(folder / "tiles.csv")
    ra, dec = np.hstack(places)
    Table({"id": np.arange(len(ra)), "ra": ra, "dec": dec}).write(folder / "objects.parquet")


def _measured(way: str, sky: Path, members: Members) -> dict[str, float]:
    """Returns the cutouts per second of one way, and the most memory that it took, in bytes."""
    runtime.set_up()
    if way == WAYS[0]:
        options = DataOptions(catalogue=str(sky / "objects.parquet"))
        options = options.for_members(members.preprocessings)
        source = inference.open_cutouts(str(sky / "tiles.csv"), members, options)
        return _rate(members, source, (0.0, 0.0))
    size = members.preprocessings[0].input_size
    began = time.perf_counter(), time.process_time()
    images = np.concatenate(list(_cut(sky, size)))
    cutting = time.perf_counter() - began[0], time.process_time() - began[1]
    source = Cutouts(images, BANDS, SCALE).source(members.bands)
    return _rate(members, source, cutting if way == WAYS[2] else (0.0, 0.0))


def _cut(sky: Path, size: int) -> Iterator[np.ndarray]:
    """Yields the cutouts (object, size, size, band) in each tile, one by one with Cutout2D."""
    objects = Table.read(sky / "objects.parquet")
    for tile in Table.read(sky / "tiles.csv"):
        planes = [fits.getdata(sky / tile[band], header=True) for band in BANDS]
        planes = [(pixels, WCS(header)) for pixels, header in planes]
        wcs = planes[0][1]
        x, y = wcs.all_world2pix(objects["ra"], objects["dec"], 0)
        height, width = planes[0][0].shape
        near = np.abs(objects["ra"] - wcs.wcs.crval[0]) < 0.5
        inside = near & (x > 0) & (y > 0) & (x < width) & (y < height)
        made = [
            [Cutout2D(pixels, place, size, wcs=wcs).data for pixels, wcs in planes]
            for place in zip(x[inside], y[inside], strict=True)
        ]
        yield np.moveaxis(np.array(made, np.float32), 1, 3)


def _rate(members: Members, source: Source, before: tuple[float, float]) -> dict[str, float]:
    options = ScoringOptions()
    mesh = sharding.mesh_of(jax.local_devices())
    spec = scoring.input_spec(source, members.preprocessings, "auto")
    step = inference.compile_step(members, spec, len(source), options, mesh)
    weights = inference.load_weights(members, step, options)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder), {}, source.rows)
        began = time.process_time()
        said = scoring.score(step, weights, source, ledger, "auto")
        processor = time.process_time() - began
    seconds = len(source) / (said["images_per_second"] or 1.0)
    return {
        "rate": len(source) / (seconds + before[0]),
        "milliseconds": 1000 * (processor + before[1]) / len(source),
        "memory": float(runtime.peak_memory_bytes()),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
