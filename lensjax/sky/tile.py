"""The image of a tile: objects, the galaxies and stars between them, and noise, added once.

Each object is a scene of its own, rendered without noise on a stamp, as cutouts are, and added at
its place in the tile to a fraction of a pixel. Whose light would end at the edge of the stamp is
rendered on a larger one. All stamps of a size are one compiled program.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import correlate1d

from lensjax.runtime import one_ahead
from lensjax.sky.artefacts import ARTEFACT_UNIFORMS
from lensjax.sky.draw import lens_systems, truth_of, uniforms
from lensjax.sky.kinds import CENTRE_UNIFORMS, LENS, Centre, Sky, dark_centre, draw_centres
from lensjax.sky.layout import Layout
from lensjax.sky.lenses import pictures_first, put, take
from lensjax.sky.lensing import Galaxies
from lensjax.sky.population import lens_redshift, number_count_magnitude
from lensjax.sky.render import Picture, pixel_weights, psf_gaussians, render
from lensjax.sky.scenes import FIELD_UNIFORMS, compose, empty_field, field
from lensjax.sky.stamps import Stamps
from lensjax.sky.survey import Observation, Survey, observation_uniforms, observe

# What random numbers are for, beside the purposes of `draw` and `layout`.
OF_TILE, OF_OBJECT, OF_FIELD, OF_STARS, OF_NOISE = 11, 12, 13, 14, 15

# Sides of stamps in units of a cutout's, and how many are rendered at once.
STAMPS = ((0.5, 256), (1.0, 128), (2.5, 16), (5.0, 8))
SMALL, CUTOUT = 0, 1
# A stamp is large enough if its outermost pixels are fainter than so many sigmas of the sky; along
# this share of its side light is brought down to nothing.
FAINT, TAPER = 0.1, 0.12

# Stars brighter than those of `scenes.field`, with the same counts: so many per square arcsec, and
# their magnitudes. This share of their light is a halo of that half-light radius, arcsec. All that
# show spikes have them in the same direction (all chosen).
BRIGHT_STARS, BRIGHTEST, FAINTEST = 1.1e-4, 12.5, 16.5
HALO, HALO_RADIUS = 0.04, 10.0
# A star of this magnitude saturates the pixel that it stands on (chosen).
SATURATED = 17.0


@dataclass(frozen=True)
class Objects:
    """What a catalogue lists: places on the sky (n, 2), degrees, what each is, an index into KINDS
    (n,), and the tile (n,) in which it lies deepest."""

    place: np.ndarray
    kind: np.ndarray
    home: np.ndarray


class Scenes(NamedTuple):
    """Pictures (n, ...) to be added to a tile, where in it their middles lie, pixels (n, 2), which
    stamp each shows as its source (n,), and the truth about them, columns (n,)."""

    picture: Picture
    place: Any
    stamp_row: Any
    truth: dict[str, Any]


def one_survey(survey: Survey) -> Survey:
    """Returns the survey as it is done with one instrument: tiles differ in seeing and depth only,
    by at most 13 and 10 per cent each way (chosen). Scenes have no noise and no artefacts."""
    return replace(
        survey,
        pixel_scale_range=0.0,
        zero_point_scatter=0.0,
        noise_width_range=0.0,
        seeing_range=min(survey.seeing_range, 0.06),
        seeing_scatter=min(survey.seeing_scatter, 0.06),
        sky_range=min(survey.sky_range, 0.05),
        sky_scatter=min(survey.sky_scatter, 0.05),
        artefact_fraction=0.0,
        noise=False,
    )


def observe_tiles(survey: Survey, count: int, seed: int) -> Observation:
    """Returns how each tile (count,) was taken."""
    uniform = uniforms(seed, OF_TILE, np.arange(count), observation_uniforms(survey))
    return observe(uniform, survey)


def stamp_side(survey: Survey, step: int) -> int:
    """Returns the side of a stamp of STAMPS, pixels: even, so that all of a scene share a middle
    between pixels."""
    return 2 * round(STAMPS[step][0] * survey.size / 2)


@dataclass(frozen=True)
class TileSky:
    """A simulated sky that is drawn tile by tile; `survey` is that of `one_survey`, `observation`
    that of the tiles."""

    survey: Survey
    layout: Layout
    objects: Objects
    observation: Observation
    sources: Stamps | None
    seed: int

    def tile(
        self, number: int, progress: Callable[[int], None] = lambda _: None
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Returns a tile (band, size, size) float32, flux units; which objects (n,) have their home
        in it; and the truth about these, columns (n,) as `draw.draw` has them.

        `progress` is called with the number of such objects drawn since it was last called.
        """
        size = self.layout.size
        image = np.zeros((len(self.survey.bands), size, size), np.float32)
        is_home = self.objects.home == number
        rows = np.flatnonzero(is_home)
        place = self.layout.pixels(number, self.objects.place)
        # Objects of other tiles of which light falls into this one.
        guests = np.flatnonzero(self._reaches(place) & ~is_home)
        listed = np.concatenate([rows, guests])

        more, _ = self._add(image, SMALL, number, self._between(number))
        objects = self._objects(number, listed, place[listed], progress)
        larger, truth = self._add(image, CUTOUT, number, objects)
        for step in range(CUTOUT, len(STAMPS)):
            more, _ = self._add(image, step, number, _chunks(more, STAMPS[step][1]))
            more += larger if step == CUTOUT else []
        for band, plane in enumerate(image):
            self._expose(plane, number, band)
        return image, rows, {name: column[: len(rows)] for name, column in truth.items()}

    def saturation(self, number: int) -> np.ndarray:
        """Returns the flux (band,) at which pixels of a tile saturate."""
        taken = take(self.observation, number)
        sigmas, shares = psf_gaussians(taken)
        peak = np.asarray(pixel_weights(jnp.zeros(()), sigmas)) ** 2 @ np.asarray(shares)
        return peak * 10 ** (-0.4 * (SATURATED - taken.zero_points))

    def _reaches(self, place: np.ndarray) -> np.ndarray:
        """Returns whether light of what stands at pixels (n, 2) may fall into a tile (n,)."""
        beyond = stamp_side(self.survey, len(STAMPS) - 1) / 2
        within = (place > -beyond) & (place < self.layout.size + beyond)
        return within[:, 0] & within[:, 1]

    def _seen_in(self, number: int, count: int) -> Sky:
        """Returns what builders draw by, for so many pictures in a tile."""
        return Sky(self.survey, take(self.observation, np.full(count, number)))

    def _objects(
        self, number: int, rows: np.ndarray, place: np.ndarray, progress: Callable[[int], None]
    ) -> Iterator[Scenes]:
        """Yields the objects `rows` at pixels (n, 2) of a tile, as seen in it.

        Each was chosen as one seen in its home, where the arcs of lenses have the wanted S/N.
        """
        at_once = STAMPS[CUTOUT][1]
        for start in range(0, len(rows), at_once):
            some, where = rows[start : start + at_once], place[start : start + at_once]
            scenes = self._drawn(some, where)
            is_guest = self.objects.home[some] != number
            if (is_guest & (scenes.picture.arc_snr > 0)).any():
                _, seen = self._render(scenes, CUTOUT)
                scenes = _settled(scenes, is_guest, np.asarray(seen["brighter"])[: len(some)])
            taken = pictures_first(self._seen_in(number, len(some)).observation)
            yield scenes._replace(picture=scenes.picture._replace(observation=taken))
            progress(int((~is_guest).sum()))

    def _drawn(self, rows: np.ndarray, place: np.ndarray) -> Scenes:
        """Returns objects as they are seen in their homes, at pixels (n, 2)."""
        kind = self.objects.kind[rows]
        taken = take(self.observation, self.objects.home[rows])
        lens, lensed = lens_systems(self.survey, rows, kind, self.seed, taken)
        uniform = uniforms(self.seed, OF_OBJECT, rows, CENTRE_UNIFORMS + 3)
        sky = Sky(self.survey, taken)
        centre = draw_centres(uniform[:CENTRE_UNIFORMS], kind, lens, lensed, sky)
        arc_snr = np.zeros(len(rows))
        arc_snr[lensed] = lens.arc_snr
        arc_snr *= kind == LENS
        shown = np.zeros(len(rows), int) if self.sources is None else self.stamp_rows(rows)
        scenes = _scenes(centre, uniform[CENTRE_UNIFORMS:], sky, place, arc_snr, shown)
        return scenes._replace(truth=truth_of(lens, lensed, taken, self.survey))

    def stamp_rows(self, rows: np.ndarray) -> np.ndarray:
        """Returns which of the real galaxies (n,) objects show as their source."""
        return rows % len(self.sources.name) if self.sources else rows

    def _between(self, number: int) -> Iterator[Scenes]:
        """Yields the galaxies and stars that are in no catalogue, as seen in a tile.

        They belong to cells of the plane of the field, as wide as a cutout, whatever the tile.
        """
        side, scale = self.survey.size, self.layout.pixel_scale
        across = np.ceil(self.layout.extent / side).astype(int) + 6
        cells = np.stack(np.unravel_index(np.arange(across.prod()), across), axis=1)
        middles = (cells - (across - 1) / 2) * side
        reached = self._reaches(self.layout.pixels(number, self.layout.to_sky(middles)))
        uniform = uniforms(self.seed, OF_FIELD, np.flatnonzero(reached), FIELD_UNIFORMS + 1)
        sky = self._seen_in(number, uniform.shape[1])
        galaxies, stars = field(uniform[:-1], lens_redshift(uniform[-1]), sky)
        galaxies = Galaxies(*(v[1:] for v in galaxies))  # without halos from outside of the cutout

        slot, cell = np.nonzero(galaxies.flux.sum(axis=1) > 0)
        star_slot, star_cell = np.nonzero(stars.flux.sum(axis=1) > 0)
        light = Galaxies(*(np.moveaxis(v[slot, ..., cell], 0, -1)[None] for v in galaxies))
        points = np.moveaxis(stars.flux[star_slot, :, star_cell], 0, -1)
        bright_place, bright, halos = self._bright_stars(number)
        plane = [
            middles[reached][cell] + np.stack([light.x[0], light.y[0]], axis=1) / scale,
            middles[reached][star_cell]
            + np.stack([stars.x, stars.y])[:, star_slot, star_cell].T / scale,
            bright_place,
        ]
        ends = np.cumsum([len(part) for part in plane])
        seen = self._seen_in(number, int(ends[-1]))
        centre = dark_centre(seen)
        at_middle = light._replace(x=np.zeros_like(light.x), y=np.zeros_like(light.y))
        put(centre.galaxies, np.arange(ends[0]), at_middle)
        put(centre.galaxies, np.arange(ends[1], ends[2]), halos)
        centre.star_flux[:, ends[0] :] = np.concatenate([points, bright], axis=1)
        place = self.layout.pixels(number, self.layout.to_sky(np.concatenate(plane)))
        none = np.zeros(len(place))
        uniform = np.full((3, len(place)), 0.5)
        yield from _chunks(
            [_scenes(centre, uniform, seen, place, none, none.astype(int))], STAMPS[SMALL][1]
        )

    def _bright_stars(self, number: int) -> tuple[np.ndarray, np.ndarray, Galaxies]:
        """Returns where in the plane of the field bright stars stand (n, 2), their flux (band, n),
        and their halos, of those that a tile sees."""
        rng = np.random.default_rng((self.seed, OF_STARS))
        wide = self.layout.extent + stamp_side(self.survey, len(STAMPS) - 1)
        count = rng.poisson(BRIGHT_STARS * wide.prod() * self.layout.pixel_scale**2)
        place, uniform = (rng.random((count, 2)) - 0.5) * wide, rng.random((2, count))
        sees = self._reaches(self.layout.pixels(number, self.layout.to_sky(place)))
        place, uniform = place[sees], uniform[:, sees]
        magnitude = number_count_magnitude(uniform[0], BRIGHTEST, FAINTEST, 0.12)
        light = self._seen_in(number, len(place)).star_flux(magnitude, uniform[1])
        zero, one = np.zeros((1, len(place))), np.ones((1, len(place)))
        halos = Galaxies(HALO * light[None], zero, zero, one, zero, HALO_RADIUS * one, 3.0 * one)
        return place, (1 - HALO) * light, halos

    def _add(
        self, image: np.ndarray, step: int, number: int, batches: Iterable[Scenes]
    ) -> tuple[list[Scenes], dict[str, np.ndarray]]:
        """Adds scenes on stamps of STAMPS[step] to a tile; returns those that need larger ones, and
        the truth about all, columns (n,)."""
        sky_sigma = take(self.observation, number).sky_sigma
        side = stamp_side(self.survey, step)
        window = _window(side)
        larger, truth = [], []
        launched = one_ahead(lambda scenes: (scenes, self._render(scenes, step)), batches)
        for scenes, (drawn, seen) in launched:
            count = len(scenes.place)
            stamps = np.moveaxis(np.asarray(drawn)[:count], -1, 1)
            of_all = {name: np.asarray(values)[:count] for name, values in seen.items()}
            truth.append(scenes.truth | of_all)
            grows = _at_edge(stamps / sky_sigma[:, None, None]) > FAINT
            grows &= step < len(STAMPS) - 1
            for stamp, place in zip(stamps[~grows], scenes.place[~grows], strict=True):
                _add_stamp(image, stamp * window, _corner(place, side))
            if grows.any():
                known = _settled(scenes, np.full(count, True), of_all["brighter"])
                larger.append(_rows(known._replace(truth={}), np.flatnonzero(grows)))
        names = truth[0] if truth else {}
        return larger, {name: np.concatenate([one[name] for one in truth]) for name in names}

    def _render(self, scenes: Scenes, step: int) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns stamps (STAMPS[step][1], side, side, band) of scenes, then of copies of them, and
        how their arcs are seen."""
        at_once = STAMPS[step][1]
        filled = _rows(scenes, np.resize(np.arange(len(scenes.place)), at_once))
        sources = self.sources
        return render(
            filled.picture,
            np.zeros(at_once, np.uint32),
            np.uint32(0),
            None if sources is None else jnp.asarray(sources.images, jnp.float32),
            None if sources is None else filled.stamp_row,
            1.0 if sources is None else float(sources.pixel_scale),
            # Without what does not change the program.
            replace(self.survey, name="", shares=(), size=stamp_side(self.survey, step)),
        )

    def _expose(self, plane: np.ndarray, number: int, band: int) -> None:
        """Adds the noise of sky and photons to one band (size, size) of a tile, as
        `render.add_noise` does to a cutout, and has pixels saturate."""
        taken = take(self.observation, number)
        rng = np.random.default_rng((self.seed, OF_NOISE, number, band))
        noise = correlated_noise(rng, plane.shape, float(taken.noise_width[band]))
        # Numbers of Python's own leave the arrays in float32.
        noise *= np.sqrt(plane / float(taken.gains[band]) + float(taken.sky_sigma[band]) ** 2)
        plane += noise
        np.minimum(plane, self.saturation(number)[band], out=plane)


def correlated_noise(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> np.ndarray:
    """Returns noise (height, width) float32 of variance one: white noise smoothed by a Gaussian of
    sigma `width`, pixels, as `render.unit_noise` makes for cutouts."""
    reach = int(np.ceil(4 * width))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    kernel /= np.sqrt((kernel**2).sum())
    noise = rng.standard_normal([side + 2 * reach for side in shape], np.float32)
    for axis in (0, 1):
        noise = correlate1d(noise, kernel, axis)
    return noise[reach:-reach, reach:-reach]


def _scenes(
    centre: Centre, uniform: np.ndarray, sky: Sky, place: np.ndarray, arc_snr: np.ndarray,
    stamp_row: np.ndarray,
) -> Scenes:  # fmt: skip
    """Returns scenes whose middles are at pixels (n, 2) of a tile; `uniform` is for `compose`."""
    uniform = uniform.copy()
    uniform[1] = 0.0  # one telescope
    # The rest of a pixel is in the scene: its stamp begins at a whole one.
    x, y = (place - _corner(place, 2) - 0.5).T * sky.observation.pixel_scale
    scene = compose(centre, empty_field(sky), uniform, x, y)
    no_artefact = np.full((ARTEFACT_UNIFORMS, len(place)), 0.5)
    picture = pictures_first(Picture(scene, sky.observation, arc_snr, no_artefact, None))
    return Scenes(picture, place, stamp_row, {})


def _corner(place: np.ndarray, side: int) -> np.ndarray:
    """Returns the first column and row (..., 2) int of a stamp about pixels (..., 2), such that
    these are within half a pixel of its middle."""
    return np.floor(place).astype(int) - (side // 2 - 1)


def _settled(scenes: Scenes, which: np.ndarray, brighter: np.ndarray) -> Scenes:
    """Returns scenes in which the sources of some (n,) bool are brighter by a factor (n,), and are
    no longer made as bright as the S/N of their arcs asks."""
    picture = scenes.picture
    source = picture.scene.source
    factor = np.where(which, brighter, 1).astype(np.float32)
    source = source._replace(flux=source.flux * factor[:, None, None])
    arc_snr = np.where(which, 0, picture.arc_snr).astype(np.float32)
    scene = picture.scene._replace(source=source)
    return scenes._replace(picture=picture._replace(scene=scene, arc_snr=arc_snr))


def _rows(scenes: Scenes, rows: np.ndarray | slice) -> Scenes:
    return jax.tree.map(lambda values: values[rows], scenes)


def _chunks(parts: list[Scenes], at_once: int) -> Iterator[Scenes]:
    """Yields all scenes, so many at a time."""
    if parts:
        whole = jax.tree.map(lambda *values: np.concatenate(values), *parts)
        for start in range(0, len(whole.place), at_once):
            yield _rows(whole, slice(start, start + at_once))


def _window(side: int) -> np.ndarray:
    """Returns weights (side, side) float32: one, and falling to zero along the edge."""
    from_edge = (np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5) / (TAPER * side)
    profile = np.sin(0.5 * np.pi * np.minimum(from_edge, 1)) ** 2
    return np.outer(profile, profile).astype(np.float32)


def _at_edge(stamps: np.ndarray) -> np.ndarray:
    """Returns the brightest of the outermost pixels of each of the stamps (n, band, y, x)."""
    sides = stamps[..., 0], stamps[..., -1], stamps[..., 0, :], stamps[..., -1, :]
    return np.max([side.max(axis=(1, 2)) for side in sides], axis=0)


def _add_stamp(image: np.ndarray, stamp: np.ndarray, corner: np.ndarray) -> None:
    """Adds a stamp (band, side, side) to an image (band, height, width) from a column and row on;
    what lies outside is lost."""
    side = stamp.shape[-1]
    (left, low), ends = np.maximum(corner, 0), corner + side
    right, top = np.minimum(ends, image.shape[:0:-1])
    if left < right and low < top:
        part = stamp[:, low - corner[1] : top - corner[1], left - corner[0] : right - corner[0]]
        image[:, low:top, left:right] += part
