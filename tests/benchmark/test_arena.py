"""The statistics against examples by hand, and contenders that fail or disagree."""

import dataclasses
import os
import signal

import numpy as np
import pytest

from lensjax.benchmark import arena
from lensjax.benchmark.arena import Block, Entrant, Pace, Ratio, Row
from lensjax.benchmark.cases import PRODUCTS, Case, Contender, Goal, members_of
from lensjax.benchmark.contract import Outputs, mean_over_samples
from lensjax.benchmark.table import block_lines, goal_lines, measured

LOGITS = np.array([[1.0, -2.0, 4.0], [0.5, 1.5, -1.0]])


def entrant(name: str, rates: list[float], values: np.ndarray, **fields) -> Entrant:
    contender = Contender(name, "none:none", **fields)
    return Entrant(contender, Row(name, rates=rates, compile_seconds=0.0), outputs=Outputs(values))


def case(*entrants: Entrant) -> Case:
    contenders = tuple(e.contender for e in entrants)
    return Case("case", {}, ({},), contenders, ("absent", "slow"), 8, flops=10.0)


def test_ratios_are_taken_within_rounds():
    """The machine halves its speed after the first round: ratios do not see it."""
    assert arena.paired([40.0, 20.0, 22.0], [10.0, 5.0, 5.0]) == Ratio(4.0, 4.0, 4.4)


@pytest.mark.parametrize("rounds", [3, 5, 6, 20, 90])
def test_the_interval_of_a_ratio_holds_its_median(rounds):
    """Rates that scatter as on a busy machine, with a median ratio of 0.98."""
    rng = np.random.default_rng(rounds)
    hits = []
    for _ in range(2000):
        ratios = 0.98 * np.exp(0.1 * rng.standard_t(3, rounds))
        found = arena.paired(list(ratios), [1.0] * rounds)
        assert found.low <= found.median == np.median(ratios) <= found.high
        hits.append(found.low <= 0.98 <= found.high)
    widest = 1 - 2 / 2**rounds  # of all rounds
    assert np.mean(hits) == pytest.approx(min(widest, 0.965), abs=0.02)


def test_a_block_by_hand():
    fast = entrant("fast", [40.0, 20.0, 22.0], LOGITS)
    slow = entrant("slow", [10.0, 5.0, 5.0], LOGITS[:, :2] + 4e-4)
    block = arena.judged(case(fast, slow), "title", [fast, slow], [1000.0, 400.0, 440.0])
    assert block.reference == "slow"
    assert fast.row.images_per_second == 22.0
    assert fast.row.ratio == Ratio(4.0, 4.0, 4.4)
    assert fast.row.share == Ratio(0.5, 0.4, 0.5)
    assert slow.row.ratio == Ratio(1.0, 1.0, 1.0)
    assert slow.row.difference == pytest.approx(4e-4 / 2) and slow.row.agrees
    text = "\n".join(block_lines(block))
    assert "| 4 (4 to 4.4)" in text and "2.0e-04" in text and "DISAGREES" not in text


@pytest.mark.parametrize(
    "values, agrees",
    [(LOGITS * 1.001, True), (LOGITS * 1.01, False), (LOGITS * np.nan, False)],
)
def test_other_logits_are_a_disagreement(values, agrees):
    fast, other = entrant("fast", [1.0], LOGITS), entrant("slow", [1.0], values)
    block = arena.judged(case(fast, other), "title", [fast, other], [1.0])
    assert [row.agrees for row in block.rows] == [True, agrees]
    assert ("DISAGREES" in "\n".join(block_lines(block))) is not agrees


def test_bfloat16_may_differ_more():
    fast = entrant("fast", [1.0], LOGITS)
    rough = entrant("slow", [1.0], LOGITS * 1.01, precision="bfloat16")
    arena.judged(case(fast, rough), "title", [fast, rough], [1.0])
    assert rough.row.agrees


def test_means_over_samples_are_compared_by_their_error():
    rng = np.random.default_rng(0)
    truth = Outputs(LOGITS + rng.normal(0, 0.1 / np.sqrt(10), LOGITS.shape))
    samples = LOGITS[:, None] + rng.normal(0, 0.1, (2, 10, 3))
    largest, in_standard_errors = arena.difference(mean_over_samples(samples), truth)
    assert in_standard_errors and largest < 4
    largest, _ = arena.difference(mean_over_samples(samples + 0.5), truth)
    assert largest > arena.STANDARD_ERRORS


def test_one_sample_is_its_own_mean():
    outputs = mean_over_samples(LOGITS[:, None])
    np.testing.assert_array_equal(outputs.values, LOGITS)
    assert outputs.errors is None


def test_batches_shrink_to_what_a_call_may_take():
    """At 50 operations/s, 2 seconds hold 100 operations: 10 images of 10 each."""
    assert arena.affordable(32, 10.0, 50.0, 2.0) == 8
    assert arena.affordable(10, 10.0, 50.0, 2.0) == 10
    assert arena.affordable(4, 10.0, 50.0, 2.0) == 4
    assert arena.affordable(32, 1e9, 50.0, 2.0) == 1
    assert arena.affordable(32, 0.0, 50.0, 2.0) == 32


def test_a_contender_that_fails_says_why_and_the_others_go_on():
    broken = Contender("broken", "arena:nothing_of_this_name")
    absent = Contender("absent", "none:none", needs=("no_such_package",))
    ours = Contender("ours", "tiny:case", {})
    empty = dataclasses.replace(case(), contenders=(broken, absent, ours), flops=None)
    pace = Pace(rounds=1, seconds=0.01, patience=1.0)
    (block,) = arena.contest([empty], pace, lambda _: None)
    failed, missing, unknown = block.rows
    assert "nothing_of_this_name" in failed.note and not failed.agrees
    assert missing.note == "needs no_such_package: pip install '.[peers]'" and missing.agrees
    assert "No module named" in unknown.note
    assert "no_such_package" in "\n".join(block_lines(block))


@pytest.mark.slow
def test_a_case_may_have_more_rounds_and_no_matrix_products():
    close = Case("close", {}, ({},), PRODUCTS[:1], ("absent",), 0, None, rounds=3, turn=0.5)
    (block,) = arena.contest([close], Pace(rounds=2, seconds=0.01, patience=1.0), lambda _: None)
    assert len(block.rows[0].rates) == 6 and block.products == []
    assert "Ratios over" in "\n".join(block_lines(block))


def test_a_contender_stands_still_until_it_is_asked(tmp_path):
    worker = arena.Worker(PRODUCTS[0], {}, str(tmp_path))
    process = worker._process.pid
    try:
        worker.start()
        for request in ({"prepare": {}}, {"run": 1}):
            assert worker.ask(request)["seconds"] > 0
            assert os.waitid(os.P_PID, process, os.WSTOPPED).si_status == signal.SIGSTOP
    finally:
        worker.close()
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_PID, process, os.WEXITED)


def test_goals_are_judged_by_ratios_within_rounds():
    rows = [
        Row(
            "ours",
            "",
            rates=[40.0, 20.0],
            share=Ratio(0.8, 0.7, 0.9),
            peak_bytes=50,
            first_peak_bytes=40,
        ),
        Row("theirs", rates=[10.0, 5.0], peak_bytes=100),
        Row("once", rates=[10.0], peak_bytes=100, first_peak_bytes=100),
    ]
    blocks = [Block("case", "theirs", [1.0, 1.0], rows)]
    goals = [
        Goal("rate", "case", "ours", "theirs", 3.0),
        Goal("memory", "case", "ours", "theirs", 0.4),
        Goal("share", "case", "ours", "", 0.85),
        Goal("growth", "case", "ours", "", 1.3),
        Goal("rate", "case", "ours", "", 30.5),
        Goal("growth", "case", "once", "", 1.3),
        Goal("rate", "other case", "ours", "theirs", 3.0),
    ]
    assert [measured(goal, blocks) for goal in goals] == [
        Ratio(4.0, 4.0, 4.0),
        Ratio(0.5, 0.5, 0.5),
        Ratio(0.8, 0.7, 0.9),
        Ratio(1.25, 1.25, 1.25),
        Ratio(30.0, 20.0, 40.0),
        None,  # one turn shows no growth
        None,
    ]
    cells = [line.split("|") for line in goal_lines(goals, blocks)]
    assert [line[-2].strip() for line in cells[4:9]] == ["yes", "NO", "NO", "yes", "NO"]
    assert [line[3].strip() for line in cells[4:9]] == [
        "rate over theirs",
        "memory over theirs",
        "share of product rate",
        "growth of peak memory",
        "rate a second",
    ]


def test_members_of_an_ensemble():
    assert members_of("resnet18 + vit_b16") == ("resnet18.0", "vit_b16.0")
    assert members_of("2x resnet18 + vit_b16") == ("resnet18.0", "resnet18.1", "vit_b16.0")
