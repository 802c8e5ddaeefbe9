"""The last layer that learns alone, against scikit-learn, repeated cutouts and scoring."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lensjax.api import load_ensemble
from lensjax.cutouts import Cutouts
from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble import checkpoint
from lensjax.errors import UsageError
from lensjax.train import head
from lensjax.train.head import BIAS, KERNEL, Known, learned
from lensjax.training import train
from lensjax.training_config import TrainConfig
from tests.ensemble.members import random_member

SEEN = Preprocessing(("g", "r"), 32, 0.2, "asinh", 2.0, (0.1, 0.2), (1.0, 2.0))


@pytest.fixture(scope="module")
def drawn() -> Known:
    """Features, labels that three of them tell, the logits of a layer that knows nothing, weights
    and groups."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(200, 8))
    labels = (features[:, :3].sum(1) + rng.normal(size=200) > 1).astype(float)
    weights = rng.uniform(0.2, 1, 200)
    groups = np.array([f"group {number}" for number in range(200)])
    return Known(features, np.zeros(200), labels, weights, groups)


@pytest.fixture
def no_sky(monkeypatch, drawn) -> Known:
    """A sky that does not count."""
    monkeypatch.setattr(head, "WEIGHT_OF_SKY", 0.0)
    return drawn


@pytest.mark.parametrize("penalty", [1.0, 30.0])
def test_from_a_layer_of_zeros_it_is_a_ridge_regression(monkeypatch, drawn, no_sky, penalty):
    monkeypatch.setattr(head, "PENALTIES", (penalty,))
    found = learned(drawn, no_sky)
    weights = drawn.weights / drawn.weights.mean()
    other = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=1000)
    other.fit(drawn.features, drawn.labels, weights)
    np.testing.assert_allclose(found.weights, other.coef_[0], atol=2e-4)
    assert found.bias == pytest.approx(other.intercept_[0], abs=2e-4)


def test_a_cutout_of_twice_the_weight_is_as_two(monkeypatch, drawn, no_sky):
    weights = np.where(np.arange(200) < 50, 2.0, 1.0)
    monkeypatch.setattr(head, "PENALTIES", (10.0,))
    of_two = learned(drawn._replace(weights=np.ones(200)).take(np.r_[:200, :50]), no_sky)
    # Weights have a mean of one, whatever they are: the penalty is that of 200 cutouts.
    monkeypatch.setattr(head, "PENALTIES", (8.0,))
    of_weight = learned(drawn._replace(weights=weights), no_sky)
    np.testing.assert_allclose(of_weight.weights, of_two.weights, atol=1e-4)


def test_grades_that_are_known_already_and_features_that_say_nothing_change_little(drawn, no_sky):
    noise = np.random.default_rng(5).normal(size=drawn.features.shape)
    knows = learned(drawn, no_sky)
    told = learned(drawn._replace(features=noise, logits=4 * drawn.labels - 2), no_sky)
    assert np.abs(told.weights).max() < 0.1 * np.abs(knows.weights[:3]).min()
    assert np.abs(knows.weights[3:]).max() < 0.5 * knows.weights[:3].min()


def test_a_sky_holds_what_the_grades_say_nothing_of(drawn):
    # The grades all lie along the first feature; of the sky the second tells lenses from others.
    grades = drawn._replace(features=drawn.features * (np.arange(8) == 0))
    sky = drawn._replace(labels=(drawn.features[:, 1] > 0).astype(float), weights=np.ones(200))
    found = learned(grades, sky)
    assert found.weights[0] > 0.1 and found.weights[1] > 0.1
    assert np.abs(found.weights[2:]).max() < 0.5 * found.weights[1]


def test_grades_of_one_kind_leave_the_layer_finite(drawn, no_sky):
    found = learned(drawn._replace(labels=np.zeros(200)), no_sky)
    assert np.abs(found.weights).max() < 0.1 and -15 < found.bias < 0


def cutouts(count: int, seed: int) -> Cutouts:
    rng = np.random.default_rng(seed)
    images = rng.normal(5.0, 2.0, (count, 32, 32, 2)).astype(np.float32)
    labels = np.arange(count) % 2
    images[labels == 1, 10:22, 10:22] += 20.0
    table = {"label": labels, "id": [f"{seed}-{row}" for row in range(count)]}
    return Cutouts(images, ("g", "r"), 0.2, table)


def test_a_member_learns_its_last_layer_and_nothing_else(tmp_path):
    start = tmp_path / "first" / "vit_s16" / "0"
    checkpoint.save_member(start, random_member("vit_s16", 0, SEEN))
    for seed, name in enumerate(("graded", "known")):
        cutouts(60, seed).save(tmp_path / f"{name}.npz")
    options = TrainConfig(
        arch="vit_s16",
        data=str(tmp_path / "graded.npz"),
        replay=str(tmp_path / "known.npz"),
        start_from=str(tmp_path / "first"),
        output=tmp_path / "members",
        head_only=True,
    )
    (trained,) = train(options)
    before, after = checkpoint.load_member(start), checkpoint.load_member(trained.folder)
    changed = {n for n, v in after.state.items() if not np.array_equal(v, before.state[n])}
    assert changed == {KERNEL, BIAS}
    # What is said of the sky, which was not learned, is what scoring says of it.
    own, known = after.info.calibration, after.validation
    logits = own["slope"] * known["logit"] + own["intercept"]
    of_sky = {str(n): z for n, z in zip(known["id"], logits, strict=True) if n.startswith("1-")}
    scores, _ = load_ensemble(tmp_path / "members", mc_samples=1).score(tmp_path / "known.npz")
    found = {str(row["id"]): row["logit"] for row in scores}
    assert len(found) == 60 and {*found} == {*of_sky}
    np.testing.assert_allclose([found[name] for name in of_sky], [*of_sky.values()], atol=2e-3)
    # Each of the grades is held back once.
    assert trained.info.verdict["cutouts"] == 60
    assert trained.info.verdict["after"]["auroc"] > trained.info.verdict["before"]["auroc"]
    (again,) = train(options)
    assert not again.is_new

    with pytest.raises(UsageError, match="--head-only learns from graded cutouts: give --replay"):
        list(train(dataclasses.replace(options, replay=None)))

    one = cutouts(3, 0)
    one.columns["group"] = np.array(["a", "a", "a"])
    one.save(tmp_path / "one.npz")
    with pytest.raises(UsageError, match="3 graded cutouts of .*one.npz are one group"):
        list(train(dataclasses.replace(options, data=str(tmp_path / "one.npz"))))
