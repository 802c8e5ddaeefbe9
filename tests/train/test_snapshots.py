"""States of a run on disk: whole, refused where they do not fit, untouched by what follows."""

import shutil
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.ensemble.checkpoint import named_leaves
from lensjax.errors import LensjaxError, UsageError
from lensjax.train.snapshots import Snapshot, Snapshots, discard, seeds_under_way

SETTINGS = {"learning_rate": 0.1, "seeds": [1, 2]}


def tree(value: float) -> dict:
    return {"params": {"kernel": jnp.full((2, 3), value)}, "count": jnp.int32(value), "none": None}


def test_the_newest_state_comes_back_bit_by_bit(tmp_path):
    with closing(Snapshots(tmp_path, SETTINGS, resume=True)) as snapshots:
        assert snapshots.newest(tree(0.0)) is None
        for step in (1, 2, 3):
            snapshots.save(Snapshot(step, tree(step / 3), {"place": {"at": step}}))
    with closing(Snapshots(tmp_path, SETTINGS, resume=True)) as snapshots:
        step, arrays, record = snapshots.newest(tree(0.0))
    assert (step, record) == (3, {"place": {"at": 3}})
    jax.tree.map(np.testing.assert_array_equal, arrays, tree(1.0))
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["2", "3"]


def test_what_the_run_gives_away_does_not_change_what_is_written(tmp_path):
    forward = jax.jit(lambda leaf: leaf + 1, donate_argnums=0)
    big = jnp.zeros((512, 512))
    with closing(Snapshots(tmp_path, SETTINGS, resume=True)) as snapshots:
        snapshots.save(Snapshot(1, {"big": big}, {}))
        for _ in range(20):
            big = forward(big)
        big.block_until_ready()
    with closing(Snapshots(tmp_path, SETTINGS, resume=True)) as snapshots:
        found = snapshots.newest({"big": big})
    np.testing.assert_array_equal(found.arrays["big"], 0.0)


def test_a_state_of_another_network_is_refused_with_all_differences(tmp_path):
    with closing(Snapshots(tmp_path, SETTINGS, resume=True)) as snapshots:
        snapshots.save(Snapshot(1, tree(1.0), {}))
    other = {"params": {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(4)}}
    with (
        closing(Snapshots(tmp_path, SETTINGS, resume=True)) as snapshots,
        pytest.raises(LensjaxError) as raised,
    ):
        snapshots.newest(other)
    for words in ("params.bias is missing", "count is unknown", "[2, 3], wanted float32[2, 4]"):
        assert words in str(raised.value)


def test_a_run_of_other_settings_is_refused_or_begun_anew(tmp_path):
    with closing(Snapshots(tmp_path, SETTINGS, resume=True)) as snapshots:
        snapshots.save(Snapshot(1, tree(1.0), {}))
    other = SETTINGS | {"learning_rate": 0.2}
    with pytest.raises(UsageError, match=r"learning_rate 0.1 \(now 0.2\).*--no-resume"):
        Snapshots(tmp_path, other, resume=True)
    with closing(Snapshots(tmp_path, other, resume=False)) as snapshots:
        assert snapshots.newest(tree(0.0)) is None


def test_a_run_that_has_ended_leaves_its_metrics_until_another_begins(tmp_path):
    with closing(Snapshots(tmp_path, SETTINGS, resume=True)) as snapshots:
        snapshots.save(Snapshot(1, tree(1.0), {}))
    for name in ("metrics.csv", "plan.json", "events.out.tfevents.1"):
        (tmp_path / name).write_text("of the run")
    assert seeds_under_way(tmp_path) == [1, 2]
    discard(tmp_path)
    assert seeds_under_way(tmp_path) == []
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"metrics.csv", "plan.json", "events.out.tfevents.1"}
    with closing(Snapshots(tmp_path, SETTINGS | {"learning_rate": 0.2}, resume=True)) as snapshots:
        assert snapshots.newest(tree(0.0)) is None
    assert not (tmp_path / "metrics.csv").exists()


def test_what_else_lies_in_the_folder_is_left_alone(tmp_path):
    (tmp_path / "own.txt").write_text("of the user")
    with closing(Snapshots(tmp_path, SETTINGS, resume=False)):
        assert (tmp_path / "own.txt").read_text() == "of the user"


def test_a_full_disk_is_one_clear_line_and_the_last_state_is_kept(tmp_path, monkeypatch):
    with closing(Snapshots(tmp_path, SETTINGS, resume=True)) as snapshots:
        snapshots.save(Snapshot(1, tree(1.0), {}))
        usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(LensjaxError, match=r"no room left in .*needs 4 MiB, 1 are free"):
            snapshots.save(Snapshot(2, tree(2.0), {}))
    with closing(Snapshots(tmp_path, SETTINGS, resume=True)) as snapshots:
        assert snapshots.newest(tree(0.0)).step == 1


def test_a_state_that_cannot_be_written_is_one_clear_line(tmp_path):
    """The folder is gone, as when a network disk is."""
    snapshots = Snapshots(tmp_path / "run", SETTINGS, resume=True)
    snapshots.save(Snapshot(1, tree(1.0), {}))
    snapshots.close()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(LensjaxError, match="cannot write the state of the run to") as raised:
        snapshots.save(Snapshot(2, tree(2.0), {}))
    assert "\n" not in str(raised.value)


def test_leaves_are_named_by_their_path():
    assert list(named_leaves(tree(0))) == ["count", "params.kernel"]
