"""What a run says of its scores besides them."""

import numpy as np
import pytest

from lensjax.errors import UsageError
from lensjax.trust import run
from tests.scored import scored


def test_a_survey_whose_galaxies_score_high_is_not_that_of_the_validation():
    rng = np.random.default_rng(0)
    of_others, alike = rng.normal(-2, 1, 2000), rng.normal(-2, 1, 5000)
    validated = np.append(of_others, np.full(900, 9.0)), np.append(np.zeros(2000), np.ones(900))

    def warned(logit, labels=None):
        return run.unlike_validation(scored(5001, [5000], logit=logit), labels, validated)

    alike = np.append(alike, 0.0)
    assert warned(alike) == []
    (said,) = warned(alike + 2)
    assert "unless so many are lenses" in said and f"{(alike[:-1] > -2).mean():.1%}" in said
    # Lenses that are known to be some are no reason to warn, and others that score high are.
    lens = np.arange(5001) < 2500
    assert warned(alike + 5 * lens, lens) == []
    (said,) = warned(alike + 2 * ~lens, lens)
    assert "that are no lenses" in said and "unless" not in said


def test_a_prevalence_needs_logits_of_known_odds():
    assert run.likelihood(scored(3), None, None).columns == {}
    with pytest.raises(UsageError, match="share validation data"):
        run.likelihood(scored(3), None, 0.01)
