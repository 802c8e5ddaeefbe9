"""What a file of a cutout is read into: planes, each a picture in one band, its masked pixels NaN.

Whatever a file holds, reading it ends in planes or in `Unreadable` with a short reason: one bad
file among a million is a row of the rejects, not the end of a run.
"""

import math
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lensjax.errors import LensjaxError, UsageError, one_line
from lensjax.places import place, status

COLOURS = ("red", "green", "blue")

# By default: a cutout of 8192 x 8192 pixels is a survey tile given by mistake, or a decompression
# bomb.
MAX_VALUES = 2**26

# A value is taken for the mark of a mask when it lies this many times further from the other
# pixels than these reach from their own median on that side.
MASK_GAP = 10.0

# Larger values, of either sign, are no brightness, and the step's float32 could not hold what it
# makes of them: up to here the squares that `zscale` sums are finite, and so is the ratio to the
# noise of a picture in erg/s/cm2/A, some 1e-20.
LARGEST = 1e18

# Arcsec per pixel. Interferometers are as fine, and of a lens nothing is seen in coarser pixels.
FINEST, COARSEST = 1e-3, 10.0


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

    @cached_property
    def masked(self) -> int:
        """Returns how many values are masked."""
        return int(np.count_nonzero(np.isnan(self.image)))

    @cached_property
    def blank(self) -> dict[int, float]:
        """Returns the bands that show nothing, by number: all their valid pixels have one value,
        which is given, or there is none (NaN)."""
        pixels = self.image.reshape(-1, self.image.shape[2])
        # Of these NaN is neither the lowest nor the highest.
        low, high = np.fmin.reduce(pixels, axis=0), np.fmax.reduce(pixels, axis=0)
        return {int(band): float(low[band]) for band in np.flatnonzero(~(low < high))}


def without_blank(cutout: Cutout, used: Sequence[int]) -> tuple[Cutout, tuple[int, ...]]:
    """Returns the cutout with those of the bands `used` masked that are blank, and which these are.

    Raises `Unreadable` where all of them are.
    """
    blank = tuple(band for band in used if band in cutout.blank)
    if not blank:
        return cutout, ()
    if len(blank) == len(used):
        values = sorted({f"{value:.6g}" for value in cutout.blank.values() if value == value})
        equal = f"all pixels are equal ({', '.join(values)})"
        raise Unreadable(equal if values else "no valid pixel")
    image = cutout.image.copy()
    image[..., blank] = np.nan
    return replace(cutout, image=image), blank


def is_pixel_scale(value: float) -> bool:
    """Returns whether this may be the side of a pixel, in arcsec."""
    return FINEST <= value <= COARSEST


def located(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Returns which positions (n,), in degrees, are places on the sky, (n,) bool."""
    return np.isfinite(ra) & (np.abs(dec) <= 90)


class Astrometry(NamedTuple):
    """Where a plane lies: pixel scale (arcsec, None: unknown), centre ra and dec (degrees)."""

    pixel_scale: float | None = None
    ra: float = float("nan")
    dec: float = float("nan")


@dataclass(frozen=True)
class Plane:
    """One band of one file: `pixels` (height, width) float32, NaN where masked; `place`: where in
    the file, in words."""

    pixels: np.ndarray
    sky: Astrometry = Astrometry()
    place: str = ""


Names = tuple[str | None, ...]
"""What a file calls its planes, in its order; None for a plane without a name."""

Choose = Callable[[Names], Sequence[int]]
"""Says which planes are wanted, in order, from the names; may raise `Unreadable`."""


def place_of(kind: str, index: int, name: str | None) -> str:
    """Returns where in a file a plane is, in words: `channel 2 (green)`, counted from one."""
    return f"{kind} {index + 1}" + (f" ({name})" if name else "")


def channels_last(array: np.ndarray) -> np.ndarray:
    """(height, width, channel) of a picture (H, W), (H, W, C) or (C, H, W): the small axis is C."""
    if array.ndim == 2:
        return array[..., np.newaxis]
    if array.ndim != 3:
        raise Unreadable(f"{array.ndim} dimensions where a picture has 2 or 3")
    return array if array.shape[2] <= array.shape[0] else np.moveaxis(array, 0, 2)


def masked(pixels: np.ndarray) -> np.ndarray:
    """(height, width) float32 of a plane, NaN for marks of masked pixels and beyond LARGEST.

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
    is_valid = np.abs(plane) <= LARGEST
    values = plane
    if not is_valid.all():
        plane[~is_valid] = np.nan
        values = plane[is_valid]
    for sign, extreme in ((1.0, np.minimum), (-1.0, np.maximum)):
        if not values.size:
            break
        mark = extreme.reduce(values, axis=None)
        if np.count_nonzero(values == mark) < 2:
            continue
        others = sign * values[values != mark].astype(np.float64)
        if others.size < 2:
            continue
        nearest = others.min()
        reach = np.median(others) - nearest
        if reach > 0 and nearest - sign * mark > MASK_GAP * reach:
            values = values[values != mark]
            plane[plane == mark] = np.nan
    return plane


def perhaps_masked(images: np.ndarray) -> np.ndarray:
    """(n,) bool of images (n, height, width, band): False where `masked` would find nothing.

    That is where no value is beyond LARGEST and none is the lowest or the highest of its band
    twice.
    """
    count, height, width, bands = images.shape
    found = np.zeros(count, bool)
    if images.dtype.kind != "f":
        return found
    largest = min(LARGEST, float(np.finfo(images.dtype).max))
    # Rows of the image are reduced first: their pixels lie side by side.
    lines = images.reshape(count, height, width * bands)
    for extreme in (np.minimum, np.maximum):
        of_band = extreme.reduce(extreme.reduce(lines, 1).reshape(count, width, bands), 1)
        # Neither for NaN, which these keep, nor for infinities. Each band has its extreme once.
        found |= ~(np.abs(of_band) <= largest).all(axis=1)
        equal = lines == np.tile(of_band, width)[:, np.newaxis]
        found |= np.count_nonzero(equal, axis=(1, 2)) > bands
    return found


def perhaps_blank(images: np.ndarray) -> np.ndarray:
    """(n,) bool of images (n, height, width, band): False where each band shows something, as its
    corner and its middle tell."""
    middle = images[:, images.shape[1] // 2, images.shape[2] // 2]
    return (images[:, 0, 0] == middle).any(axis=1)


@contextmanager
def refusing(what: str, advice: str = "") -> Iterator[None]:
    """Raises `UsageError` about `what` in the place of whatever a library says of arbitrary bytes:
    they have errors of their own, down to KeyError."""
    try:
        yield
    except LensjaxError:
        raise
    except Exception as error:
        raise UsageError(f"{what}: {one_line(error, 400)}{advice}") from error


def check_file(path: str | Path) -> int:
    """Returns the size of a file in bytes. Raises `Unreadable` where there is none to be read."""
    try:
        found = status(place(path))
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except PermissionError:
        raise Unreadable("access is denied") from None
    if stat.S_ISDIR(found.st_mode):
        raise Unreadable("is a folder, not a file")
    # Opening a named pipe would wait for ever.
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable("not a regular file")
    if found.st_size == 0:
        raise Unreadable("empty file")
    return found.st_size


def short(error: Exception) -> str:
    """Returns one line of at most 160 characters that says what went wrong."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot be decoded: {one_line(text or type(error).__name__)}"[:160]


def bytes_at_most(most_values: int) -> int:
    """Returns what a file of a cutout may take: float32, and headers."""
    return 4 * most_values + 2**20


def check_size(shape: Sequence[int], most_values: int) -> None:
    values = math.prod(int(length) for length in shape)
    if values > most_values:
        size = " x ".join(str(length) for length in shape)
        raise Unreadable(
            f"too large for a cutout: {size} values, the limit is {most_values} (--max-values)"
        )
    if values <= 0:
        raise Unreadable("the image has no pixels")
