"""Growing a network: the same logits, copies that part, and what cannot be grown."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lensjax.ensemble import checkpoint
from lensjax.ensemble.checkpoint import state_of
from lensjax.errors import UsageError
from lensjax.models import registry
from lensjax.models.hybrid import HybridTransformer
from lensjax.models.vit import VisionTransformer
from lensjax.train.config import Hyperparameters
from lensjax.train.finetune import account, origins, starts
from lensjax.train.grow import widened
from tests.ensemble.members import _draw, random_member

SETTINGS = {"bands": 2, "input_size": 32, "dropout": 0.0, "block_dropout": 0.0}
NETWORKS = {
    "transformer": lambda times: partial(VisionTransformer, width=16 * times, depth=2, heads=times),
    "residual": lambda times: partial(registry._resnet, (1, 2, 1, 1), width=4 * times),
}
IMAGES = np.random.default_rng(1).normal(size=(4, 32, 32, 2)).astype(np.float32)
UNDRAWN = SimpleNamespace(normal=lambda mean, spread, shape: np.zeros(shape))


def check_growth(kind: str, names: tuple[str, ...]) -> None:
    """Grows a network with random weights threefold, with equal and with drawn shares."""
    narrow, wide = (
        nnx.eval_shape(lambda times=times: NETWORKS[kind](times)(**SETTINGS, rngs=nnx.Rngs(0)))
        for times in (1, 3)
    )
    drawn = np.random.default_rng(2)
    held = {name: _draw(drawn, name, leaf.shape) for name, leaf in state_of(narrow).items()}
    run = jax.jit(lambda state: nnx.merge(nnx.graphdef(narrow), state)(IMAGES))
    expected = run(checkpoint.nnx_state(narrow, held))
    assert np.ptp(expected) > 0.1
    graph = nnx.graphdef(wide)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(params, others):
        logits = nnx.merge(graph, params, others)(IMAGES)
        return jnp.square(logits - 1).sum(), logits

    def parting(rng) -> list[float]:
        """Returns how far the gradients of copies part, as a share of the largest."""
        state = checkpoint.nnx_state(wide, widened(held, state_of(wide), rng))
        found, logits = gradient(*nnx.split_state(state, nnx.Param, ...))
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        leaves = checkpoint.named_leaves(nnx.to_pure_dict(found))
        copies = [leaves[name].reshape(*leaves[name].shape[:-1], 3, -1) for name in names]
        return [float(jnp.abs(c[..., 0, :] - c[..., 1, :]).max() / abs(c).max()) for c in copies]

    assert max(parting(UNDRAWN)) < 1e-4
    assert min(parting(np.random.default_rng(3))) > 0.1


def test_a_transformer_grows_to_the_same_logits_and_its_copies_part():
    kernels = "embedding.patches", "blocks.attention.query", "last.expand"
    check_growth("transformer", tuple(f"{name}.kernel" for name in kernels))


@pytest.mark.slow
def test_a_residual_network_grows_to_the_same_logits_and_its_copies_part():
    kernels = "stem.entry.conv", "stages.3.blocks.0.first.conv"
    check_growth("residual", tuple(f"{name}.kernel" for name in kernels))


def test_weights_spread_as_those_of_a_network_drawn_at_this_width():
    kernel = np.random.default_rng(0).normal(0, 1 / 8, (64, 64)).astype(np.float32)
    wide = widened({"kernel": kernel}, {"kernel": np.zeros((256, 256))}, np.random.default_rng(0))
    assert wide["kernel"].std() == pytest.approx(1 / 16, rel=0.05)


def test_seeds_grow_from_a_member_of_other_bands_and_size_each_by_a_draw_of_its_own(tmp_path):
    held, folder = random_member("vit_ti16", 0), tmp_path / "member"
    checkpoint.save_member(folder, held)
    turned = dataclasses.replace(held.info.preprocessing, bands=("r", "g"), input_size=48)
    info = dataclasses.replace(held.info, architecture="vit_s16", preprocessing=turned)
    folders = origins(Hyperparameters(grow_from=str(folder)), "vit_s16")
    assert folders == [folder] and "vit_s16 grows from" in account(folders, info)

    def logits(info, seeds):
        params, statistics = starts(folders, info, seeds)
        graph = nnx.graphdef(info.abstract_model())
        size = info.preprocessing.input_size
        images = np.random.default_rng(0).normal(size=(4, size, size, 2)).astype(np.float32)
        run = jax.jit(jax.vmap(lambda *state: nnx.merge(graph, *state)(images)))
        return run(params, statistics), params

    expected, _ = logits(dataclasses.replace(info, architecture="vit_ti16"), (0,))
    found, params = logits(info, (3, 4))
    np.testing.assert_allclose(found, jnp.tile(expected, (2, 1)), rtol=1e-5, atol=1e-5)
    kernel = params["last"]["expand"]["kernel"][...]
    assert jnp.abs(kernel[0] - kernel[1]).max() > 0.01


@pytest.mark.parametrize(
    ("held", "wanted", "said"),
    [
        ("resnet18", "vit_s16", "another kind"),
        ("vit_s16", "vit_b16", "another number of layers"),
        ("resnet18", "resnet34", "another number of layers"),
        ("vit_s16", "vit_s16", "as wide already"),
        ("vit_s16", "vit_ti16", "no multiple"),
        ("light_transformer", "two_heads", "another width"),
    ],
)
def test_what_cannot_be_grown_is_refused(held, wanted, said, tmp_path, monkeypatch):
    build = partial(HybridTransformer, width=64, depth=2, heads=2)
    held_as = registry.ARCHITECTURES["light_transformer"]
    other = dataclasses.replace(held_as, name="two_heads", build=build)
    monkeypatch.setitem(registry.ARCHITECTURES, "two_heads", other)
    checkpoint.save_member(tmp_path, random_member(held, 0))
    with pytest.raises(UsageError, match=f"a {held} cannot become a {wanted}: .*{said}"):
        origins(Hyperparameters(grow_from=str(tmp_path)), wanted)


def test_a_folder_without_a_member_is_refused(tmp_path):
    with pytest.raises(UsageError, match="give the folder of a member"):
        origins(Hyperparameters(grow_from=str(tmp_path)), "vit_s16")
