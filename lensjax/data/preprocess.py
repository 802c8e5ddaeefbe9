"""What a member wants of its cutouts, and the geometry that brings a cutout to its grid.

Which pixels become which is decided here, once for a size and a pixel scale, and carried out
either here, cutout by cutout, or by the compiled step (`on_device`), a batch at once. Brightness
is the step's alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal, get_args

import numpy as np
from scipy import sparse

from lensjax.data.planes import Cutout, Plane, Unreadable, without_blank
from lensjax.errors import UsageError

Stretch = Literal["asinh", "log", "linear", "percentile", "zscale", "none"]
Fit = Literal["auto", "resample", "resize", "crop"]
STRETCHES = get_args(Stretch)
WAYS_TO_FIT = get_args(Fit)

# Pixel scales count as equal where the grids part by less than this many pixels at the edge.
SAME_GRID = 0.25

# Doublings, or halvings, of the field of view from which a member's judgement is in doubt, and
# beyond which it is not asked for unless the user insists. Rounding is no doubt.
DOUBTFUL_FIELD, OTHER_FIELD = 1 - 1e-3, 2 + 1e-3


@dataclass(frozen=True)
class Preprocessing:
    """How a member wants its cutouts.

    `input_size` in pixels, `pixel_scale` in arcsec per pixel (None: any), `stretch` one of
    STRETCHES, `softening` in units of the noise, `mean` and `std` per band of the stretched
    pixels. Raises `UsageError` where these do not fit each other.
    """

    bands: tuple[str, ...]
    input_size: int
    pixel_scale: float | None
    stretch: str
    softening: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.stretch not in STRETCHES:
            raise UsageError(f"stretch {self.stretch!r} is not known: {' or '.join(STRETCHES)}")
        if not self.bands or not len(self.bands) == len(self.mean) == len(self.std):
            raise UsageError(
                f"{len(self.bands)} bands with {len(self.mean)} means and {len(self.std)} "
                "standard deviations: give one of each a band"
            )
        scale = 1.0 if self.pixel_scale is None else self.pixel_scale
        lengths = (self.input_size, self.softening, *self.std, scale)
        if not all(math.isfinite(length) and length > 0 for length in lengths):
            raise UsageError(
                "input size, pixel scale, softening and standard deviations must be above zero: "
                f"{self}"
            )
        if not all(map(math.isfinite, self.mean)):
            raise UsageError(f"the means must be finite: {self}")

    @property
    def field(self) -> float | None:
        """Returns the side of what a member sees, in arcsec, None where any scale will do."""
        return None if self.pixel_scale is None else self.input_size * self.pixel_scale

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> "Preprocessing":
        """This preprocessing with another mean and standard deviation, one of each a band."""
        return replace(self, mean=tuple(map(float, mean)), std=tuple(map(float, std)))

    @classmethod
    def unnormalised(
        cls,
        bands: Sequence[str],
        input_size: int,
        pixel_scale: float | None,
        stretch: str,
        softening: float,
    ) -> "Preprocessing":
        """Returns a preprocessing whose mean is zero and whose standard deviation is one in every
        band."""
        zeros, ones = (0.0,) * len(bands), (1.0,) * len(bands)
        return cls(tuple(bands), input_size, pixel_scale, stretch, softening, zeros, ones)


@dataclass(frozen=True)
class Geometry:
    """How cutouts of `shape` (height, width) come to a grid of `size` by `size` pixels.

    Centre on centre. `ratio`: the new pixel's side over the old one's, 1.0 where nothing is
    interpolated. `action`: `as is`, `cropped`, `padded`, `resampled` or `resized`. `field`: the
    cutouts' field of view over the member's; None where a pixel scale is not known.
    """

    shape: tuple[int, int]
    size: int
    ratio: float
    action: str
    field: float | None = None

    @cached_property
    def bounds(self) -> tuple[slice, slice]:
        """Returns the new rows and columns that hold sky; the others hold the background level."""
        if self.ratio == 1.0:
            height, width = (_centred(self.size, length) for length in self.shape)
        else:
            height, width = (_covered(length, self.size, self.ratio) for length in self.shape)
        return height, width

    @cached_property
    def shown(self) -> tuple[slice, slice]:
        """Returns the old rows and columns that the new pixels show."""
        if self.ratio == 1.0:
            height, width = (_centred(length, self.size) for length in self.shape)
        else:
            reach = self.size * self.ratio / 2
            height, width = (
                slice(max(0, math.floor(n / 2 - reach)), math.ceil(n / 2 + reach))
                for n in self.shape
            )
        return height, width

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns two matrices float32, (row within `bounds`, height) and (column within `bounds`,
        width): rows times image times columns transposed is the sky on the new grid."""
        rows, columns = (
            _weights(length, self.size, self.ratio).toarray()[bounds]
            for length, bounds in zip(self.shape, self.bounds, strict=True)
        )
        return rows, columns

    @cached_property
    def noise(self) -> float:
        """Returns the noise of new pixels over that of old ones, where these are independent."""
        if self.ratio == 1.0:
            return 1.0
        down, across = (np.sqrt(np.square(weights).sum(1)).mean() for weights in self.weights)
        return float(down * across)

    @property
    def pads(self) -> bool:
        """Returns whether some of the new pixels hold no sky."""
        return self.bounds != (slice(0, self.size), slice(0, self.size))


class OtherField(Unreadable):
    """A cutout that shows far more, or less, sky than a member wants to see."""


# Data sets have few different sizes, and many cutouts of each.
@lru_cache(maxsize=256)
def geometry(
    shape: tuple[int, int],
    pixel_scale: float | None,
    preprocessing: Preprocessing,
    how: str = "auto",
) -> Geometry:
    """Returns how cutouts of this shape and pixel scale (arcsec, None: unknown) come to a member's
    grid.

    `resample` brings them to the member's pixel scale, `resize` their shorter side to S pixels,
    `crop` leaves the pixels as they are and cuts or pads; `auto` resamples where both pixel
    scales are known and else resizes. Where the scales agree nothing is interpolated: blurring
    would change the noise that the member was trained on, whereas a centre off by half a pixel
    (odd cut from even) would not.

    Raises `Unreadable` where `resample` is asked and the cutout's pixel scale is not known, or
    the cutout is smaller than a pixel of the member, `OtherField` where under `auto` the fields of
    view differ by more than a factor of four; `UsageError` where `resample` is asked and
    the member's pixel scale is not known, or `how` is none of the above.
    """
    if how not in WAYS_TO_FIT:
        raise UsageError(f"--fit {how} is not known: choose from {', '.join(WAYS_TO_FIT)}")
    if how == "resample" and preprocessing.pixel_scale is None:
        raise UsageError("--fit resample: this member has no pixel scale; take resize or crop")
    if how == "resample" and pixel_scale is None:
        raise Unreadable("pixel scale not known: give --pixel-scale, or --fit resize or crop")
    size, (height, width) = preprocessing.input_size, shape
    field = None
    if preprocessing.pixel_scale and pixel_scale:
        sides = min(shape) * pixel_scale, size * preprocessing.pixel_scale
        field = sides[0] / sides[1]
        if how == "auto" and abs(math.log2(field)) > OTHER_FIELD:
            raise OtherField(
                f"a field of view of {sides[0]:.4g} arcsec, more than four times "
                f"{'more' if field > 1 else 'less'} than the member's {sides[1]:.4g} arcsec: check "
                "the pixel scale (--pixel-scale), or insist with --fit resample, resize or crop"
            )
    if how == "crop":
        ratio, action = 1.0, "cropped"
    elif how != "resize" and preprocessing.pixel_scale and pixel_scale:
        ratio, action = preprocessing.pixel_scale / pixel_scale, "resampled"
    else:
        ratio, action = min(height, width) / size, "resized"
    if abs(ratio - 1.0) * size / 2 < SAME_GRID:
        ratio = 1.0
        action = "as is" if shape == (size, size) else "cropped"
        action = "padded" if min(height, width) < size else action
    made = Geometry(shape, size, ratio, action, field)
    if any(axis.start == axis.stop for axis in made.bounds):
        raise Unreadable(f"{width}x{height} pixels are less than one pixel of the member")
    return made


def fields_of_view(field: np.ndarray) -> dict[str, int]:
    """Returns how many cutouts show about as much sky as a member sees, half of it or less, twice
    or more, or nobody knows how much, by their `field` (n,) of view over the member's, NaN where
    unknown."""
    doublings = np.log2(field)
    return {
        "alike": int((np.abs(doublings) < DOUBTFUL_FIELD).sum()),
        "half or less": int((doublings <= -DOUBTFUL_FIELD).sum()),
        "twice or more": int((doublings >= DOUBTFUL_FIELD).sum()),
        "not known": int(np.isnan(doublings).sum()),
    }


def doubts(
    field: np.ndarray, action: np.ndarray, preprocessings: Sequence[Preprocessing], how: str
) -> list[str]:
    """Returns lines about how cutouts were fitted, by their `field` (n,) of view
    over a member's and the `action` (n,) on each."""
    counts, told = fields_of_view(field), []
    doubtful = counts["half or less"] + counts["twice or more"]
    if doubtful:
        furthest = field[np.nanargmax(np.abs(np.log2(field)))]
        meaning = (
            "they are resized to it, and their scores may be far off"
            if how == "resize"
            else "of the larger only the middle is scored, the smaller are filled up with sky, and "
            "scores are far off if the pixel scale is wrong (--pixel-scale)"
        )
        told.append(
            f"{doubtful} of {len(field)} cutouts show half or less, or twice or more, of the field "
            f"of view that a member was trained on (up to {furthest:.3g} times): {meaning}"
        )
    scales = {p.pixel_scale for p in preprocessings} - {None}
    unknown = np.isnan(field) & (bool(scales) | (action == "resized"))
    if how == "auto" and unknown.any():
        whose = "cutouts" if scales else "members"
        advice = " (--pixel-scale says what it is)" if scales else ""
        told.append(
            f"the pixel scale of the {whose} is not known: {int(unknown.sum())} of {len(field)} "
            "cutouts are taken for the members' field of view and resized where their size "
            f"differs{advice}"
        )
    return told


def fit(image: np.ndarray, geometry: Geometry, background: np.ndarray) -> np.ndarray:
    """Returns an image (height, width, band) without NaN on the grid of a geometry: (S, S, band).

    Pixel values are surface brightness: a uniform sky keeps its value. Shrinking averages over
    the pixels that become one. Off the image there is `background` (band,).
    """
    shape = geometry.size, geometry.size
    if geometry.ratio != 1.0:
        return resample(image, geometry.ratio, shape, background)
    if geometry.shape == shape:
        return image
    result = np.tile(background.astype(image.dtype), (*shape, 1))
    result[geometry.bounds] = image[geometry.shown]
    return result


def join(planes: list[Plane]) -> Cutout:
    """Returns one cutout of planes of the same sky; where their grids differ, all on the finest.

    Raises `Unreadable` where sizes differ and the pixel scales are not known, or where all bands
    are blank.
    """
    if not planes:
        raise Unreadable("no band")
    cutout = _aligned(planes)
    without_blank(cutout, range(len(planes)))
    return cutout


def _aligned(planes: list[Plane]) -> Cutout:
    """Returns the planes on one grid. Raises `Unreadable` where none is known."""
    scales = [plane.sky.pixel_scale for plane in planes]
    shapes = [plane.pixels.shape for plane in planes]
    known = [scale for scale in scales if scale is not None]
    first = planes[0].sky
    if len(set(shapes)) == 1 and (not known or max(known) < 1.01 * min(known)):
        image = np.stack([plane.pixels for plane in planes], axis=-1)
        return Cutout(image, known[0] if known else None, first.ra, first.dec)
    if len(known) < len(scales):
        sizes = ", ".join(f"{width}x{height}" for height, width in shapes)
        raise Unreadable(f"bands differ in size ({sizes}) and their pixel scales are not known")
    finest = int(np.argmin(known))
    aligned = [
        _resample_masked(plane.pixels, known[finest] / scale, shapes[finest])
        for plane, scale in zip(planes, known, strict=True)
    ]
    return Cutout(np.stack(aligned, axis=-1), known[finest], first.ra, first.dec)


def _resample_masked(pixels: np.ndarray, ratio: float, shape: tuple[int, int]) -> np.ndarray:
    """As `resample` for one plane (height, width), NaN where the old pixels are masked."""
    image = pixels[..., np.newaxis]
    share = resample(np.isfinite(image).astype(np.float32), ratio, shape, 0.0)
    full = fill_masked(image)
    # What lies between values does so after rounding too: a blank plane is still one.
    filled = np.clip(resample(full, ratio, shape, np.nan), full.min(), full.max())
    return np.where(share >= 0.5, filled, np.nan)[..., 0]


def fill_masked(image: np.ndarray) -> np.ndarray:
    """(height, width, band) float32 without NaN; the image itself where it has none.

    A masked pixel gets the mean of the valid ones among its 5 by 5 neighbours where these are
    at least half, else the median of its band, 0 where that has no valid pixel.
    """
    valid = np.isfinite(image)
    if valid.all():
        return image
    from scipy import ndimage  # slow to import, and most cutouts have no masked pixel

    box = (5, 5, 1)
    share = ndimage.uniform_filter(valid.astype(np.float64), box, mode="constant")
    known = np.where(valid, image, 0.0).astype(np.float64)
    total = ndimage.uniform_filter(known, box, mode="constant")
    bridged = np.divide(total, share, out=np.zeros_like(total), where=share >= 0.5)
    bands = np.moveaxis(image, 2, 0)
    level = [
        np.median(band[np.isfinite(band)]) if np.isfinite(band).any() else 0.0 for band in bands
    ]
    return np.where(valid, image, np.where(share >= 0.5, bridged, level)).astype(np.float32)


def resample(
    image: np.ndarray, ratio: float, shape: tuple[int, int], outside: np.ndarray | float
) -> np.ndarray:
    """Returns the image about its centre on another grid: (shape[0], shape[1], band) float32.

    `ratio` is the new pixel's side over the old one's; `outside` the value of pixels whose
    centre lies off the image, (band,) or one number. Linear interpolation, by a triangle as wide
    as the larger of both pixels, so that shrinking averages: the `linear` method of
    `jax.image.scale_and_translate` with antialiasing.
    """
    height, width, bands = image.shape
    # Sparse products, since a new pixel sees few old ones, and since a BLAS that starts threads of
    # its own in each of the reading threads slows all of them down.
    by_row, by_column = (_weights(*of, ratio) for of in zip((height, width), shape, strict=True))
    rows = (by_row @ image.reshape(height, -1)).reshape(shape[0], width, bands)
    columns = by_column @ rows.swapaxes(0, 1).reshape(width, -1)
    sky = columns.reshape(shape[1], shape[0], bands).swapaxes(0, 1)
    covered = _covered(height, shape[0], ratio), _covered(width, shape[1], ratio)
    result = np.empty((*shape, bands), np.float32)
    result[...] = outside
    result[covered] = sky[covered]
    return result


def _centred(length: int, size: int) -> slice:
    """Returns the part, about the centre, of an axis that `size` pixels hold."""
    common = min(length, size)
    start = (length - common) // 2
    return slice(start, start + common)


def _centres(length: int, size: int, ratio: float) -> np.ndarray:
    """Returns where the centres of `size` new pixels lie on an axis of `length` old pixels."""
    return (np.arange(size) - (size - 1) / 2) * ratio + (length - 1) / 2


def _covered(length: int, size: int, ratio: float) -> slice:
    """Returns the new pixels whose centre lies on the old axis."""
    centres = _centres(length, size, ratio)
    inside = np.flatnonzero((centres >= -0.5) & (centres <= length - 0.5))
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)


# A matrix takes at most a few hundred KiB; data sets have few different sizes.
@lru_cache(maxsize=64)
def _weights(length: int, size: int, ratio: float) -> sparse.csr_array:
    """Returns the weights (size, length) float32 of old pixels in each new one.

    A row sums to one; where the centre of the new pixel lies off the old axis it means nothing.
    """
    distance = np.abs(_centres(length, size, ratio)[:, np.newaxis] - np.arange(length))
    weights = np.maximum(0.0, 1.0 - distance / max(ratio, 1.0))
    total = weights.sum(axis=1, keepdims=True)
    return sparse.csr_array((weights / np.maximum(total, 1e-12)).astype(np.float32))
