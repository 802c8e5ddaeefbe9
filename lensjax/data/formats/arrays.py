"""Sources of many cutouts in one array: NumPy, FITS, HDF5 and Zarr files.

What is no image and has one value a cutout is a column of the table. Only NumPy's `.npz` is read
into memory; from the others the rows of a batch are fetched when their turn comes.
"""

import itertools
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Column
from numpy.lib.format import MAGIC_PREFIX

from lensjax.data.bands import Wanted
from lensjax.data.formats.fits import fits_form, fits_stack
from lensjax.data.formats.pictures import has_suffix
from lensjax.data.formats.tables import PARQUET_SUFFIXES, as_text, read_table
from lensjax.data.planes import Names, Sky, Unreadable
from lensjax.data.source import (
    Beside,
    Picked,
    Source,
    Values,
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

# A stack may say that it holds so many times what there are pieces of: pieces that are all zero
# need not be written. A table of so few rows costs nothing in any case.
MOST_EMPTY, FEW_ROWS = 10, 10_000
# Of a piece that is read to have one of its cutouts.
LARGEST_PIECE_BYTES = 2**32

# What is kept of decompressed pieces of a file: neighbours are asked for next.
CACHE_BYTES = 2**26


def open_numpy(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """A `.npy` stack, mapped, or the arrays of an `.npz`, in memory.

    An `.npz` holds `images` and may hold the names of the `bands`, the `pixel_scale`, and arrays
    with a value an image, which are carried.
    """
    in_memory = not has_suffix(path, (".npy",))
    try:
        arrays = _npz(path) if in_memory else {IMAGES: _npy(path)}
    except UsageError:
        raise
    # Arbitrary bytes: NumPy, zipfile and zlib each have errors of their own.
    except Exception as error:
        raise _unusable(path, "NumPy arrays", error) from error
    if IMAGES not in arrays:
        raise UsageError(f"{path} holds no array `images`, but {', '.join(arrays) or 'nothing'}")
    images = arrays.pop(IMAGES)
    if images.odd:
        raise UsageError(f"{path}: `images` {images.odd}; {_HOW_TO_SAVE}")
    beside = _beside(path, arrays, {}, pixel_scale)
    files = partial(files_below, path)
    return source_of_array(images.read(), path, beside, wanted, in_memory=in_memory, files=files)


def _npy(path: Path) -> Values:
    with open(path, "rb") as file:
        if file.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:
            raise UsageError(f"{path} cannot be read: it is no .npy file; {_HOW_TO_SAVE}")
    try:
        images = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        if "objects" not in str(error):
            raise
        return Values((), tuple, _PICKLED)
    return _in_memory(images)


def _npz(path: Path) -> dict[str, Values]:
    """The arrays of an `.npz` by name. Raises `UsageError` where it is none, or too large."""
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path} cannot be read: it is no .npz file; {_HOW_TO_SAVE}")
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > host_bytes_left():
        raise UsageError(
            f"{path} holds {size / 1e9:.1f} GB, more than the memory that is left: save the images "
            "as .npy, of which only the rows of a batch are read"
        )
    arrays = {}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            try:
                arrays[name] = _in_memory(np.asarray(file[name]))
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                arrays[name] = Values((), tuple, _PICKLED)
    return arrays


def _in_memory(array: np.ndarray) -> Values:
    return Values(array.shape, lambda: array)


def open_fits(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """The first image of a FITS file, as a stack."""
    images, names, sky = read_fits_stack(str(path))
    bands = names if images.ndim == 4 and any(names) else None
    beside = Beside(bands=bands, pixel_scale=pixel_scale or sky.pixel_scale)
    files = partial(files_below, path)
    return source_of_array(images, path, beside, wanted, in_memory=False, files=files)


def is_fits_stack(path: Path, wanted: Wanted) -> bool:
    """True for a FITS image that is many cutouts: four axes, or three where one band is wanted and
    the file does not call its planes bands."""
    shape, names = fits_form(path)
    one_band = len(wanted.order or wanted.needed or ()) == 1
    return len(shape) == 4 or (len(shape) == 3 and one_band and not any(names))


def read_fits_stack(path: str) -> tuple[np.ndarray, Names, Sky]:
    """The first image of a FITS file of any size, the names of its planes, and where it lies.
    Raises `UsageError`."""
    try:
        return fits_stack(path)
    except Unreadable as error:
        raise UsageError(f"{path}: {error}") from error


def open_hdf5(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """The dataset `images` of an HDF5 file, or the only one of three or four axes.

    Datasets with a value a cutout are carried; `bands` and `pixel_scale` are datasets or
    attributes, of the file or of the images.
    """
    import h5py  # most data are of another kind

    try:
        file = h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES)
        named: dict[str, Any] = {}
        file.visititems(
            lambda name, item: (
                named.update({name: item}) if isinstance(item, h5py.Dataset) else None
            )
        )
        place = _place_of_images(path, named)
        images = named.pop(place)
        if len(images) > FEW_ROWS:
            _check_backed(path, len(images), _held_by_hdf5(images))
        others = {name: _values(item) for name, item in _nearest_first(named, place)}
        beside = _beside(path, others, {**_said(file.attrs), **_said(images.attrs)}, pixel_scale)
    except UsageError:
        raise
    # Arbitrary bytes: the library has errors of its own, down to KeyError.
    except Exception as error:
        raise _unusable(path, "HDF5", error) from error
    files = partial(files_below, path)
    return source_of_array(images, path, beside, wanted, in_memory=False, files=files)


def _held_by_hdf5(images: Any) -> int:
    """How many cutouts there is room for in what a dataset takes of its file."""
    if images.is_virtual or images.external:
        return len(images)  # their pixels lie in other files
    if images.chunks is None:
        return len(images) * images.id.get_storage_size() // images.nbytes
    return _held(images.id.get_num_chunks(), images.shape, images.chunks)


def _values(dataset: Any) -> Values:
    """A dataset of an HDF5 file, its texts as texts."""
    import h5py

    if h5py.check_string_dtype(dataset.dtype) is not None:
        # h5py's own texts may end in an error.
        return Values(dataset.shape, lambda: dataset.asstr(errors="replace")[()])
    is_plain = dataset.dtype.kind in "biuf" and dataset.shape is not None
    odd = "" if is_plain else f"is of the type {one_line(dataset.dtype, 60)}"
    return Values(dataset.shape or (), lambda: dataset[()], odd)


def open_zarr(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """The array `images` of a Zarr group, or a Zarr array.

    A Parquet catalogue beside it whose column `idx_in_zarr` says which image each of its rows is
    gives the rows; `path` may be that catalogue. Without one the images are the rows.
    """
    import zarr  # most data are of another kind

    store, catalogue = _zarr_and_catalogue(path)
    try:
        opened = zarr.open(store, mode="r")
        named = dict(opened.arrays()) if isinstance(opened, zarr.Group) else {IMAGES: opened}
        place = _place_of_images(store, named)
        images = named.pop(place)
        if math.prod(images.chunks) * images.dtype.itemsize > LARGEST_PIECE_BYTES:
            raise UsageError(
                f"{store}: its chunks of {' x '.join(map(str, images.chunks))} are too large to be "
                "read for one cutout: write it in smaller ones"
            )
        if images.shape[0] > FEW_ROWS and catalogue is None:
            _check_backed(store, images.shape[0], _held_by_zarr(store, images))
        others = {name: _array(item) for name, item in _nearest_first(named, place)}
        beside = _beside(store, others, {**_said(opened.attrs), **_said(images.attrs)}, pixel_scale)
    except UsageError:
        raise
    # The store may hold anything: Zarr, its codecs and the file system have errors of their own.
    except Exception as error:
        raise _unusable(store, "Zarr", error) from error
    of_store = partial(files_below, store)
    if catalogue is None:
        return source_of_array(images, store, beside, wanted, in_memory=False, files=of_store)
    table = read_table(catalogue)
    rows = np.asarray(table[ZARR_ROW])
    if rows.dtype.kind not in "iu" or len(rows) == 0:
        raise UsageError(f"{catalogue}: {ZARR_ROW} must hold the numbers of images")
    if rows.min() < 0 or rows.max() >= images.shape[0]:
        raise UsageError(
            f"{catalogue}: {ZARR_ROW} goes from {rows.min()} to {rows.max()}, but {store} holds "
            f"{images.shape[0]} images"
        )
    columns = {name: _column(table[name]) for name in table.colnames}
    beside = beside._replace(columns=columns)

    def files() -> Iterable[str]:
        return itertools.chain([str(catalogue)], of_store())

    picked = Picked(images, rows)
    return source_of_array(picked, store, beside, wanted, in_memory=False, files=files)


def _held_by_zarr(store: Path, images: Any) -> int:
    """How many cutouts the pieces of an array that there are have room for, or some that do."""
    pieces = images.shards or images.chunks
    enough = _pieces_across(images.shape, pieces) * (images.shape[0] // MOST_EMPTY // pieces[0] + 1)
    files = files_below(store / images.path)
    there = (file for file in files if not file.endswith((*ZARR_MARKS, ".zattrs")))
    return _held(sum(1 for _ in itertools.islice(there, enough)), images.shape, pieces)


def _held(found: int, shape: Sequence[int], piece: Sequence[int]) -> int:
    """How many cutouts so many pieces of an array have room for."""
    return -(-found // _pieces_across(shape, piece)) * piece[0]


def _pieces_across(shape: Sequence[int], piece: Sequence[int]) -> int:
    """How many pieces of an array it takes to hold a cutout."""
    return math.prod(-(-length // part) for length, part in zip(shape[1:], piece[1:], strict=True))


def _check_backed(path: Path, said: int, held: int) -> None:
    """Raises `UsageError` for a stack that is said to hold far more cutouts than its file can."""
    if said > max(MOST_EMPTY * held, FEW_ROWS):
        raise UsageError(
            f"{path} is said to hold {said} cutouts, but what is there of it has room for {held}: "
            "it is damaged or was never written whole"
        )


def is_zarr(path: Path) -> bool:
    """True for the folder of a Zarr store."""
    return path.is_dir() and any((path / mark).is_file() for mark in ZARR_MARKS)


def is_zarr_catalogue(path: Path) -> bool:
    """True for a Parquet file whose rows are images of a Zarr array."""
    import pyarrow.parquet

    if not has_suffix(path, PARQUET_SUFFIXES):
        return False
    try:
        return ZARR_ROW in pyarrow.parquet.read_schema(path).names
    # What is wrong with the file is said when it is read.
    except (OSError, ValueError):
        return False


def _zarr_and_catalogue(path: Path) -> tuple[Path, Path | None]:
    """The store and its catalogue, of which `path` is one: the other has its name, or is alone."""
    given_store = path.is_dir()
    is_other: Callable[[Path], bool] = is_zarr_catalogue if given_store else is_zarr
    others = sorted(filter(is_other, path.parent.iterdir()))
    if given_store:
        others += sorted(filter(is_other, path.iterdir()))
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


def _place_of_images(path: Path, named: Mapping[str, Any]) -> str:
    """The name of the array of images among the arrays of a file."""
    large = [name for name, item in named.items() if item.ndim in (3, 4)]
    chosen = [name for name in large if name.rsplit("/", 1)[-1] == IMAGES] or large
    if len(chosen) != 1:
        raise UsageError(
            f"{path} holds {'several arrays' if chosen else 'no array'} of images "
            f"({', '.join(chosen or named) or 'nothing'}): call the right one `images`"
        )
    return chosen[0]


def _nearest_first(named: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    """The arrays by name, without their groups where no two are called alike then; of two the one
    beside the images at `place` is called so."""
    group, taken = place.rpartition("/")[0], set()
    for name in sorted(named, key=lambda name: name.rpartition("/")[0] != group):
        short = name.rpartition("/")[2]
        yield (name if short in taken else short), named[name]
        taken.add(short)


def _array(array: Any) -> Values:
    """An array of a Zarr group."""
    is_plain = array.dtype.kind in "biufUST"
    odd = "" if is_plain else f"is of the type {one_line(array.dtype, 60)}"
    is_text = array.dtype.kind == "T"
    return Values(
        array.shape,
        lambda: np.asarray(array[...]).astype(str) if is_text else np.asarray(array[...]),
        odd,
    )


def _column(column: Column) -> Values:
    return Values(column.shape, lambda: column)


def _said(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What attributes say of the bands and of the pixel scale."""
    return {name: attributes[name] for name in filter(_says, attributes)}


def _says(name: str) -> bool:
    return name in (BANDS, PIXEL_SCALE)


def _beside(
    path: Path, arrays: Mapping[str, Values], attributes: Mapping[str, Any], scale: float | None
) -> Beside:
    """What the other arrays and the attributes of a file say; the pixel `scale` that a user gave
    stands above it."""
    small = {name: v.read() for name, v in arrays.items() if _says(name) and not v.odd}
    said = {**attributes, **small}
    bands = _bands(said[BANDS]) if BANDS in said else None
    if scale is None and PIXEL_SCALE in said:
        scale = pixel_scale_of(said[PIXEL_SCALE], f"{path}: {PIXEL_SCALE}")
    columns = {name: values for name, values in arrays.items() if name not in small}
    return Beside(columns, bands, scale)


def _bands(said: Any) -> tuple[str, ...]:
    """The names of the bands: one each, or all in one text, apart by commas or blanks."""
    names = [as_text(name).strip() for name in np.asarray(said).reshape(-1).tolist()]
    return tuple(re.split(r"[,\s]+", names[0])) if len(names) == 1 else tuple(names)


def _unusable(path: Path, kind: str, error: Exception) -> UsageError:
    return UsageError(f"{path} cannot be read as {kind}: {one_line(error, 160)}")
