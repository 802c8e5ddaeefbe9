"""Scores that are kept: whatever was scored before, the results are those of a run that computes
all, and only what is new is computed."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.cutouts import Cutouts
from lensjax.ensemble import scoring, sharding
from lensjax.ensemble.plan import CompiledStep
from lensjax.ensemble.reuse import ScoreStore
from lensjax.ledger import Ledger
from lensjax.predictions import Scores
from tests.ensemble.members import PREPROCESSING

pytest.importorskip("blake3")

BATCH, ROWS, SETTINGS = 4, 22, {"members": "ab"}


def images(unreadable: int | None = None) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(9, 2, (ROWS, 32, 32, 2)).astype(np.float32)
    if unreadable is not None:
        drawn[unreadable] = np.nan
    return drawn


def step(computed: list[int]):
    """Returns a step whose scores are sums over each cutout; it notes how many it is given."""

    def sums(_, inputs) -> Scores:
        computed.append(len(inputs.images[0]))
        total = np.asarray(inputs.images[0]).sum((1, 2, 3)) / 1000
        return Scores(*(total + number for number in range(6)), *2 * [np.stack([total, -total])])

    return sums


def score(folder: Path, cutouts: np.ndarray, store: ScoreStore | None):
    """Returns the columns of the ledger, what is said of the run, and the batches computed."""
    computed: list[int] = []
    source = Cutouts(cutouts, PREPROCESSING.bands, 0.2).source(PREPROCESSING.bands)
    ensemble = SimpleNamespace(names=("a", "b"), preprocessings=(PREPROCESSING,))
    mesh = sharding.mesh_of(jax.devices()[:1])
    compiled = CompiledStep(step(computed), ensemble, mesh, None, BATCH)
    ledger = Ledger(folder, {}, range(len(cutouts)))
    said = scoring.score(compiled, None, source, ledger, "auto", store=store)
    return ledger.columns(), said, computed


def stored(folder: Path, cutouts: np.ndarray, **settings) -> ScoreStore:
    """Returns a store that has the scores of these cutouts."""
    if len(cutouts):
        score(folder / "before", cutouts, ScoreStore(folder / "store", SETTINGS, 2))
    return ScoreStore(folder / "store", SETTINGS | settings, 2)


def assert_same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


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
    assert computed == -(-len(new) // BATCH) * [BATCH]


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
    assert len(before) == 1 and before[0] >= ROWS // BATCH - 2


@pytest.mark.parametrize("change", ["pixel", "settings", "device"])
def test_what_is_not_the_same_is_computed_again(tmp_path, change, monkeypatch):
    cutouts = images()
    if change == "device":
        monkeypatch.setattr(scoring.runtime, "device", lambda: "1 x gpu")
    store = stored(tmp_path, cutouts)
    if change == "pixel":
        cutouts[3, 5, 5, 1] = np.nextafter(cutouts[3, 5, 5, 1], np.float32(np.inf))
    if change == "settings":
        store = ScoreStore(tmp_path / "store", SETTINGS | {"seed": 1}, 2)
    if change == "device":
        monkeypatch.undo()
        store = ScoreStore(tmp_path / "store", SETTINGS, 2)
    _, said, computed = score(tmp_path / "now", cutouts, store)
    assert said["reused"] == (ROWS - 1 if change == "pixel" else 0)
    assert computed[0] == BATCH


def test_a_damaged_file_is_computed_again(tmp_path, capsys):
    cutouts = images()
    stored(tmp_path, cutouts[:8])
    (file,) = (tmp_path / "store").rglob("*.parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 4] ^= 1
    file.write_bytes(content)
    store = ScoreStore(tmp_path / "store", SETTINGS, 2)
    assert f"{file} is damaged" in capsys.readouterr().err
    found, said, _ = score(tmp_path / "now", cutouts, store)
    assert said["reused"] == 0
    assert_same(found, score(tmp_path / "plain", cutouts, None)[0])
    _, said, computed = score(
        tmp_path / "again", cutouts, ScoreStore(tmp_path / "store", SETTINGS, 2)
    )
    assert (said["reused"], computed) == (ROWS, [])


def test_where_nothing_is_missing_nothing_is_done(tmp_path):
    cutouts = images()
    first, _, _ = score(tmp_path / "now", cutouts, None)
    found, said, computed = score(tmp_path / "now", cutouts, stored(tmp_path, cutouts[:0]))
    assert (said["scored_before"], said["reused"], computed) == (ROWS, 0, [])
    assert_same(found, first)
