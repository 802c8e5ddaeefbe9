"""Options of simulate.py become a survey."""

import pytest

from lensjax.errors import UsageError
from lensjax.simulation import SimulateConfig, survey_of
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
