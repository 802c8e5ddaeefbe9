"""Small tiles of a survey, and catalogues of objects in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.table import Table
from astropy.wcs import WCS

SCALE = 0.2


def header(
    ra: float,
    dec: float,
    shape: tuple[int, int],
    *,
    scale: float = SCALE,
    angle: float = 0.0,
    distortion: str = "",
) -> fits.Header:
    """Returns the header of a tile around a place (degrees): tangential, turned by an angle
    (degrees), with a distortion of some pixels at its edge, "SIP" or "TPV"."""
    height, width = shape
    turn = np.radians(angle)
    matrix = [[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    made = fits.Header()
    suffix = {"": "", "SIP": "-SIP"}.get(distortion)
    made["CTYPE1"], made["CTYPE2"] = (
        (f"RA---TAN{suffix}", f"DEC--TAN{suffix}")
        if suffix is not None
        else ("RA---TPV", "DEC--TPV")
    )
    made["CRVAL1"], made["CRVAL2"] = ra, dec
    made["CRPIX1"], made["CRPIX2"] = (width + 1) / 2, (height + 1) / 2
    for row in (0, 1):
        for column in (0, 1):
            made[f"CD{row + 1}_{column + 1}"] = scale / 3600 * matrix[row][column]
    if distortion == "SIP":
        made["A_ORDER"] = made["B_ORDER"] = 2
        made["A_2_0"], made["B_0_2"], made["A_1_1"] = 4e-5, -3e-5, 2e-5
    if distortion == "TPV":
        half = scale / 3600 * width / 2
        made["PV1_1"], made["PV2_1"] = 1.0, 1.0
        made["PV1_4"], made["PV2_4"] = 0.01 / half, -0.02 / half
    return made


def write(
    folder: Path,
    headers: Mapping[str, fits.Header],
    shape: tuple[int, int],
    bands: Sequence[str] = ("g", "r"),
    seed: int = 0,
) -> Path:
    """Writes a tile of noise and smooth sources for each header, and returns their table."""
    rng = np.random.default_rng(seed)
    names = list(headers)
    for name in names:
        for band in bands:
            pixels = rng.normal(5.0, 1.0, shape)
            rows, columns = np.mgrid[: shape[0], : shape[1]]
            for _ in range(20):
                y, x = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
                pixels += 30 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 12)
            fits.writeto(folder / f"{name}_{band}.fits", pixels.astype(np.float32), headers[name])
    columns = {band: [f"{name}_{band}.fits" for name in names] for band in bands}
    table = Table({"tile": names, **columns})
    table.write(folder / "tiles.csv")
    return folder / "tiles.csv"


def objects(path: Path, header: fits.Header, x: Sequence[float], y: Sequence[float]) -> Path:
    """Writes a catalogue of objects at pixels (from zero) of a tile, and returns its path."""
    ra, dec = WCS(header).all_pix2world(x, y, 0)
    Table({"id": np.arange(len(ra)), "ra": ra, "dec": dec, "mag": np.asarray(x) / 10}).write(path)
    return path


def gaussians(
    shape: tuple[int, int], x: np.ndarray, y: np.ndarray, flux: np.ndarray, sigma: np.ndarray
) -> np.ndarray:
    """Returns an image of round Gaussian sources at pixels (from zero), sigma in pixels."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros(shape)
    for at_x, at_y, total, width in zip(x, y, flux, sigma, strict=True):
        apart = (columns - at_x) ** 2 + (rows - at_y) ** 2
        image += total / (2 * np.pi * width**2) * np.exp(-apart / (2 * width**2))
    return image


def cutouts(folder: Path, rows: Table, size: int, bands: Sequence[str] = ("g", "r")) -> np.ndarray:
    """Returns what Cutout2D cuts for rows with tile, ra and dec, (row, size, size, band)."""
    images = []
    for row in rows:
        of_bands = []
        for band in bands:
            pixels, header = fits.getdata(folder / f"{row['tile']}_{band}.fits", header=True)
            at = WCS(header).all_world2pix(row["ra"], row["dec"], 0)
            of_bands.append(Cutout2D(pixels, [float(v) for v in at], size, mode="strict").data)
        images.append(np.stack(of_bands, axis=-1))
    return np.array(images)
