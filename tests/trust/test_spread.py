"""Intervals and disagreement against their definitions."""

from types import SimpleNamespace

import numpy as np
import pytest

from lensjax.trust import spread
from tests.scored import scored


def infos(**architectures):
    return {name: SimpleNamespace(architecture=each) for name, each in architectures.items()}


def test_intervals_are_formed_in_logits_and_never_leave_0_to_1():
    logit, std = np.array([0.0, 9.0, -3.0], np.float32), np.array([1.0, 4.0, 0.0], np.float32)
    found = spread.said(scored(3, members=("a",), logit=logit, logit_std=std), infos(a="x")).columns
    assert set(found) == {"probability_low", "probability_high"}
    np.testing.assert_allclose(found["probability_low"], 1 / (1 + np.exp(std - logit)), rtol=1e-6)
    np.testing.assert_allclose(found["probability_high"], 1 / (1 + np.exp(-std - logit)), rtol=1e-6)
    assert found["probability_high"].max() <= 1


def test_disagreement_is_between_architectures_and_not_between_their_seeds():
    names, logits = ("x.0", "x.1", "y"), np.array([[1, 5, 0], [3, -5, 0], [4, 0, np.nan]])
    kinds = infos(**{"x.0": "x", "x.1": "x", "y": "y"})
    found = spread.said(scored(3, members=names, member_logits=logits), kinds).columns
    assert found["disagreement"].tolist() == [pytest.approx(2**0.5), 0, None]
    by_member = found["member_disagreement"].tolist()
    assert by_member == [pytest.approx((7 / 3) ** 0.5), pytest.approx(5), None]


def test_one_of_each_architecture_has_one_disagreement_and_seeds_alone_another():
    kinds = infos(a="x", b="y")
    assert "member_disagreement" not in spread.said(scored(4, members=("a", "b")), kinds).columns
    kinds = infos(a="x", b="x")
    assert "disagreement" not in spread.said(scored(4, members=("a", "b")), kinds).columns
