"""A cascade loses no more of the listed lenses than it says, and is as fast as what it passes on
lets it be."""

import numpy as np
import pytest

from lensjax.errors import UsageError
from lensjax.trust import cascade
from lensjax.trust.cascade import CascadeOptions

CHEAP, FULL, CORRELATION = 2.7, 3.5, 0.9


def scores(rng: np.random.Generator, lenses: int, others: int) -> tuple[np.ndarray, ...]:
    """Returns log-odds of a cheap member and of all, and labels: normal, of unit spread."""
    label = np.repeat([1.0, 0.0], [lenses, others])
    cheap, own = rng.standard_normal((2, label.size))
    fused = CORRELATION * cheap + np.sqrt(1 - CORRELATION**2) * own
    return CHEAP * (cheap + CHEAP * (label - 0.5)), FULL * (fused + FULL * (label - 0.5)), label


def test_it_loses_more_than_it_says_in_one_of_twenty_draws():
    rng, options = np.random.default_rng(0), CascadeOptions(cascade_loss=0.05)
    cheap, fused, _ = scores(rng, 1_000_000, 0)
    listed, draws = np.sort(cheap[fused >= 0]), 3000
    cuts = [cascade.cut(*scores(rng, 400, 50), options, 0.95)[0] for _ in range(draws)]
    lost = np.searchsorted(listed, cuts) / listed.size
    assert 0.02 < (lost > 0.05).mean() <= 0.06


def test_what_it_passes_on_and_how_fast_that_is():
    """Of a list from a probability of 0.99 on the model passes 5 % on for a loss of 1 %, and is 5.2
    times as fast where costs are 1:6.7."""
    rng, options = np.random.default_rng(1), CascadeOptions(cascade_listed=0.99)
    cut, lenses = cascade.cut(*scores(rng, 4500, 3000), options, 0.95)
    assert 2900 < lenses < 3100
    cheap, _, _ = scores(rng, 0, 200_000)
    passed = float((cheap >= cut).mean())
    assert passed == pytest.approx(0.05, abs=0.01)
    assert cascade.speed_up(1 / 6.7, passed) == pytest.approx(5.2, abs=0.3)
    assert cascade.speed_up(0.3, 1.0) == pytest.approx(1.0)


def test_only_listed_lenses_count():
    label, fused = np.array([1] * 30 + [0] * 30 + [1] * 30), np.repeat([2.0, 2.0, -2.0], 30)
    cheap = np.r_[np.arange(30), -np.arange(60)]
    found = cascade.cut(cheap, fused, label, CascadeOptions(cascade_loss=0.1), 0.95)
    assert found == (0.0, 30)
    with pytest.raises(UsageError, match="it takes 299"):
        cascade.cut(cheap, fused, label, CascadeOptions(), 0.95)
    with pytest.raises(UsageError, match="0 lenses"):
        listed = CascadeOptions(cascade_loss=0.1, cascade_listed=0.9)
        cascade.cut(cheap, fused, label, listed, 0.95)


def test_a_member_is_named_by_its_column_or_by_an_architecture_of_one():
    members = {"resnet18.0": "resnet18", "resnet18.1": "resnet18", "vit_b16": "vit_b16"}
    assert cascade.named("resnet18.1", members) == "resnet18.1"
    assert cascade.named("vit_b16", members) == "vit_b16"
    for wanted, said in (("resnet18", "there are 2 of it"), ("resnet34", "there is none")):
        with pytest.raises(UsageError, match=f"{said}; name auto or one of resnet18.0, resnet18.1"):
            cascade.named(wanted, members)
