"""What the benchmark of real images says of scores that are known."""

import numpy as np
import pytest
from astropy.table import Table

from benchmarks import real_lenses
from lensjax.errors import UsageError


def scored(probability, **columns) -> Table:
    names = np.arange(len(probability)).astype(str)
    return Table({"id": names, "probability": np.array(probability), **columns})


LENSES = scored([0.9, 0.8, 0.4, 0.2], group=[3, 2, 1, 0])
OTHERS = scored([0.1, 0.3, 0.5, 0.7], group=[0, 1, 2, 3])


def test_figures_of_few_scores_are_those_counted_by_hand():
    assert real_lenses.auroc(LENSES, OTHERS, "probability") == pytest.approx(11 / 16)
    assert real_lenses.above(LENSES, OTHERS, "probability") == 0.5
    assert real_lenses.above_own(LENSES, OTHERS, "probability") == 1.0
    assert real_lenses.above_own(OTHERS, LENSES, "probability") == 0.0


def test_what_shares_a_group_is_drawn_together():
    table = scored(np.zeros(6), group=["a", "a", "b", "c", "c", "c"])
    rng = np.random.default_rng(0)
    drawn = [tuple(np.bincount(real_lenses.resample(rng, table), minlength=6)) for _ in range(50)]
    assert all(a == b and c == d == e for a, b, _, c, d, e in drawn)
    assert len(set(drawn)) > 5


def test_the_interval_holds_the_figure_and_each_score_has_one():
    lenses, others = LENSES.copy(), OTHERS.copy()
    lenses["vit_b16_probability"], others["vit_b16_probability"] = [0.1, 0.9, 0.6, 0.7], 0.5
    found = real_lenses.compared(real_lenses.auroc, lenses, others)
    assert list(found) == ["ensemble", "vit_b16"]
    figure, low, high = (float(word.strip("[],")) for word in found["ensemble"].split())
    assert figure == pytest.approx(11 / 16, abs=1e-3) and 0 <= low < figure < high <= 1


def test_a_folder_without_any_set_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(real_lenses, "load_ensemble", lambda *_, **__: None)
    with pytest.raises(UsageError, match="holds none of the sets"):
        real_lenses.main(["--images", str(tmp_path)])
