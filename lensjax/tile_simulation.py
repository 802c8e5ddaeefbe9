"""Simulating tiles of a survey, from the options to a folder of FITS files, catalogue and truth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray

from lensjax import runtime
from lensjax.data.formats import arrow
from lensjax.errors import UsageError, refuse, unknown
from lensjax.files import make_folder, remove, replacing
from lensjax.simulation import SimulateConfig, refuse_given, sources_of, survey_of
from lensjax.sky.draw import Assignment, assign, table
from lensjax.sky.layout import Layout, place
from lensjax.sky.survey import AS_THEY_ARE
from lensjax.sky.tile import Objects, TileSky, observe_tiles, one_survey

CENTRE = (34.5, -5.0)
"""Right ascension and declination of the middle of all tiles, degrees: far from the Milky Way."""
SPACING = 1 / 3
"""How far apart objects stand at least, in units of a cutout's side (chosen)."""
APERTURE = 2.5
"""Radius, arcsec, within which the catalogue's magnitudes are measured (chosen)."""
OF_CUTOUTS = (
    "count", "lens_fraction", "test_fraction", "backgrounds", "pixel_scale", "artefact_fraction",
    "noise_free", "pack",
)  # fmt: skip


def simulate_tiles(options: SimulateConfig) -> str:
    """Writes simulated tiles, a catalogue of objects and the truth to OUTPUT and returns a line
    about them.

    tiles.csv names the FITS file of each tile and band. objects.parquet has id, ra and dec,
    degrees, and a magnitude in each band, as measured in the tile in which the object lies deepest;
    truth.parquet has a row for each of these objects too. It is written last: where it is, all is.
    One tile is in memory at a time. Raises UsageError for options that do not fit.
    """
    sky, bands = tile_sky(options)
    folder = options.output
    if folder is None:
        raise UsageError("--output is missing: name a folder for the simulated tiles")
    make_folder(folder)
    for name in ("truth.parquet", "objects.parquet", "tiles.csv"):
        remove(folder / name)  # of an earlier run
    count = len(sky.objects.kind)
    columns: dict[str, NDArray] = {}
    magnitudes = np.full((len(sky.survey.bands), count), np.nan)
    ending = "fits.fz" if options.compress else "fits"
    with runtime.progress("simulating", count, "objects") as advance:
        for number in range(sky.layout.count):
            image, rows, truth = sky.tile(number, advance)
            magnitudes[:, rows] = _magnitudes(sky, number, image, rows)
            for name, values in truth.items():
                columns.setdefault(name, np.full(count, np.nan, np.float32))[rows] = values
            for band in bands:
                path = folder / f"tile{number}_{band}.{ending}"
                _write_tile(path, sky, number, sky.survey.bands.index(band), image)
            del image  # before the next one is drawn
    truth = _truth(sky, columns)
    where = {name: truth[name] for name in ("id", "ra", "dec")}
    measured = {f"mag_{band}": magnitudes[sky.survey.bands.index(band)] for band in bands}
    _write_table(folder / "objects.parquet", where | measured)
    tiles = range(sky.layout.count)
    files = {band: [f"tile{number}_{band}.{ending}" for number in tiles] for band in bands}
    with replacing(folder / "tiles.csv") as file:
        arrow.write_csv(file, Table({"tile": [f"tile{number}" for number in tiles]} | files))
    _write_table(folder / "truth.parquet", truth)
    size, lenses = sky.layout.size, int(truth["label"].sum())
    return (
        f"{folder}: {sky.layout.count} tiles of {size} x {size} pixels in {', '.join(bands)} as "
        f"{sky.survey.name} sees them, with {count} objects, {lenses} of which are lenses"
    )


def tile_sky(options: SimulateConfig) -> tuple[TileSky, tuple[str, ...]]:
    """Returns the sky that the options describe, and the bands to write.

    Raises UsageError for options that do not fit.
    """
    refuse_given(options, OF_CUTOUTS, "is for cutouts: leave it out with --tiles")
    tiles, size = options.tiles or 0, options.tile_size
    survey = survey_of(options)
    if options.shares is None:
        survey = replace(survey, shares=AS_THEY_ARE)
    survey = one_survey(survey)
    refuse(
        {
            f"--tiles {tiles}: at least 1 is needed": tiles < 1,
            f"--objects {options.objects}: at least 1 is needed": options.objects < 1,
            f"--prevalence {options.prevalence}: it must lie between 0 and 1": not 0
            <= options.prevalence
            <= 1,
            f"--size {survey.size}: at least 16 pixels are needed": survey.size < 16,
            f"--tile-size {size}: {survey.name} needs at least {2 * survey.size} pixels, two "
            "cutouts": size < 2 * survey.size,
            f"--overlap {options.overlap}: it must lie between 0 and half of a tile": not 0
            <= options.overlap
            <= size // 2,
        }
    )
    bands = tuple(options.bands.split(",")) if options.bands else survey.bands
    for band in bands:
        if band not in survey.bands:
            raise unknown(f"--bands: {survey.name} has no band", band, survey.bands)
    layout = Layout(tiles, size, options.overlap, survey.pixel_scale, CENTRE)
    spacing, margin = SPACING * survey.size, survey.size / 2
    places = place(layout, options.objects, spacing, margin, options.seed)
    objects = Objects(
        place=places,
        kind=assign(survey, options.objects, options.prevalence, options.seed).kind,
        home=layout.depths(places).argmax(axis=0),
    )
    taken = observe_tiles(survey, tiles, options.seed)
    return TileSky(survey, layout, objects, taken, sources_of(options), options.seed), bands


def _truth(sky: TileSky, columns: dict[str, NDArray]) -> dict[str, NDArray]:
    """Returns the truth about all objects, as that of cutouts, and the tile and the pixel, counted
    from 0, in which each lies."""
    objects = sky.objects
    rows = np.arange(len(objects.kind))
    pixel = np.empty((len(rows), 2))
    for tile in range(sky.layout.count):
        here = objects.home == tile
        pixel[here] = sky.layout.pixels(tile, objects.place[here])
    if sky.sources is not None:
        columns["source"] = sky.sources.name[sky.stamp_rows(rows)]
    truth = table(sky.survey, sky.seed, Assignment(objects.kind, rows), columns)
    where = {
        "id": truth.pop("id"),
        "ra": objects.place[:, 0],
        "dec": objects.place[:, 1],
        "tile": np.array([f"tile{tile}" for tile in objects.home]),
        "x": pixel[:, 0],
        "y": pixel[:, 1],
    }
    del truth["group"], truth["artefact"]  # each is of its own, and none has one
    return where | truth


def _magnitudes(sky: TileSky, number: int, image: NDArray, rows: NDArray) -> NDArray:
    """Returns the magnitudes (band, n) of objects within an aperture, NaN where it leaves the tile
    or the flux is not above zero."""
    place = sky.layout.pixels(number, sky.objects.place[rows])
    radius = APERTURE / sky.layout.pixel_scale
    reach = int(np.ceil(radius))
    around = np.arange(-reach, reach + 1)
    middle = np.round(place).astype(int)
    x, y = (middle[:, axis, None] + around for axis in (0, 1))
    apart = np.hypot((x - place[:, :1])[:, None, :], (y - place[:, 1:])[:, :, None])
    last = sky.layout.size - 1
    flux = np.stack(
        [
            (plane[y.clip(0, last)[:, :, None], x.clip(0, last)[:, None, :]] * (apart < radius))
            .sum(axis=(1, 2), dtype=np.float64)
            for plane in image
        ]
    )  # fmt: skip
    inside = np.minimum(place, last - place).min(axis=1) >= radius
    zero_points = sky.observation.zero_points[:, number, None]
    positive = np.where((flux > 0) & inside, flux, np.nan)
    return zero_points - 2.5 * np.log10(positive)


def _write_tile(path: Path, sky: TileSky, number: int, band: int, image: NDArray) -> None:
    """Writes one band of a tile as FITS, with its projection and how it was taken."""
    taken, header = sky.observation, sky.layout.wcs(number).to_header()
    said = {
        "BUNIT": ("adu", "of AB magnitude MAGZERO"),
        "MAGZERO": (taken.zero_points[band, number], "AB magnitude of one unit"),
        "FILTER": (sky.survey.bands[band], ""),
        "GAIN": (taken.gains[band, number], "electrons per unit"),
        "SATURATE": (sky.saturation(number)[band], "largest value of a pixel"),
        "SEEING": (taken.fwhm[band, number], "FWHM of the PSF, arcsec"),
        "SKYSIGMA": (taken.sky_sigma[band, number], "noise of the sky in a pixel"),
    }
    for keyword, (value, comment) in said.items():
        header[keyword] = (value if isinstance(value, str) else round(float(value), 6), comment)
    if path.suffix == ".fz":
        # Dithered, with steps of a sixteenth of the noise; the seed is of the first pixels.
        data = fits.CompImageHDU(
            image[band], header, compression_type="RICE_1", quantize_level=16.0,
            quantize_method=1, dither_seed=-1,
        )  # fmt: skip
        hdus = fits.HDUList([fits.PrimaryHDU(), data])
    else:
        hdus = fits.HDUList([fits.PrimaryHDU(image[band], header)])
    with replacing(path) as file:
        hdus.writeto(file)


def _write_table(path: Path, columns: dict[str, NDArray]) -> None:
    written = Table(columns)
    for name in ("ra", "dec"):
        written[name].unit = "deg"
    with replacing(path) as file:
        arrow.write_parquet(file, written, {})
