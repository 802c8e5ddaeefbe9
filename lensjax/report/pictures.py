"""Colour composites of cutouts, and the mosaic of the best."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from astropy.table import Table
from astropy.visualization import make_lupton_rgb
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.special import expit

from lensjax.data.levels import are_levels
from lensjax.data.planes import Cutout, Unreadable
from lensjax.data.source import Source
from lensjax.files import replacing

Array = NDArray[Any]

# Effective wavelengths, in nm. Red, green and blue are the channels of a finished picture.
WAVELENGTHS = {
    "fuv": 154, "nuv": 231, "u": 360, "b": 440, "g": 480, "v": 550, "r": 620, "vis": 715,
    "i": 760, "z": 890, "y": 1000, "j": 1250, "h": 1650, "k": 2180, "ks": 2160, "w1": 3350,
    "w2": 4600, "blue": 450, "green": 530, "red": 650,
}  # fmt: skip
SOFTENING = 8.0  # Q of Lupton et al.: how far the bright end is compressed
SKY_LEVEL = 0.06  # brightness at which one standard deviation of the sky is shown
PEAK_LEVEL = 60.0  # the same of the peak before it is compressed, where the sky has no noise
BALANCE = 0.75  # 0 leaves the fluxes of the bands as they are, 1 makes the central galaxy grey

SIDE = 176  # pixels of a cutout in the mosaic
MOST_CHARACTERS = 90  # that could fit under it
BACKGROUND, PANEL, INK, DIM = "#0b0d12", "#151922", "#e8ebf2", "#8b93a7"
CONFIDENT, DOUBTFUL = (94, 214, 176), (122, 132, 156)


def wavelength(band: str) -> float:
    """Returns the effective wavelength of a band in nm, NaN where the name is not known.

    Survey prefixes are left aside (`des_g`, `NIR_Y`); `F814W` is read as 814 nm, and `F160W`, below
    200, as the near infrared in tens of nm.
    """
    name = re.split(r"[^a-z0-9]+", band.strip().lower())[-1]
    if found := re.fullmatch(r"f(\d{3})(w|m|n|lp|x|w2)", name):
        number = int(found[1])
        return number * (10.0 if number < 200 else 1.0)
    return float(WAVELENGTHS.get(name, np.nan))


class Composition(NamedTuple):
    """How the bands of a cutout make red, green and blue.

    `sky`, `noise` and `peak` are (band,) in the units of the cutout, the peak above the sky. `mix`
    (3, band) weighs what lies above the sky, so that `mix @ (value - sky)` is what `colour` shows:
    there `grain` is the noise and `white` the peak of the three together.
    """

    sky: Array
    noise: Array
    peak: Array
    mix: Array
    grain: float
    white: float


def composition(image: Array, bands: Sequence[str]) -> Composition:
    """Returns how `image` (H, W, band) is brought to red, green and blue; NaN is sky.

    Two bands make red and blue, their mean green; more than three are averaged in three groups of
    neighbours weighted by depth, the bluest group the smallest: arcs are bluer than their lenses.
    Bands of unknown wavelength are taken as red first.
    """
    order = np.array(_red_first(bands, image.shape[2]))
    levels = zip(*(_levels(image[:, :, band]) for band in range(image.shape[2])), strict=True)
    sky, noise, peak = map(np.array, levels)
    scale = np.maximum(peak, 5 * noise) ** BALANCE
    mix = np.zeros((3, len(order)))
    for colour, group in zip(mix, _groups(len(order)), strict=True):
        members = order[group]
        depth = (noise[members] / scale[members]) ** -2.0
        colour[members] = depth / depth.sum() / scale[members]
    grain = float(np.sqrt(((mix * noise) ** 2).sum())) / 3
    grey = _above_sky(image, sky) @ mix.mean(axis=0)
    white = float(np.percentile(_central(grey), 99.5))
    unit = max(grain / SKY_LEVEL, white / PEAK_LEVEL)
    return Composition(sky, noise, peak, mix / unit, grain / unit, white / unit)


def colour(image: Array, bands: Sequence[str]) -> Array:
    """Returns (H, W, 3) uint8 composite of `image` (H, W, band), redder bands in red.

    The arcsinh scaling of Lupton et al. (2004, PASP 116, 133), which keeps colours where it
    compresses brightness, set by the sky's noise and the peak of the central half of this image;
    `composition` says what bands make a colour. 8-bit pictures are shown as they are.
    """
    image = np.asarray(image)
    image = image[:, :, None] if image.ndim == 2 else image
    if is_picture(image):
        return (np.nan_to_num(image) @ picture_mix(bands, image.shape[2]).T).astype(np.uint8)
    made = composition(image, bands)
    planes = _above_sky(image, made.sky) @ made.mix.T
    with np.errstate(divide="ignore", invalid="ignore"):  # 0/0 where all three are exactly sky
        return make_lupton_rgb(*np.moveaxis(planes, 2, 0), minimum=0, stretch=1.0, Q=SOFTENING)


def picture_mix(bands: Sequence[str], count: int) -> Array:
    """Returns (3, band): the shares of the channels of a finished picture in red, green, blue."""
    mix = np.zeros((3, count))
    for shares, group in zip(mix, _groups(count), strict=True):
        shares[np.array(_red_first(bands, count))[group]] = 1 / len(group)
    return mix


def look(source: Source, row: int) -> Cutout | None:
    """Returns a cutout that was scored; None where its file is gone since."""
    try:
        return source[row]
    except Unreadable:
        return None


def picture(cutout: Cutout | None, bands: Sequence[str]) -> Array:
    """Returns (H, W, 3) uint8 of a cutout; `unreadable` where there is none."""
    return unreadable() if cutout is None else colour(cutout.image, bands)


def unreadable() -> Array:
    """Returns (H, W, 3) uint8: what stands for a cutout that can no longer be read."""
    tile = Image.new("RGB", (SIDE, SIDE), PANEL)
    centre = (SIDE / 2, SIDE / 2)
    ImageDraw.Draw(tile).text(centre, "cannot be read\nany more", DIM, _font(15), anchor="mm")
    return np.asarray(tile)


def write_mosaic(
    path: Path,
    pictures: Sequence[Array],
    best: Table,
    count: int,
    *,
    columns: int = 8,
    title: str = "Lens candidates",
    which: str = "best",
) -> None:
    """Writes a PNG of the best cutouts, each with its rank, id, probability and uncertainty.

    `pictures` are n images (H, W, 3), uint8 or float in 0..1, of the first n rows of `best` (see
    `results.candidate_table`), which are the best, or `which` else, of `count`. Raises LensjaxError
    where it cannot be written.
    """
    shown = min(len(pictures), len(best))
    side, gap, head, foot = SIDE, 14, 58, 50
    columns = max(min(columns, shown), 4)
    rows = max(-(-shown // columns), 1)
    width = gap + columns * (side + gap)
    height = head + rows * (side + foot + gap) + gap
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 18), title, INK, _font(20, bold=True))
    note = f"{which} {shown} of {count:,}" if shown else "no cutout was scored"
    draw.text((width - gap, 22), note, DIM, _font(15), anchor="ra")
    for k in range(shown):
        left = gap + k % columns * (side + gap)
        top = head + k // columns * (side + foot + gap)
        _tile(sheet, (left, top, side, foot), pictures[k], best[k])
    with replacing(path) as file:
        sheet.save(file, format="PNG", optimize=True)


def score_text(logit: float, logit_std: float, probability: float) -> tuple[str, str]:
    """Returns a probability and its uncertainty with as many digits as say how far from certain it
    is.

    The uncertainty is half the range of probability that one standard deviation of the logit to
    either side spans; empty where it is not known.
    """
    if not np.isfinite(probability):
        return "–", ""
    rest = max(min(probability, 1 - probability), 1e-5)
    digits = int(np.clip(np.ceil(-np.log10(rest)) + 1, 3, 5))
    limit = 10.0**-digits

    def shown(value: float) -> str:
        if value < limit / 2:
            return f"<{limit:.{digits}f}"
        return f">{1 - limit:.{digits}f}" if value > 1 - limit / 2 else f"{value:.{digits}f}"

    spread = uncertainty(logit, logit_std)
    return shown(probability), f"± {shown(spread)}" if np.isfinite(spread) else ""


def uncertainty(logit: Any, logit_std: Any) -> Any:
    """Returns half the width in probability of one standard deviation of the logit to either
    side."""
    return (expit(logit + logit_std) - expit(logit - logit_std)) / 2


def as_bytes(picture: Array) -> Array:
    """Returns (H, W, 3) uint8 of a picture that is uint8, or float in 0..1 (NaN is black)."""
    picture = np.asarray(picture)
    if picture.dtype == np.uint8:
        return picture
    return np.round(np.clip(np.nan_to_num(picture), 0, 1) * 255).astype(np.uint8)


def _tile(sheet: Image.Image, place: tuple[int, int, int, int], picture: Array, row: Any) -> None:
    left, top, side, foot = place
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left, top, left + side - 1, top + side + foot - 1), fill=PANEL)
    image = Image.fromarray(as_bytes(picture)).resize((side, side), Image.Resampling.BICUBIC)
    sheet.paste(image, (left, top))

    badge = f"{row['rank']}"
    end = left + 13 + draw.textlength(badge, _font(12, bold=True))
    draw.rounded_rectangle((left + 5, top + 5, end, top + 22), 4, fill=BACKGROUND)
    draw.text((left + 9, top + 13.5), badge, INK, _font(12, bold=True), anchor="lm")

    probability, logit, spread = (float(row[k]) for k in ("probability", "logit", "logit_std"))
    value, error = score_text(logit, spread, probability)
    draw.text((left + 9, top + side + 17), value, INK, _font(16, bold=True), anchor="lm")
    draw.text((left + side - 9, top + side + 18), error, DIM, _font(12), anchor="rm")
    label = _shortened(str(row["id"]), side - 18, _font(11))
    draw.text((left + 9, top + side + 37), label, DIM, _font(11), anchor="lm")
    share = float(np.nan_to_num(probability))
    tone = tuple(
        round(share * a + (1 - share) * b) for a, b in zip(CONFIDENT, DOUBTFUL, strict=True)
    )
    draw.rectangle((left, top + side, left + round(share * (side - 1)), top + side + 2), fill=tone)


def _shortened(text: str, width: float, font: Any) -> str:
    """Returns the text on one line of at most `width` pixels, its middle left out where needed."""
    shown = text = " ".join(text.split())
    keep = min(len(text), MOST_CHARACTERS)
    while font.getlength(shown) > width:
        keep -= 1
        shown = f"{text[: keep // 2]}…{text[len(text) - (keep - keep // 2) + 1 :]}"
    return shown


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _red_first(bands: Sequence[str], count: int) -> list[int]:
    """Channels by falling wavelength, as they come where a wavelength is not known."""
    known = [wavelength(band) for band in bands]
    if len(known) != count or np.isnan(known).any():
        return list(range(count))
    return sorted(range(count), key=lambda band: -known[band])


def _groups(count: int) -> list[list[int]]:
    """Returns which of `count` planes, red first, make up red, green and blue."""
    if count < 3:
        return [[0], list(range(count)), [count - 1]]
    return [group.tolist() for group in np.array_split(np.arange(count), 3)]


def is_picture(image: Array) -> bool:
    """Returns whether these are the 8-bit levels of a finished picture, whatever type holds
    them."""
    return image.dtype == np.uint8 or (are_levels(image) and bool(np.nanmax(image) >= 64))


def _levels(plane: Array) -> tuple[float, float, float]:
    """Returns the sky of a band, and above it its noise and its peak."""
    finite = plane[np.isfinite(plane)].astype(float)
    if not finite.size:
        return 0.0, 1.0, 0.0
    sky = np.median(finite)
    # what lies below the sky is noise alone; what lies above holds the galaxies as well
    noise = 1.4826 * np.median(sky - finite[finite <= sky])
    peak = np.percentile(_central(np.where(np.isfinite(plane), plane - sky, 0.0)), 99.5)
    return float(sky), float(max(noise, 1e-4 * peak) or 1.0), float(peak)


def _above_sky(image: Array, sky: Array) -> Array:
    return np.where(np.isfinite(image), image - sky, 0.0)


def _central(plane: Array) -> Array:
    height, width = plane.shape
    return plane[height // 4 : height - height // 4, width // 4 : width - width // 4]
