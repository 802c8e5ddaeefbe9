"""A cascade: what passes is scored by all, the rest by the first member alone, and the results do
not depend on how the cutouts come."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.cutouts import Cutouts
from lensjax.ensemble import scoring, staged
from lensjax.ensemble.staged import FIRST, FUSED, REST, Cascaded, Staged
from lensjax.errors import Interrupted
from lensjax.ledger import Ledger
from tests.ensemble.members import PREPROCESSING
from tests.ensemble.stages import (
    BATCH,
    ROWS,
    assert_same,
    at_once,
    fused,
    images,
    logits_of,
    stage,
)

NAMES, ALONE = ("b", "a"), "scored by a alone"


def score(folder: Path, cutouts: np.ndarray, cut: float | None):
    """Returns the columns of the ledger and which members computed so many cutouts."""
    computed: list[tuple[str, int]] = []
    source = Cutouts(cutouts, PREPROCESSING.bands, 0.2).source(PREPROCESSING.bands)
    ledger = Ledger(folder, {}, range(len(cutouts)))
    stages = {
        FIRST: stage(("a",), (), ("a",), computed),
        REST: stage(("b",), ("a",), NAMES, computed),
        FUSED: stage((), NAMES, NAMES, computed),
    }
    cascade = Staged(NAMES, stages, Cascaded(2.0, 1.0, cut or 0.0), ALONE)
    given = None if cut is None else cascade
    scoring.score(at_once(NAMES), None, source, ledger, "auto", staged=given)
    return ledger.columns(), computed


def cut_of(cutouts: np.ndarray, passing: set[int]) -> tuple[np.ndarray, float]:
    """Returns the cutouts, of which those that are to pass are brighter, and the cut."""
    cutouts = cutouts + 20 * np.isin(np.arange(ROWS), list(passing))[:, None, None, None]
    return cutouts.astype(np.float32), 2 * (20 * 2.048 + 1) + 1


@settings(max_examples=25, deadline=None)
@given(
    st.sets(st.integers(0, ROWS - 1)),
    st.sampled_from([None, 0, 9]),
    st.sampled_from([1, 2, staged.MOST_WAITING]),
)
def test_what_passes_is_scored_by_all_and_the_rest_by_one(
    tmp_path_factory, passing, bad, most_waiting
):
    folder = tmp_path_factory.mktemp("r")
    cutouts, cut = cut_of(images(bad), passing)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(staged, "MOST_WAITING", most_waiting)
        found, computed = score(folder / "now", cutouts, cut)
    plain, _ = score(folder / "plain", cutouts, None)
    passes = np.isin(np.arange(ROWS), list(passing - {bad}))
    dropped = ~passes & found["readable"]
    assert (found["readable"] == (np.arange(ROWS) != bad)).all()
    assert_same(
        {name: values[..., ~dropped] for name, values in found.items()},
        {name: values[..., ~dropped] for name, values in plain.items()},
    )
    alone = fused(logits_of("a", cutouts)[None])
    for name, values in alone._asdict().items():
        of_first = found[name][1:] if name.startswith("member") else found[name]
        np.testing.assert_array_equal(of_first[..., dropped], values[..., dropped])
    assert np.isnan(found["member_logits"][0, dropped]).all()
    np.testing.assert_array_equal(found["flag"] == ALONE, dropped)
    assert computed.count(("a", BATCH)) == -(-ROWS // BATCH)
    if most_waiting == staged.MOST_WAITING:
        assert computed.count(("b", BATCH)) == -(-passes.sum() // BATCH)


def test_a_run_that_is_stopped_keeps_what_has_come_in_and_goes_on(tmp_path, monkeypatch):
    cutouts, cut = cut_of(images(), {1, 5, 8, 9, 21})
    wanted, _ = score(tmp_path / "alone", cutouts, cut)
    asked = iter([False, False, *40 * [True]])
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="after 8 of 22 rows"):
        patched.setattr(scoring.runtime, "asked_to_stop", lambda: nullcontext(lambda: next(asked)))
        score(tmp_path / "now", cutouts, cut)
    found, computed = score(tmp_path / "now", cutouts, cut)
    assert_same(found, wanted)
    assert computed.count(("a", BATCH)) == -(-(ROWS - 8) // BATCH)
