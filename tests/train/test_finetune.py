"""Training from given weights: what is loaded, what moves, and how far."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lensjax.ensemble import checkpoint
from lensjax.ensemble.checkpoint import Member, named_leaves
from lensjax.errors import UsageError
from lensjax.models import registry
from lensjax.models.adapt import to_bands
from lensjax.train.config import Hyperparameters
from lensjax.train.finetune import frozen_names, layerwise, origins, starts
from lensjax.train.schedule import adamw
from tests import networks
from tests.ensemble.members import random_member
from tests.networks import Convolutional
from tests.train.small import config_and_state


def member(folder, architecture: str, seed: int) -> Member:
    found = random_member(architecture, seed)
    checkpoint.save_member(folder / architecture / str(seed), found)
    return found


def with_bands(info, *bands: str, size: int | None = None):
    preprocessing = dataclasses.replace(
        info.preprocessing,
        bands=bands,
        input_size=size or info.preprocessing.input_size,
        mean=(0.0,) * len(bands),
        std=(1.0,) * len(bands),
    )
    return dataclasses.replace(info, preprocessing=preprocessing)


def started(folder, info, *seeds: int) -> dict[str, np.ndarray]:
    folders = origins(Hyperparameters(start_from=str(folder)), info.architecture)
    params, statistics = starts(folders, info, seeds)
    model = nnx.merge(nnx.graphdef(info.abstract_model()), params, statistics)
    return {name: np.asarray(leaf) for name, leaf in checkpoint.state_of(model).items()}


def test_seeds_start_from_the_members_in_turn(tmp_path):
    held = [member(tmp_path, "light_transformer", seed) for seed in range(2)]
    found = started(tmp_path, held[0].info, 3, 4)
    assert found.keys() == held[0].state.keys()
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf[0], held[1].state[name], err_msg=name)
        np.testing.assert_array_equal(leaf[1], held[0].state[name], err_msg=name)


def test_one_member_is_named_by_its_folder(tmp_path):
    held = [member(tmp_path, "light_transformer", seed) for seed in range(2)]
    folder = tmp_path / "light_transformer" / "1"
    found = started(folder, held[1].info, 0)
    for name, leaf in held[1].state.items():
        np.testing.assert_array_equal(found[name][0], leaf, err_msg=name)
    with pytest.raises(UsageError, match=f"--start-from {folder}: a light_transformer is no vit_s"):
        origins(Hyperparameters(start_from=str(folder)), "vit_s16")


@pytest.mark.parametrize("architecture", ["light_transformer", "vit_s16"])
def test_the_first_layer_fits_other_bands(architecture, tmp_path):
    held = member(tmp_path, architecture, 0)
    name = (
        "stem.entry.conv.kernel"
        if "stem.entry.conv.kernel" in held.state
        else ("embedding.patches.kernel")
    )
    kernel = np.asarray(held.state[name])
    apart = kernel.reshape(-1, 2, kernel.shape[-1])
    first, second = held.info.preprocessing.bands

    turned = started(tmp_path, with_bands(held.info, second, first), 0)[name][0]
    np.testing.assert_array_equal(turned.reshape(apart.shape), apart[:, ::-1])

    wide = started(tmp_path, with_bands(held.info, "Y", second, first.upper(), "J"), 0)[name][0]
    wide = wide.reshape(-1, 4, kernel.shape[-1])
    np.testing.assert_array_equal(wide[:, [2, 1]], apart)
    for unknown in (0, 3):
        np.testing.assert_allclose(wide[:, unknown], apart.mean(1), rtol=1e-5, atol=1e-7)

    other = started(tmp_path, with_bands(held.info, "Y", "J", "H"), 0)[name][0]
    other = other.reshape(-1, 3, kernel.shape[-1])
    np.testing.assert_allclose(other.sum(1), apart.sum(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(other[:, 0], other[:, 2])


def test_positions_fit_another_input_size(tmp_path):
    held = member(tmp_path, "vit_s16", 0)
    info = with_bands(held.info, *held.info.preprocessing.bands, size=48)
    found = started(tmp_path, info, 0)["embedding.positions"][0]
    before = np.asarray(held.state["embedding.positions"])
    assert found.shape == (10, before.shape[1])
    np.testing.assert_array_equal(found[0], before[0])
    # Bicubic with the corners kept: patches in the corners stay as they are.
    np.testing.assert_allclose(found[[1, 3, 7, 9]], before[[1, 2, 3, 4]], atol=1e-6)


def test_an_image_alike_in_all_bands_gets_the_same_response():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 8))
    image = np.random.default_rng(1).normal(size=(3, 3, 1))
    for bands in (1, 2, 5):
        wide = np.tensordot(np.repeat(image, bands, 2), to_bands(kernel, bands, 2), 3)
        np.testing.assert_allclose(wide, np.tensordot(np.repeat(image, 3, 2), kernel, 3), rtol=1e-5)


def test_members_that_are_not_there_are_missed(tmp_path):
    held = member(tmp_path, "light_transformer", 0)
    with pytest.raises(UsageError, match="holds no vit_s16 members"):
        started(tmp_path, dataclasses.replace(held.info, architecture="vit_s16"), 0)


def outlined(architecture: str):
    """Returns the order of the parts of a real network, whose layers are counted, and its abstract
    parameters."""
    with networks.real():
        model = nnx.eval_shape(
            lambda: registry.create(architecture, bands=2, input_size=32, rngs=nnx.Rngs(0))
        )
    return registry.resolve(architecture).depths, nnx.state(model, nnx.Param)


def steps(architecture: str, decay: float, frozen) -> dict[str, np.ndarray]:
    """Returns how far a step of one goes in each parameter."""
    depths, params = outlined(architecture)
    before, after = layerwise(depths, decay, frozen)
    optimizer = optax.chain(before, after)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)
    updates, _ = jax.jit(lambda ones: optimizer.update(ones, optimizer.init(ones), ones))(ones)
    return {k.removesuffix(".value"): np.asarray(v) for k, v in named_leaves(updates).items()}


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [("resnet18", 10), ("vit_s16", 14), ("light_transformer", 6), ("trans_enc_s", 10)],
)
def test_each_layer_moves_less_than_the_next(architecture, layers):
    found = steps(architecture, 0.5, ())
    factors = {float(value) for leaf in found.values() for value in np.unique(leaf)}
    assert factors == {0.5**number for number in range(layers)}
    assert (found["head.linear.kernel"] == 1.0).all()
    if architecture == "resnet18":
        assert (found["stages.3.blocks.1.first.conv.kernel"] == 0.5).all()
        assert (found["stages.0.blocks.0.first.conv.kernel"] == 0.5**8).all()
        assert (found["stem.entry.conv.kernel"] == 0.5**9).all()
    if architecture == "vit_s16":
        bias = found["blocks.attention.query.bias"]
        np.testing.assert_allclose(bias[:, 0], 0.5 ** np.arange(12, 1, -1))


def test_the_first_step_of_adamw_falls_with_the_depth():
    _, state = config_and_state(Convolutional)
    params = jax.tree.map(lambda leaf: leaf[0], state.params)
    gradient = jax.tree.map(lambda leaf: jnp.cos(7.0 * leaf), params)
    steps = {}
    for decay in (0.75, 1.0):
        before, after = layerwise(Convolutional.DEPTHS, decay, ())
        optimizer = adamw(
            **{"learning_rate": 0.1, "weight_decay": 0.05, "steps": 10, "warmup": 0.0},
            **{"before": before, "after": after},
        )
        begun, step = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
        for _ in range(2):  # the rate rises from zero
            updates, begun = step(gradient, begun, params)
        steps[decay] = named_leaves(updates)
    assert len(steps[1.0]) >= 6
    for name, whole in steps[1.0].items():
        after = 2 - Convolutional.DEPTHS[name.split(".")[0]]
        assert np.abs(whole).max() > 0
        np.testing.assert_allclose(steps[0.75][name], 0.75**after * whole, rtol=1e-6)


def test_frozen_weights_stay_and_do_not_count_in_the_clipping():
    depths, _ = outlined("resnet18")
    before, after = layerwise(depths, 1.0, ["stem"])
    optimizer = adamw(
        learning_rate=0.1, weight_decay=0.5, steps=10, warmup=0.0, before=before, after=after
    )
    params = {"stem": {"kernel": jnp.ones(3)}, "stemmed": {"kernel": jnp.ones(3)}}
    ends = []
    for gradient in (1e-6, 1e6):
        state, now = optimizer.init(params), params
        for _ in range(3):
            gradients = {
                "stem": {"kernel": jnp.full(3, gradient)},
                "stemmed": {"kernel": now["stemmed"]["kernel"]},
            }
            updates, state = optimizer.update(gradients, state, now)
            now = optax.apply_updates(now, updates)
        np.testing.assert_array_equal(now["stem"]["kernel"], 1.0)
        ends.append(np.asarray(now["stemmed"]["kernel"]))
    assert (ends[0] < 1).all()
    np.testing.assert_array_equal(ends[0], ends[1])


def test_names_to_freeze_must_be_there():
    _, params = outlined("resnet18")
    assert frozen_names(" stem, stages.0", params) == ["stem", "stages.0"]
    assert frozen_names(None, params) == []
    with pytest.raises(UsageError, match="--freeze stage: .* the network has head, stages, stem"):
        frozen_names("stage", params)
    with pytest.raises(UsageError, match="leaves nothing to train"):
        frozen_names("stem,stages,head", params)
