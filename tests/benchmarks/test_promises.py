"""The benchmark of promises counts what is false in each list that it certifies."""

import numpy as np
import pytest
from astropy.table import Table
from scipy.special import expit

from benchmarks import promises
from lensjax import results
from tests.scored import scored


@pytest.mark.usefixtures("drawn_once")
def test_each_repetition_says_what_was_promised_and_what_came_true(tmp_path, capsys):
    rng, rows = np.random.default_rng(0), 8000
    lens = np.arange(rows) < 120
    logit = rng.normal(size=rows) + 6 * lens
    catalogue = Table({"id": np.arange(rows), "label": lens.astype(int)})
    predictions = scored(rows, logit=logit, probability=expit(logit))
    results.write_outputs(tmp_path, catalogue, predictions)
    promises.main(["--run", str(tmp_path), "--repetitions", "3"])
    head, _, *lines, last = capsys.readouterr().out.splitlines()
    assert head.startswith("8,000 cutouts, 120 lenses")
    assert last == "broken at some cut: 0 of 3"
    for line in lines:
        _, listed, at_most, false, purity, _, _ = line.split()
        assert int(false) <= int(at_most) <= int(listed) / 2
        assert float(purity) == round(1 - int(false) / int(listed), 2)
