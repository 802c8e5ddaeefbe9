"""Images of FITS files: bands by extension name, pixels, and where they lie in the sky."""

import gzip
import io
import math
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits

from lensjax.data.copies import local, reading
from lensjax.data.formats.reader_warnings import silenced
from lensjax.data.planes import (
    MAX_VALUES,
    Astrometry,
    Choose,
    Names,
    Plane,
    Unreadable,
    bytes_at_most,
    channels_last,
    check_file,
    check_size,
    is_pixel_scale,
    masked,
    place_of,
    refusing,
)

# Blocks of 36 cards. Longer ones are no headers of cutouts.
LONGEST_HEADER = 512

# Axes or columns, by the standard.
MOST_FIELDS = 999

# To search so many bytes is faster than to read their headers; tiles would be read as a whole.
SEARCHED_BYTES = 2**20
_END = re.compile(rb"END {77}")

_COMPANIONS = frozenset(
    ("psf", "rms", "err", "error", "sigma", "noise", "weight", "weights", "wht", "wgt", "wt")
    + ("ivar", "invvar", "var", "variance", "mask", "msk", "flag", "flags", "dq", "bkg")
    + ("background", "seg", "segm", "segmap", "exp", "nexp", "exposure", "coverage", "con", "ctx")
)
_WCS_KEYWORD = re.compile(
    r"(WCSAXES|C(TYPE|UNIT|RVAL|RPIX|DELT|ROTA)\d|(CD|PC)\d_\d|PV\d_\d+"
    r"|LONPOLE|LATPOLE|RADESYS|EQUINOX) *="
)


def open_fits(
    path: str | Path,
    most_values: int = MAX_VALUES,
    *,
    memmap: bool = False,
    as_stored: bool = False,
) -> fits.HDUList:
    """Returns the open FITS file, whose pixels are scaled unless `as_stored`. Raises `Unreadable`
    where astropy would work without end: at a first header that does not end, at millions of axes
    or fields, at a compressed file that swells."""
    most_bytes = bytes_at_most(most_values)
    with local(path).open("rb") if memmap else reading(path) as file:
        is_packed = file.read(2) == b"\x1f\x8b"
        is_large = memmap or file.seek(0, os.SEEK_END) > most_bytes
        file.seek(0)
        if is_large and not is_packed:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                _check_headers(mapped)
            return fits.open(file.name, memmap=memmap, do_not_scale_image_data=as_stored)
        content = gzip.GzipFile(fileobj=file).read(most_bytes + 1) if is_packed else file.read()
    if len(content) > most_bytes:
        raise Unreadable(f"larger than {most_bytes} bytes once decompressed (--max-values)")
    _check_headers(content)
    return fits.open(io.BytesIO(content), do_not_scale_image_data=as_stored)


def _check_headers(content: bytes | mmap.mmap) -> None:
    if content[:6] != b"SIMPLE":
        raise Unreadable("not a FITS file")
    if not _END.search(content, 0, 2880 * LONGEST_HEADER):
        raise Unreadable(f"the FITS header has no end in its first {LONGEST_HEADER} blocks")
    whole = ((0, len(content)),)
    for start, end in _headers(content) if len(content) > SEARCHED_BYTES else whole:
        for keyword in (b"NAXIS   =", b"TFIELDS ="):
            at = content.find(keyword, start, end)
            while at >= 0:
                count = content[at + 9 : at + 30].strip()
                if count.isdigit() and int(count) > MOST_FIELDS:
                    raise Unreadable(f"{keyword[:7].decode().strip()} {count.decode()} in a header")
                at = content.find(keyword, at + 1, end)


def _headers(content: bytes | mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yields where the headers of a FITS file begin and end, without a look at the data between
    them; from one on that does not say how long its data are, all of the rest."""
    start = 0
    while start < len(content):
        found = _END.search(content, start, start + 2880 * LONGEST_HEADER)
        if found is None:
            break
        yield start, found.end()
        try:
            header = fits.Header.fromstring(content[start : found.end()].decode("latin1"))
            size = header.data_size_padded
        except Exception:  # astropy about arbitrary headers
            break
        if size < 0:
            break
        start += -(-(found.end() - start) // 2880) * 2880 + size
    if start < len(content):
        yield start, len(content)


def fits_planes(path: str | Path, choose: Choose, most_values: int = MAX_VALUES) -> list[Plane]:
    """Returns the chosen planes of a FITS file: those of its first image, where that is a cube,
    else its two-dimensional images. Raises `Unreadable`."""
    with open_fits(path, most_values) as hdus:
        found = [hdu for hdu in images(hdus, most_values) if len(lengths(hdu.shape)) <= 3]
        if not found:
            raise Unreadable("the FITS file holds no image")
        if len(lengths(found[0].shape)) == 3:
            return _planes_of_cube(found[0], choose)
        found = [hdu for hdu in found if len(lengths(hdu.shape)) == 2]
        names = tuple(_plane_name(hdu.header) for hdu in found)
        return [
            Plane(
                masked(_pixels(found[index])),
                _astrometry(found[index]),
                place_of("image", index, names[index]),
            )
            for index in choose(names)
        ]


def _planes_of_cube(hdu: fits.ImageHDU, choose: Choose) -> list[Plane]:
    names = _names_of_planes(hdu)
    chosen = choose(names)
    cube, sky = channels_last(_pixels(hdu)), _astrometry(hdu)
    return [
        Plane(masked(cube[..., index]), sky, place_of("plane", index, names[index]))
        for index in chosen
    ]


class First(NamedTuple):
    """What a FITS file holds first: a table, or an image of some shape (axes of one left out), of
    whose planes it knows the names."""

    is_table: bool = False
    shape: tuple[int, ...] = ()
    names: Names = ()


@silenced()
def first_of(path: str | Path) -> First:
    """Returns what a FITS file holds first, nothing where it cannot be read."""
    # What is wrong with the file is said when it is read.
    with suppress(Exception), open_fits(path, memmap=True) as hdus:
        first = next(hdu for hdu in hdus if not hdu.is_image or hdu.shape)
        if not first.is_image:
            return First(is_table=True)
        image = next(images(hdus))
        return First(False, lengths(image.shape), _names_of_planes(image))
    return First()


@silenced()
def fits_stack(path: str | Path) -> tuple[np.ndarray, Names, Astrometry]:
    """Returns the first image of a FITS file of any size and number of axes, the names of its
    planes, and where it lies.

    It is mapped, not read, where the file holds plain numbers (not compressed nor scaled).
    Raises `UsageError`.
    """
    with refusing(f"{path} cannot be read as FITS"):
        check_file(path)
        with open_fits(path, memmap=True) as hdus:
            image = next(images(hdus), None)
            if image is None:
                raise Unreadable("the FITS file holds no image")
            return _pixels(image), _names_of_planes(image), _astrometry(image)


def images(hdus: fits.HDUList, most_values: int | None = None) -> Iterator[fits.ImageHDU]:
    """Yields the images of two and more axes that are no companions of others. Raises `Unreadable`
    at one of more than `most_values`: to go on beyond it may decompress it."""
    for hdu in hdus:
        if not hdu.is_image or not hdu.shape:
            continue
        if most_values is not None:
            check_size(hdu.shape, most_values)
        if len(hdu.shape) >= 2 and not _is_companion(_plane_name(hdu.header)):
            yield hdu


def lengths(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the lengths of the axes, those of one pixel left out where more than two remain."""
    long = tuple(length for length in shape if length > 1)
    return long if len(long) >= 2 else tuple(shape)


def _pixels(hdu: fits.ImageHDU) -> np.ndarray:
    """Returns the pixels in proportion to the flux, without axes of one."""
    return flux(np.asarray(hdu.data).reshape(lengths(hdu.shape)), hdu.header)


def flux(pixels: np.ndarray, header: fits.Header) -> np.ndarray:
    """Returns pixels in proportion to the flux: the stacks of Pan-STARRS1 hold asinh magnitudes of
    it (Waters et al. 2020, ApJS 251, 4), as BOFFSET and BSOFTEN say."""
    offset, softening = header.get("BOFFSET"), header.get("BSOFTEN")
    if not isinstance(offset, int | float) or not isinstance(softening, int | float):
        return pixels
    with np.errstate(over="ignore"):
        return offset + 2.0 * softening * np.sinh(pixels.astype(np.float64) * math.log(10.0) / 2.5)


def _plane_name(header: fits.Header) -> str | None:
    """Returns what the header calls the plane: EXTNAME, or the filter, where they name a band."""
    for keyword in ("EXTNAME", "FILTER", "BAND"):
        name = str(header.get(keyword, "")).strip()
        words = set(re.split(r"[^a-z0-9]+", name.lower()))
        if name and not words <= {"primary", "sci", "image", "img", "data", "flux", "compressed"}:
            return name
    return None


def _names_of_planes(hdu: fits.ImageHDU) -> Names:
    """Returns what the header calls the planes of a cube, or of a stack of cubes: `BANDS`, a letter
    each or apart, or `BAND0` and so on, as the Legacy Surveys write them; none where it does not
    say. () for another image."""
    header, shape = hdu.header, lengths(hdu.shape)
    if len(shape) not in (3, 4):
        return ()
    # The shorter axis, as `channels_last` has it; before it, in a stack, is that of the cutouts.
    count = min(shape[-3], shape[-1])
    together = str(header.get("BANDS", "")).strip()
    said = [re.split(r"[^A-Za-z0-9_-]+", together), list(together)]
    said += [
        [str(header.get(f"BAND{first + i}", "")).strip() for i in range(count)] for first in (0, 1)
    ]
    found = (names for names in said if len(names) == count and all(names))
    return tuple(next(found, (None,) * count))


def _is_companion(name: str | None) -> bool:
    """Returns True for what goes with an image and is none: its PSF, noise, weights, mask."""
    words = re.split(r"[^a-z0-9]+", (name or "").lower())
    # `VIS_RMS`, `MSK_g`, `VAR_POISSON`; but `BKG_SUB` is the image without its background.
    return words[-1] != "sub" and not _COMPANIONS.isdisjoint((words[0], words[-1]))


def _astrometry(hdu: fits.ImageHDU) -> Astrometry:
    """Returns pixel scale and centre by the header's world coordinates; unknown where it has none,
    or what cannot be."""
    place = hdu.fileinfo()
    place["file"].seek(place["hdrLoc"])
    text = place["file"].read(place["datLoc"] - place["hdrLoc"]).decode("latin1")
    cards = (text[at : at + 80] for at in range(0, len(text), 80))
    height, width = hdu.shape[-2:]
    return _astrometry_of_cards("".join(filter(_WCS_KEYWORD.match, cards)), height, width)


# The bands of one object mostly lie on one grid, read one after the other by the same thread.
@lru_cache(maxsize=64)
def _astrometry_of_cards(cards: str, height: int, width: int) -> Astrometry:
    if "CTYPE" not in cards:
        return Astrometry()
    from astropy.wcs import WCS, Wcsprm  # a quarter of a second to import

    centre = (width - 1) / 2, (height - 1) / 2
    # A header that wcslib cannot use is one that says nothing about the sky.
    try:
        # In a twentieth of the time of `WCS`, which does nothing more for these keywords.
        wcs = Wcsprm(cards.encode("latin1"), relax=True).sub(["celestial"])
        world = wcs.p2s([centre], 0)["world"][0]
        ra, dec = float(world[wcs.lng]), float(world[wcs.lat])
        if wcs.lngtyp != "RA":
            header = fits.Header.fromstring(cards)
            position = WCS(header, naxis=2, fix=False).celestial.pixel_to_world(*centre).icrs
            ra, dec = float(position.ra.deg), float(position.dec.deg)
        area = abs(np.linalg.det(np.diag(wcs.get_cdelt()) @ wcs.get_pc()))
    except Exception:
        return Astrometry()
    scale = float(np.sqrt(area) * 3600.0)
    on_sky = 0 <= ra <= 360 and -90 <= dec <= 90
    return Astrometry(scale if is_pixel_scale(scale) else None, *((ra, dec) if on_sky else ()))
