"""Decodes one image file, of any kind, into planes."""

import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import Image

from lensjax.data.formats.fits import fits_planes
from lensjax.data.formats.reader_warnings import silenced
from lensjax.data.planes import (
    COLOURS,
    MAX_VALUES,
    Choose,
    Names,
    Plane,
    Unreadable,
    bytes_at_most,
    channels_last,
    check_file,
    check_size,
    masked,
    place_of,
    short,
)

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")
FITS_SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.fz", ".fz")
ARRAY_SUFFIXES = (".npy",)
IMAGE_SUFFIXES = PICTURE_SUFFIXES + TIFF_SUFFIXES + FITS_SUFFIXES + ARRAY_SUFFIXES
_ENDING = re.compile(rf"({'|'.join(map(re.escape, IMAGE_SUFFIXES))})\Z", re.IGNORECASE)

_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
# By the type of colour; a palette has none of its own.
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}


def has_suffix(path: str | Path, suffixes: Sequence[str]) -> bool:
    """True where the file name ends in one of the suffixes, in upper or lower case."""
    return str(path).lower().endswith(tuple(suffixes))


def stem(path: str | Path) -> str:
    """The path without its image suffix, be it a double one (`a/b.fits.gz` is `a/b`)."""
    return _ENDING.sub("", str(path))


@silenced()
def read_planes(path: str | Path, choose: Choose, most_values: int = MAX_VALUES) -> list[Plane]:
    """The chosen planes of an image file, in the order chosen. No other plane is decoded.

    Raises `Unreadable` for whatever stands in the way: a missing, empty, truncated or foreign
    file, one above the size limit, or planes that `choose` does not find.
    """
    try:
        check_file(path)
        if has_suffix(path, FITS_SUFFIXES):
            return fits_planes(path, choose, most_values)
        if has_suffix(path, PICTURE_SUFFIXES):
            channels, names = _picture(path, most_values)
        elif has_suffix(path, TIFF_SUFFIXES):
            channels, names = _tiff(path, most_values)
        elif has_suffix(path, ARRAY_SUFFIXES):
            channels, names = _array(path, most_values)
        else:
            raise Unreadable(f"not an image suffix ({', '.join(IMAGE_SUFFIXES)})")
        return [
            Plane(masked(channels[..., index]), place=place_of("channel", index, names[index]))
            for index in choose(names)
        ]
    except Unreadable:
        raise
    # The decoders meet arbitrary bytes and raise whatever they like, from struct.error to
    # RecursionError; to the caller all of it means one unusable file.
    except Exception as error:
        raise Unreadable(short(error)) from error


def _channel_names(count: int) -> Names:
    return COLOURS if count == 3 else (None,) * count


def _picture(path: str | Path, most_values: int) -> tuple[np.ndarray, Names]:
    with open(path, "rb") as file:
        pixels = _plain_png(file, most_values)
        if pixels is None:
            file.seek(0)
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                check_size((*image.size, len(image.getbands())), most_values)
                mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
                pixels = np.asarray(image.convert(mode))
    channels = channels_last(pixels)
    # An even number of channels ends in opacity.
    colours = channels.shape[2] - 1 + channels.shape[2] % 2
    return channels[..., :colours], _channel_names(colours)


def _plain_png(file: BinaryIO, most_values: int) -> np.ndarray | None:
    """The pixels of a PNG picture that has them in whole bytes, else None.

    In two thirds of the time of Pillow, which moreover keeps but eight bits of 16-bit colour.
    """
    start = file.read(26)
    if start[:16] != _PNG_START or len(start) < 26:
        return None
    width, height, depth, colour = struct.unpack(">IIBB", start[16:])
    if depth < 8 or colour not in _PNG_CHANNELS:
        return None
    check_size((width, height, _PNG_CHANNELS[colour]), most_values)
    # To be read at once, which takes room for all that is asked for.
    most_bytes = min(os.fstat(file.fileno()).st_size, bytes_at_most(most_values))
    file.seek(0)
    return imagecodecs.png_decode(file.read(most_bytes))


def _tiff(path: str | Path, most_values: int) -> tuple[np.ndarray, Names]:
    import tifffile  # slow to import, and most data are of another kind

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        check_size(series.shape, most_values)
        channels = channels_last(np.squeeze(series.asarray()))
        photometric = series.keyframe.photometric
    colour = photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    if colour and channels.shape[2] == 4:
        channels = channels[..., :3]
    return channels, _channel_names(channels.shape[2])


def _array(path: str | Path, most_values: int) -> tuple[np.ndarray, Names]:
    # Mapping reads the header alone, refuses pickled objects, and lets the size be checked first.
    mapped = np.lib.format.open_memmap(path, mode="r")
    check_size(mapped.shape, most_values)
    channels = channels_last(np.array(mapped))
    return channels, (None,) * channels.shape[2]
