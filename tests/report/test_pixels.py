"""What a page holds of a cutout says the same as the cutout, to half the noise of its sky."""

import base64
import json
import zlib

import numpy as np
import pytest

from lensjax.data.planes import Cutout
from lensjax.report.pixels import GAP, MOST_SIDE, packed


def steps(look: dict) -> np.ndarray:
    """Returns (band, height, width) whole numbers, one after the other as the browser reads them,
    with the arithmetic of 16 bits."""
    width, height = look["size"]
    data = zlib.decompress(base64.b64decode(look["data"]))
    half = len(data) // 2
    found = np.zeros((half // (width * height), height, width), int)
    for k, (low, high) in enumerate(zip(data[:half], data[half:], strict=True)):
        counted = low + 256 * high
        value = counted // 2 if counted % 2 == 0 else -(counted + 1) // 2
        band, y, x = np.unravel_index(k, found.shape)
        above, left = found[band, y - 1, x] if y else 0, found[band, y, x - 1] if x else 0
        value += (above + left) // 2
        found[band, y, x] = (value + 2**15) % 2**16 - 2**15
    return found


def galaxy(noise: float = 1.0, unit: float = 1.0) -> np.ndarray:
    y, x = np.mgrid[:20, :22]
    blob = 80 * np.exp(-((y - 10) ** 2 + (x - 11) ** 2) / 12)
    rng = np.random.default_rng(3)
    image = blob[:, :, None] * [0.4, 1.0] + rng.normal(5, noise, (20, 22, 2))
    return (unit * image).astype(np.float32)


def test_bands_come_back_within_a_quarter_of_the_noise_and_gaps_as_gaps() -> None:
    image = galaxy(unit=1e-12)
    image[3, 4, 0] = np.nan
    look = packed(Cutout(image, 0.2), ("g", "r"))
    found = steps(look)
    assert found[0, 3, 4] == GAP and (found == GAP).sum() == 1
    assert look["size"] == (22, 20) and look["scale"] == 0.2
    for band, plane in enumerate(found):
        valid = plane != GAP
        step, sky = np.polyfit(plane[valid], image[:, :, band][valid].astype(float), 1)
        assert step == pytest.approx(0.5e-12, rel=0.3)  # half of the noise that was drawn
        rest = image[:, :, band][valid] - (sky + step * plane[valid])
        assert np.abs(rest).max() <= 0.55 * step
    json.dumps(look, allow_nan=False)


def test_finished_pictures_come_back_exactly() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    look = packed(Cutout(levels.astype(np.float32)), ("g", "r", "i"))
    assert look["levels"] and look["scale"] is None
    np.testing.assert_array_equal(steps(look) + 128, np.moveaxis(levels, 2, 0))
    assert look["mix"] == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("value", [np.nan, 0.0, 1e30])
def test_a_cutout_without_signal_or_with_an_absurd_pixel_is_packed(value: float) -> None:
    image = np.zeros((6, 6, 3), np.float32)
    image[2, 2] = value
    assert np.isfinite(steps(packed(Cutout(image, 0.2), ("g", "r", "i")))).all()


def test_large_cutouts_are_averaged_in_blocks() -> None:
    image = np.random.default_rng(0).normal(0, 1, (2 * MOST_SIDE + 1, 41, 1)).astype(np.float32)
    look = packed(Cutout(image, 0.1), ("r",))
    assert look["size"] == (13, 107) and look["averaged"] == 3
    assert look["scale"] == pytest.approx(0.3)
    found = steps(look)[0].ravel()
    expected = image[:321, :39, 0].reshape(107, 3, 13, 3).mean(axis=(1, 3)).ravel()
    assert np.corrcoef(found, expected)[0, 1] > 0.98
