"""Cuts that keep a stated share of the lenses, against draws of lenses and exact binomials."""

import numpy as np
import pytest
from mapie.risk_control import BinaryClassificationController
from scipy import special, stats

from lensjax.trust import completeness
from lensjax.trust.completeness import TooFewLenses, cut, cut_of_strata


@pytest.mark.parametrize(
    ("lenses", "share", "place"),
    [(28, 0.9, 0), (29, 0.9, 1), (46, 0.9, 2), (298, 0.99, 0), (299, 0.99, 1), (2994, 0.999, 0)],
)
def test_the_place_of_the_cut(lenses, share, place):
    assert completeness._place(lenses, share, 0.05) == place


def test_the_place_is_the_largest_that_keeps_the_promise():
    for lenses in range(0, 400, 7):
        place = completeness._place(lenses, 0.9, 0.05)
        fails = [stats.binom.cdf(k - 1, lenses, 0.1) <= 0.05 for k in range(1, lenses + 1)]
        assert place == sum(fails)


def test_the_cut_is_that_of_mapie():
    rng, lenses = np.random.default_rng(0), 300
    labels = np.repeat([1, 0], lenses)
    scores = special.expit(rng.normal(2 * labels))
    places = np.sort(scores[:lenses])
    controller = BinaryClassificationController(
        predict_function=lambda scores: np.c_[1 - scores, scores],
        risk="recall",
        target_level=0.9,
        confidence_level=0.95,
        list_predict_params=places,
        fwer_method="fixed_sequence",
    )
    controller.calibrate(scores[:, None], labels)
    assert cut(scores[:lenses], 0.9).score == max(controller.valid_predict_params)


def test_too_few_lenses_are_refused_with_how_many_it_takes():
    with pytest.raises(TooFewLenses, match="20 lenses are too few .* it takes 29"):
        cut(np.zeros(20), 0.9)
    with pytest.raises(TooFewLenses, match="theta_e < 1: 20 lenses"):
        cut_of_strata({"all": np.zeros(200), "theta_e < 1": np.zeros(20)}, 0.9)


def test_a_lens_without_a_score_is_a_lost_one():
    lenses = np.arange(100.0)
    lenses[50:] = np.nan
    assert cut(lenses, 0.9).score == -np.inf


def test_nine_strata_keep_their_promise_at_once():
    rng, failed = np.random.default_rng(0), 0
    centres = np.linspace(0, 4, 9)
    for _ in range(400):
        strata = {str(c): rng.normal(c, size=200) for c in centres}
        _, cuts = cut_of_strata(strata, 0.9)
        kept = [stats.norm.sf(cuts[str(c)].score, c) for c in centres]
        failed += min(kept) < 0.9
    assert failed / 400 <= 0.06
