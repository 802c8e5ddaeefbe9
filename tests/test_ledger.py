"""Scores on disk survive a kill at any moment, are shared by those who score other rows, belong to
one kind of run only, and are never lost to another run."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lensjax import ledger
from lensjax.errors import UsageError
from lensjax.ledger import Ledger, claimed
from lensjax.settings import differences, write_settings

RUN = {"members": {"resnet18": "ab"}, "seed": 0}
ALL = range(10)
LETTERS = st.characters(codec="utf-8", exclude_characters="\0")


def columns(start: int, stop: int) -> dict[str, np.ndarray]:
    reasons = np.array(["truncated" if row % 3 == 0 else "" for row in range(start, stop)])
    return {
        "probability": np.arange(start, stop, dtype=np.float32),
        "readable": reasons == "",
        "reasons": reasons,
    }


def save(parts: Ledger, *starts_and_stops: tuple[int, int]) -> None:
    for start, stop in starts_and_stops:
        parts.add(start, columns(start, stop))
        parts.save()


def assert_rows(parts: Ledger) -> None:
    assert parts.missing() == []
    found, wanted = parts.columns(), columns(parts.rows.start, parts.rows.stop)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


def test_rows_come_back_in_order_after_a_restart(tmp_path):
    parts = Ledger(tmp_path, RUN, ALL)
    save(parts, (0, 4), (4, 8))
    parts.add(8, columns(8, 10))  # never saved: the process is killed here
    again = Ledger(tmp_path, RUN, ALL)
    assert again.missing() == [range(8, 10)]
    again.add(8, columns(8, 10))
    assert_rows(again)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_any_columns_come_back_bit_for_bit(tmp_path_factory, data):
    shapes = st.sampled_from([(3,), (1, 3), (2, 3)])
    given = {
        kind: data.draw(arrays(np.dtype(kind), shapes)) for kind in ("f4", "f8", "i8", "i4", "?")
    }
    texts = st.lists(st.text(LETTERS), min_size=3, max_size=3)
    given["text"] = np.array(data.draw(texts), np.str_)
    ledger = Ledger(tmp_path_factory.mktemp("p"), RUN, range(3))
    ledger.add(0, given)
    found = ledger.columns()
    assert list(found) == list(given)
    for name, values in given.items():
        assert found[name].dtype == (object if name == "text" else values.dtype)
        np.testing.assert_array_equal(found[name], values)


def test_a_name_that_is_no_unicode_stops_nothing(tmp_path):
    ledger = Ledger(tmp_path, RUN, range(1))
    ledger.add(0, {"reason": np.array(["no \udcff.fits"])})
    assert ledger.columns()["reason"].tolist() == ["no ?.fits"]


def test_saving_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "SAVE_INTERVAL_SECONDS", -1.0)
    Ledger(tmp_path, RUN, ALL).add(0, columns(0, 4))
    assert Ledger(tmp_path, RUN, ALL).missing() == [range(4, 10)]


def test_what_computed_the_rows_is_kept(tmp_path):
    first, second = Ledger(tmp_path, RUN, range(0, 6)), Ledger(tmp_path, RUN, range(4, 10))
    first.device, second.device = "1 x cpu", "1 x gpu"
    save(first, (0, 6))
    save(second, (4, 10))
    assert Ledger(tmp_path, RUN, ALL).devices() == {"1 x cpu": 6, "1 x gpu": 4}


def test_what_was_done_with_other_settings_is_refused_by_name(tmp_path):
    with claimed(tmp_path / "p", RUN, ALL) as parts:
        save(parts, (0, 4))
    other = {"members": {"resnet18": "cd"}, "seed": 5}
    with pytest.raises(UsageError) as raised, claimed(tmp_path / "p", other, range(5, 10)):
        pass
    for words in ("4 rows", "seed 0 (now 5)", "members.resnet18 ab (now cd)", "--no-resume"):
        assert words in str(raised.value)
    assert Ledger(tmp_path / "p", RUN, ALL).missing() == [range(4, 10)]


def test_of_hashes_the_first_digits_are_shown(tmp_path):
    write_settings(tmp_path / "s.json", {"data": "a" * 64})
    assert differences(tmp_path / "s.json", {"data": "b" * 64, "seed": 1}) == [
        "data aaaaaaaa (now bbbbbbbb)",
        "seed None (now 1)",
    ]


def test_without_resume_other_settings_are_discarded(tmp_path):
    with claimed(tmp_path / "p", RUN, ALL) as parts:
        save(parts, (0, 4))
    other = RUN | {"seed": 5}
    with claimed(tmp_path / "p", other, ALL, resume=False) as parts:
        save(parts, (0, 2))
    assert Ledger(tmp_path / "p", other, ALL).missing() == [range(2, 10)]
    assert Ledger(tmp_path / "p", RUN, ALL).missing() == [ALL]


def test_what_a_discarded_run_still_writes_is_not_mixed_up(tmp_path):
    """A process of another machine may live on a while, and write a part."""
    late = Ledger(tmp_path / "p", RUN, ALL)
    other = RUN | {"seed": 5}
    with claimed(tmp_path / "p", other, ALL) as parts:
        save(late, (0, 10))
        save(parts, (0, 2))
    with claimed(tmp_path / "p", other, ALL) as parts:
        assert parts.missing() == [range(2, 10)]
    assert not late.folder.exists()


def test_where_nothing_was_done_other_settings_may_begin(tmp_path):
    for seed in (0, 5):
        with claimed(tmp_path / "p", RUN | {"seed": seed}, ALL) as parts:
            assert parts.missing() == [ALL]
        assert not (tmp_path / "p").exists()


def test_without_resume_the_parts_of_others_stay(tmp_path):
    with claimed(tmp_path / "p", RUN, ALL) as parts:
        save(parts, (0, 4), (4, 6), (6, 10))
    with claimed(tmp_path / "p", RUN, range(0, 5), resume=False) as half:
        assert half.missing() == [range(0, 5)]
    whole = Ledger(tmp_path / "p", RUN, ALL)
    assert whole.missing() == [range(0, 6)]
    whole.add(0, columns(0, 6))
    assert_rows(whole)


def test_an_unfinished_write_and_a_gap_are_ignored(tmp_path):
    parts = Ledger(tmp_path, RUN, ALL)
    save(parts, (0, 4), (4, 8), (8, 10))
    name = "000000000004-000000000008.parquet"
    (parts.folder / name).unlink()
    (parts.folder / f".{name}.host.123").write_bytes(b"half")
    again = Ledger(tmp_path, RUN, ALL)
    assert again.missing() == [range(4, 8)]
    again.add(4, columns(4, 8))
    assert_rows(again)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=8), st.data())
def test_any_parts_and_what_they_lack_are_all_rows(tmp_path_factory, spans, data):
    """Also parts that overlap, as where the rows were divided in another way before."""
    folder = tmp_path_factory.mktemp("p")
    save(Ledger(folder, RUN, ALL), *((start, start + count) for start, count in spans))
    first = data.draw(st.integers(0, 9))
    parts = Ledger(folder, RUN, range(first, data.draw(st.integers(first + 1, 10))))
    done = {row for start, count in spans for row in range(start, start + count)}
    missing = parts.missing()
    assert [row for gap in missing for row in gap] == sorted(set(parts.rows) - done)
    for gap in missing:
        parts.add(gap.start, columns(gap.start, gap.stop))
    assert_rows(parts)


def test_finished_runs_leave_nothing(tmp_path):
    with claimed(tmp_path / "p", RUN, range(0, 4)) as parts:
        save(parts, (0, 4))
        parts.finish()
    assert not (tmp_path / "p").exists()


OTHER_PROCESS = """
import sys
from pathlib import Path
from lensjax.errors import UsageError
from lensjax.ledger import Ledger, claimed
from lensjax.settings import differences, write_settings

def refused(settings, rows, resume):
    try:
        missing(settings, rows, resume)
    except UsageError as error:
        return str(error)

def missing(settings, rows, resume=True):
    with claimed(folder, settings, rows, resume=resume) as ledger:
        return ledger.missing()

folder, run, other = Path(sys.argv[1]), {0!r}, {1!r}
"""


def in_another_process(folder, code: str) -> None:
    """Runs `code` in a process of its own, for locks are of processes; fails where it does."""
    code = OTHER_PROCESS.format(RUN, RUN | {"seed": 5}) + code
    ended = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr


def test_a_running_process_keeps_its_rows_and_others_may_take_others(tmp_path):
    with claimed(tmp_path / "p", RUN, range(0, 5)) as mine:
        save(mine, (0, 2))
        in_another_process(
            tmp_path / "p",
            """
for rows, resume in (range(10), True), (range(4, 6), True), (range(5), False):
    assert "another process is at some of the rows" in refused(run, rows, resume)
for rows in range(10), range(5, 10):
    assert "a run with seed 0 (now 5) is at work" in refused(other, rows, False)
assert missing(run, range(5, 10), resume=False) == [range(5, 10)]
""",
        )
        assert mine.missing() == [range(2, 5)]
    in_another_process(tmp_path / "p", "assert missing(run, range(10)) == [range(2, 10)]")


def test_where_locks_are_not_known_a_run_goes_on(tmp_path, monkeypatch):
    def unknown(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(ledger.fcntl, "lockf", unknown)
    with claimed(tmp_path / "p", RUN, ALL) as parts:
        save(parts, (0, 10))
        assert_rows(parts)
