"""What every form of data becomes: a source of cutouts, with a table that has a row for each.

A source reads cutout `i` on demand and knows its rows in advance, so that a run can be planned, cut
short and taken up again, and no row is ever lost: one that cannot be read raises `Unreadable` when
its turn comes.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.table import Table

from lensjax.data.bands import Wanted, select_in
from lensjax.data.formats.tables import KNOWN_COLUMNS, as_text, find_column, plain, standardise
from lensjax.data.parts import WHOLE, Part, rows_of
from lensjax.data.planes import (
    COARSEST,
    FINEST,
    Astrometry,
    Cutout,
    Names,
    Plane,
    Unreadable,
    is_pixel_scale,
    masked,
    place_of,
    short,
)
from lensjax.data.preprocess import join
from lensjax.errors import UsageError

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

    def after(self, first: int) -> "Stack":
        """Returns the same without the cutouts before the `first`."""
        read = self.read
        return replace(self, read=lambda rows: read(slice(first + rows.start, first + rows.stop)))


@dataclass(frozen=True)
class Source:
    """Cutouts by row number.

    `table`: a row a cutout, in the order given, with `id, ra, dec` (degrees, NaN where unknown),
    `path`, `label` (1 lens, 0 none, -1 unknown) and `group` where known, then the columns that
    the input carried. `bands`: those of the cutouts' channels, in order, and `bands_from`: where
    each was found, in words, () where no cutout can be read. `description`: one line. `threads`:
    how many read ahead. `stack`: the same cutouts many at a time, where all are of one form; None
    where that is not known. `files`: gives the paths of all that table and cutouts are read from,
    some of which may be missing. `first_row`: which row of the data is row 0 here, where these are
    a part of them (the `files` are those of all parts). `given`: how many rows the data have.
    `listed_in`: the catalogue that names the files, "" without one.
    """

    table: Table
    bands: tuple[str, ...]
    description: str
    threads: int
    read: Callable[[int], Cutout]
    stack: Stack | None = None
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
        return replace(
            self,
            table=self.table[rows.start : rows.stop],
            read=lambda row: read(rows.start + row),
            stack=None if stack is None else stack.after(rows.start),
            first_row=rows.start,
        )


def source_of(
    table: Table,
    bands: tuple[str, ...],
    description: str,
    threads: int,
    read: Callable[[int], Cutout],
    stack: Stack | None = None,
    files: Files = tuple,
    bands_from: tuple[str, ...] = (),
) -> Source:
    """Returns the source, its table completed by `id`, `ra` and `dec` and its known columns put
    first."""
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
    table = table[[*known, *carried]]
    return Source(
        table,
        bands,
        description,
        threads,
        read,
        stack,
        files,
        given=rows,
        bands_from=bands_from,
    )


def describe(table: Table, bands: tuple[str, ...], example: Cutout) -> str:
    """Number, labels, size, bands and scale of the cutouts, in words."""
    height, width = example.image.shape[:2]
    number = "1 cutout" if len(table) == 1 else f"{len(table)} cutouts"
    words = [f"{number} of {width}x{height} pixels", f"bands {', '.join(bands)}"]
    scale = example.pixel_scale
    words.append(f"{scale:.4g} arcsec/pixel" if scale else "pixel scale not known")
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


def files_below(path: Path) -> Iterator[str]:
    """Yields the path of a file, or those of all files in a folder and in the folders below it."""
    if not path.is_dir():
        yield str(path)
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (os.path.join(folder, name) for name in sorted(names))


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


class LazyColumn(NamedTuple):
    """An array beside the images: its shape, what reads it, and why it cannot be, "" where it
    can."""

    shape: tuple[int, ...]
    read: Callable[[], Any]
    odd: str = ""


class StackMetadata(NamedTuple):
    """What a file says beside its array of images: other arrays by name, of which those with a
    value per cutout are carried, the names of the channels, and the pixel scale (arcsec)."""

    columns: Mapping[str, LazyColumn] = {}
    bands: Names | None = None
    pixel_scale: float | None = None


def source_of_array(
    images: Any,
    path: Path,
    metadata: StackMetadata,
    wanted: Wanted,
    files: Files = tuple,
) -> Source:
    """Returns a source of one array: (N, H, W[, C]) or (N, C, H, W), the shorter axis being C.

    Two axes, or three of which the last is no longer than four, are one cutout. `images` has a
    shape and a type and is sliced, as arrays in files are. Columns of the `metadata` are carried
    where they have one value per cutout. The `files` hold it, where any do. Raises `UsageError`
    where this is no stack, or an identifier, a place or a label does not have one value per cutout.
    """
    said = tuple(int(length) for length in images.shape)
    is_one = len(said) == 2 or (len(said) == 3 and said[-1] <= 4)
    if math.prod(said if is_one else said[1:]) > wanted.most_values:
        size = " x ".join(map(str, said))
        raise UsageError(
            f"{path}: an array of {size} has cutouts of more than {wanted.most_values} values "
            "(--max-values)"
        )
    if is_one:
        images, said = np.asarray(images[...])[np.newaxis], (1, *said)
    shape = said if len(said) != 3 else (*said, 1)
    if len(shape) != 4 or 0 in shape or images.dtype.kind not in "fiub":
        text = " x ".join(map(str, said)) or "one"
        raise UsageError(
            f"{path}: an array of {text} {images.dtype} is no stack of cutouts; wanted are numbers "
            "of shape (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    channels_last = shape[3] <= shape[1]
    count, *sides, channels = shape if channels_last else (shape[0], *shape[2:], shape[1])
    names = metadata.bands or (None,) * channels
    if len(names) != channels:
        raise UsageError(f"{path}: {len(names)} bands are named for {channels} channels")
    bands, planes = select_in(path, names, wanted)
    all_planes = planes == tuple(range(channels))

    def read(rows: slice) -> np.ndarray:
        try:
            part = np.asarray(images[rows]).reshape(-1, *shape[1:])
        # A damaged piece of the file: its library and its codecs have errors of their own.
        except Exception as error:
            raise Unreadable(short(error)) from error
        part = part if channels_last else np.moveaxis(part, 1, 3)
        return part if all_planes else part[..., planes]

    stack = Stack((sides[0], sides[1], len(planes)), images.dtype, metadata.pixel_scale, read)
    columns, left_out = _carried(metadata.columns, count, path)
    kind = f"stack {path} read as ({'N, H, W, C' if channels_last else 'N, C, H, W'})"
    places = tuple(place_of("channel", plane, names[plane]) for plane in planes)
    source = source_of_stack(kind, str(path), count, columns, bands, places, stack, files)
    others = f"; left out: {'; '.join(left_out)}" if left_out else ""
    return replace(source, description=source.description + others)


def _carried(
    columns: Mapping[str, LazyColumn], count: int, path: Path
) -> tuple[dict[str, Any], list[str]]:
    """Returns the arrays with one value for each of `count` cutouts; and words on each of the
    others.

    Raises `UsageError` where one of the others is of a known name, or one is damaged.
    """
    carried, left_out = {}, []
    for name, column in columns.items():
        shape, wrong = column.shape or (1,), column.odd
        if not wrong and shape != (count,):
            wrong = f"has {' x '.join(map(str, shape))} values for {count} cutouts"
        if wrong and any(find_column(known, [name]) for known in KNOWN_COLUMNS):
            raise UsageError(
                f"{path}: `{name}` {wrong}: give one value for each cutout, or leave it out"
            )
        if wrong:
            left_out.append(f"`{name}` {wrong}")
            continue
        try:
            found = column.read()
        # Arbitrary bytes: the libraries have errors of their own.
        except Exception as error:
            raise UsageError(f"{path}: `{name}` {short(error)}; leave it out") from error
        carried[name] = found if column.shape else np.reshape(found, 1)
    return carried, sorted(left_out)


def rows_of_file(path: str | Path, count: int) -> np.ndarray:
    """Returns what the cutouts of a stack are called in catalogues: `FILE[ROW]`, wherever they
    lie."""
    file = Path(path).absolute()
    return np.array([f"{file}[{row}]" for row in range(count)], object)


def source_of_stack(
    kind: str,
    path: str,
    count: int,
    columns: Mapping[str, np.ndarray],
    bands: tuple[str, ...],
    bands_from: tuple[str, ...],
    stack: Stack,
    files: Files,
) -> Source:
    """Returns a source of a stack of `count` cutouts, which the `files` hold."""
    table = standardise(Table(dict(columns)), path)
    if "path" in table.colnames:
        table.rename_column("path", "path_input")
    table["path"] = rows_of_file(path, count)
    sky = Astrometry(stack.pixel_scale)

    def read(row: int) -> Cutout:
        (image,) = stack.read(slice(row, row + 1))
        return join([Plane(masked(image[..., band]), sky) for band in range(len(bands))])

    example = Cutout(np.empty(stack.shape, np.float32), stack.pixel_scale)
    text = f"{kind}: {describe(table, bands, example)}"
    return source_of(table, bands, text, ONE_A_CORE, read, stack, files, bands_from)
