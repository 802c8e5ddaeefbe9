"""Simulating a sky, from the options to the folder of cutouts, truth and preview."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from astropy.table import Table

from lensjax import runtime
from lensjax.cutouts import Cutouts
from lensjax.data import on_device, pipeline
from lensjax.data.catalog import open_source
from lensjax.data.formats import shards
from lensjax.data.noise_free import NOISE_FREE, noise_of
from lensjax.data.preprocess import Preprocessing
from lensjax.data.splits import held_back
from lensjax.errors import UsageError
from lensjax.files import make_folder, replacing
from lensjax.sky.draw import Simulation, simulate
from lensjax.sky.kinds import KINDS
from lensjax.sky.noise import with_noise
from lensjax.sky.stamps import HUBBLE, Stamps, hubble_stamps, read_stamps
from lensjax.sky.survey import SURVEYS, Survey

OF_TILES = ("tile_size", "overlap", "objects", "prevalence", "compress")


@dataclass(frozen=True)
class SimulateConfig:
    """Options of scripts/simulate.py."""

    output: Path | None = None
    """Folder for the cutouts, truth.csv, preview.png."""
    survey: str = "decam"
    """Whose bands, seeing and depth: decam, hsc, euclid, ground (any survey from the ground)."""
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
    """Bands that the backgrounds' files hold; of tiles, those to write (None: the survey's own)."""
    pixel_scale: float | None = None
    """Arcsec/pixel of the backgrounds."""
    sources: str | None = None
    """Real galaxies as sources: FITS or .npy of stamps, or `hubble` (None: Sersic clumps)."""
    sources_pixel_scale: float = 0.03
    """Arcsec/pixel of the stamps."""
    einstein_radius: float | None = None
    """Smallest, arcsec (None: the survey's own)."""
    arc_snr: float | None = None
    """Smallest S/N of arcs above sky and lens galaxy (None: the survey's own)."""
    strictness: float | None = None
    """How plainly arc and counter-image must be seen, 0 not at all (None: the survey's own, 1)."""
    shares: str | None = None
    """Shares of the kinds of non-lenses, as `ordinary=0.5,spiral=0.2` (None: the survey's own)."""
    artefact_fraction: float | None = None
    """Share of cutouts with an artefact (None: the survey's own)."""
    seeing: float | None = None
    """FWHM of the backgrounds, arcsec, all bands alike (None: the survey's own)."""
    noise_free: bool = False
    """Leave noise out of the cutouts to train on: training adds it, each time anew."""
    pack: bool = False
    """Write folders of ArrayRecord shards, train and test, not .npz."""
    seed: int = 0
    """Seed of everything that is drawn."""
    tiles: int | None = None
    """Write so many overlapping tiles of a survey and a catalogue of objects, not cutouts."""
    tile_size: int = 4000
    """Pixels along a side of a tile."""
    overlap: int = 60
    """Pixels that neighbouring tiles share."""
    objects: int = 20000
    """Objects in the catalogue of all tiles together."""
    prevalence: float = 0.001
    """Share of the objects that are lenses."""
    compress: bool = False
    """Write the tiles as .fits.fz, compressed by Rice's method with a small loss."""


def simulate_survey(options: SimulateConfig) -> str:
    """Writes the simulated sky to OUTPUT and returns a line about it.

    All cutouts of one galaxy, be it in front or lensed, stand on one side of the split, and share a
    `group` by which a validation set can be split off likewise. truth.csv is written last: where it
    is, all is. Raises UsageError for options that do not fit.
    """
    refuse_given(options, OF_TILES, "is for tiles: say how many with --tiles, or leave it out")
    if options.output is None:
        raise UsageError("--output is missing: name a folder for the simulated sky")
    survey_of(options)  # which says what is wrong before a folder is made
    make_folder(options.output)
    survey, sky, test = simulated(options)
    cutouts = as_cutouts(survey, sky)
    for name, rows in (("train", ~test), ("test", test)):
        if options.pack:
            folder = options.output / name
            shards.pack(cutouts[rows].source(path=folder), folder, resume=False)
        else:
            cutouts[rows].save(options.output / f"{name}.npz")
    _write_preview(options.output / "preview.png", survey, sky)
    _write_truth(options.output / "truth.csv", sky, test)
    lenses, ending = int(sky.truth["label"].sum()), "" if options.pack else ".npz"
    return (
        f"{options.output}: {lenses} lenses and {options.count - lenses} others as {survey.name} "
        f"sees them; {int((~test).sum())} in train{ending}, {int(test.sum())} in test{ending}"
    )


def refuse_given(options: SimulateConfig, names: Iterable[str], reason: str) -> None:
    """Raises UsageError for the first of some options that is not what it is by default."""
    for name in names:
        if getattr(options, name) != getattr(SimulateConfig, name):
            raise UsageError(f"--{name.replace('_', '-')} {reason}")


def simulated(options: SimulateConfig) -> tuple[Survey, Simulation, np.ndarray]:
    """Returns the survey, the sky that the options describe, and which cutouts (count,) are for
    testing: all of one galaxy, be it in front or lensed, or none.

    Raises UsageError for options that do not fit.
    """
    survey, backgrounds = _backgrounds(options, survey_of(options))
    stamps = sources_of(options)
    with runtime.progress("simulating", options.count, "cutouts") as advance:
        sky = simulate(
            survey,
            count=options.count,
            lens_fraction=options.lens_fraction,
            seed=options.seed,
            backgrounds=backgrounds,
            sources=stamps,
            source_rows=stamps
            and partial(stamps.of_own_side, fraction=options.test_fraction, purpose="test"),
            progress=advance,
        )
    test = held_back(sky.truth["group"], options.test_fraction, "test")
    if not survey.noise and backgrounds is None:
        _observe(sky, test, survey.bands, options.seed)
    if stamps is not None:
        sky = Simulation(sky.images, sky.truth | {"group": _joined(sky.truth)})
    return survey, sky, test


def _observe(sky: Simulation, rows: np.ndarray, bands: tuple[str, ...], seed: int) -> None:
    """Adds the noise of a noise-free sky to the cutouts of a mask (count,), and writes down which
    have none."""
    sky.truth[NOISE_FREE] = np.ones(len(rows), np.int64)
    numbers, described = np.flatnonzero(rows), noise_of(Table(sky.truth), bands)
    assert described is not None
    sky.images[rows] = with_noise(sky.images[rows], described[rows], numbers, seed)
    sky.truth[NOISE_FREE][rows] = 0


def as_cutouts(survey: Survey, sky: Simulation) -> Cutouts:
    """Returns the cutouts of a simulated sky, with the truth as their columns."""
    return Cutouts(sky.images, survey.bands, survey.pixel_scale, sky.truth)


def survey_of(options: SimulateConfig) -> Survey:
    """Returns the survey with what the options change of it."""
    if options.survey not in SURVEYS:
        raise UsageError(f"--survey {options.survey} is not known: choose {', '.join(SURVEYS)}")
    survey = SURVEYS[options.survey]
    if options.seeing is not None:
        seeing = (options.seeing,) * len(survey.bands)
        survey = dataclasses.replace(survey, seeing=seeing, seeing_range=0.0, seeing_scatter=0.0)
    if options.shares is not None:
        survey = dataclasses.replace(survey, shares=_shares(options.shares))
    names = ("size", "einstein_radius", "arc_snr", "strictness", "artefact_fraction")
    given = {name: getattr(options, name) for name in names}
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(survey, noise=not options.noise_free, **changes)


def _shares(text: str) -> tuple[tuple[str, float], ...]:
    """Returns the kinds and their shares in a text such as `ordinary=0.5,spiral=0.2`."""
    shares = []
    for pair in text.split(","):
        kind, _, share = pair.strip().partition("=")
        try:
            shares.append((kind, float(share)))
        except ValueError as error:
            raise UsageError(f"--shares {pair!r}: write kind=share, comma separated") from error
        if kind not in KINDS or kind == "lens" or not shares[-1][1] >= 0:
            known = ", ".join(name for name in KINDS if name != "lens")
            raise UsageError(f"--shares {pair!r}: a kind is one of {known}, a share not negative")
    if not sum(share for _, share in shares) > 0:
        raise UsageError(f"--shares {text!r}: all shares are zero")
    return tuple(shares)


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


def _backgrounds(options: SimulateConfig, survey: Survey) -> tuple[Survey, np.ndarray | None]:
    """Returns the real cutouts (n, size, size, band), None without any, and the survey on their
    grid. Where the survey has no pixel scale of its own they keep theirs."""
    if options.backgrounds is None:
        return survey, None
    source = open_source(
        options.backgrounds,
        needed=survey.bands,
        bands=options.bands,
        pixel_scale=options.pixel_scale,
    )
    if survey.pixel_scale_range:
        scale = options.pixel_scale or (source.stack and source.stack.pixel_scale)
        if not scale:
            raise UsageError(f"--survey {survey.name} needs --pixel-scale of the backgrounds")
        survey = dataclasses.replace(survey, pixel_scale=scale, pixel_scale_range=0.0)
        # Backgrounds come from one survey, the middle of whose seeing --seeing says.
        survey = dataclasses.replace(survey, seeing_range=min(survey.seeing_range, 0.12))
    plain = Preprocessing.unnormalised(survey.bands, survey.size, survey.pixel_scale, "none", 1.0)
    read = pipeline.batches(source, (plain,), how="auto", batch_size=64)
    prepare = jax.jit(on_device.prepare)
    images = np.concatenate([np.asarray(prepare(b.inputs)[0])[b.readable] for b in read])
    if not len(images):
        raise UsageError(f"--backgrounds {options.backgrounds}: none of the cutouts can be read")
    return survey, images


def _write_truth(path: Path, sky: Simulation, test: np.ndarray) -> None:
    from lensjax.data.formats import arrow

    columns = sky.truth | {"split": np.where(test, "test", "train")}
    with replacing(path) as file:
        arrow.write_csv(file, Table(columns))


def _write_preview(path: Path, survey: Survey, sky: Simulation, columns: int = 12) -> None:
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
