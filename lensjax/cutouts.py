"""Cutouts in memory, as notebooks and simulations hold them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensjax.data.bands import Wanted
from lensjax.data.source import Arrays, Source, source_of_arrays
from lensjax.files import replacing


@dataclass(frozen=True)
class Cutouts:
    """Cutouts in memory.

    `images` is (n, height, width, band), in any unit of flux, and NaN where a pixel is masked.
    `bands` names its last axis, as ("g", "r", "i"). `pixel_scale` is in arcsec, None where it is
    not known. `columns` are arrays (n,) that are carried to the candidates; known ones are `id`,
    `ra` and `dec` in degrees, `label` (1 lens, 0 other, -1 unknown), and `group`, which cutouts of
    the same object share.
    """

    images: NDArray[Any]
    bands: tuple[str, ...]
    pixel_scale: float | None = None
    columns: Mapping[str, ArrayLike] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> "Cutouts":
        """Returns the cutouts of a slice, a mask (n,) or indices."""
        columns = {name: np.asarray(values)[rows] for name, values in self.columns.items()}
        return dataclasses.replace(self, images=self.images[rows], columns=columns)

    def picture(self, row: int) -> NDArray[np.uint8]:
        """Returns a cutout as people look at it: (height, width, 3), red the longest band."""
        from lensjax import report

        return report.colour(np.asarray(self.images[row]), self.bands)

    def save(self, path: str | Path) -> Path:
        """Writes an `.npz` that every command takes as `--data`, and returns its path."""
        arrays = {"images": self.images}
        arrays |= {name: np.asarray(values) for name, values in self.columns.items()}
        arrays["bands"] = np.array(self.bands)
        if self.pixel_scale is not None:
            arrays["pixel_scale"] = np.array(self.pixel_scale)
        with replacing(Path(path)) as file:
            np.savez(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]
        return Path(path)

    def source(self, needed: tuple[str, ...] | None = None, path: Path = Path("cutouts")) -> Source:
        """Returns the cutouts as the library reads them, in the bands that are needed (None: all).
        Messages name them by the path."""
        columns = {name: np.asarray(values) for name, values in self.columns.items()}
        arrays = Arrays(self.images, columns, self.bands, self.pixel_scale)
        return source_of_arrays(arrays, path, Wanted(needed))
