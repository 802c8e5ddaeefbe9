"""Cutouts that exist only inside the compiled step: cut there out of tiles, by their places."""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

# A batch is cut from so many sheets: from the end of one tile and the beginning of the next.
SHEETS = 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sheet:
    """A tile, or the part of one that fits the memory, as it is stored.

    `planes`: one a band, (height, width). `units`: (band, 2) float32, the scale and the zero by
    which the pixels become flux.
    """

    planes: tuple[np.ndarray, ...]
    units: np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Places:
    """Where the cutouts of a batch lie, every array with the batch in front.

    `sheet`: (batch,) int32, which of the sheets. `corner`: (batch, band, 2) int32, the first row
    and column of the region in each plane. `maps`: (batch, band, 2, 3) float32, from (row, column,
    1) of the cutout to row and column of the region, for bands that are interpolated. `given`:
    (batch,) bool, the image of the batch is the cutout: the host has had to fill masked pixels.
    `regions`: the sides of the regions in pixels, 0 for a band that is cut along its pixels.
    """

    sheet: np.ndarray
    corner: np.ndarray
    maps: np.ndarray
    given: np.ndarray
    regions: tuple[int, ...] = field(metadata={"static": True})


class SheetSpec(NamedTuple):
    """The form of the sheets of a run, and of the regions in them: shapes (height, width) and types
    of the planes, and `regions` as in `Places`."""

    shapes: tuple[tuple[int, int], ...]
    dtypes: tuple[str, ...]
    regions: tuple[int, ...]

    def blank(self) -> Sheet:
        """Returns a sheet of zeros."""
        planes = zip(self.shapes, self.dtypes, strict=True)
        return Sheet(
            tuple(np.zeros(shape, dtype) for shape, dtype in planes),
            np.tile(np.array([1, 0], np.float32), (len(self.shapes), 1)),
        )

    def places(self, batch_size: int) -> Places:
        """Returns the places of a batch of padding."""
        bands = len(self.regions)
        return Places(
            np.zeros(batch_size, np.int32),
            np.zeros((batch_size, bands, 2), np.int32),
            np.zeros((batch_size, bands, 2, 3), np.float32),
            np.zeros(batch_size, bool),
            self.regions,
        )


def cut(sheets: tuple[Sheet, ...], places: Places, given: Array) -> Array:
    """Returns the cutouts (batch, size, size, band) float32 at some places of sheets; those that
    are `given`, of the same shape, as they are."""
    size = given.shape[1]
    bands = [_band(sheets, places, band, size) for band in range(given.shape[-1])]
    is_given = jnp.asarray(places.given)[:, None, None, None]
    return jnp.where(is_given, given, jnp.stack(bands, axis=-1))


def _band(sheets: tuple[Sheet, ...], places: Places, band: int, size: int) -> Array:
    """Returns one band of the cutouts, (batch, size, size) float32."""
    region, corner = places.regions[band], jnp.asarray(places.corner)[:, band]
    shape = (region or size,) * 2

    def sliced(sheet: Sheet) -> Array:
        plane = jnp.asarray(sheet.planes[band])
        return jax.vmap(lambda at: lax.dynamic_slice(plane, (at[0], at[1]), shape))(corner)

    first, *others = map(sliced, sheets)
    units = jnp.stack([jnp.asarray(sheet.units)[band] for sheet in sheets])[places.sheet]
    for number, other in enumerate(others, start=1):
        first = jnp.where((places.sheet == number)[:, None, None], other, first)
    pixels = first.astype(jnp.float32)
    if jnp.issubdtype(first.dtype, jnp.integer):
        pixels = pixels * units[:, :1, None] + units[:, 1:, None]
    return interpolated(pixels, jnp.asarray(places.maps)[:, band], size) if region else pixels


def interpolated(regions: Array, maps: Array, size: int) -> Array:
    """Returns regions (batch, height, width) on other grids, (batch, size, size), by bilinear
    interpolation.

    `maps` (batch, 2, 3) take (row, column, 1) of the new pixels to rows and columns of the regions,
    in which all of them lie. The grids of a tile's bands are brought to the finest: nothing shrinks
    here, and nothing is to be averaged.
    """
    row, column = jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij")
    grid = jnp.stack([row, column, jnp.ones_like(row)]).astype(jnp.float32)
    # All of float32: the units for matrices would round to fewer bits.
    at = jnp.einsum("bkc,chw->kbhw", maps, grid, precision=lax.Precision.HIGHEST)
    below = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, min(regions.shape[1:]) - 2)
    down, across = at - below

    def values(by_rows: int, by_columns: int) -> Array:
        of = jax.vmap(lambda region, rows, columns: region[rows, columns])
        return of(regions, below[0] + by_rows, below[1] + by_columns)

    upper = values(0, 0) * (1 - across) + values(0, 1) * across
    lower = values(1, 0) * (1 - across) + values(1, 1) * across
    return upper * (1 - down) + lower * down
