"""Sources of many cutouts in one array: NumPy, FITS, HDF5 and Zarr files.

What is no image and has one value a cutout is a column of the table. Only NumPy's `.npz` is read
into memory; from the others the rows of a batch are fetched when their turn comes.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lensjax.data.bands import Wanted
from lensjax.data.fits_images import fits_form, fits_stack
from lensjax.data.planes import Sky, Unreadable
from lensjax.data.readers import has_suffix
from lensjax.data.source import Beside, Picked, Source, files_below, source_of_array
from lensjax.data.tables import PARQUET_SUFFIXES, as_text, read_table
from lensjax.errors import UsageError, one_line

NUMPY_SUFFIXES = (".npy", ".npz")
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
ZARR_MARKS = (".zgroup", ".zarray", "zarr.json")

IMAGES = "images"
# The column of a catalogue that says which image of a Zarr array a row is.
ZARR_ROW = "idx_in_zarr"

# What is kept of decompressed pieces of a file: neighbours are asked for next.
CACHE_BYTES = 2**26


def open_numpy(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """A `.npy` stack, mapped, or the arrays of an `.npz`, in memory.

    An `.npz` holds `images` and may hold the names of the `bands`, the `pixel_scale`, and arrays
    with a value an image, which are carried.
    """
    arrays: dict[str, np.ndarray]
    try:
        if has_suffix(path, (".npy",)):
            arrays = {IMAGES: np.lib.format.open_memmap(path, mode="r")}
        else:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
    # Arbitrary bytes: NumPy, zipfile and zlib each have errors of their own.
    except Exception as error:
        raise _unusable(path, "NumPy arrays", error) from error
    if IMAGES not in arrays:
        raise UsageError(f"{path} holds no array `images`, but {', '.join(arrays) or 'nothing'}")
    images = arrays.pop(IMAGES)
    beside = _beside(arrays, {}, pixel_scale)
    in_memory = not isinstance(images, np.memmap)
    files = partial(files_below, path)
    return source_of_array(images, path, beside, wanted, in_memory=in_memory, files=files)


def open_fits(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """The first image of a FITS file, as a stack."""
    images, sky = read_fits_stack(str(path))
    beside = Beside(pixel_scale=pixel_scale or sky.pixel_scale)
    files = partial(files_below, path)
    return source_of_array(images, path, beside, wanted, in_memory=False, files=files)


def is_fits_stack(path: Path, wanted: Wanted) -> bool:
    """True for a FITS image that is many cutouts: four axes, or three where one band is wanted and
    the file does not call its planes bands."""
    shape, names = fits_form(path)
    one_band = len(wanted.order or wanted.needed or ()) == 1
    return len(shape) == 4 or (len(shape) == 3 and one_band and not any(names))


def read_fits_stack(path: str) -> tuple[np.ndarray, Sky]:
    """The first image of a FITS file of any size, and where it lies. Raises `UsageError`."""
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
        images = _images(path, named)
        attributes = {**file.attrs, **images.attrs}
        small = {name: _column(item) for name, item in named.items() if item.ndim <= 1}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise _unusable(path, "HDF5", error) from error
    beside = _beside(small, attributes, pixel_scale)
    files = partial(files_below, path)
    return source_of_array(images, path, beside, wanted, in_memory=False, files=files)


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
        images = _images(store, named)
        attributes = {**opened.attrs, **images.attrs}
        small = {name: np.asarray(item[...]) for name, item in named.items() if item.ndim <= 1}
    except UsageError:
        raise
    # The store may hold anything: Zarr, its codecs and the file system have errors of their own.
    except Exception as error:
        raise _unusable(store, "Zarr", error) from error
    of_store = partial(files_below, store)
    if catalogue is None:
        beside = _beside(small, attributes, pixel_scale)
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
    columns = {name: table[name] for name in table.colnames}
    beside = _beside(small, attributes, pixel_scale)._replace(columns=columns)

    def files() -> Iterable[str]:
        return itertools.chain([str(catalogue)], of_store())

    picked = Picked(images, rows)
    return source_of_array(picked, store, beside, wanted, in_memory=False, files=files)


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


def _images(path: Path, named: Mapping[str, Any]) -> Any:
    """The array of images among the arrays of a file."""
    large = [name for name, item in named.items() if item.ndim in (3, 4)]
    chosen = [name for name in large if name.rsplit("/", 1)[-1] == IMAGES] or large
    if len(chosen) != 1:
        raise UsageError(
            f"{path} holds {'several arrays' if chosen else 'no array'} of images "
            f"({', '.join(chosen or named) or 'nothing'}): call the right one `images`"
        )
    return named[chosen[0]]


def _column(dataset: Any) -> np.ndarray:
    """The values of an HDF5 dataset, its texts as texts."""
    import h5py

    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    return np.asarray((dataset.asstr() if is_text else dataset)[()])


def _beside(
    arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any], pixel_scale: float | None
) -> Beside:
    """What the small arrays and the attributes of a file say; `pixel_scale` stands above it."""
    said = {**attributes, **arrays}
    bands, scale = said.get("bands"), said.get("pixel_scale")
    if pixel_scale is None and scale is not None and np.size(scale) == 1:
        pixel_scale = float(np.asarray(scale).item())
    names = None if bands is None else tuple(map(as_text, np.asarray(bands).reshape(-1).tolist()))
    columns = {
        name.rsplit("/", 1)[-1]: values
        for name, values in arrays.items()
        if name not in ("bands", "pixel_scale")
    }
    return Beside(columns, names, pixel_scale)


def _unusable(path: Path, kind: str, error: Exception) -> UsageError:
    return UsageError(f"{path} cannot be read as {kind}: {one_line(error, 160)}")
