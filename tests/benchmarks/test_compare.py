"""The statistics against examples by hand, and programs that fail or disagree."""

import multiprocessing
import os
import signal

import numpy as np
import pytest

from benchmarks import compare
from benchmarks.cases import Case, Ratio, Row
from benchmarks.compare import Runner
from benchmarks.worker import Outputs

LOGITS = np.array([[1.0, -2.0, 4.0], [0.5, 1.5, -1.0]])
ERRORS = np.full((2, 3), 0.1)


def test_ratios_are_taken_within_rounds():
    """The machine halves its speed after the first round: ratios do not see it."""
    assert compare.paired([40.0, 20.0, 22.0], [10.0, 5.0, 5.0]) == Ratio(4.0, 4.0, 4.4)


@pytest.mark.parametrize("rounds", [3, 6, 20])
def test_the_interval_of_a_ratio_holds_its_median(rounds):
    """Rates that scatter as on a busy machine, with a median ratio of 0.98."""
    rng = np.random.default_rng(rounds)
    hits = []
    for _ in range(2000):
        ratios = 0.98 * np.exp(0.1 * rng.standard_t(3, rounds))
        found = compare.paired(list(ratios), [1.0] * rounds)
        assert found.low <= found.median == np.median(ratios) <= found.high
        hits.append(found.low <= 0.98 <= found.high)
    widest = 1 - 2 / 2**rounds  # of all rounds
    assert np.mean(hits) == pytest.approx(min(widest, 0.965), abs=0.02)


@pytest.mark.parametrize(
    "factor, precision, agrees",
    [
        (1.001, "float32", True),
        (1.01, "float32", False),
        (1.01, "bfloat16", True),
        (np.nan, "bfloat16", False),
    ],
)
def test_other_logits_are_a_disagreement(factor, precision, agrees):
    row = Row("name", "program", {"precision": precision})
    compare.judge(row, Outputs(LOGITS[:, :2] * factor), Outputs(LOGITS))
    assert row.agrees is agrees


@pytest.mark.parametrize("apart, agrees", [(0.3, True), (1.5, False)])
def test_means_over_samples_are_compared_by_their_error(apart, agrees):
    row = Row("name", "program")
    compare.judge(row, Outputs(LOGITS + apart, ERRORS), Outputs(LOGITS))
    assert row.difference == pytest.approx(apart / 0.1 / np.sqrt(2))
    assert row.unit == "sigma" and row.agrees is agrees


def test_programs_take_part_until_they_fail(monkeypatch):
    monkeypatch.setattr(compare, "find_spec", lambda _: None)
    found = Row("tiny", "tests.benchmarks.tiny:program")
    broken = Row("broken", "benchmarks.cases:nothing_of_this_name")
    absent = Row("absent", "benchmarks.torch_programs:scoring")
    compare.measure(Case("case", {}, [found, broken, absent]), 2, 0.01, lambda _: None)
    assert len(found.rates) == 2 and found.batch == 8 and found.peak_bytes > 0 and found.agrees
    assert found.speedup == Ratio(1.0, 1.0, 1.0)
    assert "nothing_of_this_name" in broken.note and not broken.agrees
    assert absent.note == "needs torchvision: pip install '.[peers]'" and absent.agrees


def test_a_program_stands_still_while_it_is_not_asked():
    it = Runner(Row("tiny", "tests.benchmarks.tiny:program"))
    try:
        it.start({})
        it.run(0.01)
        found = os.waitid(os.P_PID, it.warm.process, os.WSTOPPED)
        assert found.si_status == signal.SIGSTOP
    finally:
        it.close()
    assert not multiprocessing.active_children() and len(it.row.rates) == 1
