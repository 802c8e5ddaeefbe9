"""Simulated skies: which cutout shows what, all of them drawn, and the truth about them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lensjax.errors import UsageError
from lensjax.runtime import one_ahead
from lensjax.sky.artefacts import ARTEFACT_UNIFORMS, ARTEFACTS
from lensjax.sky.kinds import KINDS, LENS, OF_DEFLECTOR, Sky
from lensjax.sky.lenses import LENS_UNIFORMS, Lens, draw_lenses, pictures_first, take
from lensjax.sky.render import Picture, render
from lensjax.sky.scenes import SCENE_UNIFORMS, draw_scenes
from lensjax.sky.stamps import Stamps
from lensjax.sky.survey import Observation, Survey, observation_uniforms, observe

CHUNK = 128
OF_LENS = (
    "einstein_radius", "slope", "shear", "magnification", "arc_snr", "peak_snr", "counter_snr",
    "arc_extent",
)  # fmt: skip
OF_SOURCE = ("source_redshift", "source_magnitude", "source")
OF_GALAXY = ("lens_redshift", "velocity_dispersion", "axis_ratio", "lens_magnitude")


@dataclass(frozen=True)
class Simulation:
    """Simulated cutouts: images (count, size, size, band) float32, truth one array a column.

    Columns of `truth`, NaN where a picture has no such thing: id, label (1 for a lens), kind, group
    (pictures that show the same galaxy share one), artefact ("" where there is none), OF_LENS,
    OF_SOURCE (magnitude unlensed), OF_GALAXY; magnitudes are in the survey's selection band. With
    real galaxies as sources, `source` is the name of the one that is shown, "" where none is. How
    each was observed: true_pixel_scale (arcsec), moffat_beta, and for each band seeing (arcsec),
    sky_sigma, noise_width and gain, as `survey.Observation` has them.
    """

    images: np.ndarray
    truth: dict[str, np.ndarray]


@dataclass(frozen=True)
class Assignment:
    """Which picture is of what (n,) int64: kinds are indices into KINDS, -1 a bare background."""

    kind: np.ndarray
    group: np.ndarray


def assign(survey: Survey, count: int, lens_fraction: float, seed: int) -> Assignment:
    """Returns the kinds and groups of `count` pictures, shuffled.

    Every `unlensed` look-alike shows the galaxy of a lens, while there are lenses.
    """
    kinds, (names, shares) = list(KINDS), zip(*survey.shares, strict=True)
    lenses = round(count * lens_fraction)
    others = count - lenses
    cumulative = np.cumsum(shares) / sum(shares)
    # Evenly spaced quantiles: each kind gets its share to within one.
    chosen = np.searchsorted(cumulative, (np.arange(others) + 0.5) / max(others, 1))
    kind = np.array([LENS] * lenses + [kinds.index(names[which]) for which in chosen], np.int64)
    group = np.arange(count, dtype=np.int64)
    twins = np.flatnonzero(kind == kinds.index("unlensed"))
    if lenses:
        group[twins] = np.arange(len(twins)) % lenses
    order = np.random.default_rng(seed).permutation(count)
    return Assignment(kind[order], group[order])


def assign_backgrounds(count: int, lens_fraction: float, seed: int, backgrounds: int) -> Assignment:
    """Returns kinds (a lens or an untouched background) and groups, the backgrounds' indices."""
    lenses = round(count * lens_fraction)
    if count - lenses > backgrounds:
        raise UsageError(
            f"{count - lenses} look-alikes are asked of {backgrounds} backgrounds, each of which is"
            " one: give more backgrounds, a smaller count or a larger lens_fraction"
        )
    kind = np.where(np.arange(count) < lenses, LENS, -1)
    group = np.concatenate([np.arange(lenses) % backgrounds, np.arange(count - lenses)])
    order = np.random.default_rng(seed).permutation(count)
    return Assignment(kind[order].astype(np.int64), group[order].astype(np.int64))


def _check(
    survey: Survey,
    count: int,
    lens_fraction: float,
    backgrounds: np.ndarray | None,
    sources: Stamps | None,
) -> None:
    """Raises UsageError for what cannot be simulated."""
    if count < 1:
        raise UsageError(f"cannot simulate {count} images: count must be at least 1")
    if not 0 <= lens_fraction <= 1:
        raise UsageError(f"lens_fraction is {lens_fraction}: it must lie between 0 and 1")
    shape = (survey.size, survey.size, len(survey.bands))
    if backgrounds is not None and (backgrounds.ndim != 4 or backgrounds.shape[1:] != shape):
        raise UsageError(
            f"backgrounds have shape {backgrounds.shape}: {survey.name} needs (n, "
            + ", ".join(map(str, shape))
            + ")"
        )
    if sources is None:
        return
    stamps = sources.images
    if stamps.ndim != 3 or stamps.shape[1] != stamps.shape[2] or not len(stamps):
        raise UsageError(f"sources have shape {stamps.shape}: stamps (n, side, side) are needed")
    if not sources.pixel_scale > 0:
        raise UsageError("sources need their pixel scale, arcsec per pixel")
    if stamps.min() < 0 or not np.allclose(stamps.sum(axis=(1, 2)), 1, atol=1e-3):
        raise UsageError("sources must be nonnegative and each must sum to one: normalise them")


def simulate(
    survey: Survey,
    *,
    count: int,
    lens_fraction: float = 0.5,
    seed: int,
    backgrounds: np.ndarray | None = None,
    sources: Stamps | None = None,
    source_rows: Callable[[np.ndarray], np.ndarray] | None = None,
    progress: Callable[[int], None] | None = None,
    chunk: int = CHUNK,
) -> Simulation:
    """Returns `count` cutouts of lenses and others, and the truth about them.

    backgrounds: real cutouts (n, size, size, band), noise included. Arcs are then laid upon them,
        with the noise of the arcs' photons; the others are copies of them, untouched.
    sources: real galaxies, which stand in for the Sersic sources.
    source_rows: from the groups (count,) to which source each shows; all in turn by default.
    progress: called with the number of images made since it was last called.
    chunk: images drawn at once; it sets memory and speed, never the images.

    The same seed gives the same sky. Raises UsageError for arguments that do not fit.
    """
    _check(survey, count, lens_fraction, backgrounds, sources)
    if backgrounds is None:
        todo = assign(survey, count, lens_fraction, seed)
    else:
        todo = assign_backgrounds(count, lens_fraction, seed, len(backgrounds))
    images = np.empty((count, survey.size, survey.size, len(survey.bands)), np.float32)
    columns: dict[str, np.ndarray] = {}
    to_draw, untouched = np.flatnonzero(todo.kind >= 0), np.flatnonzero(todo.kind < 0)
    stamp_rows = None
    if sources is not None:
        stamp_rows = source_rows(todo.group) if source_rows else todo.group % len(sources.name)

    def launch(start: int) -> tuple[np.ndarray, jax.Array, dict[str, Any]]:
        rows = to_draw[start : start + chunk]
        # The last chunk is filled up with copies, so that every chunk is the same program.
        filled = np.resize(rows, chunk)
        group = todo.group[filled]
        return rows, *draw(
            survey,
            index=filled,
            # With backgrounds every arc has a system of its own, though galaxies return.
            group=group if backgrounds is None else filled,
            kind=todo.kind[filled],
            seed=seed,
            backgrounds=None if backgrounds is None else backgrounds[group],
            sources=sources,
            stamp_rows=None if stamp_rows is None else stamp_rows[filled],
        )

    advance = progress or (lambda _: None)
    for rows, drawn_images, truth in one_ahead(launch, range(0, len(to_draw), chunk)):
        images[rows] = drawn_images[: len(rows)]
        for name, values in truth.items():
            column = columns.setdefault(name, np.full(count, np.nan, np.float32))
            column[rows] = values[: len(rows)]
        advance(len(rows))
    if backgrounds is not None and len(untouched):
        images[untouched] = backgrounds[todo.group[untouched]]
        advance(len(untouched))
    if sources is not None:
        columns["source"] = sources.name[stamp_rows]
    return Simulation(images, table(survey, seed, todo, columns))


def draw(
    survey: Survey,
    *,
    index: np.ndarray,
    group: np.ndarray,
    kind: np.ndarray,
    seed: int,
    backgrounds: np.ndarray | None = None,
    sources: Stamps | None = None,
    stamp_rows: np.ndarray | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Returns images (n, size, size, band) of the kinds KINDS[kind], which the device may still be
    rendering, and the truth about them (n,).

    The lens system and how it is observed depend on the `group`, all else on the `index`.
    """
    observation = observe(uniforms(seed, 0, group, observation_uniforms(survey)), survey)
    if backgrounds is not None:
        observation = observation_of(backgrounds, observation, survey.calibrated)
    lens, lensed = lens_systems(survey, group, kind, seed, observation)
    uniform = uniforms(seed, 2, index, SCENE_UNIFORMS + ARTEFACT_UNIFORMS)
    scene = draw_scenes(uniform[:SCENE_UNIFORMS], kind, lens, lensed, Sky(survey, observation))
    arc_snr = np.zeros(len(kind))
    arc_snr[lensed] = lens.arc_snr
    pictures = pictures_first(
        Picture(scene, observation, arc_snr * (kind == LENS), uniform[SCENE_UNIFORMS:], None)
    )
    images, seen = render(
        pictures._replace(background=backgrounds),
        index.astype(np.uint32),
        np.uint32(seed),
        None if sources is None else jnp.asarray(sources.images, jnp.float32),
        stamp_rows,
        1.0 if sources is None else float(sources.pixel_scale),
        survey,
    )
    return images, truth_of(lens, lensed, observation, survey) | seen


def lens_systems(
    survey: Survey, group: np.ndarray, kind: np.ndarray, seed: int, observation: Observation
) -> tuple[Lens, np.ndarray]:
    """Returns the lens systems of the pictures of kinds that show the galaxy of one, and which of
    the n pictures these are: (m,), never none."""
    lensed = np.flatnonzero(np.isin(kind, [list(KINDS).index(name) for name in OF_DEFLECTOR]))
    lensed = lensed if len(lensed) else np.arange(1)  # one that is not shown
    uniform = uniforms(seed, 1, group[lensed], LENS_UNIFORMS)
    return draw_lenses(uniform, survey, take(observation, lensed)), lensed


def uniforms(seed: int, purpose: int, numbers: np.ndarray, count: int) -> np.ndarray:
    """Returns random numbers (count, n) between 0 and 1: a stream of its own for each number (n,),
    so that a picture is the same whatever is drawn beside it."""
    streams = [np.random.default_rng((seed, purpose, number)) for number in numbers.tolist()]
    drawn = np.array([stream.random(count) for stream in streams]).reshape(len(streams), count)
    return np.clip(drawn.T, 1e-6, 1 - 1e-6)


def sky_of(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns level and sigma of the sky (n, band) in real cutouts (n, y, x, band), NaN masked:
    the median, and 1.4826 times the median distance from it."""
    level = np.nanmedian(images, axis=(1, 2))
    return level, 1.4826 * np.nanmedian(np.abs(images - level[:, None, None]), axis=(1, 2)) + 1e-12


def observation_of(
    backgrounds: np.ndarray, observation: Observation, calibrated: bool = False
) -> Observation:
    """Returns observations with the noise, and in the flux units, of real cutouts (n, y, x, band).

    Units are told by the noise of the sky, bands taken together, so that colours are kept. Where
    they are `calibrated` units are those of the observation, and the noise tells the exposure: the
    variance of the sky goes as one over the gain.
    """
    sky_sigma = sky_of(backgrounds)[1].T
    deeper = observation.sky_sigma / sky_sigma
    if calibrated:
        return observation._replace(sky_sigma=sky_sigma, gains=observation.gains * deeper**2)
    unit = np.exp(-np.mean(np.log(deeper), axis=0))
    return observation._replace(
        sky_sigma=sky_sigma,
        zero_points=observation.zero_points + 2.5 * np.log10(unit),
        gains=observation.gains / unit,
    )


def truth_of(
    lens: Lens, lensed: np.ndarray, observation: Observation, survey: Survey
) -> dict[str, np.ndarray]:
    """Returns what truth.csv says of the lens systems of the pictures `lensed`, and of how all (n,)
    were observed."""
    band, system = survey.selection_index, lens.system
    names = (
        "einstein_radius", "slope", "lens_redshift", "source_redshift", "velocity_dispersion",
        "axis_ratio",
    )  # fmt: skip
    of_system = {name: getattr(system, name) for name in names} | {
        "shear": np.hypot(system.gamma1, system.gamma2),
        "lens_magnitude": system.lens_magnitudes[band],
        "source_magnitude": system.source_magnitudes[band],
    }
    truth = {name: np.full(observation.pixel_scale.shape, np.nan) for name in of_system}
    for name, values in of_system.items():
        truth[name][lensed] = values
    truth |= {"true_pixel_scale": observation.pixel_scale, "moffat_beta": observation.moffat_beta}
    by_band = {
        "seeing": observation.fwhm,
        "sky_sigma": observation.sky_sigma,
        "noise_width": observation.noise_width,
        "gain": observation.gains,
    }
    for at, letter in enumerate(survey.bands):
        truth |= {f"{name}_{letter}": values[at] for name, values in by_band.items()}
    return truth


def table(
    survey: Survey, seed: int, todo: Assignment, columns: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the truth: who is who, and the numbers of those that have them."""
    kind = np.array([*KINDS, "background"])[todo.kind]
    is_lens = kind == "lens"
    applies = dict.fromkeys(OF_LENS, is_lens)
    applies |= dict.fromkeys(OF_SOURCE, is_lens | (kind == "unlensed"))
    applies |= dict.fromkeys(OF_GALAXY, np.isin(kind, OF_DEFLECTOR))
    columns["source_magnitude"] -= 2.5 * np.log10(columns.pop("brighter"))
    artefact = np.nan_to_num(columns.pop("artefact")).astype(int)
    return {
        "id": np.array([f"{survey.name}-{seed}-{row:07d}" for row in range(len(kind))]),
        "label": is_lens.astype(np.int64),
        "kind": kind,
        "group": todo.group,
        "artefact": np.array(ARTEFACTS)[artefact],
    } | {
        name: np.where(applies[name], values, "" if name == "source" else np.nan)
        if name in applies
        else values
        for name, values in columns.items()
    }
