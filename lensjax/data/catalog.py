"""Opens the data that a user names: recognises their format and calls its reader."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Self

import numpy as np
from astropy.table import Table

from lensjax.data.bands import Wanted, parse
from lensjax.data.formats import arrays, shards
from lensjax.data.formats.fits import First, first_of
from lensjax.data.formats.image_files import (
    MOST_TRIES,
    FileCutout,
    band_folder,
    open_template,
    source_of_files,
)
from lensjax.data.formats.pictures import FITS_SUFFIXES, IMAGE_SUFFIXES, has_suffix, stem
from lensjax.data.formats.tables import (
    TABLE_SUFFIXES,
    UNKNOWN_LABEL,
    label_of,
    read_catalogue,
)
from lensjax.data.parts import WHOLE, Part
from lensjax.data.planes import MAX_VALUES, Names, Unreadable, refusing
from lensjax.data.preprocess import Fit, Preprocessing
from lensjax.data.source import Source, pixel_scale_of
from lensjax.errors import UsageError
from lensjax.places import entries, exists, paths_below, place, state, template_matches

Format = Literal[
    "auto", "folder", "image", "catalogue", "numpy", "fits", "template", "hdf5", "zarr", "shards"
]

_OF_TILES = ("catalogue", "field", "north_up", "mask_bits")
_IN_STACK = re.compile(r"(.+)\[(\d{1,18})\]", re.DOTALL)
# One thread opens a stack, the others wait for it.
_OPENING = Lock()


@dataclass(frozen=True)
class DataOptions:
    """What a user says of the data, in the options of a script."""

    bands: str | None = None
    """Bands that the files hold: i,r,g or g=EXTENSION,...."""
    pixel_scale: float | None = None
    """Arcsec per pixel, if the files do not say."""
    format: Format = "auto"
    """Format of the data, if it is not recognised."""
    max_values: int = MAX_VALUES
    """Pixels times bands of the largest cutout in a file."""
    fit: Fit = "auto"
    """How cutouts of another size are fitted to the input size."""
    catalogue: str | None = None
    """Objects to cut from tiles, which --data then names: a table with ra and dec, or a folder of
    a HATS catalogue."""
    field: float | None = None
    """Side of the cutouts from tiles, in arcsec (None: what the members see)."""
    north_up: bool = False
    """Turn cutouts from tiles so that north is up and east is left."""
    mask_bits: int = -1
    """Bits of the tiles' masks that make a pixel unusable (-1: any)."""

    def of_data(self) -> dict[str, Any]:
        """Returns these options alone, by name: what is made of the data depends on each."""
        return {field.name: getattr(self, field.name) for field in fields(DataOptions)}

    def for_members(self, preprocessings: Sequence[Preprocessing]) -> Self:
        """Returns these options with the side of cutouts from tiles: as said, or what shows each
        member all that it sees; None where that is not known."""
        sides = [p.field for p in preprocessings if p.field is not None]
        seen = max(sides, default=None) if self.catalogue else None
        return replace(self, field=seen if self.field is None else self.field)

    def opened(self, data: str, needed: Sequence[str] | None, part: Part = WHOLE) -> Source:
        """Returns the cutouts at `data`, as `open_source` does."""
        options = self.of_data()
        catalogue, field, north_up, bits = (options.pop(name) for name in _OF_TILES)
        del options["fit"]
        if catalogue is not None:
            from lensjax.data.objects_in_tiles import open_tiles

            wanted = parse(needed, self.bands)
            source = open_tiles(data, catalogue, wanted, field, north_up=north_up, bits=bits)
            return source.part(part)
        return open_source(data, needed=needed, part=part, **options)


def open_source(
    data: str | Path,
    *,
    needed: Sequence[str] | None,
    bands: str | None = None,
    pixel_scale: float | None = None,
    format: Format = "auto",
    max_values: int = MAX_VALUES,
    part: Part = WHOLE,
) -> Source:
    """Returns the cutouts at `data`: a folder, a catalogue, a stack, shards, or a `{band}`
    template.

    `needed`: the bands to give out, in this order; None for all that the data hold. `bands`: what
    the user says the data hold (`i,r,g`, or `g=VIS_BGSUB,r=NIR_Y`). `pixel_scale` in arcsec per
    pixel overrides the FITS headers, `format` the recognised format. `max_values`:
    of a cutout in a file of its own (pixels times bands); a larger one is not decoded. `part`: of
    the rows; of a catalogue the others are not kept.

    The paths of a catalogue are relative to its folder; absolute ones and `..` are followed,
    since the catalogue is the user's own. `FILE[ROW]` is a cutout of a stack. Identifiers are the
    catalogue's, and may repeat; else the relative paths of the files without suffix; else the row
    numbers.

    Raises `UsageError` where there is nothing to read, or the bands are not the needed ones.
    """
    if max_values < 1:
        raise UsageError(f"--max-values {max_values} must be at least 1")
    wanted = parse(needed, bands)._replace(most_values=max_values)
    if pixel_scale is not None:
        pixel_scale = pixel_scale_of(pixel_scale, "--pixel-scale")
    path, form = place(data), format
    if form == "auto" and "{" in str(data):
        form = "template"
    if form != "template":
        with refusing(f"--data {path} cannot be reached"):
            if not path.exists():
                raise UsageError(f"--data {path}: no such file or folder")
            form = recognise(path, wanted) if form == "auto" else form
        _check_format(path, form)
    if form == "catalogue":
        return _open_catalogue(path, wanted, pixel_scale, part)
    return _OPENED_BY[form](path, wanted, pixel_scale).part(part)


def recognise(path: Path, wanted: Wanted) -> Format:
    """Returns the kind of data in a file or folder. Raises `UsageError` where no kind is known."""
    if path.is_dir():
        if arrays.is_zarr(path):
            return "zarr"
        return "shards" if shards.are_shards(path) else "folder"
    if arrays.is_zarr_catalogue(path):
        return "zarr"
    first = first_of(path) if has_suffix(path, FITS_SUFFIXES) else First()
    if has_suffix(path, TABLE_SUFFIXES) or first.is_table:
        return "catalogue"
    if has_suffix(path, arrays.NUMPY_SUFFIXES):
        return "numpy"
    if has_suffix(path, arrays.HDF5_SUFFIXES):
        return "hdf5"
    # A cube is one cutout, unless one band is wanted and the file does not call its planes bands.
    one_band = len(wanted.order or wanted.needed or ()) == 1 and not any(first.names)
    if len(first.shape) == 4 or (len(first.shape) == 3 and one_band):
        return "fits"
    if has_suffix(path, IMAGE_SUFFIXES):
        return "image"
    known = (*arrays.NUMPY_SUFFIXES, *arrays.HDF5_SUFFIXES)
    raise UsageError(
        f"--data {path}: not a kind of file that is known; give a folder of images "
        f"({', '.join(IMAGE_SUFFIXES)}), a catalogue ({', '.join(TABLE_SUFFIXES)}, .fits), "
        f"a stack ({', '.join(known)}, Zarr), a folder of shards or a template with {{band}}; or "
        "say with --format what it is"
    )


def _check_format(path: Path, form: Format) -> None:
    """Raises `UsageError` where a file or folder cannot be of the format."""
    kind = "folder" if path.is_dir() else "file"
    allowed = (
        form in ("folder", "zarr", "shards")
        if kind == "folder"
        else form not in ("folder", "shards")
    )
    if kind == "file" and form == "zarr":
        allowed = arrays.is_zarr_catalogue(path)
    elif kind == "file" and form == "image":
        allowed = has_suffix(path, IMAGE_SUFFIXES)
    if not allowed:
        raise UsageError(f"--data {path} is a {kind} that cannot be of the format {form}")


def _open_images(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """Returns the cutouts in an image file, or in those of a folder and of the folders below it."""
    kind, folder, files = "file", path.parent, [path.name]
    if path.is_dir():
        kind, folder, files = "folder", path, list(_scan(path))
    if not files:
        raise UsageError(
            f"--data {path}: the folder holds no image; known are {', '.join(IMAGE_SUFFIXES)}"
        )
    template = band_folder(folder, files, wanted)
    if template is not None:
        return open_template(template, wanted, pixel_scale)
    paths = np.array(list(paths_below(folder, files)), object)
    table = Table({"id": [stem(file) for file in files], "path": paths})
    labels = np.array([_folder_label(file) for file in files], np.int64)
    if (labels != UNKNOWN_LABEL).any():
        table["label"] = labels
    return source_of_files(table, f"{kind} {path}", wanted, pixel_scale)


def _scan(folder: Path, below: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Relative paths of all images under a folder, each folder sorted by name, hidden ones not.

    What has an image suffix counts as one even where it is a folder: it is reported, not lost.
    """
    real = os.path.realpath(str(folder))
    # A link to a folder above would be followed for ever.
    if real in above:
        return
    for name, is_folder in entries(folder):
        if name.startswith("."):
            continue
        if has_suffix(name, IMAGE_SUFFIXES):
            yield below + name
        elif is_folder:
            yield from _scan(folder / name, f"{below}{name}/", above | {real})


def _folder_label(file: str) -> int:
    """Returns the label that the innermost folder with a class name gives to a file, -1 for
    none."""
    labels = (label_of(folder) for folder in reversed(file.split("/")[:-1]))
    return next((label for label in labels if label is not None), UNKNOWN_LABEL)


def _open_catalogue(path: Path, wanted: Wanted, pixel_scale: float | None, part: Part) -> Source:
    (table, rows, count), of_all_rows = read_catalogue(path, part)
    in_bands = any("{band}" in file for file in table["path"])
    band_names = _band_names(of_all_rows()) if in_bands else ()

    def files() -> Iterator[str]:
        of_stacks: set[str] = set()
        for file in filter(None, of_all_rows()):
            place = _place_in_stack(file)
            if place is None:
                yield from (file.replace("{band}", str(band)) for band in band_names or [""])
            elif place[0] not in of_stacks:
                of_stacks.add(place[0])
                stack = _stack(place[0], wanted)
                yield from stack.files() if isinstance(stack, Source) else place[:1]

    kind = f"catalogue {path}"
    if part != WHOLE:
        kind += f", rows {rows.start} to {rows.stop} of {count}"
    source = source_of_files(table, kind, wanted, pixel_scale, band_names, _of_stack)
    return replace(source, files=files, first_row=rows.start, given=count, listed_in=str(path))


def _band_names(paths: Iterable[str]) -> Names:
    """Returns the bands of the files that the first templates among the paths stand for."""
    templates = islice((path for path in paths if "{band}" in path), MOST_TRIES)
    found = next(filter(None, map(template_matches, templates)), [])
    return tuple(sorted({band for _, band in found}))


def _place_in_stack(path: str) -> tuple[str, int] | None:
    """Returns the stack and the row that `FILE[ROW]` names; None for any other path and where there
    is such a file."""
    found = _IN_STACK.fullmatch(path) if path.endswith("]") else None
    return None if found is None or exists(path) else (found[1], int(found[2]))


def _of_stack(path: str, wanted: Wanted) -> FileCutout | None:
    """Returns the bands and the cutout that `FILE[ROW]` names; None for any other path.

    Raises `Unreadable`, and `UsageError` where the stack does not hold the wanted bands.
    """
    place = _place_in_stack(path)
    if place is None:
        return None
    file, row = place
    stack = _stack(file, wanted)
    if not isinstance(stack, Source):
        raise type(stack)(str(stack))
    if row >= len(stack):
        raise Unreadable(f"there is no row {row} among the {len(stack)} of {file}")
    return FileCutout(stack.bands, stack.bands_from, stack[row])


def _stack(file: str, wanted: Wanted) -> Source | Unreadable | UsageError:
    """Returns the cutouts of a stack, opened once by a process, or why there are none."""
    try:
        changed = "" if "{band}" in file else state(place(file)).version
    except UsageError as error:
        return error
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return Unreadable(f"no such file: {file}")
    with _OPENING:
        return _opened_stack(file, wanted, changed)


@lru_cache(maxsize=8)
def _opened_stack(file: str, wanted: Wanted, changed: str) -> Source | Unreadable | UsageError:
    del changed
    path = place(file)
    try:
        form = "template" if "{band}" in file else recognise(path, wanted)
        if form == "image" and has_suffix(path, FITS_SUFFIXES):
            form = "fits"
        if form in ("folder", "image", "catalogue"):
            return Unreadable(f"{file} is no stack of cutouts")
        return _OPENED_BY[form](path, wanted, None)
    except UsageError as error:
        return error


_OPENED_BY: dict[str, Callable[[Path, Wanted, float | None], Source]] = {
    "folder": _open_images,
    "image": _open_images,
    "template": open_template,
    "shards": shards.open_shards,
    **{form: partial(arrays.open_arrays, form) for form in arrays.FORMS},
}
