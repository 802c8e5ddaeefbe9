"""Decodes one image file, of any kind, into planes."""

import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import imagecodecs
import numpy as np
from PIL import Image

from lensjax.data.copies import reading
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
from lensjax.errors import LensjaxError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")
FITS_SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.fz", ".fz")
ARRAY_SUFFIXES = (".npy",)
IMAGE_SUFFIXES = PICTURE_SUFFIXES + TIFF_SUFFIXES + FITS_SUFFIXES + ARRAY_SUFFIXES
_ENDING = re.compile(rf"({'|'.join(map(re.escape, IMAGE_SUFFIXES))})\Z", re.IGNORECASE)

_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
# By the type of colour.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}


def has_suffix(path: str | Path, suffixes: Sequence[str]) -> bool:
    """Returns True where the file name ends in one of the suffixes, in upper or lower case."""
    return str(path).lower().endswith(tuple(suffixes))


def stem(path: str | Path) -> str:
    """Returns the path without its image suffix, be it a double one (`a/b.fits.gz` is `a/b`)."""
    return _ENDING.sub("", str(path))


@silenced()
def read_planes(path: str | Path, choose: Choose, most_values: int = MAX_VALUES) -> list[Plane]:
    """Returns the chosen planes of an image file, in the order chosen. No other plane is decoded.

    Raises `Unreadable` for whatever stands in the way: a missing, empty, truncated or foreign
    file, or one above the size limit; and whatever `choose` does.
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
    except (Unreadable, LensjaxError):
        raise
    # The decoders meet arbitrary bytes and raise whatever they like, from struct.error to
    # RecursionError; to the caller all of it means one unusable file.
    except Exception as error:
        raise Unreadable(short(error)) from error


def _channel_names(count: int) -> Names:
    return COLOURS if count == 3 else (None,) * count


def _picture(path: str | Path, most_values: int) -> tuple[np.ndarray, Names]:
    with reading(path) as file:
        is_png = file.read(len(_PNG_START)) == _PNG_START
        file.seek(0)
        if is_png:
            pixels = _png(file, most_values)
        else:
            with Image.open(file, formats=("JPEG",)) as image:
                check_size((*image.size, len(image.getbands())), most_values)
                pixels = np.asarray(image.convert("L" if image.mode == "L" else "RGB"))
    channels = channels_last(pixels)
    # An even number of channels ends in opacity.
    colours = channels.shape[2] - 1 + channels.shape[2] % 2
    return channels[..., :colours], _channel_names(colours)


def _png(file: IO[bytes], most_values: int) -> np.ndarray:
    """Returns the pixels of a PNG picture: of 16-bit colour Pillow would keep but eight bits."""
    width, height, _, colour = struct.unpack(">IIBB", file.read(26)[16:])
    check_size((width, height, _PNG_CHANNELS.get(colour, 1)), most_values)
    # To be read at once, which takes room for all that is asked for.
    most_bytes = min(file.seek(0, os.SEEK_END), bytes_at_most(most_values))
    file.seek(0)
    return imagecodecs.png_decode(file.read(most_bytes))


def _tiff(path: str | Path, most_values: int) -> tuple[np.ndarray, Names]:
    import tifffile  # slow to import, and most data are of another kind

    with reading(path) as content, tifffile.TiffFile(content) as file:
        series = file.series[0]
        check_size(series.shape, most_values)
        channels = channels_last(np.squeeze(series.asarray()))
        photometric = series.keyframe.photometric
    colour = photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    if colour and channels.shape[2] == 4:
        channels = channels[..., :3]
    return channels, _channel_names(channels.shape[2])


def _array(path: str | Path, most_values: int) -> tuple[np.ndarray, Names]:
    with reading(path) as file:
        # The size is checked before anything is read, and pickled objects are refused.
        form = np.lib.format
        version = form.read_magic(file)
        header = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        check_size(header(file)[0], most_values)
        file.seek(0)
        channels = channels_last(np.load(file, allow_pickle=False))
    return channels, (None,) * channels.shape[2]
