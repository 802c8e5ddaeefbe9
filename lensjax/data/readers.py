"""Decodes one image file into planes: a two-dimensional picture in one band each.

Whatever a file holds, reading it ends in planes or in `Unreadable` with a short reason: one bad
file among a million is a row of the rejects, not the end of a run.
"""

import gzip
import io
import logging
import mmap
import os
import re
import stat
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import tifffile
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from PIL import Image

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")
FITS_SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.fz", ".fz")
ARRAY_SUFFIXES = (".npy",)
IMAGE_SUFFIXES = PICTURE_SUFFIXES + TIFF_SUFFIXES + FITS_SUFFIXES + ARRAY_SUFFIXES

COLOURS = ("red", "green", "blue")

# A cutout of 8192 x 8192 pixels is a survey tile given by mistake, or a decompression bomb.
MAX_VALUES = 2**26

# What a compressed file may hold.
MAX_BYTES = 4 * MAX_VALUES

# Blocks of 36 cards. Longer ones are no headers of cutouts.
LONGEST_HEADER = 512

# Axes or columns, by the standard.
MOST_FIELDS = 999

# A value is taken for the mark of a mask when it lies this many times further from the other
# pixels than these reach from their own median on that side.
MASK_GAP = 10.0

# The libraries' remarks about odd headers would come once a file, from many threads. Where a file
# cannot be used the reason is in `Unreadable`.
warnings.filterwarnings("ignore", category=AstropyWarning)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

_COMPANIONS = frozenset(
    ("psf", "rms", "err", "error", "sigma", "noise", "weight", "weights", "wht", "wt", "ivar")
    + ("invvar", "var", "variance", "mask", "flag", "flags", "dq", "bkg", "background", "seg")
    + ("segm", "segmap", "exp", "exposure", "coverage")
)
_WCS_KEYWORD = re.compile(
    r"(WCSAXES|NAXIS\d?|C(TYPE|UNIT|RVAL|RPIX|DELT|ROTA)\d|(CD|PC)\d_\d|PV\d_\d+"
    r"|LONPOLE|LATPOLE|RADESYS|EQUINOX|[AB]_\w+)$"
)


class Unreadable(Exception):
    """A cutout that cannot be used. The message is a short reason on one line."""


@dataclass(frozen=True)
class Cutout:
    """A picture of one object in several bands, as its file holds it.

    `image` is (height, width, band) float32 with NaN where a pixel is masked, `pixel_scale` in
    arcsec per pixel (None: unknown), `ra` and `dec` of the centre in degrees (NaN: unknown).
    """

    image: np.ndarray
    pixel_scale: float | None = None
    ra: float = float("nan")
    dec: float = float("nan")


class Sky(NamedTuple):
    """Where a plane lies: pixel scale (arcsec, None: unknown), centre ra and dec (degrees)."""

    pixel_scale: float | None = None
    ra: float = float("nan")
    dec: float = float("nan")


@dataclass(frozen=True)
class Plane:
    """One band of one file: `pixels` (height, width) float32, NaN where masked."""

    pixels: np.ndarray
    sky: Sky = Sky()


Names = tuple[str | None, ...]
"""What a file calls its planes, in its order; None for a plane without a name."""

Choose = Callable[[Names], Sequence[int]]
"""Says which planes are wanted, in order, from the names; may raise `Unreadable`."""


def has_suffix(path: str | Path, suffixes: Sequence[str]) -> bool:
    """True where the file name ends in one of the suffixes, in upper or lower case."""
    return str(path).lower().endswith(tuple(suffixes))


def stem(path: str | Path) -> str:
    """The path without its image suffix, be it a double one (`a/b.fits.gz` is `a/b`)."""
    text = str(path)
    ending = max((s for s in IMAGE_SUFFIXES if has_suffix(text, (s,))), key=len, default="")
    return text[: len(text) - len(ending)]


def read_planes(path: str | Path, choose: Choose) -> list[Plane]:
    """The chosen planes of an image file, in the order chosen. No other plane is decoded.

    Raises `Unreadable` for whatever stands in the way: a missing, empty, truncated or foreign
    file, one above the size limit, or planes that `choose` does not find.
    """
    try:
        _check_file(path)
        if has_suffix(path, FITS_SUFFIXES):
            return _fits_planes(path, choose)
        if has_suffix(path, PICTURE_SUFFIXES):
            channels, names = _picture(path)
        elif has_suffix(path, TIFF_SUFFIXES):
            channels, names = _tiff(path)
        elif has_suffix(path, ARRAY_SUFFIXES):
            channels, names = _array(path)
        else:
            raise Unreadable(f"not an image suffix ({', '.join(IMAGE_SUFFIXES)})")
        return [Plane(masked(channels[..., index])) for index in choose(names)]
    except Unreadable:
        raise
    # The decoders meet arbitrary bytes and raise whatever they like, from struct.error to
    # RecursionError; to the caller all of it means one unusable file.
    except Exception as error:
        raise Unreadable(_short(error)) from error


def channels_last(array: np.ndarray) -> np.ndarray:
    """(height, width, channel) of a picture (H, W), (H, W, C) or (C, H, W): the small axis is C."""
    if array.ndim == 2:
        return array[..., np.newaxis]
    if array.ndim != 3:
        raise Unreadable(f"{array.ndim} dimensions where a picture has 2 or 3")
    return array if array.shape[2] <= array.shape[0] else np.moveaxis(array, 0, 2)


def masked(pixels: np.ndarray) -> np.ndarray:
    """(height, width) float32 of a plane, with NaN for infinities and for marks of masked pixels.

    A mark is the lowest or the highest value of a plane of floating-point numbers that at least
    two pixels hold exactly and that lies far outside of what all others span, such as 100.0
    where fluxes are 1e-12, or -99. Integers are left as they are: there the ends of the range
    are black sky and saturation.
    """
    if pixels.dtype.kind not in "fiub":
        raise Unreadable(f"pixels are of type {pixels.dtype}, not numbers")
    if pixels.size == 0:
        raise Unreadable("the image has no pixels")
    with np.errstate(over="ignore"):
        plane = pixels.astype(np.float32)
    if pixels.dtype.kind != "f":
        return plane
    finite = np.isfinite(plane)
    plane[~finite] = np.nan
    values = plane[finite]
    for sign in (1.0, -1.0):
        mark = (sign * values).min(initial=np.inf)
        if np.count_nonzero(values == sign * mark) < 2:
            continue
        others = sign * values[values != sign * mark].astype(np.float64)
        if others.size < 2:
            continue
        nearest = others.min()
        reach = np.median(others) - nearest
        if reach > 0 and nearest - mark > MASK_GAP * reach:
            plane[plane == sign * mark] = np.nan
            values = values[values != sign * mark]
    return plane


def perhaps_masked(images: np.ndarray) -> np.ndarray:
    """(n,) bool of images (n, height, width, band): False where `masked` would find nothing.

    That is where all values are finite and none is the lowest or the highest of its band twice.
    """
    count, height, width, bands = images.shape
    if images.dtype.kind != "f":
        return np.zeros(count, bool)
    # Rows of the image are reduced first: their pixels lie side by side.
    lines = images.reshape(count, height, width * bands)
    found = ~np.isfinite(lines).all(axis=(1, 2))
    for extreme in (np.minimum, np.maximum):
        of_band = extreme.reduce(extreme.reduce(lines, 1).reshape(count, width, bands), 1)
        equal = lines == np.tile(of_band, width)[:, np.newaxis]
        # Where they are finite each band has its extreme once at least.
        found |= np.array([np.count_nonzero(image) for image in equal]) > bands
    return found


def _check_file(path: str | Path) -> None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    if stat.S_ISDIR(status.st_mode):
        raise Unreadable("is a folder, not a file")
    # Opening a named pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("not a regular file")
    if status.st_size == 0:
        raise Unreadable("empty file")


def _short(error: Exception) -> str:
    """One line of at most 160 characters that says what went wrong."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot be decoded: {' '.join((text or type(error).__name__).split())}"[:160]


def _check_size(shape: Sequence[int]) -> None:
    values = 1
    for length in shape:
        values *= int(length)
    if values > MAX_VALUES:
        size = " x ".join(str(length) for length in shape)
        raise Unreadable(f"too large for a cutout: {size} values, the limit is {MAX_VALUES}")
    if values <= 0:
        raise Unreadable("the image has no pixels")


def _channel_names(count: int) -> Names:
    return COLOURS if count == 3 else (None,) * count


def _picture(path: str | Path) -> tuple[np.ndarray, Names]:
    with open(path, "rb") as file:
        bit_depth = file.read(25)[-1:]
        file.seek(0)
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            _check_size((*image.size, len(image.getbands())))
            if image.format == "PNG" and bit_depth == b"\x10":
                # Pillow keeps the upper eight bits of 16-bit colour.
                file.seek(0)
                pixels = imagecodecs.png_decode(file.read())
            else:
                mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
                pixels = np.asarray(image.convert(mode))
    channels = channels_last(pixels)
    # An even number of channels ends in opacity.
    colours = channels.shape[2] - 1 + channels.shape[2] % 2
    return channels[..., :colours], _channel_names(colours)


def _tiff(path: str | Path) -> tuple[np.ndarray, Names]:
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        _check_size(series.shape)
        channels = channels_last(np.squeeze(series.asarray()))
        photometric = series.keyframe.photometric
    colour = photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    if colour and channels.shape[2] == 4:
        channels = channels[..., :3]
    return channels, _channel_names(channels.shape[2])


def _array(path: str | Path) -> tuple[np.ndarray, Names]:
    # Mapping reads the header alone, refuses pickled objects, and lets the size be checked first.
    mapped = np.lib.format.open_memmap(path, mode="r")
    _check_size(mapped.shape)
    channels = channels_last(np.array(mapped))
    return channels, (None,) * channels.shape[2]


def open_fits(path: str | Path, *, memmap: bool = False) -> fits.HDUList:
    """The open FITS file. Raises `Unreadable` where astropy would work without end: at a first
    header that does not end, at millions of axes or fields, at a compressed file that swells."""
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            file.seek(0)
            content = gzip.GzipFile(fileobj=file).read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise Unreadable(f"larger than {MAX_BYTES} bytes once it is decompressed")
            _check_headers(content)
            return fits.open(io.BytesIO(content))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            _check_headers(mapped)
    return fits.open(path, memmap=memmap)


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


def _fits_planes(path: str | Path, choose: Choose) -> list[Plane]:
    with open_fits(path) as hdus:
        images = []
        for hdu in hdus:
            # Checked before the walk goes on, since going on may decompress what is skipped.
            if hdu.is_image and len(hdu.shape) > 0:
                _check_size(hdu.shape)
                if 2 <= len(_lengths(hdu)) <= 3 and not _is_companion(_plane_name(hdu)):
                    images.append(hdu)
        if not images:
            raise Unreadable("the FITS file holds no image")
        if len(_lengths(images[0])) == 3:
            cube = channels_last(_pixels(images[0]))
            sky = sky_of(images[0].header)
            names: Names = (None,) * cube.shape[2]
            return [Plane(_survey_mask(cube[..., index]), sky) for index in choose(names)]
        images = [hdu for hdu in images if len(_lengths(hdu)) == 2]
        chosen = choose(tuple(_plane_name(hdu) for hdu in images))
        return [
            Plane(_survey_mask(_pixels(images[index])), sky_of(images[index].header))
            for index in chosen
        ]


def _lengths(hdu: fits.ImageHDU) -> tuple[int, ...]:
    """The lengths of the axes, those of one pixel left out where more than two remain."""
    long = tuple(length for length in hdu.shape if length > 1)
    return long if len(long) >= 2 else tuple(hdu.shape)


def _pixels(hdu: fits.ImageHDU) -> np.ndarray:
    return np.asarray(hdu.data).reshape(_lengths(hdu))


def _plane_name(hdu: fits.ImageHDU) -> str | None:
    """What the header calls the plane: EXTNAME, or the filter, where they name a band at all."""
    for keyword in ("EXTNAME", "FILTER", "BAND"):
        name = str(hdu.header.get(keyword, "")).strip()
        words = set(re.split(r"[^a-z0-9]+", name.lower()))
        if name and not words <= {"primary", "sci", "image", "img", "data", "flux", "compressed"}:
            return name
    return None


def _is_companion(name: str | None) -> bool:
    """True for what goes with an image and is none: its PSF, noise, weights, mask."""
    return name is not None and re.split(r"[^a-z0-9]+", name.lower())[-1] in _COMPANIONS


def _survey_mask(pixels: np.ndarray) -> np.ndarray:
    """As `masked`; and a plane of one value throughout has no valid pixel: no coverage there."""
    plane = masked(pixels)
    valid = plane[np.isfinite(plane)]
    if valid.size and valid.min() == valid.max():
        plane[:] = np.nan
    return plane


def fits_shape(path: str | Path) -> tuple[int, ...]:
    """The shape of the first image of a FITS file, axes of one left out; () where none is found."""
    try:
        with open_fits(path) as hdus:
            return _lengths(_first_image(hdus))
    # What is wrong with the file is said when it is read.
    except Exception:
        return ()


def fits_stack(path: str | Path) -> tuple[np.ndarray, Sky]:
    """The first image of a FITS file of any size and number of axes, and where it lies.

    It is mapped, not read, where the file holds plain numbers (not compressed nor scaled).
    Raises `Unreadable`.
    """
    try:
        _check_file(path)
        with open_fits(path, memmap=True) as hdus:
            hdu = _first_image(hdus)
            return _pixels(hdu), sky_of(hdu.header)
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(_short(error)) from error


def _first_image(hdus: fits.HDUList) -> fits.ImageHDU:
    for hdu in hdus:
        if hdu.is_image and len(hdu.shape) >= 2 and not _is_companion(_plane_name(hdu)):
            return hdu
    raise Unreadable("the FITS file holds no image")


def sky_of(header: fits.Header) -> Sky:
    """Pixel scale and centre by the header's world coordinates; unknown where it has none."""
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
    known = np.isfinite(pixel_scale) and pixel_scale > 0
    return Sky(pixel_scale if known else None, ra, dec)
