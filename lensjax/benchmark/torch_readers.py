"""The same files, read as a user of PyTorch reads them: a Dataset, and a DataLoader's workers."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lensjax.benchmark import drawn, page_cache
from lensjax.benchmark.contract import Loaded, Outputs, Program


class Cutouts(Dataset):
    """Stretched cutouts (band, size, size), one a file, in the order of their names."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(map(str, Path(folder).iterdir()))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        path = self.paths[index]
        if path.endswith(".fits"):
            with fits.open(path) as hdus:
                image = hdus[0].data.astype(np.float32)
        else:
            image = np.asarray(Image.open(path), np.float32).transpose(2, 0, 1)
        return torch.from_numpy(stretch(image))


def stretch(image: np.ndarray) -> np.ndarray:
    """Returns arcsinh((image - level) / (softening noise)) of an image (band, height, width)."""
    level = np.median(image, axis=(1, 2), keepdims=True)
    noise = 1.4826 * np.median(np.abs(image - level), axis=(1, 2), keepdims=True)
    return np.arcsinh((image - level) / (drawn.SOFTENING * noise)).astype(np.float32)


def pytorch(folder: str, size: int) -> Loaded:
    """Returns cutouts read, stretched and batched, by as many workers as there are cores."""
    del size

    def prepare(batch: int) -> Program:
        cutouts = Cutouts(folder)
        loader = DataLoader(
            cutouts,
            batch,
            num_workers=os.cpu_count() or 1,
            drop_last=True,
            persistent_workers=True,
        )
        batches = endless(loader)

        def run(count: int) -> Outputs:
            for _ in range(count):
                means = next(batches).mean((1, 2, 3))
            return Outputs(means.numpy()[None])

        return Program(run, batch, ready=page_cache.ahead(folder, len(cutouts), batch))

    return Loaded(prepare, "PyTorch's DataLoader")


def listing(path: str, rows: int) -> Loaded:
    """Returns a catalogue's columns in memory, and its paths as a Dataset would open them."""
    import pandas

    def run(count: int) -> Outputs:
        for _ in range(count):
            table = pandas.read_csv(path)
            paths = [os.path.join(os.path.dirname(path), name) for name in table["path"]]
        return Outputs(np.array([[len(paths), table["ra"].sum()]]))

    return Loaded(lambda: Program(run, rows), "pandas")


def endless(loader: DataLoader) -> Iterator[Tensor]:
    """Yields the batches of one epoch after the other."""
    while True:
        yield from loader
