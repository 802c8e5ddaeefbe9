"""Pictures of lenses and look-alikes, as a survey would take them.

Light is sampled on a grid finer than the pixels (`SUPERSAMPLING`) and wider than the cutout
(`MARGIN`); the source is seen through the lens by tracing each sample back to it. The PSF is a sum
of round Gaussians, so that blurring and integration over the pixels are one pair of matrix
products. Noise is Gaussian: sky and photons alike, the limit of many electrons.

One compiled program draws every kind of picture; see `scenes`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jax.scipy.special import erf, i0e, ndtri

from lensjax.errors import UsageError
from lensjax.runtime import one_ahead
from lensjax.sky.lensing import (
    aligned,
    ellipticity,
    sersic,
    sersic_amplitude,
    shear_deflection,
    sie_deflection,
)
from lensjax.sky.population import System, draw_system
from lensjax.sky.scenes import (
    KINDS,
    LENS,
    LOOK_ALIKES,
    SCENE_UNIFORMS,
    Galaxies,
    Mass,
    Points,
    Scene,
    Swirls,
    draw_scene,
)
from lensjax.sky.stamps import Stamps
from lensjax.sky.survey import DECAM, EUCLID, HSC, SURVEYS, Survey

__all__ = ["DECAM", "EUCLID", "HSC", "SURVEYS", "Sky", "Survey", "simulate"]

Chunk = tuple[np.ndarray, jax.Array, dict[str, jax.Array]]
"""Rows of the sky, their images (chunk, size, size, band) and truth, still being computed."""

SUPERSAMPLING = 2
MARGIN = 2  # pixels of light beyond each edge, which the PSF scatters into the cutout
CHUNK = 256
MOST_LOBES = 4
AT_ONCE = 16  # pictures of a chunk in flight together: they fit a processor's cache

# A Moffat profile (Moffat 1969) of beta = 3 and FWHM 1 as three Gaussians: least squares, within
# 0.4 per cent of the peak at every radius.
PSF_SIGMAS = (0.3368, 0.5551, 1.0861)
PSF_WEIGHTS = (0.2442, 0.5637, 0.1921)


@dataclass(frozen=True)
class Sky:
    """Simulated cutouts: images (count, size, size, band) float32, truth one array a column.

    Columns of `truth`, NaN where a picture has no such thing: id, label (1 for a lens), kind, group
    (pictures that show the same galaxy share one), einstein_radius, lens_redshift,
    source_redshift, velocity_dispersion, axis_ratio, shear, lens_magnitude and source_magnitude
    (unlensed; both in the survey's selection band), magnification, arc_signal_to_noise. With real
    galaxies as sources, `source` is the name of the one that is shown, "" where none is.
    """

    images: np.ndarray
    truth: dict[str, np.ndarray]


def fine_grid(survey: Survey) -> tuple[jax.Array, jax.Array]:
    """Returns x and y (fine, fine) float32 of the light samples, arcsec from the centre."""
    count = SUPERSAMPLING * (survey.size + 2 * MARGIN)
    step = survey.pixel_scale / SUPERSAMPLING
    axis = ((np.arange(count) - (count - 1) / 2) * step).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return jnp.asarray(x), jnp.asarray(y)


def sersic_light(x: jax.Array, y: jax.Array, galaxies: Galaxies, softening: float) -> jax.Array:
    """Returns the summed brightness (band, *grid) of all slots, flux per square arcsec."""
    e1, e2 = ellipticity(galaxies.axis_ratio, galaxies.angle)
    profiles = jax.vmap(
        lambda amp, radius, index, e1, e2, x0, y0: sersic(
            x, y, amp, radius, index, e1, e2, x0, y0, softening
        )
    )(
        sersic_amplitude(galaxies.radius, galaxies.n_sersic),
        galaxies.radius,
        galaxies.n_sersic,
        e1,
        e2,
        galaxies.x,
        galaxies.y,
    )
    return jnp.einsum("sb,syx->byx", galaxies.flux, profiles)


def multiple_angle(
    cosine: jax.Array, sine: jax.Array, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine of `times` (a whole number from 1 to 4, scalar) times an angle."""
    many_cosine, many_sine = cosine, sine
    for count in range(2, MOST_LOBES + 1):
        wanted = times >= count
        next_cosine = many_cosine * cosine - many_sine * sine
        next_sine = many_sine * cosine + many_cosine * sine
        many_cosine = jnp.where(wanted, next_cosine, many_cosine)
        many_sine = jnp.where(wanted, next_sine, many_sine)
    return many_cosine, many_sine


def swirl_light(x: jax.Array, y: jax.Array, swirls: Swirls) -> jax.Array:
    """Returns the summed brightness (band, *grid) of discs with arms, rings and tails."""

    def profile(swirl: Swirls) -> jax.Array:
        along, across = aligned(x, y, swirl.x, swirl.y, swirl.angle)
        # Seen at an angle: the ellipse of the given axis ratio is a circle in its own plane.
        across = across / swirl.axis_ratio
        radius = jnp.sqrt(along**2 + across**2 + 1e-6)
        fall_off = jnp.where(
            swirl.is_ring > 0.5,
            -0.5 * ((radius - swirl.ring) / swirl.width) ** 2,
            -radius / swirl.width,
        )
        # cos(lobes (theta - winding ln R) - phase), without the slow arc tangent.
        cosine, sine = multiple_angle(along / radius, across / radius, swirl.lobes)
        shift = swirl.lobes * swirl.winding * jnp.log(radius) + swirl.phase
        wave = cosine * jnp.cos(shift) + sine * jnp.sin(shift)
        lobes = jnp.exp(swirl.sharpness * (wave - 1))
        light = jnp.exp(fall_off) * (swirl.smooth + (1 - swirl.smooth) * lobes)
        ring_area = (2 * jnp.pi) ** 1.5 * swirl.ring * swirl.width
        area = jnp.where(swirl.is_ring > 0.5, ring_area, 2 * jnp.pi * swirl.width**2)
        mean = swirl.smooth + (1 - swirl.smooth) * i0e(swirl.sharpness)
        return light / (area * swirl.axis_ratio * mean)

    return jnp.einsum("sb,syx->byx", swirls.flux, jax.vmap(profile)(swirls))


def spike_light(x: jax.Array, y: jax.Array, scene: Scene) -> jax.Array:
    """Returns the brightness (band, *grid) of the diffraction spikes of the central star."""
    along, across = aligned(x, y, 0.0, 0.0, scene.spike_angle)
    length, width = 3.0, 0.15

    def bar(u: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.exp(-jnp.abs(u) / length - 0.5 * (v / width) ** 2)

    area = 2 * length * width * jnp.sqrt(2 * jnp.pi)
    cross = (bar(along, across) + bar(across, along)) / (2 * area)
    return scene.spike_fraction * scene.stars.flux[0][:, None, None] * cross[None]


def trace(x: jax.Array, y: jax.Array, mass: Mass) -> tuple[jax.Array, jax.Array]:
    """Returns where in the source plane the ray through each point of the image comes from."""
    e1, e2 = ellipticity(mass.axis_ratio, mass.angle)
    alpha_x, alpha_y = sie_deflection(x, y, mass.theta_E, e1, e2, 0.0, 0.0)
    shear_x, shear_y = shear_deflection(x, y, mass.gamma1, mass.gamma2)
    return x - alpha_x - shear_x, y - alpha_y - shear_y


def stamp_light(
    x: jax.Array, y: jax.Array, scene: Scene, stamp: jax.Array, scale: float
) -> jax.Array:
    """Returns the brightness (band, *grid) of a real galaxy in the source's place.

    `stamp` (side, side) sums to one; `scale` is its arcsec per pixel. It is turned by the scene's
    angle and read between its pixels bilinearly.
    """
    along, across = aligned(x, y, scene.source.x[0], scene.source.y[0], scene.stamp_angle)
    middle = (stamp.shape[0] - 1) / 2
    rows, columns = across / scale + middle, along / scale + middle
    profile = map_coordinates(stamp, [rows, columns], order=1, mode="constant") / scale**2
    return jnp.sum(scene.source.flux, axis=0)[:, None, None] * profile[None]


def psf_offsets(survey: Survey) -> np.ndarray:
    """Returns the distance (size, fine) in pixels from each pixel's centre to each sample."""
    count = SUPERSAMPLING * (survey.size + 2 * MARGIN)
    samples = (np.arange(count) - (count - 1) / 2) / SUPERSAMPLING
    pixels = np.arange(survey.size) - (survey.size - 1) / 2
    return samples[None, :] - pixels[:, None]


def pixel_weights(offset: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns the share of a Gaussian that falls within half a pixel of zero in one dimension.

    `offset` is the distance of its centre and `sigma` its width, in pixels.
    """
    scale = 1 / (jnp.sqrt(2.0) * sigma)
    return 0.5 * (erf((offset + 0.5) * scale) - erf((offset - 0.5) * scale))


def blur(light: jax.Array, fwhm: jax.Array, survey: Survey) -> jax.Array:
    """Returns images (size, size, band): light (band, fine, fine) through PSF and pixels.

    `fwhm` (band,) is in pixels. Each sample is a point; its Gaussian is integrated exactly over
    each pixel, which factors into rows and columns.
    """
    offsets = psf_offsets(survey)
    distinct, where = np.unique(offsets, return_inverse=True)
    sigmas = fwhm[:, None] * jnp.asarray(PSF_SIGMAS)[None, :]
    values = jax.vmap(jax.vmap(lambda sigma: pixel_weights(jnp.asarray(distinct), sigma)))(sigmas)
    weights = values[:, :, where.reshape(offsets.shape)]
    rows = jnp.einsum("bkif,bfg->bkig", weights, light)
    return jnp.einsum("bkig,bkjg,k->ijb", rows, weights, jnp.asarray(PSF_WEIGHTS))


def star_images(stars: Points, fwhm: jax.Array, survey: Survey) -> jax.Array:
    """Returns images (size, size, band) of points, exact: nothing is sampled."""
    pixels = jnp.asarray(np.arange(survey.size) - (survey.size - 1) / 2, jnp.float32)

    def weights(positions: jax.Array) -> jax.Array:
        offset = positions[:, None] / survey.pixel_scale - pixels[None, :]
        return jax.vmap(
            jax.vmap(lambda sigma: pixel_weights(offset, sigma))
        )(fwhm[:, None] * jnp.asarray(PSF_SIGMAS)[None, :])  # fmt: skip

    return jnp.einsum(
        "sb,k,bksi,bksj->ijb",
        stars.flux,
        jnp.asarray(PSF_WEIGHTS),
        weights(stars.y),
        weights(stars.x),
    )


def unit_noise(key: jax.Array, survey: Survey) -> jax.Array:
    """Returns noise (size, size, band) of variance one, correlated as in the survey's coadds."""
    distance = np.subtract.outer(np.arange(survey.size), np.arange(survey.size))
    kernels = np.exp(-0.5 * (distance / np.array(survey.noise_width)[:, None, None]) ** 2)
    kernels /= np.sqrt((kernels**2).sum(-1, keepdims=True))
    kernels = jnp.asarray(kernels, jnp.float32)
    white = jax.random.normal(key, (len(survey.bands), survey.size, survey.size))
    return jnp.einsum("bip,bpq,bjq->ijb", kernels, white, kernels)


def arc_images(
    scene: Scene, stamp: jax.Array | None, scale: float, fwhm: jax.Array, survey: Survey
) -> tuple[jax.Array, jax.Array]:
    """Returns the source's images (size, size, band) and its magnification in the cutout."""
    x, y = fine_grid(survey)
    x, y = trace(x, y, scene.mass)
    if stamp is None:
        light = sersic_light(x, y, scene.source, 0.0)
    else:
        light = stamp_light(x, y, scene, stamp, scale)
    light = light * (survey.pixel_scale / SUPERSAMPLING) ** 2
    magnification = jnp.sum(light) / jnp.maximum(jnp.sum(scene.source.flux), 1e-12)
    return blur(light, fwhm, survey), magnification


def foreground_images(scene: Scene, fwhm: jax.Array, survey: Survey) -> jax.Array:
    """Returns images (size, size, band) of all in the scene but the source."""
    x, y = fine_grid(survey)
    step = survey.pixel_scale / SUPERSAMPLING
    light = (
        sersic_light(x, y, scene.galaxies, 0.4 * step)
        + swirl_light(x, y, scene.swirls)
        + spike_light(x, y, scene)
    )
    return blur(light * step**2, fwhm, survey) + star_images(scene.stars, fwhm, survey)


def draw_picture(
    index: jax.Array,
    group: jax.Array,
    kind: jax.Array,
    background: jax.Array | None,
    keys: jax.Array,
    stamp: jax.Array | None,
    stamp_scale: float,
    survey: Survey,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns one image (size, size, band) and its truth, scalars.

    With a `background` the arcs are laid upon it, with the noise of their own photons; it brings
    all else.
    """
    system_key = jax.random.fold_in(keys[0], group)
    scene_key, noise_key = jax.random.split(jax.random.fold_in(keys[1], index))
    system = draw_system(system_key, survey)
    bands = len(survey.bands)
    uniform = jax.random.uniform(scene_key, (SCENE_UNIFORMS + bands + 2,), minval=1e-6)
    scene = draw_scene(system, uniform[:SCENE_UNIFORMS], kind, survey)
    normal = ndtri(uniform[SCENE_UNIFORMS:])
    # Bands share the night's weather in half of the variance.
    weather = np.sqrt(0.5) * (normal[0] + normal[1:-1])
    fwhm = jnp.asarray(survey.seeing) * jnp.exp(survey.seeing_scatter * weather)
    fwhm = fwhm / survey.pixel_scale
    sky_sigma = jnp.asarray(survey.sky_sigma) * jnp.exp(survey.sky_scatter * normal[-1])
    arcs, magnification = arc_images(scene, stamp, stamp_scale, fwhm, survey)
    if background is None:
        rest = foreground_images(scene, fwhm, survey)
    else:
        rest = jnp.nan_to_num(background)

    def variance(photons: jax.Array) -> jax.Array:
        return jnp.maximum(photons, 0.0) / jnp.asarray(survey.gains)[None, None, :]

    sky_variance = (sky_sigma**2)[None, None, :]
    by_band = jnp.sum(arcs**2 / (sky_variance + variance(rest)), axis=(0, 1))
    signal_to_noise = jnp.sqrt(jnp.max(by_band)) + 1e-6
    # Selection went by a forecast; what falls short of it gets a source as bright as it takes.
    is_lens = kind == LENS
    wanted = survey.smallest_arc_signal_to_noise
    boost = jnp.where(is_lens, jnp.maximum(1.0, wanted / signal_to_noise), 1.0)
    arcs = boost * arcs

    noise = unit_noise(noise_key, survey)
    if background is None:
        photons = arcs + rest
        image = photons + jnp.sqrt(sky_variance + variance(photons)) * noise
    else:
        image = background + arcs + jnp.sqrt(variance(arcs)) * noise
    return image, truth_of(system, magnification, signal_to_noise, boost, survey)


def truth_of(
    system: System,
    magnification: jax.Array,
    signal_to_noise: jax.Array,
    boost: jax.Array,
    survey: Survey,
) -> dict[str, jax.Array]:
    """Returns the numbers of a lens system that `Sky.truth` lists, its source made brighter."""
    band = survey.selection_index
    return {
        "einstein_radius": system.einstein_radius,
        "lens_redshift": system.lens_redshift,
        "source_redshift": system.source_redshift,
        "velocity_dispersion": system.velocity_dispersion,
        "axis_ratio": system.axis_ratio,
        "shear": jnp.hypot(system.gamma1, system.gamma2),
        "lens_magnitude": system.lens_magnitudes[band],
        "source_magnitude": system.source_magnitudes[band] - 2.5 * jnp.log10(boost),
        "magnification": magnification,
        "arc_signal_to_noise": signal_to_noise * boost,
    }


@partial(jax.jit, static_argnames=("stamp_scale", "survey"))
def draw_chunk(
    index: jax.Array,
    group: jax.Array,
    kind: jax.Array,
    backgrounds: jax.Array | None,
    keys: jax.Array,
    stamps: jax.Array | None,
    stamp_rows: jax.Array | None,
    stamp_scale: float,
    survey: Survey,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns images (chunk, size, size, band) and their truth; see `draw_picture`. Each has the
    stamp of its row in `stamps`, where there are such."""

    def one(picture: tuple) -> tuple[jax.Array, dict[str, jax.Array]]:
        index, group, kind, background, row = picture
        stamp = None if stamps is None else stamps[row]
        return draw_picture(index, group, kind, background, keys, stamp, stamp_scale, survey)

    return jax.lax.map(one, (index, group, kind, backgrounds, stamp_rows), batch_size=AT_ONCE)


@dataclass(frozen=True)
class Plan:
    """Which picture is of what, arrays of one entry a picture (int64)."""

    kind: np.ndarray
    group: np.ndarray


def plan(count: int, lens_fraction: float, seed: int) -> Plan:
    """Returns the kinds (indices into KINDS) and groups of `count` pictures, shuffled.

    Every `unlensed` look-alike shows the galaxy of a lens, while there are lenses.
    """
    kinds = list(KINDS)
    lenses = round(count * lens_fraction)
    names = list(LOOK_ALIKES)
    cumulative = np.cumsum(list(LOOK_ALIKES.values())) / sum(LOOK_ALIKES.values())
    # Evenly spaced quantiles: each kind gets its share to within one.
    others = count - lenses
    chosen = np.searchsorted(cumulative, (np.arange(others) + 0.5) / max(others, 1))
    kind = np.array(
        [LENS] * lenses + [kinds.index(names[which]) for which in chosen],
        dtype=np.int64,
    )
    group = np.arange(count, dtype=np.int64)
    twins = np.flatnonzero(kind == kinds.index("unlensed"))
    if lenses:
        group[twins] = np.arange(len(twins)) % lenses
    order = np.random.default_rng(seed).permutation(count)
    return Plan(kind[order], group[order])


def plan_on_backgrounds(count: int, lens_fraction: float, seed: int, backgrounds: int) -> Plan:
    """Returns kinds (0 a lens, -1 an untouched background) and groups, the backgrounds' indices."""
    lenses = round(count * lens_fraction)
    if count - lenses > backgrounds:
        raise UsageError(
            f"{count - lenses} look-alikes are asked of {backgrounds} backgrounds, each of which is"
            " one: give more backgrounds, a smaller count or a larger lens_fraction"
        )
    kind = np.where(np.arange(count) < lenses, LENS, -1)
    group = np.concatenate([np.arange(lenses) % backgrounds, np.arange(count - lenses)])
    order = np.random.default_rng(seed).permutation(count)
    return Plan(kind[order].astype(np.int64), group[order].astype(np.int64))


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
) -> Sky:
    """Returns `count` cutouts of lenses and look-alikes and the truth about them.

    backgrounds: real cutouts (n, size, size, band), noise included. Arcs are then laid upon them,
        with the noise of the arcs' photons; the look-alikes are other copies, untouched.
    sources: real galaxies, which stand in for the Sersic sources.
    source_rows: from the groups (count,) to which source each shows; all in turn by default.
    progress: called with the number of images made since it was last called.
    chunk: images drawn at once; it sets memory and speed, never the images.

    The same seed gives the same sky. Raises UsageError for arguments that do not fit.
    """
    _check(survey, count, lens_fraction, backgrounds, sources)
    if backgrounds is None:
        todo = plan(count, lens_fraction, seed)
    else:
        todo = plan_on_backgrounds(count, lens_fraction, seed, len(backgrounds))
    images = np.empty((count, survey.size, survey.size, len(survey.bands)), np.float32)
    columns: dict[str, np.ndarray] = {}
    drawn = np.flatnonzero(todo.kind >= 0)
    untouched = np.flatnonzero(todo.kind < 0)
    stamps = stamp_rows = None
    if sources is not None:
        stamps = jnp.asarray(sources.images, jnp.float32)
        stamp_rows = source_rows(todo.group) if source_rows else todo.group % len(stamps)
    keys = jax.random.split(jax.random.key(seed))

    def launch(start: int) -> Chunk:
        rows = drawn[start : start + chunk]
        # The last chunk is filled up with copies, so that every chunk is the same program.
        filled = np.resize(rows, chunk)
        group = todo.group[filled]
        return rows, *draw_chunk(
            # With backgrounds every arc has a system of its own, though galaxies return.
            jnp.asarray(filled, jnp.uint32),
            jnp.asarray(group if backgrounds is None else filled, jnp.uint32),
            jnp.asarray(todo.kind[filled], jnp.int32),
            None if backgrounds is None else jnp.asarray(backgrounds[group], jnp.float32),
            keys,
            stamps,
            None if stamp_rows is None else jnp.asarray(stamp_rows[filled], jnp.int32),
            1.0 if sources is None else float(sources.pixel_scale),
            survey,
        )

    for rows, chunk_images, truth in one_ahead(launch, range(0, len(drawn), chunk)):
        images[rows] = chunk_images[: len(rows)]
        for name, values in truth.items():
            column = columns.setdefault(name, np.full(count, np.nan, np.float32))
            column[rows] = values[: len(rows)]
        if progress is not None:
            progress(len(rows))
    if backgrounds is not None and len(untouched):
        images[untouched] = backgrounds[todo.group[untouched]]
        if progress is not None:
            progress(len(untouched))
    if sources is not None:
        columns["source"] = sources.name[stamp_rows]
    return Sky(images, _table(survey, seed, todo, columns))


def _table(survey: Survey, seed: int, todo: Plan, columns: dict[str, np.ndarray]) -> dict:
    """Returns the truth: who is who, and the numbers of those that have them."""
    names = np.array([*KINDS, "background"])
    kind = names[todo.kind]
    is_lens = kind == "lens"
    has_deflector = is_lens | np.isin(kind, ["unlensed", "satellites", "ring", "merger", "red"])
    has_source = is_lens | (kind == "unlensed")
    applies = dict.fromkeys(
        ("einstein_radius", "shear", "magnification", "arc_signal_to_noise"), is_lens
    )
    applies |= dict.fromkeys(("source_redshift", "source_magnitude", "source"), has_source)
    identity = [f"{survey.name}-{seed}-{row:07d}" for row in range(len(kind))]
    return {
        "id": np.array(identity),
        "label": is_lens.astype(np.int64),
        "kind": kind,
        "group": todo.group,
    } | {
        name: np.where(applies.get(name, has_deflector), values, "" if name == "source" else np.nan)
        for name, values in columns.items()
    }
