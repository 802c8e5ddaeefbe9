"""Opens what a user calls data: recognises its kind, and hands it to the reader of that kind."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from astropy.table import Table

from lensjax.data import shards, stacks
from lensjax.data.bands import Wanted, parse
from lensjax.data.image_files import band_folder, matches, open_template, source_of_files
from lensjax.data.planes import MAX_VALUES
from lensjax.data.preprocess import Fit
from lensjax.data.readers import FITS_SUFFIXES, IMAGE_SUFFIXES, has_suffix, stem
from lensjax.data.source import Source
from lensjax.data.tables import (
    SPELLINGS,
    TABLE_SUFFIXES,
    UNKNOWN_LABEL,
    has_table,
    label_of,
    read_table,
    standardise,
)
from lensjax.errors import UsageError

Format = Literal[
    "auto", "folder", "image", "catalogue", "numpy", "fits", "template", "hdf5", "zarr", "shards"
]


@dataclass(frozen=True)
class DataOptions:
    """What a user says of the data, in the options of a script."""

    bands: Annotated[str | None, "bands that the files hold: i,r,g or g=EXTENSION,..."] = None
    pixel_scale: Annotated[float | None, "arcsec/pixel, where the files do not say"] = None
    format: Annotated[Format, "kind of the data, where it is not recognised"] = "auto"
    max_values: Annotated[int, "pixels times bands of the largest cutout in a file"] = MAX_VALUES
    fit: Annotated[Fit, "how cutouts of another size are brought to the input size"] = "auto"

    def of_data(self) -> dict[str, Any]:
        """Returns these options alone, by name: what is made of the data depends on each."""
        return {field.name: getattr(self, field.name) for field in fields(DataOptions)}

    def opened(self, data: str, needed: Sequence[str] | None) -> Source:
        """Returns the cutouts at `data`, as `open_source` does."""
        return open_source(
            data,
            needed=needed,
            bands=self.bands,
            pixel_scale=self.pixel_scale,
            form=self.format,
            max_values=self.max_values,
        )


def open_source(
    data: str | Path,
    *,
    needed: Sequence[str] | None,
    bands: str | None = None,
    pixel_scale: float | None = None,
    form: Format = "auto",
    max_values: int = MAX_VALUES,
) -> Source:
    """The cutouts at `data`: a folder, a catalogue, a stack, shards, or a `{band}` template.

    `needed`: the bands to give out, in this order; None for all that the data hold. `bands`: what
    the user says the data hold (`i,r,g`, or `g=VIS_BGSUB,r=NIR_Y`). `pixel_scale` in arcsec per
    pixel stands above what FITS headers say. `form` stands above what is recognised. `max_values`:
    of a cutout in a file of its own (pixels times bands); a larger one is not decoded.

    The paths of a catalogue are relative to its folder; absolute ones and `..` are followed,
    since the catalogue is the user's own. Identifiers are the catalogue's, and may repeat; else
    the relative paths of the files without suffix; else the row numbers.

    Raises `UsageError` where there is nothing to read, or the bands are not the needed ones.
    """
    if max_values < 1:
        raise UsageError(f"--max-values {max_values} must be at least 1")
    wanted = parse(needed, bands)._replace(most_values=max_values)
    if pixel_scale is not None and not pixel_scale > 0:
        raise UsageError(f"--pixel-scale {pixel_scale} must be above zero (arcsec per pixel)")
    if form == "template" or (form == "auto" and "{" in str(data)):
        return open_template(str(data), wanted, pixel_scale)
    path = Path(data)
    if not path.exists():
        raise UsageError(f"--data {path}: no such file or folder")
    if form == "auto":
        form = recognise(path, wanted)
    if path.is_dir() and form not in ("folder", "zarr", "shards"):
        raise UsageError(f"--data {path} is a folder: it cannot be of the format {form}")
    return _OPENED_BY[form](path, wanted, pixel_scale)


def recognise(path: Path, wanted: Wanted) -> Format:
    """The kind of data in a file or folder. Raises `UsageError` where no kind is known."""
    if path.is_dir():
        if stacks.is_zarr(path):
            return "zarr"
        return "shards" if shards.are_shards(path) else "folder"
    is_fits = has_suffix(path, FITS_SUFFIXES)
    if stacks.is_zarr_catalogue(path):
        return "zarr"
    if has_suffix(path, TABLE_SUFFIXES) or (is_fits and has_table(path)):
        return "catalogue"
    if has_suffix(path, stacks.NUMPY_SUFFIXES):
        return "numpy"
    if has_suffix(path, stacks.HDF5_SUFFIXES):
        return "hdf5"
    if is_fits and stacks.is_fits_stack(path, wanted):
        return "fits"
    if has_suffix(path, IMAGE_SUFFIXES):
        return "image"
    known = (*stacks.NUMPY_SUFFIXES, *stacks.HDF5_SUFFIXES)
    raise UsageError(
        f"--data {path}: not a kind of file that is known; give a folder of images "
        f"({', '.join(IMAGE_SUFFIXES)}), a catalogue ({', '.join(TABLE_SUFFIXES)}, .fits), "
        f"a stack ({', '.join(known)}, Zarr), a folder of shards or a template with {{band}}; or "
        "say with --format what it is"
    )


def _open_image(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    table = Table({"id": [stem(path.name)], "path": [str(path)]})
    return source_of_files(table, f"file {path}", wanted, pixel_scale)


def _open_folder(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    files = list(_scan(path))
    if not files:
        raise UsageError(
            f"--data {path}: the folder holds no image; known are {', '.join(IMAGE_SUFFIXES)}"
        )
    template = band_folder(path, files, wanted)
    if template is not None:
        return open_template(template, wanted, pixel_scale)
    table = Table({"id": [stem(file) for file in files], "path": _below(path, np.array(files))})
    labels = np.array([_folder_label(file) for file in files], np.int64)
    if (labels != UNKNOWN_LABEL).any():
        table["label"] = labels
    return source_of_files(table, f"folder {path}", wanted, pixel_scale)


def _scan(folder: Path, below: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Relative paths of all images under a folder, each folder sorted by name, hidden ones not.

    What has an image suffix counts as one even where it is a folder: it is reported, not lost.
    """
    real = os.path.realpath(folder)
    # A link to a folder above would be followed for ever.
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if has_suffix(entry.name, IMAGE_SUFFIXES):
                yield below + entry.name
            elif entry.is_dir():
                yield from _scan(Path(entry.path), f"{below}{entry.name}/", above | {real})


def _folder_label(file: str) -> int:
    """The label that the innermost folder with a class name gives to a file, -1 for none."""
    labels = (label_of(folder) for folder in reversed(file.split("/")[:-1]))
    return next((label for label in labels if label is not None), UNKNOWN_LABEL)


def _open_catalogue(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    raw = read_table(path)
    table = standardise(raw, str(path))
    if "path" not in table.colnames:
        raise UsageError(
            f"{path} has no column {' or '.join(SPELLINGS['path'])}; its columns are "
            f"{', '.join(raw.colnames) or 'none'}"
        )
    if not len(table):
        raise UsageError(f"{path} has no rows")
    files = np.strings.strip(np.ma.filled(np.ma.asarray(table["path"]).astype(str), ""))
    if "id" not in table.colnames:
        table["id"] = [stem(file) for file in files]
    paths = _below(path.parent, files)
    table["path"] = paths
    templates = paths[np.strings.find(paths, "{band}") >= 0]
    found = next(filter(None, map(matches, templates.tolist())), [])
    band_names = tuple(sorted({band for _, band in found}))
    source = source_of_files(table, f"catalogue {path}", wanted, pixel_scale, band_names)
    return replace(source, files=lambda: chain([str(path)], source.files()))


def _below(folder: Path, files: np.ndarray) -> np.ndarray:
    """Relative paths as paths in the folder; absolute and empty ones as they are."""
    if folder == Path():
        return files
    as_is = (files == "") | np.strings.startswith(files, os.sep)
    if as_is.all():
        return files
    # All at once: a million calls of `os.path.join` would take two seconds.
    return np.where(as_is, files, np.strings.add(os.path.join(folder, ""), files))


_OPENED_BY: dict[str, Callable[[Path, Wanted, float | None], Source]] = {
    "folder": _open_folder,
    "image": _open_image,
    "catalogue": _open_catalogue,
    "numpy": stacks.open_numpy,
    "fits": stacks.open_fits,
    "hdf5": stacks.open_hdf5,
    "zarr": stacks.open_zarr,
    "shards": shards.open_shards,
}
