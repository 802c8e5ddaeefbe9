"""Which rows are handed out: all of them, in ranges of the right length, and the row at fault alone
when its range has ended too many workers."""

import random

from hypothesis import given
from hypothesis import strategies as st

from lensjax.cluster.work import FIRST_ROWS, MOST_KILLS, RANGE_SECONDS, Work


def lengths(work: Work, *speed: float) -> list[int]:
    taken = []
    while len(work):
        taken.append(len(work.take(*speed).rows))
    return taken


def test_the_first_range_is_short_and_others_take_their_time():
    work = Work([range(1_000_000)], workers=2)
    assert len(work.take().rows) == FIRST_ROWS
    assert len(work.take(100.0, 64).rows) == round(100 * RANGE_SECONDS / 64) * 64
    assert len(work) == 1_000_000 - FIRST_ROWS - round(100 * RANGE_SECONDS / 64) * 64


def test_the_last_ranges_shrink_to_a_batch_so_that_nobody_idles():
    taken = lengths(Work([range(10_000)], workers=2), 1e6, 64)
    assert taken == sorted(taken, reverse=True)
    assert taken[0] == round(10_000 / 4 / 64) * 64
    assert max(taken[-4:]) == 64
    assert sum(taken) == 10_000


def test_a_sole_worker_is_never_handed_less_for_the_sake_of_others():
    assert lengths(Work([range(9600)], workers=1), 1e6, 64) == [9600]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 40)), max_size=6), st.integers(1, 9))
def test_all_rows_are_handed_out_once_in_order(gaps, workers):
    missing, start = [], 0
    for before, count in gaps:
        missing.append(range(start + before + 1, start + before + 1 + count))
        start = missing[-1].stop
    work, taken = Work(missing, workers), []
    while len(work):
        taken += work.take(0.5, 2).rows
    assert taken == [row for rows in missing for row in rows]


@given(st.integers(1, 300), st.sets(st.integers(0, 299), max_size=3), st.integers(0, 9))
def test_rows_at_fault_are_found_and_the_others_scored(count, faults, seed):
    """A worker dies when it comes to a row at fault, and has kept a part of what was before."""
    rng, work, scored, rejected = random.Random(seed), Work([range(count)], 1), set(), []
    tries = 0
    while len(work):
        tries, taken = tries + 1, work.take(2.0, 4)
        at = next((row for row in taken.rows if row in faults), None)
        kept = taken.rows.stop if at is None else rng.randint(taken.rows.start, at)
        assert not scored & set(range(taken.rows.start, kept))
        scored |= set(range(taken.rows.start, kept))
        if at is not None:
            rejected += work.give_back(taken, [range(kept, taken.rows.stop)])
    assert sorted(rejected) == sorted(row for row in faults if row < count)
    assert scored == set(range(count)) - set(rejected)
    assert tries <= count + 20 * (len(rejected) + 1)


def test_a_worker_that_dies_of_something_else_costs_no_row():
    """A row alone is tried anew, whatever ended the workers before."""
    work = Work([range(2)], 1)
    for _ in range(MOST_KILLS):
        taken = work.take()
        assert taken.rows == range(2)
        assert work.give_back(taken, [taken.rows]) == []
    for row in range(2):
        for _ in range(MOST_KILLS - 1):
            taken = work.take()
            assert taken.rows == range(row, row + 1)
            assert work.give_back(taken, [taken.rows]) == []
        assert work.take().rows == range(row, row + 1)
