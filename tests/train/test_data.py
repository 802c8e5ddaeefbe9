"""Labelled cutouts: those that can serve, in memory or read again, the same either way."""

import dataclasses
import json
from contextlib import closing

import numpy as np
import pytest

from lensjax.data import pipeline
from lensjax.data.catalog import open_source
from lensjax.data.formats import shards
from lensjax.data.preprocess import Preprocessing
from lensjax.errors import UsageError
from lensjax.train import data
from lensjax.train.data import Labelled, measure_normalisation, prefetched, read_labelled, split
from tests.train.small import MESH
from tests.train.test_loop import blobs

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
    found = read_labelled(source, PREPROCESSING, "auto")
    assert found.id.tolist() == [100 + row for row in KEPT]
    np.testing.assert_array_equal(found.labels, LABELS[KEPT])
    for place, row in enumerate(KEPT):
        np.testing.assert_array_equal(found.arrays["images"][place], source[row].image)
    training, validation = split(found, 0.4)
    assert {*training.id.tolist(), *validation.id.tolist()} == set(found.id.tolist())
    for part in (training, validation):
        rows = part.id - 100
        shown = np.stack([source[row].image for row in rows])
        np.testing.assert_array_equal(np.asarray(part.arrays["images"]), shown)
        assert np.shares_memory(part.arrays["images"].array, found.arrays["images"].array)


def taken(cutouts: Labelled, count: int, state=None) -> tuple[list[dict[str, np.ndarray]], dict]:
    """Returns batches on the device, after a state, and the state after them."""
    weights = np.arange(float(len(cutouts)))[None]
    with closing(prefetched(cutouts.batches(3), weights, MESH)) as iterator:
        if state is not None:
            iterator.set_state(state)
        found = []
        for _ in range(count):
            arrays, weight = next(iterator)
            found.append({name: np.asarray(v) for name, v in (arrays | {"weight": weight}).items()})
        return found, iterator.get_state()


def assert_same(found: list[dict], expected: list[dict]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_each_epoch_holds_every_cutout_once_in_an_order_of_its_own():
    cutouts = blobs(7)
    batches, _ = taken(cutouts, 4)
    rows = np.stack([batch["row"] for batch in batches])
    for epoch in (rows[:2], rows[2:]):
        assert len({*epoch.flat}) == 6  # one fills no batch
    assert not np.array_equal(rows[:2], rows[2:])
    for batch in batches:
        np.testing.assert_array_equal(batch["images"], cutouts.arrays["images"][batch["row"]])
        np.testing.assert_array_equal(batch["weight"], batch["row"][None])
    with pytest.raises(UsageError, match="7 training cutouts do not fill a batch of 8"):
        cutouts.batches(8)


def test_batches_go_on_from_a_saved_state_whatever_was_read_ahead():
    cutouts = blobs(40)
    _, state = taken(cutouts, 2)
    assert_same(taken(cutouts, 3, json.loads(json.dumps(state)))[0], taken(cutouts, 5)[0][2:])


@pytest.mark.parametrize("size", [12, 8])
def test_what_the_memory_does_not_hold_is_read_again_for_each_batch(
    source, tmp_path, monkeypatch, size
):
    """From shards; also where it is fitted to another size by the host."""
    preprocessing = dataclasses.replace(PREPROCESSING, input_size=size)
    monkeypatch.setattr(pipeline, "MOST_UNFITTED", 1)
    shards.pack(source, tmp_path / "shards")
    packed = open_source(tmp_path / "shards", needed=None)
    expected = read_labelled(packed, preprocessing, "auto")
    monkeypatch.setattr(data, "SHARE_FOR_IMAGES", 0.0)
    found = read_labelled(packed, preprocessing, "auto")
    assert isinstance(found.arrays["images"].array, data.ImagesOnDisk) and found.threads
    assert found.transform == expected.transform and found.image_spec == expected.image_spec
    assert found.image_spec.shape == (size, size, 1) and found.id.tolist() == expected.id.tolist()
    assert_same(taken(found, 4)[0], taken(expected, 4)[0])
    for one, other in zip(*(part.in_order(5) for part in (found, expected)), strict=True):
        np.testing.assert_array_equal(one["images"], other["images"])


def test_groups_stand_on_one_side():
    training, validation = split(blobs(240), 0.3)
    assert len(training) + len(validation) == 240
    assert not set(training.group) & set(validation.group)
    assert 0.2 < len(validation) / 240 < 0.4


def test_a_side_without_a_class_is_refused():
    cutouts = blobs(40)
    cutouts.arrays["label"][:] = 1
    with pytest.raises(UsageError, match="need lenses and non-lenses"):
        split(cutouts, 0.3)


def test_normalisation_makes_pixels_standard():
    cutouts = blobs(64)
    preprocessing = measure_normalisation(cutouts)
    pixels = cutouts.arrays["images"].astype(np.float64)
    np.testing.assert_allclose(preprocessing.mean, pixels.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(preprocessing.std, pixels.std((0, 1, 2)), rtol=1e-5)


def test_normalisation_is_that_of_the_training_part():
    cutouts = blobs(240)
    held = split(cutouts, 0.3)[1].group
    cutouts.arrays["images"][np.isin(cutouts.group, held)] += 1000.0
    training, validation = split(cutouts, 0.3)
    pixels = training.arrays["images"].astype(np.float64)
    np.testing.assert_allclose(training.preprocessing.mean, pixels.mean((0, 1, 2)), rtol=1e-5)
    assert validation.transform == training.transform


def test_normalisation_does_not_depend_on_the_order_in_the_file(monkeypatch):
    monkeypatch.setattr(data, "MEASURED", 200)
    cutouts = blobs(1000)
    images = cutouts.arrays["images"]
    images[500:] += 10.0
    measured = measure_normalisation(cutouts)
    # The share of bright ones among 200 drawn: 5 in 10, give or take 0.04.
    assert abs(measured.mean[0] - images.mean()) < 1.5


def test_blank_cutouts_are_left_out_and_those_without_a_band_kept_and_counted(tmp_path):
    images = np.random.default_rng(0).normal(size=(6, 12, 12, 2)).astype(np.float32)
    images[1], images[2, ..., 1], images[4, ..., 0] = 0.0, np.nan, 3.0
    bands = np.array(["g", "r"])
    np.savez(tmp_path / "a.npz", images=images, label=[0, 1, 1, 0, -1, 1], bands=bands)
    preprocessing = Preprocessing.unnormalised(("g", "r"), 12, None, "asinh", 2.0)
    source = open_source(tmp_path / "a.npz", needed=None)
    found = read_labelled(source, preprocessing, "auto")
    assert found.id.tolist() == [0, 2, 3, 5] and found.flagged == 1
    assert not found.arrays["images"][1][..., 1].any()
