"""Scores on disk survive a kill at any moment, and belong to one run only."""

import numpy as np
import pytest

from lensjax import resume
from lensjax.resume import PartialRows

RUN = {"members": {"resnet18": "ab"}, "seed": 0}


def rows(start: int, stop: int) -> dict[str, np.ndarray]:
    reasons = np.array(["truncated" if row % 3 == 0 else "" for row in range(start, stop)])
    return {
        "probability": np.arange(start, stop, dtype=np.float32),
        "readable": reasons == "",
        "reasons": reasons,
    }


def assert_rows(parts: PartialRows, stop: int) -> None:
    found, wanted = parts.columns(), rows(0, stop)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


def test_rows_come_back_in_order_after_a_restart(tmp_path):
    parts = PartialRows(tmp_path / "p", RUN, True)
    for start in (0, 4):
        parts.add(rows(start, start + 4))
        parts.save()
    parts.add(rows(8, 10))  # never saved: the process is killed here
    again = PartialRows(tmp_path / "p", RUN, True)
    assert again.rows == 8
    again.add(rows(8, 10))
    assert again.rows == 10
    assert_rows(again, 10)


def test_saving_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_INTERVAL_SECONDS", -1.0)
    PartialRows(tmp_path / "p", RUN, True).add(rows(0, 4))
    assert PartialRows(tmp_path / "p", RUN, True).rows == 4


@pytest.mark.parametrize(("other", "wants"), [({**RUN, "seed": 1}, True), (RUN, False)])
def test_another_run_or_no_resume_starts_from_nothing(tmp_path, other, wants):
    parts = PartialRows(tmp_path / "p", RUN, True)
    parts.add(rows(0, 4))
    parts.save()
    assert PartialRows(tmp_path / "p", other, wants).rows == 0


def test_an_unfinished_write_and_a_gap_are_ignored(tmp_path):
    parts = PartialRows(tmp_path / "p", RUN, True)
    for start in (0, 4, 8):
        parts.add(rows(start, start + 4))
        parts.save()
    (tmp_path / "p" / "000000000004-000000000008.npz").unlink()
    (tmp_path / "p" / "000000000012-000000000016.partial").write_bytes(b"half")
    again = PartialRows(tmp_path / "p", RUN, True)
    assert again.rows == 4
    assert_rows(again, 4)


def test_finished_runs_leave_nothing(tmp_path):
    parts = PartialRows(tmp_path / "p", RUN, True)
    parts.add(rows(0, 4))
    parts.save()
    parts.remove()
    assert not (tmp_path / "p").exists()
