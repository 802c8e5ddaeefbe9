"""Scores on disk survive a kill at any moment, are shared by those who score other rows, and belong
to one kind of run only."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax import resume
from lensjax.resume import PartialRows

RUN = {"members": {"resnet18": "ab"}, "seed": 0}
ALL = range(10)


def columns(start: int, stop: int) -> dict[str, np.ndarray]:
    reasons = np.array(["truncated" if row % 3 == 0 else "" for row in range(start, stop)])
    return {
        "probability": np.arange(start, stop, dtype=np.float32),
        "readable": reasons == "",
        "reasons": reasons,
    }


def save(parts: PartialRows, *starts_and_stops: tuple[int, int]) -> None:
    for start, stop in starts_and_stops:
        parts.add(start, columns(start, stop))
        parts.save()


def assert_rows(parts: PartialRows) -> None:
    assert parts.missing() == []
    found, wanted = parts.columns(), columns(parts.rows.start, parts.rows.stop)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


def test_rows_come_back_in_order_after_a_restart(tmp_path):
    parts = PartialRows(tmp_path / "p", RUN, ALL)
    save(parts, (0, 4), (4, 8))
    parts.add(8, columns(8, 10))  # never saved: the process is killed here
    assert parts.missing() == []
    again = PartialRows(tmp_path / "p", RUN, ALL)
    assert again.missing() == [range(8, 10)]
    again.add(8, columns(8, 10))
    assert_rows(again)


def test_saving_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_INTERVAL_SECONDS", -1.0)
    PartialRows(tmp_path / "p", RUN, ALL).add(0, columns(0, 4))
    assert PartialRows(tmp_path / "p", RUN, ALL).missing() == [range(4, 10)]


@pytest.mark.parametrize(("other", "wants"), [({**RUN, "seed": 1}, True), (RUN, False)])
def test_another_run_or_no_resume_starts_from_nothing(tmp_path, other, wants):
    save(PartialRows(tmp_path / "p", RUN, ALL), (0, 4))
    assert PartialRows(tmp_path / "p", other, ALL, resume=wants).missing() == [ALL]
    assert PartialRows(tmp_path / "p", RUN, ALL).missing() == [ALL]


def test_without_resume_the_parts_of_others_stay(tmp_path):
    save(PartialRows(tmp_path / "p", RUN, ALL), (0, 4), (4, 6), (6, 10))
    half = PartialRows(tmp_path / "p", RUN, range(0, 5), resume=False)
    assert half.missing() == [range(0, 5)]
    assert PartialRows(tmp_path / "p", RUN, ALL).missing() == [range(0, 6)]


def test_an_unfinished_write_and_a_gap_are_ignored(tmp_path):
    save(PartialRows(tmp_path / "p", RUN, ALL), (0, 4), (4, 8), (8, 10))
    (folder,) = (tmp_path / "p").iterdir()
    (folder / "000000000004-000000000008.npz").unlink()
    (folder / ".000000000004-000000000008.npz.123").write_bytes(b"half")
    again = PartialRows(tmp_path / "p", RUN, ALL)
    assert again.missing() == [range(4, 8)]
    again.add(4, columns(4, 8))
    assert_rows(again)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=8), st.data())
def test_any_parts_and_what_they_lack_are_all_rows(tmp_path_factory, spans, data):
    """Also parts that overlap, as where the rows were divided in another way before."""
    folder = tmp_path_factory.mktemp("p")
    save(PartialRows(folder, RUN, ALL), *((start, start + count) for start, count in spans))
    first = data.draw(st.integers(0, 9))
    parts = PartialRows(folder, RUN, range(first, data.draw(st.integers(first + 1, 10))))
    done = {row for start, count in spans for row in range(start, start + count)}
    missing = parts.missing()
    assert [row for gap in missing for row in gap] == sorted(set(parts.rows) - done)
    for gap in missing:
        parts.add(gap.start, columns(gap.start, gap.stop))
    assert_rows(parts)


def test_finished_runs_leave_nothing(tmp_path):
    parts = PartialRows(tmp_path / "p", RUN, range(0, 4))
    save(parts, (0, 4))
    parts.remove()
    assert not (tmp_path / "p").exists()
