"""The files of survey tiles: which belong to a tile, what their headers say, and rows of their
pixels as they are stored."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from astropy.io import fits

from lensjax.data.bands import Wanted, select_in
from lensjax.data.formats.fits import flux, images, lengths, open_fits
from lensjax.data.formats.pictures import FITS_SUFFIXES, has_suffix, stem
from lensjax.data.formats.reader_warnings import silenced
from lensjax.data.formats.tables import read_table, texts
from lensjax.data.planes import Unreadable, short
from lensjax.data.zero_points import saturation, zero_point
from lensjax.errors import LensjaxError, UsageError
from lensjax.places import (
    entries,
    is_local,
    paths_below,
    place,
    reached,
    readable,
    status,
    template_matches,
)

# What says that a pixel cannot be used: a mask that is not zero, a weight or a noise of zero.
COMPANIONS = ("mask", "weight", "rms")

TRUNCATED = "the file is truncated"

_COMPANION = re.compile(rf"(?:(.+)_)?({'|'.join(COMPANIONS)})", re.IGNORECASE)
_EXTENSION = re.compile(r"(.+)\[([^\[\]]+)\]", re.DOTALL)
# Narrower types than float32 travel and are kept as they are.
_KEPT: dict[int, np.dtype] = {8: np.dtype(np.uint8), 16: np.dtype(np.int16)}
# Of a compressed file that is no FITS tile compression, which is read whole.
_MOST_VALUES = 2**32


class TileFiles(NamedTuple):
    """The files of a tile, `FILE` or `FILE[EXTENSION]`, "" where there is none.

    `planes`: one a band. `companions`: for each band the kinds (of COMPANIONS) and files that say
    which of its pixels cannot be used.
    """

    name: str
    planes: tuple[str, ...]
    companions: tuple[tuple[tuple[str, str], ...], ...]

    def files(self) -> Iterator[str]:
        """Yields the paths of all files, without extensions."""
        of_companions = (file for each in self.companions for _, file in each)
        yield from (split(file)[0] for file in (*self.planes, *of_companions) if file)


class Stored(NamedTuple):
    """How a file stores a plane: `shape` (height, width), the `header`, and the type in which its
    pixels are kept, of which the flux is scale * pixel + zero. `is_whole`: whether the file is as
    long as its header says. `zero_point`: the magnitude of one unit of flux, and `saturation`: the
    largest value of a pixel, None where neither the header nor the file's first one says it."""

    shape: tuple[int, int]
    header: fits.Header
    dtype: np.dtype
    scale: float = 1.0
    zero: float = 0.0
    is_whole: bool = True
    zero_point: float | None = None
    saturation: float | None = None


class Section(NamedTuple):
    """Pixels of a file, as they are stored, in this machine's byte order."""

    pixels: np.ndarray
    stored: Stored

    @property
    def flux(self) -> np.ndarray:
        """Returns what the pixels mean."""
        return in_flux(self.pixels, self.stored.scale, self.stored.zero)


def in_flux(pixels: np.ndarray, scale: float, zero: float) -> np.ndarray:
    """Returns pixels in the unit of flux: integers that are merely unsigned stay integers, as
    astropy has them, and others become float32."""
    if pixels.dtype.kind == "f" or (scale == 1 and zero == 0):
        return pixels
    if scale == 1 and float(zero).is_integer():
        return pixels.astype(np.int32) + np.int32(zero)
    return pixels.astype(np.float32) * np.float32(scale) + np.float32(zero)


def tile_files(data: str, wanted: Wanted) -> tuple[tuple[str, ...], list[TileFiles]]:
    """Returns the bands, and the files of each tile, in the order of their table, or by name.

    `data` is a table with a column a band and, as it likes, `tile` (the name), `BAND_mask`,
    `BAND_weight` and `BAND_rms`, or without a band for all of them; or a template with `{band}` and
    perhaps `{tile}`; or a folder of files with the band in their names. Raises `UsageError` where
    there are no tiles, or not the wanted bands.
    """
    if "{" in data:
        columns = _of_template(data, wanted)
    elif place(data).is_dir():
        columns = _of_folder(place(data), wanted)
    else:
        columns = _of_table(place(data))
    called = {name.lower(): name for name in columns}
    names = columns.pop(called["tile"]) if "tile" in called else None
    companions = {name: found for name in columns if (found := _COMPANION.fullmatch(name))}
    offered = tuple(name for name in columns if name not in companions and _are_fits(columns[name]))
    bands, planes = select_in(f"--data {data}", offered, wanted)
    chosen = [offered[plane] for plane in planes]
    rows = len(next(iter(columns.values()), []))
    if not rows:
        raise UsageError(f"--data {data} names no tile")
    beside = [
        [(found[2].lower(), name) for name, found in companions.items() if found[1] in (None, own)]
        for own in chosen
    ]
    return bands, [
        TileFiles(
            (names[row] if names else "")
            or stem(Path(split(columns[chosen[0]][row])[0]).name)
            or str(row),
            tuple(columns[name][row] for name in chosen),
            tuple(
                tuple((kind, columns[name][row]) for kind, name in each if columns[name][row])
                for each in beside
            ),
        )
        for row in range(rows)
    ]


def _of_table(path: Path) -> dict[str, list[str]]:
    table = read_table(path)
    columns = {name: list(texts(table[name])) for name in table.colnames}
    return {
        name: list(paths_below(path.parent, values)) if name.lower() != "tile" else values
        for name, values in columns.items()
    }


def _of_template(template: str, wanted: Wanted) -> dict[str, list[str]]:
    if template.count("{band}") != 1 or template.count("{tile}") > 1:
        raise UsageError(
            f"--data {template}: a template of tiles has {{band}} once and {{tile}} at most once"
        )
    by_id = template.replace("{tile}", "{id}")
    found = template_matches(by_id, "|".join(map(re.escape, wanted.declared)))
    found = found or template_matches(by_id)
    return _columns(
        {
            (tile, band): template.replace("{tile}", tile).replace("{band}", band)
            for tile, band in found
        }
    )


def _of_folder(folder: Path, wanted: Wanted) -> dict[str, list[str]]:
    """Returns the files of a folder by tile and band: `0001m002-image-g.fits.fz` is the band g of
    a tile `0001m002-image`."""
    bands = {band.lower(): band for band in wanted.declared}
    found: dict[tuple[str, str], str] = {}
    for name, _ in entries(folder):
        words = re.split(r"([^A-Za-z0-9]+)", stem(name))
        places = [n for n, word in enumerate(words) if word.lower() in bands]
        if not places or not has_suffix(name, FITS_SUFFIXES):
            continue
        at = places[-1]
        tile = "".join(words[: max(at - 1, 0)] + words[at + 1 :]).strip("_-. ")
        found[tile, bands[words[at].lower()]] = str(folder / name)
    return _columns(found)


def _columns(files: Mapping[tuple[str, str], str]) -> dict[str, list[str]]:
    """Returns the columns of a table of files by tile and band."""
    tiles = list(dict.fromkeys(tile for tile, _ in files))
    bands = sorted({band for _, band in files})
    of_bands = {band: [files.get((tile, band), "") for tile in tiles] for band in bands}
    return {"tile": tiles, **of_bands}


def _are_fits(values: Sequence[str]) -> bool:
    first = next(filter(None, values), "")
    return has_suffix(split(first)[0], FITS_SUFFIXES)


def split(file: str) -> tuple[str, str]:
    """Returns the path and the extension that `FILE[EXTENSION]` names, "" where it names none."""
    found = _EXTENSION.fullmatch(file)
    return (found[1], found[2]) if found else (file, "")


@contextmanager
def _image(file: str) -> Iterator[tuple[fits.ImageHDU, fits.Header]]:
    """The image that `FILE[EXTENSION]` names, of which only what is asked for is read, and the
    first header of the file; the first image of two axes that is no companion of another where no
    extension is named. Raises `Unreadable` for whatever stands in the way."""
    path, extension = split(file)
    where = place(path)
    try:
        with silenced(), reached(where), _opened(where) as hdus:
            hdu = _named(hdus, extension) if extension else next(images(hdus), None)
            if hdu is None or not hdu.is_image or len(lengths(hdu.shape)) != 2:
                raise Unreadable("the FITS file holds no image of two axes")
            yield hdu, hdus[0].header
    except LensjaxError:
        raise
    except Unreadable as error:
        raise Unreadable(f"{where.name}: {error}") from error
    except FileNotFoundError:
        raise Unreadable(f"{where.name}: no such file") from None
    # Whatever astropy and its codecs say of arbitrary bytes.
    except Exception as error:
        raise Unreadable(f"{where.name}: {short(error)}") from error


@contextmanager
def _opened(path: Path) -> Iterator[fits.HDUList]:
    # What is packed as a whole is read as a whole.
    if is_local(path) or path.suffix == ".gz":
        with open_fits(path, _MOST_VALUES, memmap=True, as_stored=True) as hdus:
            yield hdus
        return
    with (
        cast(IO[bytes], readable(path)) as file,
        fits.open(file, do_not_scale_image_data=True) as hdus,
    ):
        yield hdus


def _named(hdus: fits.HDUList, extension: str) -> Any:
    try:
        return hdus[int(extension) if extension.isdigit() else extension]
    except (KeyError, IndexError):
        raise Unreadable(f"there is no extension {extension}") from None


def stored(file: str) -> Stored:
    """Returns how a file stores a plane, by its header alone. Raises `Unreadable`."""
    with _image(file) as (hdu, first):
        return _stored(hdu, first, file)


def _stored(hdu: fits.ImageHDU, first: fits.Header, file: str) -> Stored:
    header = hdu.header.copy()
    height, width = lengths(hdu.shape)
    scale, zero = float(header.get("BSCALE", 1.0)), float(header.get("BZERO", 0.0))
    where, about = place(split(file)[0]), hdu.fileinfo()
    end = about["datLoc"] + about["datSpan"]
    is_whole = where.suffix == ".gz" or end <= status(where).st_size
    kept: np.dtype = np.dtype(np.float32)
    if header["BITPIX"] in _KEPT and not {"BLANK", "BOFFSET"} & set(header):
        kept = _KEPT[header["BITPIX"]]
    else:
        scale, zero = 1.0, 0.0
    said = (_said(value, header, first) for value in (zero_point, saturation))
    return Stored((height, width), header, kept, scale, zero, is_whole, *said)


def _said(value: Callable[[fits.Header], float | None], *headers: fits.Header) -> float | None:
    """Returns a value by the first of some headers that has it, None where none does."""
    return next((found for header in headers if (found := value(header)) is not None), None)


def section(file: str, rows: slice, columns: slice = slice(None)) -> Section:
    """Returns some rows and columns of a plane, as they are stored. Raises `Unreadable`."""
    with _image(file) as (hdu, first):
        said = _stored(hdu, first, file)
        if not said.is_whole:
            raise Unreadable(TRUNCATED)
        found = np.asarray(hdu.section[*(0,) * (len(hdu.shape) - 2), rows, columns])
        if said.dtype.kind == "f":
            found = _as_float(found, hdu.header)
        return Section(found.astype(said.dtype, copy=found.base is not None), said)


def _as_float(pixels: np.ndarray, header: fits.Header) -> np.ndarray:
    """Returns stored pixels as float32 of flux, NaN where they are blank."""
    blank, scale, zero = (header.get(key) for key in ("BLANK", "BSCALE", "BZERO"))
    made = pixels
    if pixels.dtype.kind != "f":
        made = pixels.astype(np.float64 if pixels.dtype.itemsize > 2 else np.float32)
        made[pixels == blank] = math.nan
    if (scale or 1.0) != 1.0 or zero:
        made = made * (1.0 if scale is None else scale) + (zero or 0.0)
    with np.errstate(over="ignore"):
        return flux(made, header).astype(np.float32, copy=False)


def unusable(
    companions: Sequence[tuple[str, str]],
    rows: slice,
    columns: slice,
    shape: tuple[int, int],
    bits: int,
) -> np.ndarray | None:
    """Returns which pixels of some rows and columns of a plane of this shape cannot be used,
    by the files beside it; None where there are none. A mask counts where it has one of the `bits`.
    Raises `Unreadable`."""
    found = None
    for kind, file in companions:
        beside = section(file, rows, columns)
        if beside.stored.shape != shape:
            raise Unreadable(f"{Path(file).name} has another shape than the plane that it is for")
        values = beside.flux
        if kind == "mask":
            bad = values.astype(np.int64) & bits != 0
        else:
            bad = ~(np.isfinite(values) & (values > 0))
        found = bad if found is None else found | bad
    return found
