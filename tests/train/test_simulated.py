"""The endless training set: the simulated sky, without return, the same after a restart."""

import dataclasses

import numpy as np
import pytest

from lensjax.data.preprocess import Preprocessing
from lensjax.errors import UsageError
from lensjax.sky import draw
from lensjax.sky.stamps import Stamps
from lensjax.sky.survey import DECAM
from lensjax.train.config import Hyperparameters
from lensjax.train.loop import train_members
from lensjax.train.simulated import Simulated, Sky, simulated
from tests.train.small import UNCHANGED_VALUES

pytestmark = pytest.mark.slow

COUNT, BATCH = 50, 16
SKY = Sky(dataclasses.replace(DECAM, size=24), 0.5, 3, None)
SEEN = Preprocessing.unnormalised(DECAM.bands, 24, DECAM.pixel_scale, "asinh", 2.0)


@pytest.fixture(autouse=True, scope="module")
def few_are_measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lensjax.train.simulated.MEASURED", 64)
        yield


@pytest.fixture(scope="module")
def sides():
    return simulated(SKY, COUNT, 40, SEEN)


@pytest.fixture(scope="module")
def training(sides) -> Simulated:
    return sides[0]


def taken(batches, count: int) -> list[dict[str, np.ndarray]]:
    return [{name: np.asarray(v) for name, v in next(batches).items()} for _ in range(count)]


def test_the_first_epoch_is_the_simulated_sky(training):
    sky = draw.simulate(SKY.survey, count=COUNT, lens_fraction=0.5, seed=3)
    for batch in taken(iter(training.batches(BATCH)), COUNT // BATCH):
        rows = batch["row"]
        np.testing.assert_allclose(batch["images"], sky.images[rows], rtol=1e-4, atol=1e-2)
        np.testing.assert_array_equal(batch["label"], sky.truth["label"][rows])
        np.testing.assert_array_equal(training.id[rows], sky.truth["id"][rows])


def test_no_picture_returns(training):
    of_epoch = COUNT // BATCH
    first, *_, again = taken(iter(training.batches(BATCH)), of_epoch + 1)
    np.testing.assert_array_equal(again["row"], first["row"])
    np.testing.assert_array_equal(again["label"], first["label"])
    noise = np.median(np.abs(first["images"]))
    assert (np.abs(again["images"] - first["images"]).mean((1, 2, 3)) > 0.1 * noise).all()


def test_it_goes_on_where_it_was(training):
    batches = iter(training.batches(BATCH))
    taken(batches, 2)
    state = batches.get_state()
    expected = taken(batches, 3)
    again = iter(training.batches(BATCH))
    again.set_state(state)
    for found, wanted in zip(taken(again, 3), expected, strict=True):
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_validation_is_fixed_and_of_another_sky(training, sides):
    _, validation = sides
    _, again = simulated(SKY, COUNT, 40, SEEN)
    np.testing.assert_array_equal(again.arrays["images"], validation.arrays["images"])
    assert len(validation) == 40 and validation.transform == training.transform
    for batch in taken(iter(training.batches(BATCH)), COUNT // BATCH):
        assert not np.isin(validation.arrays["images"][:, 0, 0, 0], batch["images"]).any()


def test_no_source_is_in_both_training_and_validation(monkeypatch):
    drawn = []

    def noise(survey, *, count, sources, **_):
        drawn.append(set(sources.name))
        images = np.random.default_rng(0).normal(size=(count, 24, 24, 3)).astype(np.float32)
        row = np.arange(count)
        truth = {"label": row % 2, "id": row, "group": row, "artefact": np.full(count, "")}
        return draw.Simulation(images, truth)

    monkeypatch.setattr("lensjax.train.simulated.simulate", noise)
    name = np.array([f"galaxy-{number}" for number in range(12)])
    stamps = Stamps(np.full((12, 2, 2), 0.25, np.float32), 0.1, name)
    training, _ = simulated(dataclasses.replace(SKY, stamps=stamps), COUNT, 20, SEEN)
    measured, validated = drawn
    assert set(training.sky.stamps.name) == measured
    assert not measured & validated and measured | validated == set(name)
    assert training.record["simulated"]["source_stamps"] == len(measured)


def test_a_member_is_trained_on_it_and_says_so(sides, tmp_path):
    hyperparameters = Hyperparameters(**UNCHANGED_VALUES, **{"batch_size": BATCH, "epochs": 2.0})
    (member,) = train_members(*sides, "light_transformer", hyperparameters, (0,), tmp_path)
    said = member.info.training["simulated"]
    assert said["name"] == "decam" and said["size"] == 24 and said["seed"] == 3
    assert np.isfinite(member.validation["logit"]).all()


def test_an_input_size_is_the_same_sky_in_other_pixels():
    finer = dataclasses.replace(SEEN, input_size=48, pixel_scale=0.263 / 2)
    training, _ = simulated(SKY, COUNT, 40, finer)
    assert (
        training.transform.geometry.action == "resampled" and not training.transform.geometry.pads
    )


def test_a_sky_of_one_class_is_refused():
    with pytest.raises(UsageError, match="training data .50 cutouts. need lenses and non-lenses"):
        simulated(dataclasses.replace(SKY, lens_fraction=0.0), COUNT, 40, SEEN)
