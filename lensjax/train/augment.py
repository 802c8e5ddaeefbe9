"""Augmentation: random changes of the cutouts in a training step.

Each cutout has a draw of its own. It is changed in flux, before the stretch, as it travels: all
input sizes then see the same changed cutout. Interpolated, blurred or fainter light has less noise,
too, which is put back: it then looks as the survey would show it in worse seeing, or farther away.
Noise-free cutouts get all their noise here, after the other changes: none is seen twice.
"""

from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lensjax.data.brightness import bisected, measure_in_step, noise_unit
from lensjax.data.preprocess import Geometry
from lensjax.sky.render import add_noise
from lensjax.train.pictures import as_picture

# The units for matrices would round to fewer bits than float32 has.
EXACT = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Augmentation:
    """How much cutouts are changed in training, at most; 0 leaves a change out."""

    augment_shift: float = 0.04
    """Largest shift of a cutout, as a fraction of its side."""
    augment_zoom: float = 0.1
    """Largest change of the pixel scale, as a fraction, either way."""
    augment_seeing: float = 0.8
    """Largest sigma of the blur, in pixels of the data."""
    augment_flux: float = 0.2
    """Largest dimming of a cutout, in magnitudes; noise-free ones are brightened, too."""
    augment_colour: float = 0.1
    """Largest dimming of each band by itself, in magnitudes; likewise."""
    augment_noise: float = 0.5
    """Largest noise added to a cutout that has noise, in units of its own."""
    augment_depth: float = 0.4
    """Largest change of the depth at which noise-free cutouts get noise, in magnitudes, either
    way."""
    pictures: bool = False
    """Show half of the cutouts as 8-bit colour pictures, each time with another stretch and
    balance of the colours."""


def augmented(
    augmentation: Augmentation,
    keys: Array,
    images: ArrayLike,
    brightness: ArrayLike,
    sky: ArrayLike | None,
    geometry: Geometry,
) -> tuple[Array, Array]:
    """Returns the images (batch, height, width, band) float32, changed, and their brightness
    (batch, band, 4), measured where the `geometry` shows them.

    Images with a `sky` (batch, band, 3) are noise-free and get its noise. What is drawn for an
    image depends on its key, of `keys` (batch,), alone. Where nothing is to be changed both come
    back as they are.
    """
    images, brightness = jnp.asarray(images), jnp.asarray(brightness)
    if sky is None and not any(astuple(replace(augmentation, augment_depth=0))):
        return images, brightness
    given = keys, images.astype(jnp.float32)
    if sky is None:
        images, brightness = jax.vmap(partial(changed, augmentation))(*given, brightness)
    else:
        images = jax.vmap(partial(observed, augmentation))(*given, jnp.asarray(sky))
    if sky is None and not augmentation.pictures:
        return images, brightness
    return images, measure_in_step(images, geometry, bisected)


def changed(
    augmentation: Augmentation, key: Array, image: Array, brightness: Array
) -> tuple[Array, Array]:
    """Returns an image (height, width, band) that has noise, changed, and its brightness (band, 4),
    which follows from what is done: the level stays, the limits keep their distance from it in
    units of the noise (the lower) and of the light (the higher)."""
    level, noise, low, high = brightness.T
    unit, draw = noise_unit(brightness), Draw.of(augmentation, key, image.shape)
    rows, columns = draw.resampling()
    factor = 10 ** (-0.4 * (jnp.abs(draw.flux) + jnp.abs(draw.colour)))
    light = pixelwise(factor) * resampled(image - pixelwise(level), rows, columns)
    kept = jnp.multiply.outer((rows**2).sum(1), (columns**2).sum(1))
    kept = kept[..., None] * pixelwise(factor**2)
    more = augmentation.augment_noise * draw.noise
    variance = jnp.maximum(1 - kept, 0) + more**2
    grain = jnp.sqrt(variance) * jax.random.normal(draw.grain, image.shape)
    image = pixelwise(level) + light + pixelwise(unit) * grain
    new = jnp.sqrt(noise**2 * kept.mean((0, 1)) + unit**2 * variance.mean((0, 1)))
    limits = level + (low - level) * new / unit, level + (high - level) * factor
    brightness = jnp.stack([level, new, *limits], axis=-1)
    if augmentation.pictures:
        image = perhaps_picture(draw.picture, image, level, noise_unit(brightness))
    return image, brightness


def observed(augmentation: Augmentation, key: Array, image: Array, sky: Array) -> Array:
    """Returns a noise-free image (height, width, band), whose sky is zero, changed, and then taken
    at a depth near to that of its `sky` (band, 3), with the noise of sky and photons.

    Pixels of exactly zero hold no data and stay so.
    """
    draw = Draw.of(augmentation, key, image.shape)
    rows, columns = draw.resampling()
    light = resampled(image, rows, columns) * pixelwise(10 ** (-0.4 * (draw.flux + draw.colour)))
    nearest = [jnp.round(place).astype(int).clip(0, len(place) - 1) for place in draw.places]
    lost = (image == 0)[nearest[0][:, None], nearest[1][None, :]]
    light = jnp.where(lost, 0.0, jnp.maximum(light, 1e-20))
    # The light of an old pixel's area is recorded on one of the new size, which gets less of it.
    sigma, width, gain = sky.T
    fewer = draw.zoom * 10 ** (0.4 * augmentation.augment_depth * draw.depth)
    image = add_noise(draw.grain, light, fewer * sigma, width, gain / fewer**2)
    if augmentation.pictures:
        image = perhaps_picture(draw.picture, image, jnp.zeros_like(sigma), fewer * sigma)
    return image


class Draw(NamedTuple):
    """What is drawn for a cutout.

    `places`: where its new rows and columns lie among the old ones. `zoom`: the old pixel's side
    over the new one's. `blur`: sigma in old pixels. `flux` and `colour` (band,) in magnitudes,
    either way. `noise` from 0 to 1 and `depth` from -1 to 1 in units of the largest. `grain` and
    `picture` are keys.
    """

    places: tuple[Array, Array]
    zoom: Array
    blur: Array
    flux: Array
    colour: Array
    noise: Array
    depth: Array
    grain: Array
    picture: Array

    @classmethod
    def of(cls, augmentation: Augmentation, key: Array, shape: tuple[int, ...]) -> "Draw":
        """Returns the draw of a key for a cutout of this shape (height, width, band)."""
        own, grain, picture = jax.random.split(jax.random.fold_in(key, 1), 3)
        height, width, bands = shape
        down, across, zoom, flux, depth, blur, noise, *tint = jax.random.uniform(
            own, (7 + bands,), minval=-1.0
        )
        zoom = jnp.exp(augmentation.augment_zoom * zoom)
        most = augmentation.augment_shift * min(height, width)

        def places(length: int, shift: Array) -> Array:
            middle = (length - 1) / 2
            return (jnp.arange(length) - middle - most * shift) / zoom + middle

        return cls(
            places=(places(height, down), places(width, across)),
            zoom=zoom,
            blur=augmentation.augment_seeing * jnp.abs(blur),
            flux=augmentation.augment_flux * flux,
            colour=augmentation.augment_colour * jnp.stack(tint),
            noise=jnp.abs(noise),
            depth=depth,
            grain=grain,
            picture=picture,
        )

    def resampling(self) -> tuple[Array, Array]:
        """Returns the weights (new, old) of rows and of columns: blurred and then interpolated."""
        rows, columns = (
            jnp.matmul(interpolation(at), gaussian(self.blur, len(at)), precision=EXACT)
            for at in self.places
        )
        return rows, columns


def interpolation(places: Array) -> Array:
    """Returns the weights (new, old) of cubic convolution (Keys 1981) for values at `places` (new,)
    among as many old ones. What lies outside is zero."""
    distance = jnp.abs(jnp.subtract.outer(places, jnp.arange(len(places))))
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0.0))


def gaussian(sigma: Array, length: int) -> Array:
    """Returns the weights (length, length) of a blur, which leaves a uniform sky as it is."""
    distance = np.subtract.outer(np.arange(length), np.arange(length))
    weights = jnp.exp(-0.5 * (distance / jnp.maximum(sigma, 1e-3)) ** 2)
    return weights / weights.sum(1, keepdims=True)


def resampled(image: Array, rows: Array, columns: Array) -> Array:
    """Returns an image (height, width, band) weighted along both axes."""
    return jnp.einsum("ij,jkb,lk->ilb", rows, image, columns, precision=EXACT)


def pixelwise(values: Array) -> Array:
    """Returns values (band,) as an image of one pixel."""
    return values[None, None]


def perhaps_picture(key: Array, image: Array, level: Array, scale: Array) -> Array:
    """Returns the image, or as often a picture of it."""
    which, settings = jax.random.split(key)
    picture = as_picture(settings, image, level, scale)
    return jnp.where(jax.random.bernoulli(which), picture, image)


def flip_bits(keys: Array) -> Array:
    """Returns for each image (batch, 3) which of the eight symmetries of the square it shows."""
    return jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 0), shape=(3,)))(keys)


def flipped(images: Array, flips: Array) -> Array:
    """Returns images (batch, S, S, band), each mirrored and transposed as its `flips` say.

    Each pixel is fetched from where it was. To choose between images that are mirrored whole would
    have the compiler compute what they show, noise and stretch, once for every choice.
    """

    def of_one(image: Array, flip: Array) -> Array:
        forward = jnp.arange(len(image))
        row, column = (jnp.where(mirrored, forward[::-1], forward) for mirrored in flip[:2])
        rows = jnp.where(flip[2], row[None, :], row[:, None])
        columns = jnp.where(flip[2], column[:, None], column[None, :])
        return image[rows, columns]

    return jax.vmap(of_one)(images, flips)
