"""The compiled step against members evaluated alone, one cutout and one sample at a time."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from lensjax.data import pipeline
from lensjax.data.brightness import measure
from lensjax.data.catalog import open_source
from lensjax.data.on_device import Inputs, Transform, seen
from lensjax.data.preprocess import geometry
from lensjax.ensemble import sharding
from lensjax.ensemble import step as step_module
from lensjax.ensemble.checkpoint import Member, nnx_state
from lensjax.ensemble.stack import member_keys, stack
from lensjax.ensemble.step import StepOptions, ensemble_step, one_by_one_step, parts, place_weights
from lensjax.models.registry import ARCHITECTURES
from tests import networks
from tests.ensemble.members import PREPROCESSING, blank_member, random_member

SAMPLES, SEED = 3, 11
TRANSFORM = Transform(PREPROCESSING, 0, (0, 1), geometry((32, 32), None, PREPROCESSING))
MESH = sharding.mesh_of(jax.devices())


@pytest.fixture(scope="module")
def members() -> dict[str, Member]:
    return {
        "resnet18.0": random_member("resnet18", 0),
        "vit_s16": random_member("vit_s16", 1),
        "resnet18.1": random_member("resnet18", 2),
    }


@pytest.fixture(scope="module")
def together(members):
    """The ensemble of all members and its scores of four cutouts."""
    return scores(members, inputs(4))


def inputs(count: int) -> Inputs:
    rng = np.random.default_rng(3)
    images = rng.normal(5.0, 2.0, (count, 32, 32, 2)).astype(np.float32)
    return Inputs((images,), (measure(images, *TRANSFORM.measured),), (TRANSFORM,))


def rows(batch: Inputs, chosen: np.ndarray) -> Inputs:
    return jax.tree.map(lambda leaf: leaf[chosen], batch)


def scores(members, batch, samples=SAMPLES, make=ensemble_step, fusion="mean_prob"):
    ensemble = stack(members)
    options = StepOptions(samples, fusion, seed=SEED)
    weights = place_weights(ensemble, MESH, options)
    step = make(ensemble, MESH, options)
    return ensemble, step(weights, batch)


def plain_model(member: Member) -> nnx.Module:
    model = nnx.eval_shape(lambda: member.info.build(nnx.Rngs(0)))
    return nnx.merge(nnx.graphdef(model), nnx_state(model, member.state))


def looped_logits(member: Member, identity: np.ndarray, batch: Inputs) -> np.ndarray:
    """Returns logits (sample, batch) of one member from single-cutout passes of the plain model."""
    graph, state = nnx.split(plain_model(member))
    images = seen(TRANSFORM, batch.images[0], batch.brightness[0])
    keys = member_keys(identity[None], SEED, SAMPLES)[0]

    @jax.jit
    def one(state, image, key):
        return nnx.merge(graph, state)(image[None], rngs=nnx.Rngs(dropout=key))[0]

    return np.array([[one(state, image, key) for image in images] for key in keys])


@pytest.mark.slow
@pytest.mark.optimised
def test_stacked_members_and_samples_equal_single_passes(members):
    batch = inputs(4)
    ensemble, found = scores(members, batch)
    assert sorted(ensemble.names) == sorted(members)
    for index, name in enumerate(ensemble.names):
        looped = looped_logits(members[name], ensemble.identities[index], batch)
        assert looped.std(axis=0).min() > 1e-4  # dropout is on
        np.testing.assert_allclose(found.member_logits[index], looped.mean(0), atol=2e-5)


def test_a_score_does_not_depend_on_neighbours_order_or_batch_size(members, together):
    batch = inputs(4)
    order = np.array([3, 0])
    _, apart = scores(members, rows(batch, order))
    np.testing.assert_allclose(apart.logit, np.asarray(together[1].logit)[order], atol=1e-5)
    np.testing.assert_allclose(apart.logit_std, np.asarray(together[1].logit_std)[order], atol=1e-5)


def test_a_member_scores_alike_in_any_company(members, together):
    batch = inputs(4)
    ensemble, expected = together
    for name in members:
        _, alone = scores({name: members[name]}, batch)
        row = expected.member_logits[ensemble.names.index(name)]
        np.testing.assert_allclose(alone.member_logits[0], row, atol=1e-5)


def test_members_and_samples_have_masks_of_their_own(members):
    keys = member_keys(stack(members).identities, SEED, SAMPLES)
    draws = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key)))(keys)
    assert len(np.unique(np.asarray(draws))) == len(members) * SAMPLES


def test_walking_the_members_one_by_one_gives_the_same_scores(members, together):
    batch = inputs(4)
    _, stepped = together
    _, walked = scores(members, batch, make=one_by_one_step)
    for name, values in stepped._asdict().items():
        np.testing.assert_allclose(getattr(walked, name), values, atol=3e-5, err_msg=name)


def test_members_that_are_mapped_together_score_as_one_after_another(
    members, together, monkeypatch
):
    batch = inputs(4)
    _, apart = together
    monkeypatch.setattr(step_module, "parts", lambda members, mesh: [slice(0, members)])
    _, mapped = scores(members, batch)
    for name, values in apart._asdict().items():
        np.testing.assert_allclose(getattr(mapped, name), values, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("platform", "shards", "expected"),
    [("cpu", 1, 3), ("cpu", 2, 1), ("gpu", 1, 3), ("gpu", 2, 1), ("tpu", 1, 1)],
)
def test_members_are_mapped_together_where_that_is_fast(platform, shards, expected):
    devices = np.array([SimpleNamespace(platform=platform)] * shards)
    mesh = SimpleNamespace(devices=devices, shape={sharding.MEMBER: shards})
    found = parts(3, mesh)
    assert len(found) == expected
    assert [row for rows in found for row in range(3)[rows]] == [0, 1, 2]


def test_one_sample_has_no_dropout(members):
    batch = inputs(4)
    _, one = scores({"a": members["vit_s16"]}, batch, samples=1)
    model = plain_model(members["vit_s16"])
    images = seen(TRANSFORM, batch.images[0], batch.brightness[0])
    np.testing.assert_allclose(one.member_logits[0], model(images), atol=1e-5)
    np.testing.assert_allclose(one.logit_std, 0.0, atol=1e-6)


def test_symmetries_are_the_mean_over_cutouts_that_were_turned_beforehand(members):
    batch, ensemble = inputs(3), stack({"resnet18": members["resnet18.0"]})

    def logits(images: np.ndarray, symmetries: int) -> np.ndarray:
        options = StepOptions(SAMPLES, "mean_prob", seed=SEED, symmetries=symmetries)
        step = ensemble_step(ensemble, MESH, options)
        turned = dataclasses.replace(batch, images=(images,))
        return np.asarray(step(place_weights(ensemble, MESH, options), turned).member_logits)

    images = batch.images[0]
    turned = [
        np.rot90(one, turns, axes=(1, 2)) for one in (images, images[:, ::-1]) for turns in range(4)
    ]
    expected = np.mean([logits(np.ascontiguousarray(each), 1) for each in turned], axis=0)
    found = logits(images, 8)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(logits(np.ascontiguousarray(turned[5]), 8), found, atol=1e-5)


def test_one_compilation_and_one_dispatch_serve_all_batches(members):
    ensemble = stack(members)
    options = StepOptions(2, "stacked", "float32", SEED)
    weights = place_weights(ensemble, MESH, options)
    step = ensemble_step(ensemble, MESH, options)
    for _ in range(3):
        step(weights, inputs(4))
    assert step._cache_size() == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_samples_repeat_the_head_only(architecture):
    ensemble = stack({"a": blank_member(architecture)})

    def flops(samples: int) -> float:
        options = StepOptions(samples, "stacked", "float32", 0)
        weights = place_weights(ensemble, MESH, options)
        step = ensemble_step(ensemble, MESH, options)
        return step.lower(weights, inputs(4)).compile().cost_analysis()["flops"]

    assert flops(10) < 1.05 * flops(1)


@pytest.mark.slow
@pytest.mark.optimised
def test_members_work_in_the_same_memory_on_a_cpu():
    def temporaries(count: int) -> int:
        with networks.real():
            members = {str(n): blank_member("resnet18") for n in range(count)}
            ensemble = stack(members)
        options = StepOptions(1, "mean_prob", "float32", SEED)
        weights = place_weights(ensemble, MESH, options)
        step = ensemble_step(ensemble, MESH, options)
        compiled = step.lower(weights, inputs(64)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(3) < 1.2 * temporaries(1)


def test_bfloat16_stays_near_float32(members):
    batch, ensemble = inputs(4), stack(members)
    found = []
    for precision in ("float32", "bfloat16"):
        options = StepOptions(1, "mean_prob", precision, 0)
        weights = place_weights(ensemble, MESH, options)
        step = ensemble_step(ensemble, MESH, options)
        found.append(np.asarray(step(weights, batch).logit))
    np.testing.assert_allclose(found[1], found[0], atol=0.15)
    assert np.abs(found[1] - found[0]).max() > 0


def test_pixels_of_eight_bits_score_as_the_same_in_float32(members):
    narrow = np.random.default_rng(4).integers(0, 256, (4, 44, 50, 3)).astype(np.uint8)
    transform = Transform(PREPROCESSING, 0, (2, 0), geometry((44, 50), 0.16, PREPROCESSING))
    brightness = (measure(narrow, *transform.measured),)
    found = [
        scores({"a": members["vit_s16"]}, Inputs((images,), brightness, (transform,)))[1]
        for images in (narrow, narrow.astype(np.float32))
    ]
    for name, values in found[0]._asdict().items():
        np.testing.assert_array_equal(getattr(found[1], name), values, err_msg=name)


def test_a_cutout_scores_alike_from_a_stack_and_from_a_file(members, tmp_path):
    images = np.random.default_rng(6).normal(9.0, 2.0, (3, 50, 41, 2)).astype(np.float32)
    images[1, 5, 6] = np.nan
    np.save(tmp_path / "stack.npy", images)
    (tmp_path / "files").mkdir()
    for row, image in enumerate(images):
        np.save(tmp_path / "files" / f"{row}.npy", image)
    found = []
    for path, shape in (("stack.npy", (50, 41)), ("files", (32, 32))):
        source = open_source(tmp_path / path, needed=("g", "r"), pixel_scale=0.13)
        (batch,) = pipeline.batches(source, (PREPROCESSING,), how="auto", batch_size=3)
        assert batch.inputs.images[0].shape == (3, *shape, 2)
        found.append(scores({"a": members["vit_s16"]}, batch.inputs)[1])
    np.testing.assert_allclose(found[0].member_logits, found[1].member_logits, atol=1e-4)
