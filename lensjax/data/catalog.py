"""Opens what a user calls data: a source of cutouts with a table that has a row for each.

Whatever the form, a source reads cutout `i` on demand and knows its rows in advance, so that a
run can be planned, cut short and taken up again, and no row is ever lost: one that cannot be read
raises `Unreadable` when its turn comes.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.table import Table

from lensjax.data.bands import Selection, Wanted, parse, select
from lensjax.data.preprocess import join
from lensjax.data.readers import (
    COLOURS,
    FITS_SUFFIXES,
    IMAGE_SUFFIXES,
    Cutout,
    Names,
    Plane,
    Sky,
    Unreadable,
    fits_shape,
    fits_stack,
    has_suffix,
    masked,
    read_planes,
    stem,
)
from lensjax.data.tables import (
    KNOWN_COLUMNS,
    PATH_COLUMNS,
    TABLE_SUFFIXES,
    UNKNOWN_LABEL,
    has_table,
    label_of,
    read_table,
    standardise,
)
from lensjax.errors import UsageError

STACK_SUFFIXES = (".npy", ".npz")

# How many readable files are looked at before the bands of a data set are called wrong.
PROBES = 16

_BAND_FILE = re.compile(r"(u|g|r|i|z|y|j|h|ks?|vis|b|v|w[1-4]|f\d{3,4}[a-z]{1,2}\d?)", re.I)


@dataclass(frozen=True)
class Stack:
    """Cutouts of one shape (height, width, band), type and pixel scale, as arrays hold them.

    `read` gives those of some rows in a row, (n, height, width, band), in the type of the arrays
    and without regard to masks.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    pixel_scale: float | None
    read: Callable[[slice], np.ndarray]


@dataclass(frozen=True)
class Source:
    """Cutouts by row number.

    `table`: a row a cutout, in the order given, with `id, ra, dec` (degrees, NaN where unknown),
    `path`, `label` (1 lens, 0 none, -1 unknown) and `group` where known, then the columns that
    the input carried. `bands`: those of the cutouts' channels, in order. `description`: one line.
    `in_memory`: whether reading a cutout is a matter of slicing an array. `stack`: the same
    cutouts many at a time, where all are of one form; None where that is not known.
    """

    table: Table
    bands: tuple[str, ...]
    description: str
    in_memory: bool
    read: Callable[[int], Cutout]
    stack: Stack | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> Cutout:
        """The cutout of one row; may be called from several threads. Raises `Unreadable`."""
        return self.read(int(row))


def open_source(
    data: str | Path,
    *,
    needed: Sequence[str] | None,
    bands: str | None = None,
    pixel_scale: float | None = None,
) -> Source:
    """The cutouts at `data`: a folder, a catalogue, a stack, a FITS file, or a `{band}` template.

    `needed`: the bands to give out, in this order; None for all that the data hold. `bands`: what
    the user says the data hold (`i,r,g`, or `g=VIS_BGSUB,r=NIR_Y`). `pixel_scale` in arcsec per
    pixel stands above what FITS headers say.

    The paths of a catalogue are relative to its folder; absolute ones and `..` are followed,
    since the catalogue is the user's own. Identifiers are the catalogue's, and may repeat; else
    the relative paths of the files without suffix; else the row numbers.

    Raises `UsageError` where there is nothing to read, or the bands are not the needed ones.
    """
    wanted = parse(needed, bands)
    path = Path(data)
    if pixel_scale is not None and not pixel_scale > 0:
        raise UsageError(f"--pixel-scale {pixel_scale} must be above zero (arcsec per pixel)")
    if "{" in str(data):
        return _open_template(str(data), wanted, pixel_scale)
    if path.is_dir():
        return _open_folder(path, wanted, pixel_scale)
    if not path.exists():
        raise UsageError(f"--data {path}: no such file or folder")
    is_fits = has_suffix(path, FITS_SUFFIXES)
    if has_suffix(path, TABLE_SUFFIXES) or (is_fits and has_table(path)):
        return _open_catalogue(path, wanted, pixel_scale)
    if has_suffix(path, STACK_SUFFIXES):
        return _open_numpy(path, wanted, pixel_scale)
    if is_fits and _is_stack(fits_shape(path), wanted):
        images, sky = _stack_file(str(path))
        pixel_scale = pixel_scale or sky.pixel_scale
        return _open_stack(images, path, {}, None, wanted, pixel_scale, in_memory=False)
    if has_suffix(path, IMAGE_SUFFIXES):
        table = Table({"id": [stem(path.name)], "path": [str(path)]})
        return _open_files(table, f"file {path}", wanted, pixel_scale)
    raise UsageError(
        f"--data {path}: not a kind of file that is known; give a folder of images "
        f"({', '.join(IMAGE_SUFFIXES)}), a catalogue ({', '.join(TABLE_SUFFIXES)}, .fits), "
        f"a stack ({', '.join(STACK_SUFFIXES)}) or a template with {{band}}"
    )


# --- files, one or more a cutout ---


def _open_files(
    table: Table,
    kind: str,
    wanted: Wanted,
    pixel_scale: float | None,
    band_names: Names = (),
) -> Source:
    """A source of image files, a row each with its `path`.

    `{band}` in a path stands for each of the `band_names`: one file a band.
    """
    paths = [str(path) for path in table["path"]]
    bands, example = _probe(paths, kind, wanted, band_names)
    settled = wanted._replace(needed=bands) if bands else wanted

    def read(row: int) -> Cutout:
        try:
            _, cutout = _read_bands(paths[row], settled, band_names)
        except UsageError as error:
            raise Unreadable(str(error)) from error
        return cutout if pixel_scale is None else replace(cutout, pixel_scale=pixel_scale)

    if example is None:
        return _source(table, bands, f"{kind}: none of its files can be read", False, read)
    seen = replace(example, pixel_scale=pixel_scale or example.pixel_scale)
    return _source(table, bands, f"{kind}: {_describe(table, bands, seen)}", False, read)


def _probe(
    paths: Iterable[str], kind: str, wanted: Wanted, band_names: Names
) -> tuple[tuple[str, ...], Cutout | None]:
    """The bands that most of the first readable files hold, and the first cutout that has them.

    Raises `UsageError` where none of them holds the bands that are wanted.
    """
    found: list[tuple[tuple[str, ...], Cutout]] = []
    refused: list[UsageError] = []
    for path in paths:
        try:
            found.append(_read_bands(path, wanted, band_names))
        except Unreadable:
            continue
        except UsageError as error:
            refused.append(error)
        if len(found) + len(refused) == PROBES:
            break
    if refused and not found:
        raise UsageError(f"{kind}: {refused[0]}") from refused[0]
    if not found:
        return wanted.needed or (), None
    most = Counter(bands for bands, _ in found).most_common(1)[0][0]
    return most, next(cutout for bands, cutout in found if bands == most)


class _WrongBands(Unreadable):
    """A file that can be read and does not hold the wanted bands."""


def _read_bands(path: str, wanted: Wanted, band_names: Names) -> tuple[tuple[str, ...], Cutout]:
    """The bands given out and the cutout of one file, or of one file a band.

    Raises `Unreadable`, and `UsageError` where a readable file does not hold the wanted bands.
    """
    if not path:
        raise Unreadable("no path is given")
    if "{band}" in path:
        if not band_names:
            raise Unreadable(f"no such file: {path}")
        bands, files = _band_files(path, wanted, band_names)
        return bands, join([_only_plane(file) for file in files])
    chosen = Selection((), ())

    def choose(names: Names) -> tuple[int, ...]:
        nonlocal chosen
        try:
            chosen = select(names, wanted)
        except UsageError as error:
            raise _WrongBands(str(error)) from error
        return chosen.planes

    try:
        planes = read_planes(path, choose)
    except _WrongBands as error:
        raise UsageError(str(error)) from error
    return chosen.bands, join(planes)


def _band_files(path: str, wanted: Wanted, band_names: Names) -> tuple[tuple[str, ...], list[str]]:
    """The bands given out and the file of each."""
    bands, planes = select(band_names, wanted)
    return bands, [path.replace("{band}", str(band_names[plane])) for plane in planes]


def _only_plane(path: str) -> Plane:
    """The plane of a file of one band, the first where others (of other filters) follow."""

    def choose(names: Names) -> tuple[int, ...]:
        if len(names) > 1 and (names == COLOURS or not any(names)):
            raise Unreadable(f"{Path(path).name} holds {len(names)} channels, not one band")
        return (0,)

    try:
        return read_planes(path, choose)[0]
    except Unreadable as error:
        raise Unreadable(f"{Path(path).name}: {error}") from error


# --- folders ---


def _open_folder(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    files = list(_scan(path))
    if not files:
        raise UsageError(
            f"--data {path}: the folder holds no image; known are {', '.join(IMAGE_SUFFIXES)}"
        )
    template = _band_folder(path, files, wanted)
    if template is not None:
        return _open_template(template, wanted, pixel_scale)
    table = Table({"id": [stem(file) for file in files], "path": [str(path / f) for f in files]})
    labels = np.array([_folder_label(file) for file in files], np.int64)
    if (labels != UNKNOWN_LABEL).any():
        table["label"] = labels
    return _open_files(table, f"folder {path}", wanted, pixel_scale)


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


def _band_folder(path: Path, files: list[str], wanted: Wanted) -> str | None:
    """The template of a folder whose files are named by bands (`g.fits`, `r.fits`), else None."""
    stems = [stem(file) for file in files]
    suffixes = {file[len(name) :] for file, name in zip(files, stems, strict=True)}
    said = _said(wanted)
    if len(files) < 2 or len(suffixes) > 1 or len(set(stems)) < len(stems):
        return None
    if not all(name in said or _BAND_FILE.fullmatch(name) for name in stems):
        return None
    return str(path / ("{band}" + suffixes.pop()))


# --- one file a band, by a template ---


def _open_template(template: str, wanted: Wanted, pixel_scale: float | None) -> Source:
    """Cutouts of one file a band: `{band}` stands for the band, `{id}` for the object.

    Without `{id}` the files are one cutout, or, where they are (N, H, W), a stack of N.
    """
    if template.count("{band}") != 1 or template.count("{id}") > 1:
        raise UsageError(f"--data {template}: a template has {{band}} once and {{id}} at most once")
    found = _matches(template, "|".join(map(re.escape, _said(wanted)))) or _matches(template)
    if not found:
        raise UsageError(f"--data {template}: no file is of this form")
    band_names = tuple(sorted({band for _, band in found}))
    kind = f"one file a band {template}"
    if "{id}" in template:
        objects = sorted({name for name, _ in found})
        paths = [template.replace("{id}", name) for name in objects]
        table = Table({"id": objects, "path": paths})
        return _open_files(table, kind, wanted, pixel_scale, band_names)
    try:
        bands, files = _band_files(template, wanted, band_names)
    except UsageError as error:
        raise UsageError(f"{kind}: {error}") from error
    if has_suffix(template, FITS_SUFFIXES) and len(fits_shape(files[0])) == 3:
        stacks, skies = zip(*(_stack_file(file) for file in files), strict=True)
        if len({stack.shape for stack in stacks}) > 1:
            shapes = ", ".join(f"{b} {s.shape}" for b, s in zip(bands, stacks, strict=True))
            raise UsageError(f"{kind}: the bands differ in shape: {shapes}")
        stack = Stack(
            (*stacks[0].shape[1:], len(bands)),
            np.result_type(*stacks),
            pixel_scale or skies[0].pixel_scale,
            lambda rows: np.stack([images[rows] for images in stacks], axis=-1),
        )
        return _stack_source(kind, template, len(stacks[0]), {}, bands, stack, False)
    table = Table({"id": [Path(template).parent.name or "cutout"], "path": [template]})
    return _open_files(table, kind, wanted, pixel_scale, band_names)


def _said(wanted: Wanted) -> tuple[str, ...]:
    """What the data are said to call the bands, the members' names standing for themselves."""
    called = dict(wanted.called)
    needed = wanted.needed or tuple(called)
    return (*wanted.order, *(called.get(band, band) for band in needed))


def _matches(template: str, band: str = "") -> list[tuple[str, str]]:
    """The pairs of id and band of all files of the template's form, sorted.

    `band`: a regular expression for the bands, any text without one.
    """
    # The id takes all it can: in `{id}_{band}` the band has no underscore unless it is said.
    form = re.escape(template).replace(re.escape("{band}"), f"(?P<band>{band or '[^/]+'})")
    form = form.replace(re.escape("{id}"), "(?P<id>[^/]+)")
    parts = re.split(r"\{band\}|\{id\}", template)
    files = glob.iglob("*".join(glob.escape(part) for part in parts))
    found = (re.fullmatch(form, file) for file in files)
    return sorted((match.groupdict().get("id", ""), match["band"]) for match in found if match)


# --- catalogues ---


def _open_catalogue(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    raw = read_table(path)
    table = standardise(raw, str(path))
    if "path" not in table.colnames:
        raise UsageError(
            f"{path} has no column {' or '.join(PATH_COLUMNS)}; its columns are "
            f"{', '.join(raw.colnames) or 'none'}"
        )
    if not len(table):
        raise UsageError(f"{path} has no rows")
    files = [str(file).strip() for file in np.ma.filled(np.ma.asarray(table["path"]), "")]
    if "id" not in table.colnames:
        table["id"] = [stem(file) for file in files]
    paths = [str(path.parent / file) if file else "" for file in files]
    table["path"] = paths
    templates = (file for file in paths if "{band}" in file)
    found = next(filter(None, map(_matches, templates)), [])
    band_names = tuple(sorted({band for _, band in found}))
    return _open_files(table, f"catalogue {path}", wanted, pixel_scale, band_names)


# --- stacks: many cutouts in one array ---


def _open_numpy(path: Path, wanted: Wanted, pixel_scale: float | None) -> Source:
    """A `.npy` stack, mapped, or the arrays of an `.npz`, in memory.

    An `.npz` holds `images` and may hold the names of the `bands`, the `pixel_scale`, and arrays
    with a value an image, which are carried.
    """
    arrays: dict[str, np.ndarray]
    try:
        if has_suffix(path, (".npy",)):
            arrays = {"images": np.lib.format.open_memmap(path, mode="r")}
        else:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
    # Arbitrary bytes: NumPy, zipfile and zlib each have errors of their own.
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UsageError(f"{path} cannot be read as NumPy arrays: {reason}") from error
    if "images" not in arrays:
        raise UsageError(f"{path} holds no array `images`, but {', '.join(arrays) or 'nothing'}")
    images = arrays.pop("images")
    scale = arrays.pop("pixel_scale", None)
    if pixel_scale is None and scale is not None and scale.size == 1:
        pixel_scale = float(scale.item())
    named = arrays.pop("bands", None)
    names = None if named is None else tuple(str(name) for name in named.reshape(-1))
    in_memory = not isinstance(images, np.memmap)
    return _open_stack(images, path, arrays, names, wanted, pixel_scale, in_memory)


def _open_stack(
    images: np.ndarray,
    path: Path,
    beside: dict[str, np.ndarray],
    names: Names | None,
    wanted: Wanted,
    pixel_scale: float | None,
    in_memory: bool,
) -> Source:
    """Cutouts of one array: (N, H, W[, C]) or (N, C, H, W), the shorter axis being C.

    Two axes, or three of which the last is no longer than four, are one cutout. The arrays
    `beside` it are carried where they have one value a cutout.
    """
    shape = " x ".join(str(length) for length in images.shape)
    if images.ndim == 2 or (images.ndim == 3 and images.shape[-1] <= 4):
        images = images[np.newaxis]
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.size == 0 or images.dtype.kind not in "fiub":
        raise UsageError(
            f"{path}: an array of {shape or 'one'} {images.dtype} is no stack of cutouts; wanted "
            "are numbers of shape (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    channels_last = images.shape[3] <= images.shape[1]
    axes = "N, H, W, C" if channels_last else "N, C, H, W"
    images = images if channels_last else np.moveaxis(images, 1, 3)
    names = names or (None,) * images.shape[3]
    if len(names) != images.shape[3]:
        raise UsageError(f"{path}: {len(names)} bands are named for {images.shape[3]} channels")
    try:
        bands, planes = select(names, wanted)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    all_planes = planes == tuple(range(images.shape[3]))

    def read(rows: slice) -> np.ndarray:
        return images[rows] if all_planes else images[rows][..., planes]

    stack = Stack((*images.shape[1:3], len(planes)), images.dtype, pixel_scale, read)
    columns = {name: values for name, values in beside.items() if values.shape == images.shape[:1]}
    kind = f"stack {path} read as ({axes})"
    return _stack_source(kind, str(path), len(images), columns, bands, stack, in_memory)


def _stack_source(
    kind: str,
    path: str,
    count: int,
    columns: dict[str, np.ndarray],
    bands: tuple[str, ...],
    stack: Stack,
    in_memory: bool,
) -> Source:
    """A source of a stack of `count` cutouts."""
    table = Table(columns)
    table.convert_bytestring_to_unicode()
    table = standardise(table, path)
    table["path"] = [f"{path}[{row}]" for row in range(count)]
    sky = Sky(stack.pixel_scale)

    def read(row: int) -> Cutout:
        image = stack.read(slice(row, row + 1))[0]
        return join([Plane(masked(image[..., band]), sky) for band in range(len(bands))])

    example = Cutout(np.empty(stack.shape, np.float32), stack.pixel_scale)
    text = f"{kind}: {_describe(table, bands, example)}"
    return _source(table, bands, text, in_memory, read, stack)


def _stack_file(path: str) -> tuple[np.ndarray, Sky]:
    try:
        return fits_stack(path)
    except Unreadable as error:
        raise UsageError(f"{path}: {error}") from error


def _is_stack(shape: tuple[int, ...], wanted: Wanted) -> bool:
    """True for a FITS image that is many cutouts: four axes, or three where one band is wanted."""
    return len(shape) == 4 or (len(shape) == 3 and len(wanted.order or wanted.needed or ()) == 1)


# --- what all have in common ---


def _source(
    table: Table,
    bands: tuple[str, ...],
    description: str,
    in_memory: bool,
    read: Callable[[int], Cutout],
    stack: Stack | None = None,
) -> Source:
    """The source, its table completed by `id`, `ra` and `dec` and its known columns put first."""
    rows = len(table)
    defaults = {"id": np.arange(rows), "ra": np.full(rows, np.nan), "dec": np.full(rows, np.nan)}
    for name, values in defaults.items():
        if name not in table.colnames:
            table[name] = values
    known = [name for name in KNOWN_COLUMNS if name in table.colnames]
    carried = [name for name in table.colnames if name not in known]
    return Source(table[[*known, *carried]], bands, description, in_memory, read, stack)


def _describe(table: Table, bands: tuple[str, ...], example: Cutout) -> str:
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
        repeated = len(table) - len(set(table["id"].tolist()))
        if repeated:
            words.append(f"{repeated} rows repeat the id of another")
    return ", ".join(words)
