"""Depths turned into noise."""

import numpy as np
import pytest

from lensjax.sky.survey import SURVEYS, point_source_sky_sigma


def test_point_source_at_depth_has_its_signal_to_noise():
    """Matched filtering of a Gaussian PSF in noise, summed over pixels."""
    (sigma,) = point_source_sky_sigma((25.0,), 5.0, (27.0,), (4.0,))
    y, x = np.mgrid[-30:31, -30:31]
    psf = np.exp(-(x**2 + y**2) / (2 * (4.0 / 2.3548) ** 2))
    psf *= 10 ** (0.4 * 2.0) / psf.sum()
    assert np.sqrt((psf**2).sum()) / sigma == pytest.approx(5, rel=1e-3)


@pytest.mark.parametrize("survey", SURVEYS.values(), ids=SURVEYS)
def test_every_band_has_every_number(survey):
    for name in ("wavelengths", "zero_points", "seeing", "sky_sigma", "noise_width", "gains"):
        assert len(getattr(survey, name)) == len(survey.bands), name
    assert survey.bands[survey.selection_index] == survey.selection_band
