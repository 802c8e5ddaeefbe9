"""Training learns, is reproducible, keeps groups apart, and refuses what cannot work."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import ndimage, stats
from sklearn.metrics import roc_auc_score

from lensjax.api import load_ensemble
from lensjax.cutouts import Cutouts
from lensjax.data.brightness import measure
from lensjax.data.on_device import Transform, seen
from lensjax.data.preprocess import Preprocessing, geometry
from lensjax.ensemble import checkpoint, sharding
from lensjax.errors import LensjaxError, UsageError
from lensjax.models import registry
from lensjax.train import loop
from lensjax.train.augment import Augmentation
from lensjax.train.config import Hyperparameters
from lensjax.train.data import Labelled, read_labelled, split
from lensjax.train.loop import train_members
from lensjax.train.setup import example_weights
from lensjax.train.state import TrainState
from tests.networks import Convolutional

PREPROCESSING = Preprocessing(
    bands=("g",),
    input_size=16,
    pixel_scale=None,
    stretch="none",
    softening=1.0,
    mean=(0.0,),
    std=(1.0,),
)
TRANSFORM = Transform(PREPROCESSING, 0, (0,), geometry((16, 16), None, PREPROCESSING))


def blobs(count: int) -> Labelled:
    """Cutouts whose label is whether a bright square lies at the centre."""
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (count, 16, 16, 1)).astype(np.float32)
    label = (np.arange(count) % 2).astype(np.float32)
    images[label == 1, 6:10, 6:10] += 2.0
    arrays = {
        "images": images,
        "brightness": measure(images, *TRANSFORM.measured),
        "label": label,
    }
    return Labelled(TRANSFORM, arrays, np.arange(count), np.arange(count) // 2)


@pytest.fixture(scope="module")
def sides():
    return split(blobs(240), 0.3)


# Augmentation is tested apart, and takes long to compile.
RECIPE = Hyperparameters(
    **dataclasses.asdict(Augmentation(0, 0, 0, 0, 0, 0, 0)),
    **{"batch_size": 16, "epochs": 5.5, "learning_rate": 5e-3},
)


@pytest.fixture(scope="module")
def team(sides, vit_tiny, tmp_path_factory):
    """Two members that were trained together."""
    return train_members(*sides, vit_tiny, RECIPE, (3, 4), tmp_path_factory.mktemp("run"))


@pytest.fixture
def member(team):
    return team[0]


def test_training_learns(member):
    assert member.info.metrics["auroc"]["value"] > 0.95
    assert member.info.calibration["slope"] > 0
    assert member.info.calibration["brier"] < 0.2


def test_the_member_records_its_validation(member, sides):
    _, validation = sides
    np.testing.assert_array_equal(member.validation["id"], validation.id)
    np.testing.assert_array_equal(member.validation["label"], validation.arrays["label"])
    assert np.isfinite(member.validation["logit"]).all()


def test_a_trained_member_in_int8_scores_as_it_did(member, sides, tmp_path):
    checkpoint.save_member(tmp_path / "member", member, "int8")
    again = checkpoint.load_member(tmp_path / "member")
    transform, arrays = sides[1].transform, sides[1].arrays
    transform = dataclasses.replace(transform, preprocessing=again.info.preprocessing)
    images = seen(transform, arrays["images"], arrays["brightness"])
    abstract = again.info.abstract_model()
    logits = nnx.merge(nnx.graphdef(abstract), checkpoint.nnx_state(abstract, again.state))(images)
    before = member.validation["logit"]
    difference = np.asarray(logits) - before
    assert 0 < np.abs(difference).max() < 0.03 * before.std()


@pytest.mark.slow
def test_a_member_of_several_sizes_scores_as_it_was_validated(sides, tmp_path, monkeypatch):
    """With the weights and the running statistics of its own size, the largest."""
    tiny = registry.Architecture("conv_tiny", (), 0, 32, Convolutional.DEPTHS, Convolutional)
    monkeypatch.setitem(registry.ARCHITECTURES, tiny.name, tiny)
    hyperparameters = dataclasses.replace(RECIPE, epochs=2.0, scales="8,16")
    (member,) = train_members(*sides, tiny.name, hyperparameters, (3,), tmp_path)
    abstract = member.info.abstract_model()
    state = checkpoint.nnx_state(abstract, member.state)
    arrays = sides[1].arrays
    transform = dataclasses.replace(sides[1].transform, preprocessing=member.info.preprocessing)
    images = seen(transform, arrays["images"], arrays["brightness"])
    logits = nnx.merge(nnx.graphdef(abstract), state)(images)
    np.testing.assert_allclose(logits, member.validation["logit"], atol=1e-4)


@pytest.mark.slow
def test_a_member_ends_as_it_would_alone(sides, vit_tiny, tmp_path):
    few_steps = dataclasses.replace(RECIPE, epochs=0.5)
    _, together = train_members(*sides, vit_tiny, few_steps, (3, 4), tmp_path / "team")
    (alone,) = train_members(*sides, vit_tiny, few_steps, (4,), tmp_path / "alone")
    for name, leaf in together.state.items():
        # Adam makes whole steps also where the gradient is all rounding, as of a key's bias.
        tolerance = 1e-3 if name.endswith("key_value.bias") else 2e-5
        np.testing.assert_allclose(alone.state[name], leaf, atol=tolerance, err_msg=name)
    np.testing.assert_allclose(alone.validation["logit"], together.validation["logit"], atol=2e-4)
    assert alone.info.training == together.info.training


@pytest.mark.slow
def test_training_goes_on_from_given_weights_and_leaves_the_frozen_alone(
    team, sides, vit_tiny, tmp_path
):
    for number, member in enumerate(team):
        checkpoint.save_member(tmp_path / vit_tiny / str(number), member)
    hyperparameters = dataclasses.replace(
        RECIPE, epochs=0.5, start_from=str(tmp_path), freeze="embedding,blocks", layer_decay=0.8
    )
    (again,) = train_members(*sides, vit_tiny, hyperparameters, (1,), tmp_path / "run")
    for name, leaf in again.state.items():
        stays = np.array_equal(leaf, team[1].state[name])
        assert stays == name.startswith(("embedding.", "blocks.")), name
    hashes = again.info.training["started_from_sha256"]
    assert hashes == [checkpoint.arrays_sha256(member.state) for member in team]


@pytest.mark.slow
def test_a_share_of_the_weights_to_start_from_is_kept(team, sides, vit_tiny, tmp_path):
    checkpoint.save_member(tmp_path / vit_tiny / "0", team[0])
    tuning = dataclasses.replace(RECIPE, epochs=0.5, start_from=str(tmp_path))
    (tuned,) = train_members(*sides, vit_tiny, tuning, (0,), tmp_path / "tuned")
    keeping = dataclasses.replace(tuning, keep_start=0.25)
    (kept,) = train_members(*sides, vit_tiny, keeping, (0,), tmp_path / "kept")
    for name, leaf in kept.state.items():
        mean = 0.25 * team[0].state[name] + 0.75 * tuned.state[name]
        np.testing.assert_allclose(leaf, mean, atol=1e-6, err_msg=name)
    # What is said of it is of the mean: its calibration, metrics and logits.
    assert np.abs(kept.validation["logit"] - tuned.validation["logit"]).max() > 1e-3
    assert kept.info.training["keep_start"] == 0.25


def test_a_balanced_loss_gives_both_classes_the_same_say():
    labels = np.array([1, 0, 0, 0, 0], np.float32)
    weights = assemble_weights(labels, balanced=True)
    assert weights.shape == (2, 5) and weights[0, 0] == pytest.approx(weights[0, 1:].sum())
    np.testing.assert_allclose(weights.mean(1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(assemble_weights(labels, balanced=False), 1.0)
    drawn = assemble_weights(np.zeros(4000, np.float32), bootstrap=True)
    assert abs(drawn.mean() - 1) < 0.05 and abs(drawn.var() - 1) < 0.1  # Poisson(1)
    assert not np.array_equal(*drawn)


def assemble_weights(labels: np.ndarray, **hyperparameters) -> np.ndarray:
    return example_weights((3, 4), labels, Hyperparameters(**hyperparameters))


def test_members_of_other_seeds_are_others(team):
    first, second = (member.state["embedding.patches.kernel"] for member in team)
    assert np.abs(first - second).max() > 0.01


def test_a_loss_that_is_not_finite_stops_the_run(sides, vit_tiny, tmp_path):
    training, validation = sides
    broken = dict(training.arrays, images=np.full_like(training.arrays["images"], np.inf))
    training = dataclasses.replace(training, arrays=broken)
    with pytest.raises(LensjaxError, match=r"training loss is nan at step \d+, on 16 cutouts"):
        train_members(training, validation, vit_tiny, RECIPE, (3, 4), tmp_path)


def test_too_little_data_is_refused(sides, vit_tiny, tmp_path):
    with pytest.raises(UsageError, match="do not fill a batch"):
        train_members(*sides, vit_tiny, Hyperparameters(batch_size=512), (0,), tmp_path)


def test_the_last_batch_of_validation_is_cut(sides, monkeypatch):
    _, validation = sides
    seen = []

    def sums(config, scale, params, batch_stats, batch):
        seen.append(len(batch.images))
        return jnp.asarray(batch.images).sum((1, 2, 3))[None]

    monkeypatch.setattr(loop, "validation_logits", sums)
    state = TrainState(None, None, None, None, None)
    config = SimpleNamespace(mesh=sharding.mesh_of(jax.local_devices()[:1]))
    (found,) = loop.predict(config, 0, state, validation, 16)
    np.testing.assert_allclose(found, validation.arrays["images"].sum((1, 2, 3)), rtol=1e-4)
    assert set(seen) == {16}


@pytest.mark.slow
def test_patience_and_the_best_epoch_wait_for_the_members_own_size(
    sides, vit_tiny, tmp_path, monkeypatch
):
    """The loss at a size that is not trained yet says nothing: here it is best in the first."""
    label, epochs = sides[1].labels, iter(range(100))
    best = 2.0 * label - 1.0

    def worse_and_worse(*_):
        return best[None] * 0.9 ** (next(epochs) // 2)  # two sizes an epoch

    monkeypatch.setattr(loop, "predict", worse_and_worse)
    hyperparameters = dataclasses.replace(
        RECIPE, epochs=6.0, scales="16,32", schedule="progressive", patience=1
    )
    (member,) = train_members(*sides, vit_tiny, hyperparameters, (0,), tmp_path)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows[::2]] == ["1", "2", "3", "4", "5"]
    np.testing.assert_allclose(member.validation["logit"], best * 0.9**3)


@pytest.mark.slow
def test_a_member_trained_on_noise_free_cutouts_scores_noisy_files_as_validated(vit_tiny, tmp_path):
    """Labels that are told by faint light, on noise that the training step draws."""
    images = np.tile(np.linspace(1e-6, 2e-6, 16, dtype=np.float32)[:, None], (240, 16, 1, 1))
    label = np.arange(240) % 2
    images[label == 1, 6:10, 6:10] *= 2.0 / 1.5e-6
    sky = {"sky_sigma_g": 1.0, "noise_width_g": 0.4, "gain_g": 10.0, "noise_free": 1.0}
    columns = {"label": label} | {name: np.full(240, value) for name, value in sky.items()}
    source = Cutouts(images, ("g",), None, columns).source()
    preprocessing = dataclasses.replace(PREPROCESSING, stretch="asinh")
    training, validation = split(read_labelled(source, preprocessing, "auto"), 0.3)
    recipe = dataclasses.replace(RECIPE, augment_depth=0.3)
    folder = tmp_path / "members"
    (member,) = train_members(training, validation, vit_tiny, recipe, (3,), tmp_path / "run")
    assert member.info.metrics["auroc"]["value"] > 0.9
    checkpoint.save_member(folder / vit_tiny / "3", member)
    # What another program would have written of this sky.
    rng, shape = np.random.default_rng(9), (600, 16, 16, 1)
    label = np.arange(600) % 2
    noisy = ndimage.gaussian_filter(rng.standard_normal(shape), (0, 0.4, 0.4, 0), mode="wrap")
    noisy /= noisy.std()
    noisy[label == 1, 6:10, 6:10] *= 1.2**0.5  # of photons
    noisy[label == 1, 6:10, 6:10] += 2.0
    scored = load_ensemble(folder, mc_samples=1).score(Cutouts(noisy.astype(np.float32), ("g",)))
    logit = np.zeros(600)
    logit[np.asarray(scored.candidates["id"], int)] = scored.candidates["logit"]
    assert roc_auc_score(label, logit) == pytest.approx(
        member.info.metrics["auroc"]["value"], abs=0.06
    )
    calibrated = member.info.calibration
    validated = calibrated["slope"] * member.validation["logit"] + calibrated["intercept"]
    for one in (0, 1):
        mine = logit[label == one]
        assert stats.ks_2samp(mine, validated[validation.labels == one]).pvalue > 1e-3
