"""Sources of many cutouts in one array: NumPy, FITS, HDF5 and Zarr files.

Arrays with one value per cutout become columns of the table. Only NumPy's `.npz` is read
into memory; from the others the rows of a batch are read when they are needed.
"""

import itertools
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import MAGIC_PREFIX

from lensjax.data.bands import Wanted
from lensjax.data.formats.fits import fits_shape, fits_stack
from lensjax.data.formats.pictures import has_suffix
from lensjax.data.formats.tables import PARQUET_SUFFIXES, as_text, read_table
from lensjax.data.source import (
    LazyColumn,
    Picked,
    Source,
    StackMetadata,
    files_below,
    pixel_scale_of,
    source_of_array,
)
from lensjax.errors import UsageError, one_line
from lensjax.memory import host_bytes_left

NUMPY_SUFFIXES = (".npy", ".npz")
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
ZARR_MARKS = (".zgroup", ".zarray", "zarr.json")

IMAGES, BANDS, PIXEL_SCALE = "images", "bands", "pixel_scale"
# The column of a catalogue that says which image of a Zarr array a row is.
ZARR_ROW = "idx_in_zarr"

_PICKLED = "cannot be read: it holds pickled Python objects, which are never loaded"
_HOW_TO_SAVE = "save images, as numbers, with numpy.savez(FILE, images=IMAGES)"

# Of a chunk, which is read whole to have one of its cutouts.
LARGEST_CHUNK_BYTES = 2**32
# What a row of a table takes, at least, with its identifier, place and path.
ROW_BYTES = 200
# What is kept of decompressed chunks of a file: neighbours are read next.
CACHE_BYTES = 2**26


def open_numpy(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """Returns a `.npy` stack, mapped, or the arrays of an `.npz`, in memory.

    An `.npz` holds `images` and may hold the names of the `bands`, the `pixel_scale`, and arrays
    with one value per image, which are kept as columns.
    """
    with _reading(path, "NumPy arrays"):
        arrays = {IMAGES: _npy(path)} if has_suffix(path, (".npy",)) else _npz(path)
    if IMAGES not in arrays:
        raise UsageError(f"{path} holds no array `images`, but {', '.join(arrays) or 'nothing'}")
    images = arrays.pop(IMAGES)
    if images.odd:
        raise UsageError(f"{path}: `images` {images.odd}; {_HOW_TO_SAVE}")
    metadata = _metadata(path, arrays, (), pixel_scale)
    files = partial(files_below, path)
    return source_of_array(images.read(), path, metadata, wanted, files=files)


def _npy(path: Path) -> LazyColumn:
    with open(path, "rb") as file:
        if file.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:
            raise UsageError(f"{path} cannot be read: it is no .npy file; {_HOW_TO_SAVE}")
    return _unpickled(lambda: np.lib.format.open_memmap(path, mode="r"))


def _npz(path: Path) -> dict[str, LazyColumn]:
    """Returns the arrays of an `.npz` by name. Raises `UsageError` where it is none, or too
    large."""
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path} cannot be read: it is no .npz file; {_HOW_TO_SAVE}")
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > host_bytes_left():
        raise UsageError(
            f"{path} holds {size / 1e9:.1f} GB, more than the memory that is left: save the images "
            "as .npy, of which only the rows of a batch are read"
        )
    with np.load(path, allow_pickle=False) as file:
        return {name: _unpickled(partial(file.__getitem__, name)) for name in file.files}


def _unpickled(read: Callable[[], Any]) -> LazyColumn:
    """Returns an array in memory, or that it is pickled."""
    try:
        array = np.asanyarray(read())
    except ValueError as error:
        if "allow_pickle" not in str(error) and "objects" not in str(error):
            raise
        return LazyColumn((), tuple, _PICKLED)
    return LazyColumn(array.shape, lambda: array)


def open_fits(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """Returns the first image of a FITS file, as a stack."""
    images, names, sky = fits_stack(path)
    bands = names if images.ndim == 4 and any(names) else None
    metadata = StackMetadata(bands=bands, pixel_scale=pixel_scale or sky.pixel_scale)
    files = partial(files_below, path)
    return source_of_array(images, path, metadata, wanted, files=files)


def is_fits_stack(path: Path, wanted: Wanted) -> bool:
    """Returns True for a FITS image that is many cutouts: four axes, or three where one band is
    wanted and the file does not call its planes bands."""
    shape, names = fits_shape(path)
    one_band = len(wanted.order or wanted.needed or ()) == 1
    return len(shape) == 4 or (len(shape) == 3 and one_band and not any(names))


def open_hdf5(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """Returns the dataset `images` of an HDF5 file, or the only one of three or four axes.

    Datasets with one value per cutout are kept as columns; `bands` and `pixel_scale` are datasets
    or attributes, of the file or of the images.
    """
    import h5py  # most data are of another kind

    with _reading(path, "HDF5"):
        file = h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES)
        named: dict[str, Any] = {}
        file.visititems(lambda name, item: named.update({name: item}))
        named = {name: item for name, item in named.items() if isinstance(item, h5py.Dataset)}
        images, others = _images_of(path, named)
        columns = {name: _dataset(item) for name, item in others.items()}
        metadata = _metadata(path, columns, (file.attrs, images.attrs), pixel_scale)
    files = partial(files_below, path)
    return source_of_array(images, path, metadata, wanted, files=files)


def _dataset(dataset: Any) -> LazyColumn:
    """Returns a dataset of an HDF5 file, its texts as texts."""
    import h5py

    if h5py.check_string_dtype(dataset.dtype) is not None:
        # h5py's own texts may end in an error.
        return LazyColumn(dataset.shape, lambda: dataset.asstr(errors="replace")[()])
    is_plain = dataset.dtype.kind in "biuf" and dataset.shape is not None
    return LazyColumn(
        dataset.shape or (), lambda: dataset[()], "" if is_plain else _odd_type(dataset)
    )


def open_zarr(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """Returns the array `images` of a Zarr group, or a Zarr array.

    A Parquet catalogue next to it whose column `idx_in_zarr` says which image each of its rows is
    gives the rows; `path` may be that catalogue. Without one the images are the rows.
    """
    import zarr  # most data are of another kind

    store, catalogue = _zarr_and_catalogue(path)
    with _reading(store, "Zarr"):
        opened = zarr.open(store, mode="r")
        named = dict(opened.arrays()) if isinstance(opened, zarr.Group) else {IMAGES: opened}
        images, others = _images_of(store, named, count_rows=catalogue is None)
        if math.prod(images.chunks) * images.dtype.itemsize > LARGEST_CHUNK_BYTES:
            raise UsageError(
                f"{store}: its chunks of {' x '.join(map(str, images.chunks))} are too large to be "
                "read for one cutout: write it in smaller ones"
            )
        columns = {name: _zarr_array(item) for name, item in others.items()}
        metadata = _metadata(store, columns, (opened.attrs, images.attrs), pixel_scale)
    of_store = partial(files_below, store)
    if catalogue is None:
        return source_of_array(images, store, metadata, wanted, files=of_store)
    table = read_table(catalogue)
    rows, count = np.asarray(table[ZARR_ROW]), images.shape[0]
    if rows.dtype.kind not in "iu" or not len(rows) or not 0 <= rows.min() <= rows.max() < count:
        raise UsageError(
            f"{catalogue}: {ZARR_ROW} must hold numbers of images, from 0 to {count - 1} of {store}"
        )
    columns = {n: LazyColumn(table[n].shape, partial(table.__getitem__, n)) for n in table.colnames}
    return source_of_array(
        Picked(images, rows),
        store,
        metadata._replace(columns=columns),
        wanted,
        files=lambda: itertools.chain([str(catalogue)], of_store()),
    )


def _zarr_array(array: Any) -> LazyColumn:
    """Returns an array of a Zarr group, its texts as texts."""
    kind = array.dtype.kind
    return LazyColumn(
        array.shape,
        lambda: np.asarray(array[...]).astype(str if kind == "T" else array.dtype),
        "" if kind in "biufUST" else _odd_type(array),
    )


def is_zarr(path: Path) -> bool:
    """Returns True for the folder of a Zarr store."""
    return path.is_dir() and any((path / mark).is_file() for mark in ZARR_MARKS)


def is_zarr_catalogue(path: Path) -> bool:
    """Returns True for a Parquet file whose rows are images of a Zarr array."""
    import pyarrow.parquet

    if not has_suffix(path, PARQUET_SUFFIXES):
        return False
    # What is wrong with the file is said when it is read.
    with suppress(OSError, ValueError):
        return ZARR_ROW in pyarrow.parquet.read_schema(path).names
    return False


def _zarr_and_catalogue(path: Path) -> tuple[Path, Path | None]:
    """Returns the store and its catalogue, of which `path` is one: the other has its name, or is
    alone."""
    given_store = path.is_dir()
    is_other: Callable[[Path], bool] = is_zarr_catalogue if given_store else is_zarr
    folders = (path.parent, path) if given_store else (path.parent,)
    others = [other for folder in folders for other in sorted(folder.iterdir()) if is_other(other)]
    alike = [other for other in others if other.stem == path.stem] or others
    if len(alike) > 1:
        raise UsageError(
            f"--data {path}: which of {', '.join(other.name for other in alike)} belongs to it? "
            f"Give both the same name"
        )
    other = alike[0] if alike else None
    if given_store:
        return path, other
    if other is None:
        raise UsageError(f"--data {path} has a column {ZARR_ROW}, but there is no Zarr beside it")
    return other, path


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Raises `UsageError` in the place of whatever a library says of arbitrary bytes: they have
    errors of their own, down to KeyError."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{path} cannot be read as {kind}: {one_line(error, 160)}") from error


def _images_of(
    path: Path, named: Mapping[str, Any], *, count_rows: bool = True
) -> tuple[Any, dict[str, Any]]:
    """Returns the array of images among the arrays of a file, and the others by name: without
    their groups, where of two that are called alike then the one beside the images is called so.

    Raises `UsageError` where it is not clear which it is, or where, if asked to `count_rows`, it
    holds more than the memory has room to list.
    """
    large = [name for name, item in named.items() if item.ndim in (3, 4)]
    chosen = [name for name in large if name.rsplit("/", 1)[-1] == IMAGES] or large
    if len(chosen) != 1:
        raise UsageError(
            f"{path} holds {'several arrays' if chosen else 'no array'} of images "
            f"({', '.join(chosen or named) or 'nothing'}): call the right one `images`"
        )
    images, count = named[chosen[0]], int(named[chosen[0]].shape[0])
    if count_rows and count * ROW_BYTES > host_bytes_left():
        raise UsageError(
            f"{path} is said to hold {count} cutouts, more than the memory has room to list: it is "
            "damaged, or has to be scored in parts"
        )
    group = chosen[0].rpartition("/")[0]
    others = sorted(
        filter(lambda name: name != chosen[0], named),
        key=lambda name: name.rpartition("/")[0] == group,
    )
    called = {name.rpartition("/")[2]: name for name in others}
    apart = {name: name for name in others if name not in called.values()}
    return images, {new: named[name] for new, name in (called | apart).items()}


def _odd_type(array: Any) -> str:
    return f"is of the type {one_line(array.dtype, 60)}"


def _metadata(
    path: Path,
    arrays: Mapping[str, LazyColumn],
    attributes: Sequence[Mapping[str, Any]],
    pixel_scale: float | None,
) -> StackMetadata:
    """Returns what the arrays beside the images and the attributes of a file say; the
    `pixel_scale` that a user gave overrides it."""
    names = (BANDS, PIXEL_SCALE)
    said = {name: each[name] for each in attributes for name in names if name in each}
    said |= {name: arrays[name].read() for name in names if name in arrays and not arrays[name].odd}
    if pixel_scale is None and PIXEL_SCALE in said:
        pixel_scale = pixel_scale_of(said[PIXEL_SCALE], f"{path}: {PIXEL_SCALE}")
    bands = _bands(said[BANDS]) if BANDS in said else None
    columns = {n: values for n, values in arrays.items() if n not in names or values.odd}
    return StackMetadata(columns, bands, pixel_scale)


def _bands(said: Any) -> tuple[str, ...]:
    """Returns the names of the bands: one each, or all in one text."""
    names = [as_text(name).strip() for name in np.asarray(said).reshape(-1).tolist()]
    return tuple(re.split(r"[,\s]+", names[0])) if len(names) == 1 else tuple(names)
