"""Reads the images of FITS files: bands by extension name, pixels, and where they lie in the sky.

Plain images, which most cutouts are, are taken from the bytes of the file, in a fifth of the time
that astropy takes to make objects of its headers; everything else is astropy's.
"""

import gzip
import io
import math
import mmap
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from astropy.io import fits

from lensjax.data.formats.reader_warnings import silenced
from lensjax.data.planes import (
    MAX_VALUES,
    Choose,
    Names,
    Plane,
    Sky,
    Unreadable,
    bytes_at_most,
    channels_last,
    check_file,
    check_size,
    is_pixel_scale,
    masked,
    place_of,
    short,
)

# Blocks of 36 cards. Longer ones are no headers of cutouts.
LONGEST_HEADER = 512

# Axes or columns, by the standard.
MOST_FIELDS = 999

_COMPANIONS = frozenset(
    ("psf", "rms", "err", "error", "sigma", "noise", "weight", "weights", "wht", "wgt", "wt")
    + ("ivar", "invvar", "var", "variance", "mask", "msk", "flag", "flags", "dq", "bkg")
    + ("background", "seg", "segm", "segmap", "exp", "nexp", "exposure", "coverage", "con", "ctx")
)
_WCS_KEYWORD = re.compile(
    r"(WCSAXES|NAXIS\d?|C(TYPE|UNIT|RVAL|RPIX|DELT|ROTA)\d|(CD|PC)\d_\d|PV\d_\d+"
    r"|LONPOLE|LATPOLE|RADESYS|EQUINOX|[AB]_\w+)$"
)


def open_fits(
    path: str | Path, most_values: int = MAX_VALUES, *, memmap: bool = False
) -> fits.HDUList:
    """The open FITS file. Raises `Unreadable` where astropy would work without end: at a first
    header that does not end, at millions of axes or fields, at a compressed file that swells."""
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            file.seek(0)
            return _open_content(_decompressed(file, bytes_at_most(most_values)))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            _check_headers(mapped)
    return fits.open(path, memmap=memmap)


def _decompressed(file: BinaryIO, most_bytes: int) -> bytes:
    content = gzip.GzipFile(fileobj=file).read(most_bytes + 1)
    if len(content) > most_bytes:
        raise Unreadable(f"larger than {most_bytes} bytes once decompressed (--max-values)")
    return content


def _open_content(content: bytes) -> fits.HDUList:
    _check_headers(content)
    return fits.open(io.BytesIO(content))


def _check_headers(content: bytes | mmap.mmap) -> None:
    if content[:6] != b"SIMPLE":
        raise Unreadable("not a FITS file")
    if not re.search(rb"END {77}", content[: 2880 * LONGEST_HEADER]):
        raise Unreadable(f"the FITS header has no end in its first {LONGEST_HEADER} blocks")
    for keyword in (b"NAXIS   =", b"TFIELDS ="):
        at = content.find(keyword)
        while at >= 0:
            count = content[at + 9 : at + 30].strip()
            if count.isdigit() and int(count) > MOST_FIELDS:
                raise Unreadable(f"{keyword[:7].decode().strip()} {count.decode()} in a header")
            at = content.find(keyword, at + 1)


class _Image(NamedTuple):
    """An image of a FITS file: its shape without axes of one pixel, and how its pixels are read.

    `names`: of its planes, where it has a third axis.
    """

    name: str | None
    names: Names
    shape: tuple[int, ...]
    sky: Callable[[], Sky]
    pixels: Callable[[], np.ndarray]


def fits_planes(path: str | Path, choose: Choose, most_values: int = MAX_VALUES) -> list[Plane]:
    """The chosen planes of a FITS file: those of its first image, where that is a cube, else its
    two-dimensional images. Raises `Unreadable`."""
    most_bytes = bytes_at_most(most_values)
    if os.path.getsize(path) > most_bytes:
        with open_fits(path, most_values) as hdus:
            return _planes(_images(hdus, most_values), choose, most_values)
    content = Path(path).read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = _decompressed(io.BytesIO(content), most_bytes)
    plain = _plain_images(content)
    if plain is not None:
        return _planes(plain, choose, most_values)
    with _open_content(content) as hdus:
        return _planes(_images(hdus, most_values), choose, most_values)


def _images(hdus: fits.HDUList, most_values: int) -> list[_Image]:
    images = []
    for hdu in hdus:
        # Checked before the walk goes on, since going on may decompress what is skipped.
        if hdu.is_image and len(hdu.shape) > 0:
            check_size(hdu.shape, most_values)
            images.append(_image_of(hdu))
    return images


def _planes(images: Sequence[_Image], choose: Choose, most_values: int) -> list[Plane]:
    images = [i for i in images if 2 <= len(i.shape) <= 3 and not _is_companion(i.name)]
    if not images:
        raise Unreadable("the FITS file holds no image")
    if len(images[0].shape) == 3:
        check_size(images[0].shape, most_values)
        cube, sky = channels_last(images[0].pixels()), images[0].sky()
        names = images[0].names
        return [
            Plane(masked(cube[..., index]), sky, place_of("plane", index, names[index]))
            for index in choose(names)
        ]
    images = [image for image in images if len(image.shape) == 2]
    chosen = choose(tuple(image.name for image in images))
    for index in chosen:
        check_size(images[index].shape, most_values)
    return [
        Plane(masked(image.pixels()), image.sky(), place_of("image", index, image.name))
        for index, image in ((index, images[index]) for index in chosen)
    ]


def _image_of(hdu: fits.ImageHDU) -> _Image:
    shape = _lengths(hdu.shape)
    return _Image(
        _plane_name(hdu.header),
        _names_of_planes(hdu.header, shape),
        shape,
        lambda: sky_of(hdu.header),
        lambda: _pixels(hdu),
    )


def _lengths(shape: Sequence[int]) -> tuple[int, ...]:
    """The lengths of the axes, those of one pixel left out where more than two remain."""
    long = tuple(length for length in shape if length > 1)
    return long if len(long) >= 2 else tuple(shape)


def _pixels(hdu: fits.ImageHDU) -> np.ndarray:
    return _linear(np.asarray(hdu.data).reshape(_lengths(hdu.shape)), hdu.header)


def _linear(pixels: np.ndarray, header: fits.Header) -> np.ndarray:
    """The pixels in proportion to the flux: the stacks of Pan-STARRS1 hold asinh magnitudes of it
    (Waters et al. 2020, ApJS 251, 4), as BOFFSET and BSOFTEN in their headers say."""
    offset, softening = header.get("BOFFSET"), header.get("BSOFTEN")
    if not isinstance(offset, int | float) or not isinstance(softening, int | float):
        return pixels
    with np.errstate(over="ignore"):
        return offset + 2.0 * softening * np.sinh(pixels.astype(np.float64) * math.log(10.0) / 2.5)


# --- plain images, from their bytes ---

_BLOCK, _CARD = 2880, 80
_TYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
# What changes the meaning of pixels or the length of the data: astropy knows about it.
_NOT_PLAIN = frozenset(("BSCALE", "BZERO", "BLANK", "BSOFTEN", "GROUPS", "ZIMAGE", "CONTINUE"))


def _plain_images(content: bytes) -> list[_Image] | None:
    """The images of a FITS file of nothing else, unscaled, uncompressed and whole; None for any
    other file, and where anything is odd."""
    images, at = [], 0
    while at < len(content):
        found = _plain_header(content, at)
        if found is None:
            return None
        header, cards, data = found
        first = "SIMPLE" if at == 0 else "XTENSION"
        axes = header.get("NAXIS", "")
        is_plain = next(iter(header)) == first and _NOT_PLAIN.isdisjoint(header)
        if not is_plain or header.get(first) not in ("T", "IMAGE") or axes not in tuple("01234"):
            return None
        try:
            shape = tuple(int(header[f"NAXIS{axis}"]) for axis in range(int(axes), 0, -1))
            kind = np.dtype(_TYPES[int(header["BITPIX"])])
        except (KeyError, ValueError):
            return None
        extra = header.get("PCOUNT", "0"), header.get("GCOUNT", "1")
        count = math.prod(shape) if shape else 0
        end = data + count * kind.itemsize
        if min(shape, default=0) < 0 or extra != ("0", "1") or end > len(content):
            return None
        if shape and count:
            images.append(_plain_image(content, header, cards, shape, kind, data))
        at = -(-end // _BLOCK) * _BLOCK
    return images


def _plain_image(
    content: bytes,
    header: Mapping[str, str],
    cards: str,
    shape: tuple[int, ...],
    kind: np.dtype,
    data: int,
) -> _Image:
    long = _lengths(shape)

    def pixels() -> np.ndarray:
        flat = np.frombuffer(content, kind, math.prod(shape), data)
        return flat.reshape(long).astype(kind.newbyteorder("="))

    names = _names_of_planes(header, long)
    return _Image(_plane_name(header), names, long, lambda: _sky_of_cards(cards), pixels)


def _plain_header(content: bytes, at: int) -> tuple[dict[str, str], str, int] | None:
    """The keywords of the header at a place, first come first kept, texts without quotes; its cards
    on the sky; and where the data begin. None where it has no end."""
    header: dict[str, str] = {}
    sky: list[str] = []
    while at + _BLOCK <= len(content) and len(header) < 36 * LONGEST_HEADER:
        block = content[at : at + _BLOCK].decode("latin1")
        at += _BLOCK
        for start in range(0, _BLOCK, _CARD):
            keyword = block[start : start + 8].rstrip()
            if keyword == "END":
                return header, "".join(sky), at
            card = block[start : start + _CARD]
            if card[8:10] == "= ":
                header.setdefault(keyword, _value(card[10:]))
                if _WCS_KEYWORD.match(keyword):
                    sky.append(card)
            elif keyword == "CONTINUE":
                header[keyword] = ""
    return None


def _value(text: str) -> str:
    """The value of a card as text, without quotes and comment."""
    text = text.strip()
    if not text.startswith("'"):
        return text.partition("/")[0].strip()
    found = re.match(r"'((?:[^']|'')*)'", text)
    return found[1].replace("''", "'").rstrip() if found else text


# --- what a header says ---


def _plane_name(header: Mapping[str, Any] | fits.Header) -> str | None:
    """What the header calls the plane: EXTNAME, or the filter, where they name a band at all."""
    for keyword in ("EXTNAME", "FILTER", "BAND"):
        name = str(header.get(keyword, "")).strip()
        words = set(re.split(r"[^a-z0-9]+", name.lower()))
        if name and not words <= {"primary", "sci", "image", "img", "data", "flux", "compressed"}:
            return name
    return None


def _names_of_planes(header: Mapping[str, Any] | fits.Header, shape: tuple[int, ...]) -> Names:
    """What the header calls the planes of a cube, or of a stack of cubes: `BANDS`, a letter each or
    apart, or `BAND0` and so on, as the Legacy Surveys write them; none where it does not say. ()
    for another image."""
    if len(shape) not in (3, 4):
        return ()
    # The shorter axis, as `channels_last` has it; before it, in a stack, is that of the cutouts.
    count = min(shape[-3], shape[-1])
    together = str(header.get("BANDS", "")).strip()
    apart = re.split(r"[^A-Za-z0-9_-]+", together)
    said = [apart, list(together)]
    said += [
        [str(header.get(f"BAND{first + i}", "")).strip() for i in range(count)] for first in (0, 1)
    ]
    found = (names for names in said if len(names) == count and all(names))
    return tuple(next(found, (None,) * count))


def _is_companion(name: str | None) -> bool:
    """True for what goes with an image and is none: its PSF, noise, weights, mask."""
    words = re.split(r"[^a-z0-9]+", (name or "").lower())
    # `VIS_RMS`, `MSK_g`, `VAR_POISSON`; but `BKG_SUB` is the image without its background.
    return words[-1] != "sub" and not _COMPANIONS.isdisjoint((words[0], words[-1]))


@silenced()
def fits_form(path: str | Path) -> tuple[tuple[int, ...], Names]:
    """The shape of the first image of a FITS file, axes of one left out, and the names of its
    planes; () and () where none is found."""
    try:
        with open_fits(path) as hdus:
            image = _image_of(_first_image(hdus))
            return image.shape, image.names
    # What is wrong with the file is said when it is read.
    except Exception:
        return (), ()


@silenced()
def fits_stack(path: str | Path) -> tuple[np.ndarray, Names, Sky]:
    """The first image of a FITS file of any size and number of axes, the names of its planes, and
    where it lies.

    It is mapped, not read, where the file holds plain numbers (not compressed nor scaled).
    Raises `Unreadable`.
    """
    try:
        check_file(path)
        with open_fits(path, memmap=True) as hdus:
            hdu = _first_image(hdus)
            pixels = _pixels(hdu)
            return pixels, _names_of_planes(hdu.header, pixels.shape), sky_of(hdu.header)
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(short(error)) from error


def _first_image(hdus: fits.HDUList) -> fits.ImageHDU:
    for hdu in hdus:
        if hdu.is_image and len(hdu.shape) >= 2 and not _is_companion(_plane_name(hdu.header)):
            return hdu
    raise Unreadable("the FITS file holds no image")


def sky_of(header: fits.Header) -> Sky:
    """Pixel scale and centre by the header's world coordinates; unknown where it has none, or what
    cannot be."""
    cards = "".join(card.image for card in header.cards if _WCS_KEYWORD.match(card.keyword))
    return _sky_of_cards(cards)


# The bands of one object mostly lie on one grid, read one after the other by the same thread.
@lru_cache(maxsize=64)
def _sky_of_cards(cards: str) -> Sky:
    if "CTYPE" not in cards:
        return Sky()
    from astropy.wcs import WCS  # a quarter of a second to import
    from astropy.wcs.utils import proj_plane_pixel_area

    # A header that wcslib cannot use is one that says nothing about the sky.
    try:
        header = fits.Header.fromstring(cards)
        # Cubes mostly describe the sky alone, and their third axis not at all.
        wcs = WCS(header, naxis=2, fix=False).celestial
        if wcs.naxis != 2:
            return Sky()
        pixel_scale = float(np.sqrt(proj_plane_pixel_area(wcs)) * 3600.0)
        centre = [(header[f"NAXIS{axis}"] - 1) / 2 for axis in (1, 2)]
        if wcs.wcs.lngtyp == "RA":
            ra, dec = (float(value) for value in wcs.wcs_pix2world([centre], 0)[0])
        else:
            position = wcs.pixel_to_world(*centre).icrs
            ra, dec = float(position.ra.deg), float(position.dec.deg)
    except Exception:
        return Sky()
    scale = pixel_scale if is_pixel_scale(pixel_scale) else None
    on_sky = 0 <= ra <= 360 and -90 <= dec <= 90
    return Sky(scale, ra, dec) if on_sky else Sky(scale)
