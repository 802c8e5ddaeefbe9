"""Labelled cutouts: those that can serve, in memory or read again, the same either way."""

import dataclasses
import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lensjax.cutouts import Cutouts
from lensjax.data import pipeline
from lensjax.data.brightness import measure
from lensjax.data.catalog import open_source
from lensjax.data.formats import shards
from lensjax.data.noise_free import refuse_noise_free
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
            rows, arrays = next(iterator)
            found.append({"row": rows} | {name: np.asarray(v) for name, v in arrays.items()})
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


# --- noise-free cutouts ---

SIGMA = np.array([2.0, 4.0])


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """Twenty noise-free cutouts in a file, that say which noise is theirs."""
    images = np.tile(np.linspace(1e-6, 2e-6, 12, dtype=np.float32)[:, None], (20, 12, 1, 2))
    images[10:, 5:7, 5:7] *= 1e6
    columns = {"label": np.arange(20) // 10, "noise_free": np.ones(20, np.int64)}
    for band, sigma in zip("gr", SIGMA, strict=True):
        columns[f"sky_sigma_{band}"] = np.full(20, sigma)
        columns[f"noise_width_{band}"], columns[f"gain_{band}"] = np.full((2, 20), [[0.4], [9.0]])
    return Cutouts(images, ("g", "r"), 0.2, columns).save(tmp_path_factory.mktemp("bare") / "c.npz")


RED_FIRST = Preprocessing.unnormalised(("r", "g"), 12, 0.2, "asinh", 2.0)


def test_training_has_the_noise_beside_it_and_validation_has_it_once(bare):
    training, validation = split(
        read_labelled(open_source(bare, needed=None), RED_FIRST, "auto"), 0.4
    )
    assert training.image_spec.noise_free and not validation.image_spec.noise_free
    np.testing.assert_allclose(training.arrays["sky"][0], [[4.0, 0.4, 9.0], [2.0, 0.4, 9.0]])
    batch = next(iter(training.batches(4)))
    assert batch["sky"].shape == (4, 2, 3)
    rows = np.arange(len(validation))
    images = validation.arrays["images"][rows]
    np.testing.assert_allclose(images[:, :4].std((0, 1, 2)), SIGMA[::-1], rtol=0.15)
    np.testing.assert_array_equal(validation.arrays["images"][rows[::-1]][::-1], images)
    again = split(read_labelled(open_source(bare, needed=None), RED_FIRST, "auto"), 0.4)[1]
    np.testing.assert_array_equal(again.arrays["images"][rows], images)
    brightness = measure(images, *validation.transform.measured)
    np.testing.assert_array_equal(validation.arrays["brightness"], brightness)
    # arcsinh of half of normal noise.
    np.testing.assert_allclose(training.preprocessing.std, 0.46, rtol=0.1)


def test_shards_keep_what_noise_there_is_to_add(bare, tmp_path):
    shards.pack(open_source(bare, needed=None), tmp_path, resume=False)
    packed, whole = (
        read_labelled(open_source(p, needed=None), RED_FIRST, "auto") for p in (tmp_path, bare)
    )
    np.testing.assert_array_equal(packed.arrays["sky"], whole.arrays["sky"])


@pytest.mark.parametrize(
    "column, value, message",
    [("noise_free", np.arange(20) % 2, "10 of 20 cutouts are noise-free"),
     ("gain_r", None, "lack the column gain_r")],
)  # fmt: skip
def test_noise_that_cannot_be_known_is_one_line(bare, column, value, message):
    source = open_source(bare, needed=None)
    if value is None:
        source.table.remove_column(column)
    else:
        source.table[column] = value
    with pytest.raises(UsageError, match=message):
        read_labelled(source, RED_FIRST, "auto")


def test_noise_free_cutouts_are_not_scored(bare):
    with pytest.raises(UsageError, match="score test.npz"):
        refuse_noise_free(open_source(bare, needed=None).table)
