"""Cutouts as a page holds them: small whole numbers, of which the browser makes the pictures."""

import base64
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensjax.data.planes import Cutout
from lensjax.report.pictures import composition, is_picture, picture_mix

Array = NDArray[Any]

STEPS = 2  # of a band in one standard deviation of its noise: they add 1 % to it
LARGEST = 32_000  # steps above and below the sky
GAP = -32_768
MOST_SIDE = 160  # pixels; larger cutouts are averaged in blocks
MID_LEVEL = 128  # of a finished picture


def packed(cutout: Cutout, bands: Sequence[str]) -> dict[str, Any]:
    """Returns what a page needs to draw a cutout, as JSON takes it.

    `data`: the (band, height, width) pixels in steps of 1/STEPS of the noise above the sky, of a
    finished picture in levels from MID_LEVEL, as `_deflated` writes them. Stretches start from
    `mix @ steps`, (3, band), as `pictures.composition` has it: `grain` is the noise and `white` the
    peak of that, in `peaks` those of each band, in steps. `scale` is in arcsec per pixel, None
    where it is not known; `averaged` pixels of the cutout are a side of one of these.
    """
    sides = cutout.image.shape[:2]
    block = min(-(-max(sides) // MOST_SIDE), *sides)
    image = _averaged(cutout.image, block)
    if is_picture(cutout.image):
        mix, steps = picture_mix(bands, image.shape[2]), image - MID_LEVEL
        look: dict[str, Any] = {"levels": True}
    else:
        made = composition(image, bands)
        step = made.noise / STEPS
        mix, steps = made.mix * step, (image - made.sky) / step
        look = {"grain": _short(made.grain), "white": _short(made.white)}
        look["peaks"] = [_short(peak) for peak in made.peak / step]
    return {
        "size": image.shape[1::-1],
        "scale": cutout.pixel_scale and cutout.pixel_scale * block,
        "averaged": block,
        "mix": [[_short(share) for share in row] for row in mix],
        **look,
        "data": _deflated(np.moveaxis(steps, 2, 0)),
    }


def _deflated(steps: Array) -> str:
    """Returns whole numbers (band, height, width) as text, GAP where there is none.

    Of each number, modulo 2^16, the mean of those above it and to its left (0 beyond the edge,
    rounded down) is subtracted; what remains is counted as 0, -1, 1, -2, ... from 0, so that high
    bytes are mostly 0. The text is base64 of zlib of all low bytes, then all high bytes.
    """
    with np.errstate(invalid="ignore"):
        codes = np.clip(np.rint(steps), -LARGEST, LARGEST)
    codes = np.where(np.isfinite(steps), codes, GAP).astype(np.int32)
    above, left = np.zeros_like(codes), np.zeros_like(codes)
    above[:, 1:], left[:, :, 1:] = codes[:, :-1], codes[:, :, :-1]
    rest = (codes - ((above + left) >> 1)).astype(np.int16)
    counted = ((rest << 1) ^ (rest >> 15)).astype(np.uint16)
    halves = (counted & 255).astype(np.uint8).tobytes() + (counted >> 8).astype(np.uint8).tobytes()
    packing = zlib.compressobj(strategy=zlib.Z_FILTERED)
    return base64.b64encode(packing.compress(halves) + packing.flush()).decode()


def _averaged(image: Array, block: int) -> Array:
    """Returns (H / block, W / block, band) means of square blocks, NaN where nothing is valid; what
    is left over at the lower and right edge is cut off."""
    if block == 1:
        return image
    height, width = (side // block for side in image.shape[:2])
    blocks = image[: height * block, : width * block].reshape(height, block, width, block, -1)
    valid = np.isfinite(blocks)
    count = valid.sum(axis=(1, 3))
    total = np.where(valid, blocks, 0).sum(axis=(1, 3), dtype=float)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _short(value: float) -> float:
    """Returns a number with five digits, 0 for what is none."""
    return float(f"{value:.5g}") if math.isfinite(value) else 0.0
