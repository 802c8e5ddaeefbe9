"""Groups stay whole, sides are stable, shares are kept."""

import numpy as np

from lensjax.data.splits import held_back


def test_groups_stay_together_and_shares_are_kept():
    groups = np.arange(20_000) % 5_000
    chosen = held_back(groups, 0.2, "test")
    by_group = chosen.reshape(4, 5_000)
    assert (by_group == by_group[0][None]).all()
    assert abs(chosen.mean() - 0.2) < 0.02


def test_a_side_depends_on_the_name_alone():
    names = np.array(["ngc1", "ngc2", "ugc7", "é,x"])
    every = held_back(names, 0.5, "test")
    for index in range(4):
        assert held_back(names[index : index + 1], 0.5, "test")[0] == every[index]


def test_purposes_are_independent():
    groups = np.arange(20_000)
    rest = ~held_back(groups, 0.3, "test")
    assert abs(held_back(groups[rest], 0.3, "validation").mean() - 0.3) < 0.02


def test_nothing_and_everything():
    groups = np.arange(100)
    assert not held_back(groups, 0.0, "test").any() and held_back(groups, 1.0, "test").all()
