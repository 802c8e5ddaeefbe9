"""Many cutouts in one array: NumPy, FITS, HDF5 and Zarr files.

Each format is a function that finds the arrays in a file, and what its attributes say. The images
are those called `images`, or the only ones; arrays with one value per cutout become columns of the
table. Only NumPy's `.npz` is read into memory; from the others the rows of a batch are read when
they are needed.
"""

import math
import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import MAGIC_PREFIX

from lensjax.data.bands import Wanted
from lensjax.data.copies import local
from lensjax.data.formats.fits import fits_stack
from lensjax.data.formats.pictures import has_suffix
from lensjax.data.formats.tables import PARQUET_SUFFIXES, as_text, read_table
from lensjax.data.planes import Unreadable, refusing
from lensjax.data.source import (
    Arrays,
    Picked,
    Source,
    pixel_scale_of,
    source_of_arrays,
    values_of,
)
from lensjax.errors import UsageError, one_line
from lensjax.memory import host_bytes_left
from lensjax.places import files_below, readable

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


class Found(NamedTuple):
    """The arrays of a file by name, in memory or on disk, `Unreadable` in the place of one that
    cannot be used, and its attributes."""

    arrays: Mapping[str, Any]
    attributes: Mapping[str, Any] = {}


def open_arrays(form: str, path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """Returns the stack of cutouts in a file, or in a Zarr store, of one of the FORMS.

    `bands` and `pixel_scale` are arrays or attributes, of the file or of the images; what the user
    says stands above them. A Parquet catalogue next to a Zarr store whose column `idx_in_zarr` says
    which image each of its rows is gives the rows; `path` may be that catalogue. Raises
    `UsageError`.
    """
    catalogue = None
    if form == "zarr":
        path, catalogue = _zarr_and_catalogue(path)
    kind, find = FORMS[form]
    with refusing(f"{path} cannot be read as {kind}"):
        arrays = _described(path, find(path), pixel_scale)
    if catalogue is not None:
        arrays = _picked(arrays, path, catalogue)
    count = int(arrays.images.shape[0]) if arrays.images.shape else 0
    if count * ROW_BYTES > host_bytes_left():
        raise UsageError(
            f"{path} is said to hold {count} cutouts, more than the memory has room to list: it is "
            "damaged, or has to be scored in parts"
        )
    places = [path] if catalogue is None else [catalogue, path]
    return source_of_arrays(
        arrays, path, wanted, lambda: (file for place in places for file in files_below(place))
    )


def _described(path: Path, found: Found, pixel_scale: float | None) -> Arrays:
    """Returns the images, what is said of them, and the other arrays by name: without their groups,
    where of two that are called alike then the one beside the images is called so.

    Raises `UsageError` where it is not clear which the images are, or where they cannot be read.
    """
    named = found.arrays
    axes = {name: getattr(item, "ndim", 0) for name, item in named.items()}
    large = [name for name in named if axes[name] in (3, 4)]
    called = [name for name in named if name.rpartition("/")[2] == IMAGES]
    chosen = [name for name in called if axes[name] > 1] or large or called
    if len(chosen) != 1:
        raise UsageError(
            f"{path} holds {'several arrays' if chosen else 'no array'} of images "
            f"({', '.join(chosen or named) or 'nothing'}): call the right one `images`"
        )
    images, (group, _, _) = named[chosen[0]], chosen[0].rpartition("/")
    if isinstance(images, Unreadable):
        raise UsageError(f"{path}: `{chosen[0]}` {images}; {_HOW_TO_SAVE}")
    chunks = getattr(images, "chunks", None) or ()
    if math.prod(chunks) * images.dtype.itemsize > LARGEST_CHUNK_BYTES:
        raise UsageError(
            f"{path}: its chunks of {' x '.join(map(str, chunks))} are too large to be "
            "read for one cutout: write it in smaller ones"
        )
    others = [name for name in named if name != chosen[0]]
    others.sort(key=lambda name: name.rpartition("/")[0] == group)
    short = {name.rpartition("/")[2]: name for name in others}
    apart = {name: name for name in others if name not in short.values()}
    columns = {new: named[name] for new, name in (short | apart).items()}
    said = {}
    for each in (found.attributes, getattr(images, "attrs", {}), columns):
        for name in {BANDS, PIXEL_SCALE} & set(each):
            if not isinstance(each[name], Unreadable):
                said[name] = values_of(each[name]) if each is columns else each[name]
    if pixel_scale is None and PIXEL_SCALE in said:
        pixel_scale = pixel_scale_of(said[PIXEL_SCALE], f"{path}: {PIXEL_SCALE}")
    columns = {name: values for name, values in columns.items() if name not in said}
    return Arrays(images, columns, _bands(said.get(BANDS)), pixel_scale)


def _bands(said: Any) -> tuple[str, ...] | None:
    """Returns the names of the bands: one each, or all in one text."""
    if said is None or isinstance(said, tuple):
        return said
    names = [as_text(name).strip() for name in np.asarray(said).reshape(-1).tolist()]
    return tuple(re.split(r"[,\s]+", names[0])) if len(names) == 1 else tuple(names)


def _numpy(path: Path) -> Found:
    """Returns a `.npy` stack, mapped, or the arrays of an `.npz`, in memory."""
    copy = local(path)
    if has_suffix(path, (".npy",)):
        with copy.open("rb") as file:
            if file.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:
                raise UsageError(f"{path} cannot be read: it is no .npy file; {_HOW_TO_SAVE}")
        return Found({IMAGES: _unpickled(lambda: np.lib.format.open_memmap(copy, mode="r"))})
    if not zipfile.is_zipfile(copy):
        raise UsageError(f"{path} cannot be read: it is no .npz file; {_HOW_TO_SAVE}")
    with zipfile.ZipFile(copy) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > host_bytes_left():
        raise UsageError(
            f"{path} holds {size / 1e9:.1f} GB, more than the memory that is left: save the images "
            "as .npy, of which only the rows of a batch are read"
        )
    with np.load(copy, allow_pickle=False) as file:
        return Found({name: _unpickled(partial(file.__getitem__, name)) for name in file.files})


def _unpickled(read: Callable[[], Any]) -> np.ndarray | Unreadable:
    """Returns an array in memory, or that it is pickled."""
    try:
        return np.asanyarray(read())
    except ValueError as error:
        if "allow_pickle" not in str(error) and "objects" not in str(error):
            raise
        return Unreadable(_PICKLED)


def _fits(path: Path) -> Found:
    """Returns the first image of a FITS file."""
    images, names, sky = fits_stack(path)
    said = {BANDS: names if images.ndim == 4 and any(names) else None, PIXEL_SCALE: sky.pixel_scale}
    return Found({IMAGES: images}, {name: value for name, value in said.items() if value})


def _hdf5(path: Path) -> Found:
    """Returns the datasets of an HDF5 file."""
    import h5py  # most data are of another kind

    def usable(dataset: Any) -> Any:
        if h5py.check_string_dtype(dataset.dtype) is not None:
            # h5py's own texts may end in an error.
            return dataset.asstr(errors="replace")
        is_plain = dataset.dtype.kind in "biuf" and dataset.shape is not None
        return dataset if is_plain else _odd(dataset)

    file = h5py.File(local(path), "r", rdcc_nbytes=CACHE_BYTES)
    items: dict[str, Any] = {}
    file.visititems(lambda name, item: items.update({name: item}))
    datasets = {name: item for name, item in items.items() if isinstance(item, h5py.Dataset)}
    return Found({name: usable(item) for name, item in datasets.items()}, file.attrs)


def _zarr(path: Path) -> Found:
    """Returns the arrays of a Zarr group, or a Zarr array."""
    import zarr  # most data are of another kind

    opened = zarr.open(str(path), mode="r")
    arrays = dict(opened.arrays()) if isinstance(opened, zarr.Group) else {IMAGES: opened}
    usable = {n: a if a.dtype.kind in "biufUST" else _odd(a) for n, a in arrays.items()}
    return Found(usable, dict(opened.attrs))


def _odd(array: Any) -> Unreadable:
    return Unreadable(f"is of the type {one_line(array.dtype, 60)}")


FORMS: dict[str, tuple[str, Callable[[Path], Found]]] = {
    "numpy": ("NumPy arrays", _numpy),
    "fits": ("FITS", _fits),
    "hdf5": ("HDF5", _hdf5),
    "zarr": ("Zarr", _zarr),
}
"""What each format is called, and its function."""


def _picked(arrays: Arrays, store: Path, catalogue: Path) -> Arrays:
    """Returns the images that a catalogue beside a Zarr store picks, with its columns."""
    table = read_table(catalogue)
    rows, count = np.asarray(table[ZARR_ROW]), arrays.images.shape[0]
    if rows.dtype.kind not in "iu" or not len(rows) or not 0 <= rows.min() <= rows.max() < count:
        raise UsageError(
            f"{catalogue}: {ZARR_ROW} must hold numbers of images, from 0 to {count - 1} of {store}"
        )
    columns = {name: table[name] for name in table.colnames}
    return arrays._replace(images=Picked(arrays.images, rows), columns=columns)


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
        return ZARR_ROW in pyarrow.parquet.read_schema(readable(path)).names
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
