"""Cutouts without noise: which they are, and what their table says of the noise they are to get."""

import numpy as np
from astropy.table import Table

from lensjax.errors import UsageError

NOISE_FREE = "noise_free"
COLUMNS = ("sky_sigma", "noise_width", "gain")


def noise_of(table: Table, bands: tuple[str, ...]) -> np.ndarray | None:
    """Returns sky sigma, noise width and gain (n, band, 3) float32, as `survey.Observation` has
    them, of the cutouts of a table; None where they have noise.

    Raises UsageError where some have noise and others do not, or it is not said what is missing.
    """
    if NOISE_FREE not in table.colnames:
        return None
    is_bare = np.asarray(table[NOISE_FREE]).astype(np.float64) == 1
    if not is_bare.any():
        return None
    if not is_bare.all():
        raise UsageError(
            f"{int(is_bare.sum())} of {len(table)} cutouts are noise-free by the column "
            f"{NOISE_FREE}: give those with noise and those without apart"
        )
    names = [f"{name}_{band}" for band in bands for name in COLUMNS]
    missing = [name for name in names if name not in table.colnames]
    if missing:
        raise UsageError(f"noise-free cutouts lack the column {', '.join(missing)}")
    columns = [np.asarray(table[name], np.float32) for name in names]
    return np.stack(columns, axis=-1).reshape(len(table), len(bands), len(COLUMNS))


def refuse_noise_free(table: Table) -> None:
    """Raises UsageError where cutouts are noise-free: no network has seen such."""
    if NOISE_FREE in table.colnames and np.asarray(table[NOISE_FREE]).astype(float).any():
        raise UsageError(
            f"cutouts without noise (by the column {NOISE_FREE}) are for training alone, which "
            "adds it: score test.npz of the same sky, which has noise"
        )
