"""What a run says of its scores besides them."""

import numpy as np
import pytest

from lensjax.errors import UsageError
from lensjax.trust import run
from tests.scored import scored


def test_a_survey_whose_galaxies_score_high_is_not_that_of_the_validation():
    rng = np.random.default_rng(0)
    validated, alike = rng.normal(-2, 1, 2000), rng.normal(-2, 1, 5000)
    unknown = np.full(5000, -1)
    assert run.unlike_validation(alike, unknown, validated) == []
    (said,) = run.unlike_validation(alike + 2, unknown, validated)
    assert "unless so many are lenses" in said and f"{(alike > -2).mean():.1%}" in said
    # Lenses that are known to be some are no reason to warn, and others that score high are.
    lens = np.arange(5000) < 2500
    assert run.unlike_validation(alike + 5 * lens, lens, validated) == []
    (said,) = run.unlike_validation(alike + 2 * ~lens, lens, validated)
    assert "that are no lenses" in said and "unless" not in said


def test_a_prevalence_needs_logits_of_known_odds():
    assert run.likelihood(scored(3), None, None).columns == {}
    with pytest.raises(UsageError, match="share validation data"):
        run.likelihood(scored(3), None, 0.01)
