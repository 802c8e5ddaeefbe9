"""Options of simulate.py become a survey."""

import dataclasses

import numpy as np
import pytest

from lensjax.errors import UsageError
from lensjax.simulation import SimulateConfig, simulated, survey_of
from lensjax.sky.survey import GROUND


def test_options_change_what_they_name_and_nothing_else():
    assert survey_of(SimulateConfig(survey="ground")) == GROUND
    changed = survey_of(
        SimulateConfig(
            survey="ground", shares="ordinary=3, spiral=1", seeing=0.7, strictness=0.0,
            artefact_fraction=0.0, noise_free=True, size=48,
        )
    )  # fmt: skip
    assert changed.shares == (("ordinary", 3.0), ("spiral", 1.0))
    assert changed.seeing == (0.7, 0.7, 0.7) and changed.seeing_range == 0
    assert changed.strictness == 0 and changed.artefact_fraction == 0 and not changed.noise
    assert changed.size == 48 and changed.arc_snr == GROUND.arc_snr


@pytest.mark.parametrize(
    "shares, message",
    [("ordinary", "kind=share"), ("lens=1", "a kind is one of"), ("spirals=1", "a kind is one of"),
     ("spiral=-1", "not negative"), ("spiral=0", "zero")],
)  # fmt: skip
def test_shares_that_are_none_are_one_line(shares, message):
    with pytest.raises(UsageError, match=message):
        survey_of(SimulateConfig(shares=shares))


@pytest.mark.slow
def test_of_a_noise_free_sky_the_test_has_noise():
    config = SimulateConfig(count=30, size=24, seed=2, test_fraction=0.4)
    _, noisy, _ = simulated(config)
    survey, sky, test = simulated(dataclasses.replace(config, noise_free=True))
    np.testing.assert_array_equal(sky.truth["noise_free"], ~test)
    left = (noisy.images - sky.images) / np.array(survey.sky_sigma)
    assert np.abs(left[test]).max() < 1e-2
    # At the edge, where the photons of the arcs add little to the noise of the sky.
    assert np.median(left[~test][:, :3].std((1, 2))) == pytest.approx(1, abs=0.25)
    assert "noise_free" not in noisy.truth
