"""The Python API: what docs/tour.ipynb shows, in small."""

import dataclasses

import numpy as np
import pytest
from astropy.table import Table

import lensjax
from lensjax import pages
from lensjax.data.pixel_statistics import STATISTICS
from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble import checkpoint
from lensjax.errors import UsageError
from lensjax.inference import InferenceConfig, infer
from tests import networks, pixels
from tests.ensemble.members import random_member
from tests.train.small import UNCHANGED_VALUES


@pytest.fixture(autouse=True, scope="module")
def small_networks():
    with networks.small():
        yield


@pytest.fixture(scope="module")
def sky() -> lensjax.Cutouts:
    return lensjax.simulate(64, size=32, seed=1, test_fraction=0.0)[0]


@pytest.fixture(scope="module")
def labelled(sky) -> lensjax.Cutouts:
    """The sky, every fifth cutout of which is said to have an artefact."""
    artefact = np.where(np.arange(len(sky)) % 5 == 0, "trail", "")
    return dataclasses.replace(sky, columns=dict(sky.columns) | {"artefact": artefact})


@pytest.fixture(scope="module")
def folder(labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    hyperparameters = {"epochs": 0.5, "batch_size": 8, "validation_fraction": 0.3}
    # Augmentation takes long to compile.
    hyperparameters |= UNCHANGED_VALUES
    (info,) = lensjax.train_members(labelled, folder, arch="vit_s16", **hyperparameters)
    assert info.architecture == "vit_s16" and 0 <= info.metrics["auroc"]["value"] <= 1
    (again,) = lensjax.train_members(labelled, folder, arch="vit_s16", **hyperparameters)
    assert again.weights_sha256 == info.weights_sha256
    return folder


@pytest.fixture(scope="module")
def finder(folder) -> lensjax.LensFinder:
    return lensjax.load_ensemble(folder, batch_size=16, mc_samples=2)


def test_a_simulated_sky_knows_its_truth(sky):
    assert sky.images.shape == (64, 32, 32, 3) and sky.images.dtype == np.float32
    assert sky.bands == ("g", "r", "i") and sky.pixel_scale == 0.263
    assert np.sum(sky.columns["label"]) == 32
    assert sky.picture(0).shape == (32, 32, 3) and sky.picture(0).dtype == np.uint8
    training, test = lensjax.simulate(64, size=32, seed=1, test_fraction=0.3)
    assert len(training) + len(test) == 64
    assert not set(training.columns["group"]) & set(test.columns["group"])
    lenses = sky[np.asarray(sky.columns["label"]) == 1]
    assert len(lenses) == 32 and set(lenses.columns["kind"]) == {"lens"}


def test_cutouts_score_alike_in_memory_in_a_file_and_in_parts(finder, sky, tmp_path):
    candidates, rejects = finder.score(sky)
    assert len(candidates) == 64 and not len(rejects)
    assert (np.diff(candidates["probability"]) <= 0).all()
    assert {"id", "logit_std", "vit_s16_probability", "kind"} <= set(candidates.colnames)
    from_file = finder.score(sky.save(tmp_path / "sky.npz")).candidates
    parts = [finder.score(sky[rows]).candidates for rows in (slice(0, 40), slice(40, 64))]
    logit = dict(zip(candidates["id"], candidates["logit"], strict=True))
    for table in (from_file, *parts):
        expected = [logit[name] for name in table["id"]]
        np.testing.assert_allclose(table["logit"], expected, rtol=1e-4, atol=1e-5)


def test_a_trained_member_knows_the_pixels_of_what_validated_it(labelled, folder):
    """Cutouts with an artefact are left out: what is like them is to be told."""
    with np.load(folder / "vit_s16" / "0" / "validation.npz") as validation:
        is_held = np.isin(labelled.columns["id"], validation["id"])
    rows = np.flatnonzero(is_held & (labelled.columns["artefact"] == ""))
    assert 0 < len(rows) < is_held.sum() < len(labelled)
    by_hand = [pixels.statistics(image) for image in labelled.images[rows]]
    with np.load(folder / "vit_s16" / "0" / "pixels.npz") as known:
        assert known["statistics"].tolist() == list(STATISTICS)
        expected = [[each[name] for name in STATISTICS] for each in by_hand]
        np.testing.assert_allclose(known["pixels"], expected, rtol=1e-5, atol=1e-6)


def test_candidates_in_a_notebook_are_those_of_a_run(sky, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "draw", lambda *_: None)  # pictures take most of the time
    rng, label = np.random.default_rng(0), np.arange(60) % 2
    sees = Preprocessing.unnormalised(sky.bands, 16, None, "asinh", 2.0)
    reference = np.exp(rng.normal(size=(60, len(STATISTICS)))).astype(np.float32)
    for name in ("vit_s16/0", "vit_s16/1", "light_transformer/0"):
        member = random_member(name.split("/")[0], int(name[-1]), sees)
        known = {"id": np.arange(60), "label": label, "logit": label + rng.normal(size=60)}
        member = dataclasses.replace(member, validation=known, pixels=reference)
        checkpoint.save_member(tmp_path / "members" / name, member)
    images = sky.images[:30].copy()
    images[3] = np.nan
    data = dataclasses.replace(sky[:30], images=images).save(tmp_path / "sky.npz")
    members, how = tmp_path / "members", {"batch_size": 16, "mc_samples": 2}
    config = InferenceConfig(checkpoints=members, data=str(data), output=tmp_path / "run", **how)
    said = infer(config).run["outliers"]
    assert (said["reference"], said["reference_cutouts"]) == ("validation data", 60)
    of_run = Table.read(tmp_path / "run" / "candidates.csv")
    candidates, rejects = lensjax.load_ensemble(members, **how).score(data)
    assert len(candidates) == 29 and len(rejects) == 1
    assert {"log_likelihood_ratio", "probability_low", "probability_high"} <= set(of_run.colnames)
    assert {"disagreement", "member_disagreement", "outlier_p_value"} <= set(of_run.colnames)
    assert of_run.colnames == candidates.colnames
    for name in candidates.colnames:
        found, gap = (str, "") if candidates[name].dtype.kind == "U" else (float, np.nan)
        pair = (np.ma.filled(np.ma.asarray(t[name], found), gap) for t in (candidates, of_run))
        if found is str:
            np.testing.assert_array_equal(*pair, err_msg=name)
        else:
            np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_cannot_be_scored_is_told(finder, sky):
    images = sky.images[:3].copy()
    images[1] = np.nan
    candidates, rejects = finder.score(lensjax.Cutouts(images, sky.bands, sky.pixel_scale))
    assert sorted(candidates["id"]) == [0, 2]
    assert [tuple(row) for row in rejects] == [(1, "no valid pixel")]
    with pytest.raises(UsageError, match="bands"):
        finder.score(lensjax.Cutouts(images[..., :2], ("g", "z")))
    with pytest.raises(UsageError, match="no such file"):
        finder.score("nowhere")


def test_candidates_are_evaluated_by_their_labels(finder, sky):
    candidates = finder.score(sky).candidates
    found = lensjax.evaluate(candidates)
    assert set(found) == {"ensemble", "vit_s16"}
    assert found["ensemble"].lenses == found["ensemble"].others == 32
    reverse = lensjax.evaluate(candidates, 1 - candidates["label"])["ensemble"]
    assert reverse.auroc.value == pytest.approx(1 - found["ensemble"].auroc.value)
    with pytest.raises(UsageError, match="label"):
        lensjax.evaluate(Table({"probability": [0.5]}))


def test_an_ensemble_says_what_it_is(finder, folder):
    assert repr(finder) == "LensFinder(vit_s16; bands g, r, i)"
    assert finder.members["vit_s16"].preprocessing.input_size == 32
    with pytest.raises(UsageError, match="holds 1 of 2"):
        lensjax.load_ensemble(folder, "vit_s16:2")
    with pytest.raises(UsageError, match="mc-samples"):
        lensjax.load_ensemble(folder, mc_samples=0)
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        _ = lensjax.scores
