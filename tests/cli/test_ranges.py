"""Ranges that other processes score into a run's ledger give the catalogue that the run alone
does."""

import numpy as np
import pytest

from lensjax import inference
from lensjax.cluster import ray_engine
from lensjax.errors import LensjaxError
from tests import networks
from tests.cli.conftest import CUTOUTS


@pytest.fixture(autouse=True)
def small_networks(undrawn):
    with networks.small():
        yield


def config(members, stack_file, output, **options) -> inference.InferenceConfig:
    given = {"checkpoints": members, "data": str(stack_file), "output": output, "batch_size": 4}
    return inference.InferenceConfig(**(given | {"mc_samples": 2} | options))


@pytest.fixture
def in_this_process(monkeypatch):
    """Has one actor, which is this process, score ranges from the last to the first; the fourth row
    it cannot."""

    def score(make, ledger, reject, folder, **_):
        score_rows, cut = make(), [0, 3, 4, 11, 12, CUTOUTS]
        for rows in reversed([range(*ends) for ends in zip(cut, cut[1:], strict=False)]):
            if rows == range(3, 4):
                ledger.add(3, reject(3, ray_engine.KILLED))
                ledger.save()
            else:
                assert score_rows(rows)["step"]["batch_size"] == 4
        return {"actors": 1}

    monkeypatch.setattr(ray_engine, "score", score)


def test_the_catalogue_is_that_of_one_run_but_for_the_row_at_fault(
    members, stack_file, tmp_path, in_this_process
):
    alone = inference.infer(config(members, stack_file, tmp_path / "alone")).run
    shared = inference.infer(config(members, stack_file, tmp_path / "shared", engine="ray")).run
    assert (alone["scored"], shared["scored"], shared["rejected"]) == (CUTOUTS, CUTOUTS - 1, 1)
    assert shared["devices"] == {name: CUTOUTS - 1 for name in alone["devices"]}
    rejects = (tmp_path / "shared" / "rejects.csv").read_text()
    assert ray_engine.KILLED in rejects
    one, other = (np.load(tmp_path / name / "predictions.npz") for name in ("alone", "shared"))
    others = np.arange(CUTOUTS) != 3
    for name in set(one.files) - {"members"}:
        np.testing.assert_array_equal(one[name][others], other[name][others])


def test_an_actor_that_sees_other_data_is_refused(members, stack_file, tmp_path):
    options = config(members, stack_file, tmp_path / "r")
    with pytest.raises(LensjaxError, match="finds other members or data than the run"):
        inference.range_scorer(options, {"data_sha256": "another"})
