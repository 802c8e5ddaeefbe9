"""scripts/simulate.py: makes ray-traced lenses and look-alikes, split into training and test."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from astropy.table import Table

from lensjax import config, runtime
from lensjax.data import on_device, pipeline
from lensjax.data.bands import Wanted
from lensjax.data.catalog import open_source
from lensjax.data.formats import shards
from lensjax.data.preprocess import Preprocessing
from lensjax.data.source import LazyColumn, StackMetadata, source_of_array
from lensjax.data.splits import held_back
from lensjax.errors import UsageError
from lensjax.files import make_folder, replacing
from lensjax.sky.render import Sky, simulate
from lensjax.sky.stamps import HUBBLE, Stamps, hubble_stamps, read_stamps
from lensjax.sky.survey import SURVEYS, Survey


@dataclass(frozen=True)
class SimulateConfig:
    """Options of scripts/simulate.py."""

    output: Path | None = None
    """Folder for the cutouts, truth.csv, preview.png."""
    survey: str = "decam"
    """Whose bands, seeing and depth: decam, hsc, euclid."""
    size: int | None = None
    """Pixels across (None: the survey's own)."""
    count: int = 8000
    """Cutouts in all."""
    lens_fraction: float = 0.5
    """Share that are lenses."""
    test_fraction: float = 0.2
    """Share of the galaxies that go to test.npz."""
    backgrounds: str | None = None
    """Real cutouts (as --data of infer.py) for arcs."""
    bands: str | None = None
    """Bands that the backgrounds' files hold."""
    pixel_scale: float | None = None
    """Arcsec/pixel of the backgrounds."""
    sources: str | None = None
    """Real galaxies as sources: FITS or .npy of stamps, or `hubble` (None: Sersic clumps)."""
    sources_pixel_scale: float = 0.03
    """Arcsec/pixel of the stamps."""
    einstein_radius: float | None = None
    """Smallest, arcsec (None: the survey's own)."""
    arc_snr: float | None = None
    """Smallest S/N of arcs (None: the survey's own)."""
    pack: bool = False
    """Write folders of ArrayRecord shards, train and test, not .npz."""
    seed: int = 0
    """Seed of everything that is drawn."""


def main(argv: Sequence[str]) -> None:
    """Simulates what `argv` asks for and prints where it lies."""
    options = config.parse(SimulateConfig, argv, description=__doc__.split(": ", 1)[1])
    print(simulate_survey(options))


def simulate_survey(options: SimulateConfig) -> str:
    """Writes the simulated sky to OUTPUT and returns a line about it.

    All cutouts of one galaxy, be it in front or lensed, stand on one side of the split, and share a
    `group` by which a validation set can be split off likewise. truth.csv is written last: where it
    is, all is. Raises UsageError for options that do not fit.
    """
    if options.output is None:
        raise UsageError("--output is missing: name a folder for the simulated sky")
    survey = survey_of(options)
    make_folder(options.output)
    stamps = sources_of(options)
    with runtime.progress("simulating", options.count, "cutouts") as advance:
        sky = simulate(
            survey,
            count=options.count,
            lens_fraction=options.lens_fraction,
            seed=options.seed,
            backgrounds=_backgrounds(options, survey),
            sources=stamps,
            source_rows=stamps
            and partial(stamps.of_own_side, fraction=options.test_fraction, purpose="test"),
            progress=advance,
        )
    test = held_back(sky.truth["group"], options.test_fraction, "test")
    if stamps is not None:
        sky = Sky(sky.images, sky.truth | {"group": _joined(sky.truth)})
    for name, rows in (("train", ~test), ("test", test)):
        if options.pack:
            _write_shards(options.output / name, survey, sky, rows)
        else:
            _write_stack(options.output / f"{name}.npz", survey, sky, rows)
    _write_preview(options.output / "preview.png", survey, sky)
    _write_truth(options.output / "truth.csv", sky, test)
    lenses, ending = int(sky.truth["label"].sum()), "" if options.pack else ".npz"
    return (
        f"{options.output}: {lenses} lenses and {options.count - lenses} others as {survey.name} "
        f"sees them; {int((~test).sum())} in train{ending}, {int(test.sum())} in test{ending}"
    )


def survey_of(options: SimulateConfig) -> Survey:
    """Returns the survey with what the options change of it."""
    if options.survey not in SURVEYS:
        raise UsageError(f"--survey {options.survey} is not known: choose {', '.join(SURVEYS)}")
    survey = SURVEYS[options.survey]
    radius, snr = options.einstein_radius, options.arc_snr
    return dataclasses.replace(
        survey,
        size=options.size or survey.size,
        smallest_einstein_radius=radius or survey.smallest_einstein_radius,
        smallest_arc_signal_to_noise=snr or survey.smallest_arc_signal_to_noise,
    )


def sources_of(options: SimulateConfig) -> Stamps | None:
    """Returns the real galaxies that are sources, None without any."""
    if options.sources is None:
        return None
    if options.sources == HUBBLE:
        return hubble_stamps()
    return read_stamps(Path(options.sources), options.sources_pixel_scale)


def _joined(truth: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the groups (n,) as texts, those that show the same source as one, by its name.

    Each group shows one source or none.
    """
    group, source = truth["group"].tolist(), truth["source"].tolist()
    shown = {own: name for own, name in zip(group, source, strict=True) if name}
    return np.array([shown.get(own, str(own)) for own in group])


def _backgrounds(options: SimulateConfig, survey: Survey) -> np.ndarray | None:
    """Returns the real cutouts (n, size, size, band) on the survey's grid, None without any."""
    if options.backgrounds is None:
        return None
    source = open_source(
        options.backgrounds,
        needed=survey.bands,
        bands=options.bands,
        pixel_scale=options.pixel_scale,
    )
    plain = Preprocessing.unnormalised(survey.bands, survey.size, survey.pixel_scale, "none", 1.0)
    read = pipeline.batches(source, (plain,), how="auto", batch_size=64)
    prepare = jax.jit(on_device.prepare)
    images = np.concatenate([np.asarray(prepare(b.inputs)[0])[b.readable] for b in read])
    if not len(images):
        raise UsageError(f"--backgrounds {options.backgrounds}: none of the cutouts can be read")
    return images


def _write_stack(path: Path, survey: Survey, sky: Sky, rows: np.ndarray) -> None:
    arrays = {name: values[rows] for name, values in sky.truth.items()}
    arrays |= {"bands": np.array(survey.bands), "pixel_scale": np.array(survey.pixel_scale)}
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, images=sky.images[rows], **arrays)


def _write_shards(folder: Path, survey: Survey, sky: Sky, rows: np.ndarray) -> None:
    columns = {
        name: LazyColumn(values[rows].shape, partial(values.__getitem__, rows))
        for name, values in sky.truth.items()
    }
    metadata = StackMetadata(columns, survey.bands, survey.pixel_scale)
    source = source_of_array(sky.images[rows], folder, metadata, Wanted())
    shards.pack(source, folder, resume=False)


def _write_truth(path: Path, sky: Sky, test: np.ndarray) -> None:
    from lensjax.data.formats import arrow

    columns = sky.truth | {"split": np.where(test, "test", "train")}
    with replacing(path) as file:
        arrow.write_csv(file, Table(columns))


def _write_preview(path: Path, survey: Survey, sky: Sky, columns: int = 12) -> None:
    """Writes a picture with a row of examples for lenses and for each kind of look-alike."""
    from PIL import Image

    from lensjax.report import colour

    kinds = list(dict.fromkeys(["lens", *sorted(set(sky.truth["kind"].tolist()))]))
    sheet = Image.new("RGB", (columns * survey.size, len(kinds) * survey.size))
    for row, kind in enumerate(kinds):
        for column, index in enumerate(np.flatnonzero(sky.truth["kind"] == kind)[:columns]):
            tile = Image.fromarray(colour(sky.images[index], survey.bands))
            sheet.paste(tile, (column * survey.size, row * survey.size))
    with replacing(path) as file:
        sheet.save(file, "PNG")
