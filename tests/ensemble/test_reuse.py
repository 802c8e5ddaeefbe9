"""Logits that are kept: whatever was computed before, the results are those of a run that computes
all, and each member computes only what is new to it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.cutouts import Cutouts
from lensjax.data import pipeline
from lensjax.ensemble import scoring
from lensjax.ensemble.reuse import LogitStore, Reused
from lensjax.ensemble.staged import FIRST, FUSED, REST, Staged
from lensjax.ledger import Ledger
from tests.ensemble.members import PREPROCESSING
from tests.ensemble.stages import BATCH, ROWS, SAMPLES, assert_same, at_once, images, stage

pytest.importorskip("blake3")


def store_of(folder: Path, names, **settings) -> LogitStore:
    of_members = {name: {"member": name} | settings for name in names}
    return LogitStore(folder / "store", of_members, dict.fromkeys(names, 0))


def score(folder: Path, cutouts: np.ndarray, store: LogitStore | None, names="ab"):
    """Returns the columns of the ledger, what is said of the run, and which members computed."""
    computed: list[tuple[str, int]] = []
    source = Cutouts(cutouts, PREPROCESSING.bands, 0.2).source(PREPROCESSING.bands)
    ledger, names = Ledger(folder, {}, range(len(cutouts))), tuple(names)
    staged = None
    if store:
        knows = Reused(store, names, SAMPLES)
        stages = {
            REST: stage(knows.others, knows.before, names, computed),
            FUSED: stage((), names, names, computed),
        }
        if knows.before:
            stages = {FIRST: stage(knows.before, (), knows.before, computed), **stages}
        staged = Staged(names, stages, knows)

    said = scoring.score(at_once(names), None, source, ledger, "auto", staged=staged)
    return ledger.columns(), said, computed


def stored(folder: Path, cutouts: np.ndarray, names="ab", **settings) -> LogitStore:
    """Returns a store that has the logits of these cutouts."""
    if len(cutouts):
        score(folder / f"before {names}", cutouts, store_of(folder, names), names)
    return store_of(folder, names, **settings)


def batches(names: str, cutouts: int) -> list[tuple[str, int]]:
    """Returns what is noted where members compute so many cutouts, sorted."""
    return sorted(-(-cutouts // BATCH) * [(name, BATCH) for name in names])


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, ROWS - 1)), st.sampled_from([None, 0, 9]))
def test_only_what_is_new_is_computed_and_the_results_are_the_same(tmp_path_factory, known, bad):
    folder, cutouts = tmp_path_factory.mktemp("r"), images(bad)
    store = stored(folder, cutouts[sorted(known, reverse=True)])
    found, said, computed = score(folder / "now", cutouts, store)
    wanted, _, _ = score(folder / "plain", cutouts, None)
    assert_same(found, wanted)
    new = set(range(ROWS)) - known - {bad}
    assert said["reused"] == len(known - {bad})
    assert sorted(computed) == batches("ab", len(new))


@settings(max_examples=25, deadline=None)
@given(
    st.sets(st.integers(0, ROWS - 1)),
    st.sets(st.integers(0, ROWS - 1)),
    st.sampled_from([None, 0, 9]),
)
def test_an_added_member_computes_only_itself(tmp_path_factory, by_both, by_new, bad):
    """Whatever some members have seen before, the results are the same."""
    folder, cutouts = tmp_path_factory.mktemp("r"), images(bad)
    stored(folder, cutouts[sorted(by_both)])
    stored(folder, cutouts[sorted(by_new)], "c")
    found, said, computed = score(folder / "now", cutouts, store_of(folder, "abc"), "abc")
    assert_same(found, score(folder / "plain", cutouts, None, "abc")[0])
    by_both, by_new = by_both - {bad}, by_new - {bad}
    assert said["reused"] == len(by_both & by_new)
    new = ROWS - (bad is not None)
    if len(by_both) > len(by_new):
        assert said["reused_in_part"] == len(by_both - by_new)
        of_old, of_new = new - len(by_both), new - len(by_both & by_new)
        assert sorted(computed) == sorted(batches("ab", of_old) + batches("c", of_new))


def test_all_that_was_seen_costs_an_added_member_alone_and_a_removed_one_nothing(tmp_path):
    cutouts = images()
    stored(tmp_path, cutouts)
    found, said, computed = score(tmp_path / "3", cutouts, store_of(tmp_path, "abc"), "abc")
    assert_same(found, score(tmp_path / "plain", cutouts, None, "abc")[0])
    assert (said["reused_in_part"], computed) == (ROWS, batches("c", ROWS))
    found, said, computed = score(tmp_path / "1", cutouts, store_of(tmp_path, "b"), "b")
    assert_same(found, score(tmp_path / "plain b", cutouts, None, "b")[0])
    assert (said["reused"], computed) == (ROWS, [])


def test_a_member_finds_its_logits_beside_others_that_see_more(tmp_path):
    """Another array of images and another place of the bands, as other members bring them."""
    store = store_of(tmp_path, "a")
    one, two = images(), np.random.default_rng(1).normal(size=(ROWS, 8, 8, 1))
    source = Cutouts(one, ("g", "r"), 0.2).source(("g", "r"))
    (batch,) = pipeline.batches(source, (PREPROCESSING,), how="auto", batch_size=ROWS)
    (transform,) = batch.inputs.transforms
    wider = np.concatenate([two.repeat(32, 1).repeat(32, 2)[:, :32, :32], one], axis=-1)
    moved = replace(
        batch.inputs,
        images=(two, wider.astype(np.float32)),
        transforms=(replace(transform, image=1, channels=(1, 2)),),
    )
    keys = store.keys(batch)
    np.testing.assert_array_equal(store.keys(replace(batch, inputs=moved)), keys)
    assert len(np.unique(keys[0, 0])) == ROWS
    swapped = replace(moved, transforms=(replace(transform, image=1, channels=(2, 1)),))
    assert not (store.keys(replace(batch, inputs=swapped)) == keys).any()


def test_what_is_complete_is_not_kept_back(tmp_path, monkeypatch):
    """All but the last cutout are known: they are in the ledger before that one is computed."""
    cutouts, there = images(), []
    store = stored(tmp_path, cutouts[:-1])
    add = Ledger.add

    def noted(ledger, start, columns):
        there.append(start)
        add(ledger, start, columns)

    monkeypatch.setattr(Ledger, "add", noted)
    start = scoring._Scorer._start
    before = []
    monkeypatch.setattr(
        scoring._Scorer, "_start", lambda *given: (before.append(len(there)), start(*given))[1]
    )
    score(tmp_path / "now", cutouts, store)
    # The last one, alone, and six batches that are only fused.
    assert len(before) == 7 and min(before[-2:]) >= ROWS // BATCH - 2


@pytest.mark.parametrize("change", ["pixel", "settings", "device"])
def test_what_is_not_the_same_is_computed_again(tmp_path, change, monkeypatch):
    cutouts = images()
    if change == "device":
        monkeypatch.setattr(scoring.runtime, "device", lambda: "1 x gpu")
    store = stored(tmp_path, cutouts)
    if change == "pixel":
        cutouts[3, 5, 5, 1] = np.nextafter(cutouts[3, 5, 5, 1], np.float32(np.inf))
    if change == "settings":
        store = store_of(tmp_path, "ab", seed=1)
    if change == "device":
        monkeypatch.undo()
        store = store_of(tmp_path, "ab")
    _, said, computed = score(tmp_path / "now", cutouts, store)
    assert said["reused"] == (ROWS - 1 if change == "pixel" else 0)
    assert computed[0] == ("a", BATCH)


def test_a_damaged_file_is_computed_again(tmp_path, capsys):
    cutouts = images()
    stored(tmp_path, cutouts[:8])
    file, _ = (tmp_path / "store").rglob("*.parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 4] ^= 1
    file.write_bytes(content)
    store = store_of(tmp_path, "ab")
    assert f"{file} is damaged" in capsys.readouterr().err
    found, said, _ = score(tmp_path / "now", cutouts, store)
    assert (said["reused"], said["reused_in_part"]) == (0, 8)
    assert_same(found, score(tmp_path / "plain", cutouts, None)[0])
    _, said, computed = score(tmp_path / "again", cutouts, store_of(tmp_path, "ab"))
    assert (said["reused"], computed) == (ROWS, [])


def test_where_nothing_is_missing_nothing_is_done(tmp_path):
    cutouts = images()
    first, _, _ = score(tmp_path / "now", cutouts, None)
    found, said, computed = score(tmp_path / "now", cutouts, stored(tmp_path, cutouts[:0]))
    assert (said["scored_before"], said["reused"], computed) == (ROWS, 0, [])
    assert_same(found, first)
