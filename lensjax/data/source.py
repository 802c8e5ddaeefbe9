"""What every form of data becomes: a source of cutouts, with a table that has a row for each.

A source reads cutout `i` on demand and knows its rows in advance, so that a run can be planned, cut
short and taken up again, and no row is ever lost: one that cannot be read raises `Unreadable` when
its turn comes.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from astropy.table import Table

from lensjax.data.bands import Wanted, select_in
from lensjax.data.formats.tables import KNOWN_COLUMNS, as_text, find_column, plain, standardise
from lensjax.data.parts import WHOLE, Part, rows_of
from lensjax.data.planes import (
    COARSEST,
    FINEST,
    Cutout,
    Names,
    Unreadable,
    is_pixel_scale,
    masked,
    place_of,
    refusing,
    short,
    without_blank,
)
from lensjax.errors import LensjaxError, UsageError
from lensjax.places import place, reached

if TYPE_CHECKING:
    from lensjax.data.tiles import Tiles

# More would wait for the interpreter rather than for the disk.
MOST_THREADS = 8
ONE_A_CORE = min(MOST_THREADS, os.cpu_count() or 1)

Files = Callable[[], Iterable[str]]


@dataclass(frozen=True)
class Stack:
    """Cutouts of one shape (height, width, band), type and pixel scale, as arrays hold them.

    `read` gives those of some rows, one after the other, in the type of the arrays and without
    regard to masks.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    pixel_scale: float | None
    read: Callable[[slice], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Source:
    """Cutouts by row number.

    `table`: a row a cutout, in the order given, with `id, ra, dec` (degrees, NaN where unknown),
    `path`, `label` (1 lens, 0 none, -1 unknown) and `group` where known, then the columns that
    the input carried. `bands`: those of the cutouts' channels, in order, and `bands_from`: where
    each was found, in words, () where no cutout can be read. `description`: one line. `threads`:
    how many read ahead. `stack`: the same cutouts many at a time, where all are of one form; None
    where that is not known. `tiles`: where they lie in tiles, where they are cut from such.
    `files`: gives the paths of all that table and cutouts are read from, some of which may be
    missing. `first_row`: which row of the data is row 0 here, where these are
    a part of them (the `files` are those of all parts). `given`: how many rows the data have.
    `listed_in`: the catalogue that names the files, "" without one.
    """

    table: Table
    bands: tuple[str, ...]
    description: str
    read: Callable[[int], Cutout]
    threads: int = ONE_A_CORE
    stack: Stack | None = None
    tiles: "Tiles | None" = None
    files: Files = tuple
    first_row: int = 0
    given: int = 0
    listed_in: str = ""
    bands_from: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    @property
    def rows(self) -> range:
        """Returns which rows of the data these are."""
        return range(self.first_row, self.first_row + len(self))

    @property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """`ra` and `dec` by the table, each (row,) float64 degrees."""
        ra, dec = (np.asarray(self.table[name], np.float64) for name in ("ra", "dec"))
        return ra, dec

    def __getitem__(self, row: int) -> Cutout:
        """The cutout of one row; may be called from several threads. Raises `Unreadable`."""
        return self.read(int(row))

    def part(self, part: Part) -> "Source":
        """Returns the cutouts of one part of all rows."""
        if part == WHOLE:
            return self
        rows, read, stack = rows_of(part, len(self)), self.read, self.stack
        first = rows.start
        if stack is not None:
            many = stack.read
            stack = replace(
                stack, read=lambda rows: many(slice(first + rows.start, first + rows.stop))
            )
        return replace(
            self,
            table=self.table[first : rows.stop],
            read=lambda row: read(first + row),
            stack=stack,
            tiles=self.tiles and self.tiles.rows(slice(first, rows.stop)),
            first_row=first,
        )

    def take(self, rows: np.ndarray) -> "Source":
        """Returns the cutouts of these rows (n,) int, in their order, read one by one."""
        read = self.read
        return replace(
            self, table=self.table[rows], read=lambda row: read(int(rows[row])), stack=None
        )


def source_of(table: Table, **fields: Any) -> Source:
    """Returns the source of these fields, its table completed by `id`, `ra` and `dec` and its known
    columns put first."""
    rows = len(table)
    defaults = {"id": np.arange(rows), "ra": np.full(rows, np.nan), "dec": np.full(rows, np.nan)}
    for name, values in defaults.items():
        if name not in table.colnames:
            table[name] = values
    for name in ("id", "group"):
        if name in table.colnames and table[name].dtype.kind == "O":
            table[name] = plain(table[name])  # to be written to arrays of their own
    known = [name for name in KNOWN_COLUMNS if name in table.colnames]
    carried = [name for name in table.colnames if name not in known]
    return Source(table[[*known, *carried]], given=rows, **fields)


def describe(
    table: Table, bands: tuple[str, ...], shape: tuple[int, ...], pixel_scale: float | None
) -> str:
    """Number, labels, size, bands and scale of the cutouts, in words."""
    number = "1 cutout" if len(table) == 1 else f"{len(table)} cutouts"
    words = [f"{number} of {shape[1]}x{shape[0]} pixels", f"bands {', '.join(bands)}"]
    words.append(f"{pixel_scale:.4g} arcsec/pixel" if pixel_scale else "pixel scale not known")
    if "label" in table.colnames:
        label = np.asarray(table["label"])
        words.append(f"{(label == 1).sum()} lenses and {(label == 0).sum()} others by label")
    if "id" in table.colnames:
        ids = np.asarray(table["id"])
        # A set of numbers as objects of Python would take ten times their memory.
        own = np.unique(ids) if ids.dtype.kind in "iu" else set(ids.tolist())
        if len(own) < len(ids):
            words.append(f"{len(ids) - len(own)} rows repeat the id of another")
    return ", ".join(words)


@dataclass(frozen=True)
class Picked:
    """Rows of an array in memory or on disk, in any order, read when they are needed."""

    array: Any
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: Any) -> np.ndarray:
        return self.array[self.rows[places]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype


def pixel_scale_of(said: Any, where: str) -> float:
    """Returns the pixel scale (arcsec) that is said somewhere. Raises `UsageError` where it is
    none."""
    values = list(dict.fromkeys(np.asarray(said).reshape(-1).tolist()))
    try:
        (scale,) = map(float, values)
        if is_pixel_scale(scale):
            return scale
    except (ValueError, TypeError):
        pass
    shown = ", ".join([*map(as_text, values[:3]), *["..."] * (len(values) > 3)])
    raise UsageError(
        f"{where} {shown or 'without a value'} is no pixel scale: it must be one number, from "
        f"{FINEST:g} to {COARSEST:g} arcsec per pixel (--pixel-scale stands above what a file says)"
    )


class Arrays(NamedTuple):
    """An array of images and what a file says beside it.

    `columns`: other arrays by name, in memory or on disk, of which those with a value per cutout
    are carried; `Unreadable` in the place of one that cannot be. `bands`: names of the channels.
    `pixel_scale` in arcsec.
    """

    images: Any
    columns: Mapping[str, Any] = {}
    bands: Names | None = None
    pixel_scale: float | None = None


def source_of_arrays(arrays: Arrays, path: Path, wanted: Wanted, files: Files = tuple) -> Source:
    """Returns a source of one array: (N, H, W[, C]) or (N, C, H, W), the shorter axis being C.

    Two axes, or three of which the last is no longer than four, are one cutout. The images have a
    shape and a type and are sliced, as arrays in files are. The `files` hold them, where any do.
    Raises `UsageError` where this is no stack, or an identifier, a place or a label does not have
    one value per cutout.
    """
    images, shape, channels_last = _as_stack(arrays.images, path, wanted.most_values)
    count, *sides, channels = shape if channels_last else (shape[0], *shape[2:], shape[1])
    names = arrays.bands or (None,) * channels
    if len(names) != channels:
        raise UsageError(f"{path}: {len(names)} bands are named for {channels} channels")
    bands, planes = select_in(path, names, wanted)
    all_planes = planes == tuple(range(channels))

    def read(rows: slice) -> np.ndarray:
        try:
            with reached(path):
                part = np.asarray(images[rows]).reshape(-1, *shape[1:])
        except LensjaxError:
            raise
        # A damaged piece of the file: its library and its codecs have errors of their own.
        except Exception as error:
            raise Unreadable(short(error)) from error
        part = part if channels_last else np.moveaxis(part, 1, 3)
        return part if all_planes else part[..., planes]

    def cutout(row: int) -> Cutout:
        (image,) = read(slice(row, row + 1))
        image = np.stack([masked(image[..., band]) for band in range(len(bands))], axis=-1)
        found = Cutout(image, arrays.pixel_scale)
        without_blank(found, range(len(bands)))
        return found

    stack = Stack((sides[0], sides[1], len(planes)), images.dtype, arrays.pixel_scale, read)
    columns, left_out = _carried(arrays.columns, count, path)
    table = standardise(Table(columns), str(path))
    if "path" in table.colnames:
        table.rename_column("path", "path_input")
    table["path"] = rows_of_file(path, count)
    order = "N, H, W, C" if channels_last else "N, C, H, W"
    text = describe(table, bands, stack.shape, stack.pixel_scale)
    others = f"; left out: {'; '.join(left_out)}" if left_out else ""
    return source_of(
        table,
        bands=bands,
        description=f"stack {path} read as ({order}): {text}{others}",
        read=cutout,
        stack=stack,
        files=files,
        bands_from=tuple(place_of("channel", plane, names[plane]) for plane in planes),
    )


def _as_stack(
    images: Any, path: Path, most_values: int
) -> tuple[Any, tuple[int, int, int, int], bool]:
    """Returns an array of cutouts, its shape with four axes, and whether the last is the channel.

    Raises `UsageError` where it is none, or has cutouts of more than `most_values`.
    """
    said = tuple(int(length) for length in images.shape)
    is_one = len(said) == 2 or (len(said) == 3 and said[-1] <= 4)
    size = " x ".join(map(str, said)) or "one"
    if math.prod(said if is_one else said[1:]) > most_values:
        raise UsageError(
            f"{path}: an array of {size} has cutouts of more than {most_values} values "
            "(--max-values)"
        )
    if is_one:
        images, said = np.asarray(images[...])[np.newaxis], (1, *said)
    shape = said if len(said) != 3 else (*said, 1)
    if len(shape) != 4 or 0 in shape or images.dtype.kind not in "fiub":
        raise UsageError(
            f"{path}: an array of {size} {images.dtype} is no stack of cutouts; wanted are numbers "
            "of shape (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    return images, shape, shape[3] <= shape[1]


def _carried(
    columns: Mapping[str, Any], count: int, path: Path
) -> tuple[dict[str, Any], list[str]]:
    """Returns the arrays with one value for each of `count` cutouts; and words on each of the
    others.

    Raises `UsageError` where one of the others is of a known name, or one is damaged.
    """
    carried, left_out = {}, []
    for name, column in columns.items():
        wrong = str(column) if isinstance(column, Unreadable) else ""
        shape = () if wrong else column.shape or (1,)
        if not wrong and shape != (count,):
            wrong = f"has {' x '.join(map(str, shape))} values for {count} cutouts"
        if wrong and any(find_column(known, [name]) for known in KNOWN_COLUMNS):
            raise UsageError(
                f"{path}: `{name}` {wrong}: give one value for each cutout, or leave it out"
            )
        if wrong:
            left_out.append(f"`{name}` {wrong}")
            continue
        with refusing(f"{path}: `{name}` cannot be decoded", "; leave it out"):
            carried[name] = values_of(column).reshape(count)
    return carried, sorted(left_out)


def values_of(array: Any) -> np.ndarray:
    """Returns an array in memory or on disk as one in memory, texts as texts."""
    values = array if isinstance(array, np.ndarray) else np.asarray(array[...])
    return values.astype(str) if values.dtype.kind == "T" else values


def rows_of_file(path: str | Path, count: int) -> np.ndarray:
    """Returns what the cutouts of a stack are called in catalogues: `FILE[ROW]`, wherever they
    lie."""
    file = place(path).absolute()
    return np.array([f"{file}[{row}]" for row in range(count)], object)
