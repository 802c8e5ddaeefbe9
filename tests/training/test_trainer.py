"""Training learns, is reproducible, keeps groups apart, and refuses what cannot work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lensjax.data.on_device import View
from lensjax.data.preprocess import Preparation, geometry
from lensjax.errors import LensjaxError, UsageError
from lensjax.training import step as steps
from lensjax.training import trainer
from lensjax.training.dataset import Labelled, measure_normalisation, split
from lensjax.training.objective import binary_loss
from lensjax.training.trainer import Recipe, train_member

PREPARATION = Preparation(
    bands=("g",),
    input_size=16,
    pixel_scale=None,
    stretch="none",
    softening=1.0,
    mean=(0.0,),
    std=(1.0,),
)
VIEW = View(PREPARATION, 0, (0,), geometry((16, 16), None, PREPARATION))


def blobs(count: int) -> Labelled:
    """Cutouts whose label is whether a bright square lies at the centre."""
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (count, 16, 16, 1)).astype(np.float32)
    label = (np.arange(count) % 2).astype(np.float32)
    images[label == 1, 6:10, 6:10] += 2.0
    arrays = {
        "images": images,
        "inside": np.tile(np.array([0, 16, 0, 16], np.int32), (count, 1)),
        "label": label,
    }
    return Labelled(VIEW, arrays, np.arange(count), np.arange(count) // 2)


@pytest.fixture(scope="module")
def sides():
    return split(blobs(240), 0.3)


RECIPE = Recipe(batch_size=16, epochs=3.5, learning_rate=1e-3)


@pytest.fixture(scope="module")
def member(sides):
    return train_member(*sides, "vit_s16", RECIPE, seed=3)


def test_groups_stand_on_one_side(sides):
    training, validation = sides
    assert len(training) + len(validation) == 240
    assert not set(training.group) & set(validation.group)
    assert 0.2 < len(validation) / 240 < 0.4


def test_a_side_without_a_class_is_refused():
    data = blobs(40)
    data.arrays["label"][:] = 1
    with pytest.raises(UsageError, match="need lenses and non-lenses"):
        split(data, 0.3)


def test_training_learns(member):
    assert member.info.metrics["auroc"]["value"] > 0.95
    assert member.info.calibration["slope"] > 0
    assert member.info.calibration["brier"] < 0.2


def test_the_member_records_its_validation(member, sides):
    _, validation = sides
    np.testing.assert_array_equal(member.validation["id"], validation.id)
    np.testing.assert_array_equal(member.validation["label"], validation.arrays["label"])
    assert np.isfinite(member.validation["logit"]).all()


def test_the_same_seed_trains_the_same_member(member, sides):
    again = train_member(*sides, "vit_s16", RECIPE, seed=3)
    for name, leaf in member.state.items():
        np.testing.assert_array_equal(again.state[name], leaf)


def test_a_loss_that_is_not_finite_stops_the_run(sides):
    training, validation = sides
    broken = dict(training.arrays, images=np.full_like(training.arrays["images"], np.inf))
    training = dataclasses.replace(training, arrays=broken)
    with pytest.raises(LensjaxError, match=r"training loss is nan at step \d+"):
        train_member(training, validation, "vit_s16", RECIPE, seed=0)


def test_too_little_data_is_refused(sides):
    with pytest.raises(UsageError, match="do not fill a batch"):
        train_member(*sides, "vit_s16", Recipe(batch_size=512), seed=0)


def test_normalisation_makes_pixels_standard():
    data = blobs(64)
    preparation = measure_normalisation(data)
    pixels = data.arrays["images"].astype(np.float64)
    np.testing.assert_allclose(preparation.mean, pixels.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(preparation.std, pixels.std((0, 1, 2)), rtol=1e-5)


def test_the_last_batch_of_validation_is_cut(sides):
    _, validation = sides
    seen = []

    def sums(state, examples):
        seen.append(len(examples.images))
        return jnp.asarray(examples.images).sum((1, 2, 3))

    found = trainer.predict(sums, None, validation, 16)
    np.testing.assert_allclose(found, validation.arrays["images"].sum((1, 2, 3)), rtol=1e-4)
    assert set(seen) == {16}


def test_loss_equals_its_definition_and_smoothing_moves_the_labels():
    logits, labels = jnp.array([2.0, -1.0, 30.0]), jnp.array([1.0, 0.0, 0.0])
    p = 1 / (1 + np.exp(-np.array([2.0, -1.0, 30.0])))
    for smoothing in (0.0, 0.2):
        t = np.array([1.0, 0.0, 0.0]) * (1 - smoothing) + smoothing / 2
        expected = -np.mean(t * np.log(p) + (1 - t) * np.log1p(-p))
        assert binary_loss(logits, labels, smoothing) == pytest.approx(expected, rel=1e-3)


def test_orientations_are_the_eight_symmetries_of_the_square():
    image = np.arange(9.0, dtype=np.float32).reshape(1, 3, 3, 1)
    images = jnp.asarray(np.repeat(image, 256, axis=0))
    turned = np.asarray(steps.random_orientation(jax.random.key(0), images))
    square = image[0, :, :, 0]
    symmetries = {np.rot90(flip, k).tobytes() for flip in (square, square.T) for k in range(4)}
    assert {one[:, :, 0].tobytes() for one in turned} == symmetries


def test_weight_decay_spares_norms_biases_and_embeddings():
    from lensjax.models import registry

    for architecture in ("resnet18", "vit_s16"):
        model = nnx.eval_shape(
            lambda name=architecture: registry.create(
                name, bands=1, input_size=16, rngs=nnx.Rngs(0)
            )
        )
        mask = nnx.to_pure_dict(steps.decayed(nnx.state(model, nnx.Param)))
        for path, decays in jax.tree_util.tree_leaves_with_path(mask):
            name = jax.tree_util.keystr(path)
            assert decays == name.endswith("['kernel']"), name


def test_the_learning_rate_warms_up_and_falls_to_zero():
    optimizer = steps.optimiser(learning_rate=0.1, weight_decay=0.0, steps=20, warmup_steps=5)
    params = {"kernel": jnp.ones(3)}
    state, sizes = optimizer.init(params), []
    for _ in range(20):
        updates, state = optimizer.update({"kernel": jnp.ones(3)}, state, params)
        sizes.append(float(optax.tree.norm(updates)))
    assert sizes[0] == 0.0 and np.argmax(sizes) in (5, 6) and sizes[-1] < 0.02 * max(sizes)
