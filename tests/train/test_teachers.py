"""Teachers: the loss and its gradient in float64, what they see, and what they cannot see."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit

from lensjax.data.brightness import measure
from lensjax.data.on_device import Transform, seen
from lensjax.data.preprocess import Preprocessing, geometry
from lensjax.ensemble import checkpoint
from lensjax.errors import UsageError
from lensjax.models.network import Layers
from lensjax.train import teachers
from lensjax.train.config import Hyperparameters
from lensjax.train.losses import distillation_loss, unlike
from lensjax.train.member_step import ResolutionGroup, StepConfig, TrainBatch, augment_batch, shown
from lensjax.train.step import train_step
from lensjax.train.teachers import transform_of, unlike_teachers
from tests.ensemble.members import PREPROCESSING, random_member
from tests.train.small import BATCH, MEMBERS, MESH, TRANSFORM, config_and_state, transformer

# Of the student: other bands, pixels and brightness than the teachers'.
OWN = Preprocessing(("r", "i", "g"), 48, 0.3, "log", 1.0, (0.1, 0.2, 0.3), (1.0, 1.5, 2.0))
TRAINING = Transform(OWN, 0, (0, 1, 2), geometry((48, 48), 0.3, OWN))
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(0, 1, (BATCH, 48, 48, 3)).astype(np.float32)
IMAGES[:, 20:28, 20:28] += 30.0
BRIGHTNESS = measure(IMAGES, *TRAINING.measured)


def test_the_loss_and_its_gradient_equal_their_definition():
    logits, taught = RNG.normal(0, 3, (2, 3, 5))
    taught = taught[0]
    p, t = expit(logits), expit(taught)
    expected = -(t * np.log(p) + (1 - t) * np.log1p(-p))
    found = distillation_loss(jnp.asarray(logits), jnp.asarray(taught))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    gradient = jax.grad(lambda x: distillation_loss(x, jnp.asarray(taught)).sum())
    np.testing.assert_allclose(gradient(jnp.asarray(logits)), p - t, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> tuple[Hyperparameters, list]:
    """Two members of other kinds, one of them of the student's bands in another order."""
    folder, members = tmp_path_factory.mktemp("teachers"), []
    numbers = (0.5, 0.1, 0.0), (2.0, 1.0, 3.0)
    other = Preprocessing(("G", "r", "i"), 16, 0.5, "none", 1.0, *numbers)
    for name, preprocessing in (("vit_ti16", PREPROCESSING), ("light_transformer", other)):
        member = random_member(name, 1, preprocessing)
        calibration = {"slope": 0.5, "intercept": -0.2, "brier": 0.1}
        info = dataclasses.replace(member.info, calibration=calibration)
        checkpoint.save_member(folder / name / "0", dataclasses.replace(member, info=info))
        members.insert(0, member)
    return Hyperparameters(teachers=str(folder)), members


def expected_logits(members, images, brightness, flips) -> np.ndarray:
    """Returns the mean of what each member says of what it sees of these bands (r, i, g)."""
    logits = []
    for member, bands in zip(members, ([2, 0, 1], [2, 0]), strict=True):  # as they are found
        preprocessing = member.info.preprocessing
        of_image = geometry((48, 48), 0.3, preprocessing)
        transform = Transform(preprocessing, 0, tuple(range(len(bands))), of_image)
        pixels = np.array(
            jax.jit(seen, static_argnums=0)(transform, images[..., bands], brightness[:, bands])
        )
        for row, (down, across, turned) in enumerate(flips):
            image = pixels[row][::-1] if down else pixels[row]
            image = image[:, ::-1] if across else image
            pixels[row] = image.swapaxes(0, 1) if turned else image
        model = member.info.abstract_model()
        model = nnx.merge(nnx.graphdef(model), checkpoint.nnx_state(model, member.state))
        logits.append(0.5 * np.asarray(jax.jit(lambda x, m=model: m(x))(pixels)) - 0.2)
    return np.mean(logits, 0)


def test_they_see_the_augmented_cutouts_each_in_its_own_way(taught):
    hyperparameters, members = taught
    found, weights = teachers.load(hyperparameters, TRAINING, MESH)
    config = StepConfig(None, (TRAINING,), None, None, MESH, teachers=found)
    label = np.zeros(BATCH, np.float32)
    batch = TrainBatch(IMAGES, BRIGHTNESS, label, label, teachers=weights)
    changed, _ = jax.jit(augment_batch, static_argnums=0)(config, 3, batch, jax.random.key(5))
    assert np.abs(changed.images - IMAGES).max() > 1 and np.asarray(changed.flips).any()
    arrays = (np.asarray(part) for part in (changed.images, changed.brightness, changed.flips))
    expected = expected_logits(members, *arrays)
    np.testing.assert_allclose(changed.taught.logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_step_goes_down_the_gradient_of_the_mixed_loss(taught):
    """Against NumPy in float64, of two members and in two micro-batches; the gradient of the last
    bias is the sum of those of the logits."""
    hyperparameters, (_, member) = taught
    hyperparameters = dataclasses.replace(hyperparameters, teacher_ensemble="vit_ti16")
    plain, state = config_and_state(transformer, consistency_weight=0.0)
    found, weights = teachers.load(hyperparameters, TRANSFORM, MESH)
    config = dataclasses.replace(plain, teachers=found, teacher_weight=0.3)
    images, rng = IMAGES[..., :2], np.random.default_rng(3)
    label = (np.arange(BATCH) % 2).astype(np.float32)
    weight = rng.uniform(0.5, 2, (MEMBERS, BATCH)).astype(np.float32)
    brightness = measure(images, *TRANSFORM.measured)
    batch = TrainBatch(images, brightness, label, weight, teachers=weights)
    groups, copies = [ResolutionGroup((2,), 2)], jax.tree.map(jnp.copy, state)
    after, losses = train_step(config, groups, copies, batch, None)

    model = member.info.abstract_model()
    model = nnx.merge(nnx.graphdef(model), checkpoint.nnx_state(model, member.state))
    said = 0.5 * np.asarray(jax.jit(model)(shown(found[0].transform, batch)), np.float64) - 0.2
    own = jax.vmap(lambda p: plain.model(p, {})(shown(plain.transforms[2], batch)))(state.params)
    p, t = expit(np.asarray(own, np.float64)), 0.3 * expit(said) + 0.7 * (0.9 * label + 0.05)
    expected = -weight * (t * np.log(p) + (1 - t) * np.log1p(-p))
    np.testing.assert_allclose(losses[:, 0], expected.mean(1), rtol=1e-4)
    moved = [each.params["head"]["linear"]["bias"][...] for each in (state, after)]
    np.testing.assert_allclose(
        (moved[0] - moved[1])[:, 0], (weight * (p - t)).mean(1), rtol=1e-3, atol=1e-6
    )


def alignment(one, other, xp=np):
    """Returns the centred alignment of the kernels of two linear maps of the same rows (Kornblith
    et al. 2019, equation 2), of which `unlike` never makes the kernels."""
    flat = (xp.reshape(each, (-1, each.shape[-1])) for each in (one, other))
    centred = (each - each.mean(0, keepdims=True) for each in flat)
    mine, its = (each @ each.T for each in centred)
    return (mine * its).sum() / xp.sqrt((mine * mine).sum() * (its * its).sum())


def test_features_are_alike_that_a_rotation_makes_the_same():
    one, other = RNG.normal(0, 1, (40, 6)), RNG.normal(0, 2, (40, 3)) + 5
    other[:, 0] += one[:, 1]
    assert 0.05 < alignment(one, other) < 0.9
    found = unlike(jnp.asarray(one), jnp.asarray(other))
    np.testing.assert_allclose(found, 1 - alignment(one, other), atol=1e-5)
    rotation, _ = np.linalg.qr(RNG.normal(0, 1, (6, 6)))
    np.testing.assert_allclose(unlike(jnp.asarray(one), 3 * one @ rotation - 7), 0, atol=1e-5)
    assert unlike(jnp.zeros((40, 6)), jnp.asarray(other)) == 1  # a network that sees nothing yet


def test_maps_are_compared_on_the_coarser_grid():
    """What lies within one place of it are its channels."""
    coarse, fine = RNG.normal(0, 1, (5, 2, 2, 3)), RNG.normal(0, 1, (5, 6, 6, 2))
    folded = [
        fine[n, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3].ravel() for n, y, x in np.ndindex(5, 2, 2)
    ]
    features = np.ones((5, 4))
    student, teacher = Layers(features, (coarse,)), Layers(RNG.normal(0, 1, (5, 2)), (fine,))
    expected = (1 + 1 - alignment(coarse, np.array(folded))) / 2
    np.testing.assert_allclose(unlike_teachers(student, [teacher]), expected, atol=1e-5)
    with pytest.raises(UsageError, match="2 x 2 places of the student .* 3 x 3 of a teacher"):
        unlike_teachers(student, [teacher._replace(maps=(fine[:, :3, :3],))])


@pytest.mark.slow
def test_the_step_goes_down_the_gradient_of_how_unlike_the_layers_are(taught):
    hyperparameters, (_, member) = taught
    hyperparameters = dataclasses.replace(hyperparameters, teacher_ensemble="vit_ti16")
    plain, state = config_and_state(transformer, consistency_weight=0.0)
    found, weights = teachers.load(hyperparameters, TRANSFORM, MESH)
    config = dataclasses.replace(plain, teachers=found, teacher_features=2.0)
    images, label = IMAGES[..., :2], np.zeros(BATCH, np.float32)
    batch = TrainBatch(
        images, measure(images, *TRANSFORM.measured), label, np.ones((MEMBERS, BATCH), np.float32)
    )
    taught_batch = batch._replace(teachers=weights)
    groups, copies = [ResolutionGroup((1,))], jax.tree.map(jnp.copy, state)  # 2 x 2 places, as it
    after, _ = train_step(config, groups, copies, taught_batch, None)

    model = member.info.abstract_model()
    model = nnx.merge(nnx.graphdef(model), checkpoint.nnx_state(model, member.state))
    theirs = jax.jit(lambda x: model.layers(x))(shown(found[0].transform, batch))
    # Channels count alike, whatever their size.
    theirs = jax.tree.map(
        lambda each: (
            (each - each.mean(range(each.ndim - 1), keepdims=True))
            / each.std(range(each.ndim - 1), keepdims=True)
        ),
        theirs,
    )

    def loss(params):
        student = plain.model(params, {})
        layers = student.layers(shown(plain.transforms[1], batch))
        pairs = [(layers.features, theirs.features), *zip(layers.maps, theirs.maps, strict=True)]
        differ = sum(1 - alignment(*pair, xp=jnp) for pair in pairs) / 3
        return plain.loss(student.head(layers.features, rngs=None), label).mean() + 2 * differ

    expected = jax.jit(jax.vmap(jax.grad(loss)))(state.params)
    moved = jax.tree.map(lambda old, new: old - new, state.params, after.params)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-4),
        moved,
        expected,
    )


def test_the_record_tells_teachers_apart_by_all_that_they_say(taught):
    hyperparameters, members = taught
    before = teachers.record(hyperparameters)
    assert [each["weights_sha256"] for each in before] == [m.info.weights_sha256 for m in members]
    folder = Path(hyperparameters.teachers) / "vit_ti16" / "0"
    assert teachers.record(dataclasses.replace(hyperparameters, teachers=str(folder))) == before[1:]
    info = dataclasses.replace(checkpoint.read_info(folder), calibration={"slope": 2.0})
    assert info.identity(None) != before[1]["identity"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bands": ("g", "J")}, "J"),
        ({"stretch": "zscale"}, "its stretch is zscale, the student's log"),
        ({"pixel_scale": 3.0}, "a field of view of 14.4 arcsec"),
    ],
)
def test_what_a_teacher_cannot_see_is_refused(changed, said, tmp_path):
    member = random_member("light_transformer", 0, dataclasses.replace(PREPROCESSING, **changed))
    checkpoint.save_member(tmp_path, member)
    with pytest.raises(UsageError, match=f"--teachers: .* cannot see these cutouts: .*{said}"):
        teachers.load(Hyperparameters(teachers=str(tmp_path)), TRAINING, MESH)


def test_cutouts_that_the_host_has_fitted_keep_their_pixel_scale():
    halved = Preprocessing(("g", "r"), 24, 0.4, "none", 1.0, (0.0, 0.0), (1.0, 1.0))
    for of_image in (geometry((48, 48), 0.2, halved), geometry((24, 24), 0.4, halved)):
        training = Transform(halved, 0, (0, 1), of_image)
        found = transform_of(random_member("resnet18", 0).info, training).geometry
        expected = geometry(of_image.shape, 9.6 / of_image.shape[0], PREPROCESSING)
        assert (found.shape, found.action) == (expected.shape, expected.action)
        assert found.ratio == pytest.approx(expected.ratio)
