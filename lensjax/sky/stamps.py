"""Stamps of real galaxies, made fit to serve as lensed sources."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from scipy import ndimage

from lensjax.data.splits import held_back
from lensjax.errors import UsageError

SIDE = 128
NOISE_CUT = 3.0
"""Pixels below this many noise sigmas are taken as sky: a lens would stretch noise into arcs."""

HUBBLE = "hubble"
HUBBLE_PIXEL_SCALE = 0.04
"""arcsec/pixel at which a galaxy of the deep field becomes a source. Chosen: its picture has about
four times coarser pixels, and galaxies as bright in it lie nearer than sources do."""


class Stamps(NamedTuple):
    """Real galaxies as sources: `images` (n, side, side) float32, nonnegative, each of sum one, of
    `pixel_scale` arcsec per pixel. `name` (n,) is that of the galaxy."""

    images: np.ndarray
    pixel_scale: float
    name: np.ndarray

    def take(self, chosen: np.ndarray) -> "Stamps":
        """Returns the chosen ones, by index or mask."""
        return Stamps(self.images[chosen], self.pixel_scale, self.name[chosen])

    def split(self, fraction: float, purpose: str) -> tuple["Stamps", "Stamps"]:
        """Returns those that are not held back for a purpose, and those that are, by their names.

        Raises UsageError where there would be none of either.
        """
        is_held = self._held_back(fraction, purpose)
        return self.take(~is_held), self.take(is_held)

    def of_own_side(self, groups: np.ndarray, fraction: float, purpose: str) -> np.ndarray:
        """Returns which stamp (n,) each of `groups` shows: those that are held back for a purpose
        show galaxies that are, the others the others. Raises UsageError as `split`."""
        is_held = held_back(groups, fraction, purpose)
        if is_held.all() or not is_held.any():
            return groups % len(self.name)
        ours = self._held_back(fraction, purpose)
        held, others = (np.flatnonzero(side) for side in (ours, ~ours))
        return np.where(is_held, held[groups % len(held)], others[groups % len(others)])

    def _held_back(self, fraction: float, purpose: str) -> np.ndarray:
        is_held = held_back(self.name, fraction, purpose)
        if is_held.all() or not is_held.any():
            raise UsageError(
                f"of {len(is_held)} source galaxies {is_held.sum()} would be held back for "
                f"{purpose}, at a share of {fraction:g}: both sides need some; give more galaxies"
            )
        return is_held


def hubble_stamps() -> Stamps:
    """Returns galaxies of the Hubble Deep Field, 128 pixels across.

    The picture ships with scikit-image; light that stands out of the sky is cut into objects.
    Small ones show no structure, large ones are nearby, and stars are saturated.
    """
    from skimage.data import hubble_deep_field

    light = hubble_deep_field().astype(np.float64).mean(axis=-1)
    sky = np.median(light)
    noise = 1.4826 * np.median(np.abs(light - sky))
    objects, _ = ndimage.label(ndimage.gaussian_filter(light, 1.5) > sky + 4 * noise)
    stamps = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(objects), start=1):
        bounds = objects[rows, columns] == number
        own = np.where(bounds, light[rows, columns] - sky, 0.0).clip(0.0)
        if 150 <= bounds.sum() <= 1500 and own.max() < 220:
            stamps.append(_centred(own) / own.sum())
    return _named(HUBBLE, stamps, HUBBLE_PIXEL_SCALE)


def read_stamps(path: Path, pixel_scale: float) -> Stamps:
    """Returns the galaxies of a file, their sky removed, 128 pixels across.

    `path` is a FITS file with a stamp in each image extension, as the COSMOS galaxies of GalSim are
    kept, or an .npy stack (n, height, width). Raises UsageError where it holds none.
    """
    try:
        stamps = [prepare_stamp(stamp) for stamp in _planes(path)]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--sources {path} cannot be read: {error}") from error
    bright = [stamp / stamp.sum() for stamp in stamps if stamp.sum() > 0]
    if not bright:
        raise UsageError(f"--sources {path} holds no stamp (image extensions, or an .npy stack)")
    return _named(path.stem, bright, pixel_scale)


def _named(whose: str, stamps: list[np.ndarray], pixel_scale: float) -> Stamps:
    """Returns the stamps, each once: what stands in a file twice is one galaxy."""
    images = np.stack(stamps).astype(np.float32)
    first: dict[bytes, int] = {}
    for row, image in enumerate(images):
        first.setdefault(image.tobytes(), row)
    rows = list(first.values())
    return Stamps(images[rows], pixel_scale, np.array([f"{whose}-{row:04d}" for row in rows]))


def prepare_stamp(stamp: np.ndarray) -> np.ndarray:
    """Returns (128, 128) float64: sky level taken off, sky pixels zero, cut or padded about the
    centre. Level and noise are the median and 1.4826 MAD of the outermost pixels."""
    stamp = np.nan_to_num(np.asarray(stamp, np.float64))
    edge = np.concatenate([stamp[0], stamp[-1], stamp[:, 0], stamp[:, -1]])
    level = np.median(edge)
    noise = 1.4826 * np.median(np.abs(edge - level))
    return _centred(np.where(stamp - level > NOISE_CUT * noise, stamp - level, 0.0))


def _centred(light: np.ndarray) -> np.ndarray:
    """Returns (128, 128): the middle of `light`, with zeros around it where it is smaller."""
    for axis in (0, 1):
        excess = light.shape[axis] - SIDE
        start = max(excess // 2, 0)
        light = np.take(light, np.arange(start, start + min(SIDE, light.shape[axis])), axis)
        before = max(-excess // 2, 0)
        widths = [(0, 0), (0, 0)]
        widths[axis] = (before, SIDE - light.shape[axis] - before)
        light = np.pad(light, widths)
    return light


def _planes(path: Path) -> list[np.ndarray]:
    if path.suffix == ".npy":
        stack = np.load(path, allow_pickle=False)
        return list(stack) if stack.ndim == 3 else []
    with fits.open(path, memmap=False) as hdus:
        images = [hdu.data for hdu in hdus if getattr(hdu, "is_image", False)]
    return [image for image in images if image is not None and image.ndim == 2]
