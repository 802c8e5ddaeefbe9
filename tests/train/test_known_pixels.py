"""What members keep of pixels: of fluxes, and of pictures of them."""

import jax
import numpy as np
import pytest

from lensjax.cutouts import Cutouts
from lensjax.data.brightness import LEVEL, noise_unit
from lensjax.data.catalog import open_source
from lensjax.data.pixel_statistics import STATISTICS
from lensjax.data.preprocess import Preprocessing
from lensjax.train import known_pixels
from lensjax.train.data import Labelled, read_labelled
from lensjax.train.pictures import as_picture
from tests import pixels

SIZE, COUNT = 32, 20
BANDS = ("g", "r", "i")


@pytest.fixture(scope="module")
def galaxies() -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    light = np.exp(-np.hypot(x, y) / 3)[..., None] * np.array([20.0, 60.0, 90.0])
    noise = np.random.default_rng(0).normal(size=(COUNT, SIZE, SIZE, 3))
    return (light + noise).astype(np.float32)


def labelled(images: np.ndarray, folder) -> Labelled:
    columns = {"id": np.arange(COUNT), "label": np.arange(COUNT) % 2}
    path = Cutouts(images, BANDS, 0.2, columns).save(folder / "cutouts.npz")
    sees = Preprocessing.unnormalised(BANDS, SIZE, None, "asinh", 2.0)
    return read_labelled(open_source(path, needed=None), sees, "auto")


def by_hand(images: np.ndarray) -> list[list[float]]:
    return [[pixels.statistics(image)[name] for name in STATISTICS] for image in images]


def test_half_of_the_pictures_are_as_they_are_and_half_resampled(galaxies, tmp_path):
    data = labelled(galaxies, tmp_path)
    fluxes = known_pixels.known_pixels(data, pictures=False)
    np.testing.assert_allclose(fluxes, by_hand(galaxies), rtol=1e-5, atol=1e-6)
    found = known_pixels.known_pixels(data, pictures=True)
    np.testing.assert_array_equal(found[:COUNT], fluxes)
    assert len(found) == 2 * COUNT
    # Those at even places: each is drawn by a key of its own.
    brightness = data.arrays["brightness"][::2]
    pictures = jax.vmap(as_picture)(
        jax.random.split(jax.random.key(0), COUNT // 2),
        *(galaxies[::2], brightness[..., LEVEL], noise_unit(brightness)),
    )
    same, resampled = np.split(found[COUNT:], 2)
    np.testing.assert_allclose(same, by_hand(np.asarray(pictures)), rtol=1e-4, atol=1e-5)
    assert (found[COUNT:, known_pixels.PICTURE] == 1).all()
    smooth = list(STATISTICS).index("roughness")
    assert np.median(resampled[:, smooth]) < 0.9 * np.median(same[:, smooth])


def test_of_what_is_a_picture_no_picture_is_made(galaxies, tmp_path):
    images = np.clip(np.round(galaxies * 2 + 9), 0, 255)
    images[0] = galaxies[0]
    found = known_pixels.known_pixels(labelled(images, tmp_path), pictures=True)
    assert len(found) == COUNT + 1
    assert found[:, known_pixels.PICTURE].tolist() == [0.0] + [1.0] * COUNT
