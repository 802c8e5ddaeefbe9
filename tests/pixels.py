"""The statistics of pixels by their definitions: one cutout and one line at a time, in float64."""

import numpy as np


def statistics(image: np.ndarray) -> dict[str, float]:
    """Returns the statistics of a cutout (S, S, band) of at most 2048 pixels, which is not
    resampled."""
    image = np.asarray(image, np.float64)
    level = np.median(image, (0, 1))
    noise = 1.4826 * np.median(np.abs(image - level), (0, 1))
    low, high = np.percentile(image, (0.5, 99.5), (0, 1))
    assert (high > level).all() and image[..., 0].size <= 2048
    unit = np.maximum(noise, (high - level) / 256)
    pixels = np.clip((image - level) / unit, -1e4, 1e4)
    rough, equal = np.mean([_neighbours(pixels), _neighbours(pixels.swapaxes(0, 1))], 0)
    some = pixels[::2, ::2]
    bright = some > 5
    alone = [bright[..., n] & ~(np.delete(some, n, -1) >= 2).any(-1) for n in range(len(level))]
    brightest = pixels.max((0, 1))
    side = len(pixels) // 8
    start = (len(pixels) - side) // 2
    middle = pixels[start : start + side, start : start + side].mean((0, 1)).max()
    is_whole = (np.round(2 * level) == 2 * level).all()
    return {
        "picture": float(is_whole and low.min() >= 0 and high.max() <= 255),
        "roughness": rough.mean(),
        "roughness_ratio": rough.max() / rough.min(),
        "equal": equal.max(),
        "signal": bright.mean(),
        "dark": (some < -5).mean(),
        "plateau": (some >= brightest - 0.02 * np.maximum(brightest, 1)).mean(),
        "middle": max(middle, 0) / (1 + max(middle, 0)),
        "one_band": max(each.mean() for each in alone),
        "column": max(_line(pixels), _line(pixels.swapaxes(0, 1))),
    }


def _neighbours(pixels: np.ndarray) -> list[list[float]]:
    """Returns the roughness and the share of equal neighbours along the lines, of each band."""
    found = []
    for band in np.moveaxis(pixels[::2], -1, 0):
        steps = [(a, b) for line in band for a, b in zip(line, line[1:], strict=False)]
        of_sky = [(a - b) ** 2 for a, b in steps if abs(a) < 3 and abs(b) < 3]
        found.append(
            (max(np.mean(of_sky) / 2, 1e-3), np.mean([abs(a - b) < 1e-5 for a, b in steps]))
        )
    return np.transpose(found).tolist()


def _line(pixels: np.ndarray) -> float:
    """Returns by how much the highest column at the first or the last rows exceeds, all along, what
    is on either side of it; 0 where none does."""
    size, found = len(pixels), 0.0
    length, apart = size // 6, size // 16
    for end in (pixels[:length], pixels[-length:]):
        for place in range(apart, size - apart):
            beside = np.maximum(end[:, place - apart], end[:, place + apart])
            found = max(found, (end[:, place] - beside).min(0).max())
    return found
