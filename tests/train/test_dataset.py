"""Labelled cutouts: those that can serve, in memory or on disk, the same either way."""

import errno
import os

import numpy as np
import pytest

from lensjax.data.catalog import open_source
from lensjax.data.preprocess import Preprocessing
from lensjax.errors import LensjaxError
from lensjax.train import dataset
from lensjax.train.dataset import read_labelled, split

PREPROCESSING = Preprocessing.unnormalised(("g",), 12, None, "asinh", 2.0)
LABELS = np.array([0, 1, -1, 1, 0, 1, 0, 0, 1, 1])
KEPT = [0, 3, 4, 5, 6, 7, 8, 9]


@pytest.fixture
def source(tmp_path):
    """Ten cutouts, of which the second cannot be read and the third has no label."""
    images = np.random.default_rng(0).normal(size=(10, 12, 12, 1)).astype(np.float32)
    images[1] = np.nan
    path = tmp_path / "cutouts.npz"
    np.savez(path, images=images, label=LABELS, id=np.arange(10) + 100, bands=np.array(["g"]))
    return open_source(path, needed=None)


def test_those_that_can_serve_are_kept(source, tmp_path):
    data = read_labelled(source, PREPROCESSING, "auto", tmp_path)
    assert data.id.tolist() == [100 + row for row in KEPT]
    np.testing.assert_array_equal(data.labels, LABELS[KEPT])
    for place, row in enumerate(KEPT):
        np.testing.assert_array_equal(data.arrays["images"][place], source[row].image)
    training, validation = split(data, 0.4)
    assert {*training.id.tolist(), *validation.id.tolist()} == set(data.id.tolist())
    for part in (training, validation):
        rows = part.id - 100
        shown = np.stack([source[row].image for row in rows])
        np.testing.assert_array_equal(np.asarray(part.arrays["images"]), shown)
        assert np.shares_memory(part.arrays["images"].array, data.arrays["images"].array)


def test_what_the_memory_does_not_hold_lies_on_disk(source, tmp_path, monkeypatch):
    expected = read_labelled(source, PREPROCESSING, "auto", tmp_path)
    monkeypatch.setattr(dataset, "MOST_IN_MEMORY", 0)
    folder = tmp_path / "output"
    found = read_labelled(source, PREPROCESSING, "auto", folder)
    assert isinstance(found.arrays["images"].array, np.memmap) and found.view == expected.view
    assert list(folder.iterdir()) == []
    for one, other in zip(*(map(next, [d.batches(3)] * 4) for d in (found, expected)), strict=True):
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_a_disk_without_room_is_one_clear_line(source, tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dataset, "MOST_IN_MEMORY", 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LensjaxError, match="has no room for them either") as raised:
        read_labelled(source, PREPROCESSING, "auto", tmp_path)
    assert "\n" not in str(raised.value)


def test_blank_cutouts_are_left_out_and_those_without_a_band_kept_and_counted(tmp_path):
    images = np.random.default_rng(0).normal(size=(6, 12, 12, 2)).astype(np.float32)
    images[1], images[2, ..., 1], images[4, ..., 0] = 0.0, np.nan, 3.0
    bands = np.array(["g", "r"])
    np.savez(tmp_path / "a.npz", images=images, label=[0, 1, 1, 0, -1, 1], bands=bands)
    preprocessing = Preprocessing.unnormalised(("g", "r"), 12, None, "asinh", 2.0)
    data = read_labelled(
        open_source(tmp_path / "a.npz", needed=None), preprocessing, "auto", tmp_path
    )
    assert data.id.tolist() == [0, 2, 3, 5] and data.flagged == 1
    assert not data.arrays["images"][1][..., 1].any()
