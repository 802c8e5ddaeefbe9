"""Pictures of scenes, as a survey would take them.

Light is sampled on a grid finer than the pixels (`SUPERSAMPLING`) and wider than the cutout
(`MARGIN`); the source is seen through the lens by tracing each sample back to it. The PSF is a sum
of round Gaussians, so that blurring and integration over the pixels are one pair of matrix
products. Noise is Gaussian: sky and photons alike, the limit of many electrons.

One compiled program draws every kind of picture, with every pixel scale, seeing and depth. What it
is given was drawn on the host.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jax.scipy.special import erf

from lensjax.sky.artefacts import with_artefact
from lensjax.sky.lenses import map_pictures
from lensjax.sky.lensing import add_lit, aligned, sersic_light, trace
from lensjax.sky.scenes import Scene
from lensjax.sky.slots import Stars, Swirls
from lensjax.sky.survey import Observation, Survey
from lensjax.sky.visibility import smooth_noise, visibility

SUPERSAMPLING = 2
MARGIN = 2  # pixels of light beyond each edge, which the PSF scatters into the cutout

# A Moffat profile (Moffat 1969) of FWHM 1 as three Gaussians: least squares, within 0.7 per cent
# of the peak at every radius. A row for each 1 / beta: three sigmas, then their shares of the flux.
PSF_INVERSE_BETA = (0.15, 0.225, 0.3, 0.375, 0.45)
PSF_GAUSSIANS = (
    (0.3433, 0.4734, 0.7034, 0.2214, 0.6204, 0.1582),
    (0.3373, 0.5025, 0.8380, 0.2316, 0.5983, 0.1701),
    (0.3352, 0.5359, 0.9985, 0.2376, 0.5761, 0.1863),
    (0.3359, 0.5751, 1.1983, 0.2399, 0.5533, 0.2068),
    (0.3387, 0.6211, 1.4556, 0.2381, 0.5291, 0.2328),
)


def psf_gaussians(observation: Observation) -> tuple[jax.Array, jax.Array]:
    """Returns sigmas (band, 3), in pixels, and flux shares (3,) of the Gaussians of a PSF."""
    step = PSF_INVERSE_BETA[1] - PSF_INVERSE_BETA[0]
    place = jnp.clip((1 / observation.moffat_beta - PSF_INVERSE_BETA[0]) / step, 0.0, 3.999)
    left = place.astype(int)
    rows = jnp.asarray(PSF_GAUSSIANS)
    values = rows[left] + (place - left) * (rows[left + 1] - rows[left])
    fwhm = observation.fwhm / observation.pixel_scale
    return fwhm[:, None] * values[None, :3], values[3:]


def samples(survey: Survey) -> np.ndarray:
    """Returns the coordinates (fine,) of the light samples, in pixels from the middle."""
    count = SUPERSAMPLING * (survey.size + 2 * MARGIN)
    return (np.arange(count) - (count - 1) / 2) / SUPERSAMPLING


def pixels(survey: Survey) -> np.ndarray:
    """Returns the coordinates (size,) of the pixels' centres, in pixels from the middle."""
    return np.arange(survey.size) - (survey.size - 1) / 2


def grid(axis: np.ndarray, observation: Observation) -> tuple[jax.Array, jax.Array]:
    """Returns x and y (n, n) float32, arcsec, of an axis (n,) in pixels."""
    x, y = np.meshgrid(axis, axis)
    return observation.pixel_scale * x.astype(np.float32), observation.pixel_scale * y.astype(
        np.float32
    )


def swirl_light(x: jax.Array, y: jax.Array, swirls: Swirls) -> jax.Array:
    """Returns the summed brightness (band, *grid) of discs with arms, rings and tails."""

    def add(slot: jax.Array, light: jax.Array) -> jax.Array:
        swirl = Swirls(*(values[slot] for values in swirls))
        along, across = aligned(x, y, swirl.x, swirl.y, swirl.angle)
        # Seen at an angle: the ellipse of the given axis ratio is a circle in its own plane.
        across = across / swirl.axis_ratio
        radius = jnp.sqrt(along**2 + across**2 + 1e-6)
        fall_off = jnp.where(
            swirl.is_ring > 0.5,
            -0.5 * ((radius - swirl.ring) / swirl.width) ** 2,
            -radius / swirl.width,
        )
        turned = jnp.arctan2(across, along) - swirl.winding * jnp.log(radius)
        lobes = jnp.exp(swirl.sharpness * (jnp.cos(swirl.lobes * turned - swirl.phase) - 1))
        profile = jnp.exp(fall_off) * (swirl.smooth + (1 - swirl.smooth) * lobes) / swirl.area
        return light + swirl.flux[:, None, None] * profile[None]

    return add_lit(add, swirls.flux, x)


def spike_light(x: jax.Array, y: jax.Array, scene: Scene) -> jax.Array:
    """Returns the brightness (band, *grid) of the diffraction spikes of the central star."""
    along, across = aligned(x, y, 0.0, 0.0, scene.spike_angle)
    length, width = 3.0, 0.15

    def bar(u: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.exp(-jnp.abs(u) / length - 0.5 * (v / width) ** 2)

    area = 2 * length * width * jnp.sqrt(2 * jnp.pi)
    cross = (bar(along, across) + bar(across, along)) / (2 * area)
    return scene.spike_fraction * scene.stars.flux[0][:, None, None] * cross[None]


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


def pixel_weights(offset: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns the integral over a pixel of a unit Gaussian that lies `offset` from its centre.

    `offset` and `sigma` are in pixels.
    """
    scale = 1 / (jnp.sqrt(2.0) * sigma)
    return 0.5 * (erf((offset + 0.5) * scale) - erf((offset - 0.5) * scale))


def blur(light: jax.Array, observation: Observation, survey: Survey) -> jax.Array:
    """Returns images (..., band, size, size): light (..., band, fine, fine) through PSF and pixels.

    Each sample is a point; its Gaussians are integrated exactly over each pixel, which factors
    into rows and columns.
    """
    offsets = samples(survey)[None, :] - pixels(survey)[:, None]
    distinct, where = np.unique(offsets, return_inverse=True)
    sigmas, shares = psf_gaussians(observation)
    weights = pixel_weights(jnp.asarray(distinct)[None, None], sigmas[:, :, None])
    weights = weights[:, :, where.reshape(offsets.shape)]
    rows = jnp.einsum("bkif,...bfg->...bkig", weights, light)
    return jnp.einsum("...bkig,bkjg,k->...bij", rows, weights, shares)


def star_images(stars: Stars, observation: Observation, survey: Survey) -> jax.Array:
    """Returns images (band, size, size) of points, exact: nothing is sampled."""
    sigmas, shares = psf_gaussians(observation)

    def weights(positions: jax.Array) -> jax.Array:
        offsets = positions[:, None] / observation.pixel_scale - pixels(survey)[None, :]
        return pixel_weights(offsets[None, None], sigmas[:, :, None, None])

    return jnp.einsum("sb,k,bksi,bksj->bij", stars.flux, shares, weights(stars.y), weights(stars.x))


def unit_noise(key: jax.Array, noise_width: jax.Array, size: int) -> jax.Array:
    """Returns noise (size, size, band) of variance one, correlated as in resampled coadds.

    noise_width (band,) is the sigma in pixels of the Gaussian that white noise is smoothed by.
    """
    distance = np.subtract.outer(np.arange(size), np.arange(size)).astype(np.float32)
    kernels = jnp.exp(-0.5 * (distance[None] / noise_width[:, None, None]) ** 2)
    kernels = kernels * jax.lax.rsqrt((kernels**2).sum(-1, keepdims=True))
    white = jax.random.normal(key, (len(noise_width), size, size))
    return jnp.einsum("bip,bpq,bjq->ijb", kernels, white, kernels)


def add_noise(
    key: jax.Array,
    image: jax.Array,
    sky_sigma: jax.Array,
    noise_width: jax.Array,
    gains: jax.Array,
) -> jax.Array:
    """Returns a noise-free image (size, size, band) with the noise of its sky and its photons.

    The others are (band,), as `survey.Observation` has them. Pixels of exactly zero hold no data
    and stay as they are.
    """
    noise = unit_noise(key, noise_width, image.shape[0])
    variance = (sky_sigma**2)[None, None] + jnp.maximum(image, 0.0) / gains[None, None]
    return jnp.where(image == 0.0, image, image + jnp.sqrt(variance) * noise)


def source_image(
    scene: Scene,
    stamp: jax.Array | None,
    stamp_scale: float,
    observation: Observation,
    survey: Survey,
) -> tuple[jax.Array, jax.Array]:
    """Returns the source's images (band, size, size), flux, and how many times the light of the
    source they have, a scalar."""
    x, y = grid(samples(survey), observation)
    x, y = trace(x - scene.x, y - scene.y, scene.mass)
    if stamp is None:
        light = sersic_light(x, y, scene.source)
    else:
        light = stamp_light(x, y, scene, stamp, stamp_scale)
    light = light * (observation.pixel_scale / SUPERSAMPLING) ** 2
    magnification = jnp.sum(light) / jnp.maximum(jnp.sum(scene.source.flux), 1e-12)
    return blur(light, observation, survey), magnification


def foreground_light(scene: Scene, observation: Observation, survey: Survey) -> jax.Array:
    """Returns the light (band, fine, fine) of all in the scene but source and stars."""
    x, y = grid(samples(survey), observation)
    x, y = x - scene.x, y - scene.y
    step = observation.pixel_scale / SUPERSAMPLING
    light = (
        sersic_light(x, y, scene.galaxies, 0.4 * step)
        + swirl_light(x, y, scene.swirls)
        + spike_light(x, y, scene)
    )
    return light * step**2


class Picture(NamedTuple):
    """What one picture is drawn from.

    `arc_snr` is the S/N that arcs are to have, 0 for none; `artefact` (ARTEFACT_UNIFORMS,) chooses
    one; `background` is a real cutout (size, size, band), or None.
    """

    scene: Scene
    observation: Observation
    arc_snr: Any
    artefact: Any
    background: Any


def render_picture(
    picture: Picture, key: jax.Array, stamp: jax.Array | None, stamp_scale: float, survey: Survey
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns one image (size, size, band) and how its arcs are seen, scalars; `brighter` is the
    factor by which the source was made so.

    With a background the arcs are laid upon it, with the noise of their own photons; it brings all
    else.
    """
    scene, observation, background = picture.scene, picture.observation, picture.background
    arcs, magnification = jax.lax.cond(
        jnp.any(scene.source.flux > 0),  # where there is none, which is common, nothing is traced
        lambda: source_image(scene, stamp, stamp_scale, observation, survey),
        lambda: (jnp.zeros((len(survey.bands), survey.size, survey.size)), jnp.zeros(())),
    )
    if background is None:
        front = blur(foreground_light(scene, observation, survey), observation, survey)
        stars = scene.stars._replace(x=scene.stars.x + scene.x, y=scene.stars.y + scene.y)
        front = front + star_images(stars, observation, survey)
    else:
        front = jnp.nan_to_num(background - jnp.nanmedian(background, axis=(0, 1), keepdims=True))
        front = jnp.moveaxis(front, -1, 0)
    x, y = grid(pixels(survey), observation)
    taken = (smooth_noise(observation), observation.gains, observation.fwhm)
    seen = visibility(arcs, front, *taken, x - scene.x, y - scene.y)
    # The source was made as bright as it should be on a coarse grid: this is the last correction.
    factor = jnp.where(picture.arc_snr > 0, picture.arc_snr / seen.arc_snr, 1.0)
    arcs = jnp.moveaxis(factor * arcs, 0, -1)
    truth = {
        "arc_snr": factor * seen.arc_snr,
        "peak_snr": factor * seen.peak_snr,
        "counter_snr": factor * seen.counter_snr,
        "arc_extent": seen.arc_extent,
        "magnification": magnification,
        "brighter": factor,
    }
    gains, no_sky = observation.gains, jnp.zeros_like(observation.sky_sigma)
    if background is not None:
        grain = add_noise(key, arcs, no_sky, observation.noise_width, gains)
        return background + grain, truth | {"artefact": jnp.zeros((), int)}
    image = jnp.maximum(arcs + jnp.moveaxis(front, 0, -1), 1e-20)  # zero means: no data
    image, artefact = with_artefact(picture.artefact, image, observation, survey)
    if survey.noise:
        image = add_noise(key, image, observation.sky_sigma, observation.noise_width, gains)
    return image, truth | {"artefact": artefact}


@partial(jax.jit, static_argnames=("stamp_scale", "survey"))
def render(
    pictures: Picture,
    index: jax.Array,
    seed: jax.Array,
    stamps: jax.Array | None,
    stamp_rows: jax.Array | None,
    stamp_scale: float,
    survey: Survey,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns images (n, size, size, band) and how their arcs are seen; see `render_picture`.

    The noise depends on `seed` and `index` (n,) uint32. Each has the stamp of its row in `stamps`,
    where there are such.
    """

    def one(of_picture: tuple) -> tuple[jax.Array, dict[str, jax.Array]]:
        picture, index, row = of_picture
        key = jax.random.fold_in(jax.random.key(seed), index)
        stamp = None if stamps is None else stamps[row]
        return render_picture(picture, key, stamp, stamp_scale, survey)

    return map_pictures(one, (pictures, index, stamp_rows))
