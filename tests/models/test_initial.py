"""Initial weights follow their distributions, and hang on the seed alone."""

import jax
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble.checkpoint import MemberInfo, named_leaves
from lensjax.models import initial
from lensjax.models.vit import VisionTransformer
from lensjax.train.setup import initialise

DEVIATION = 0.03
# Cut at two deviations, the standard normal keeps this deviation.
CUT = stats.truncnorm(-2, 2).std()
DISTRIBUTIONS = {
    initial.normal: stats.norm(0, DEVIATION),
    initial.truncated_normal: stats.truncnorm(-2, 2, 0, DEVIATION / CUT),
    initial.uniform: stats.uniform(-DEVIATION * 3**0.5, 2 * DEVIATION * 3**0.5),
}
KINDS = pytest.mark.parametrize("kind", DISTRIBUTIONS)


@KINDS
def test_numbers_follow_the_distribution(kind):
    drawn = np.asarray(kind(DEVIATION)(jax.random.key(1), (100, 300)), np.float64)
    expected = DISTRIBUTIONS[kind]
    assert stats.kstest(drawn.ravel(), expected.cdf).pvalue > 1e-3
    assert drawn.std() == pytest.approx(DEVIATION, rel=0.02)
    low, high = expected.support()
    assert low - 1e-6 <= drawn.min() and drawn.max() <= high + 1e-6
    # No pattern along rows or columns.
    for axis in (0, 1):
        means = drawn.mean(axis)
        assert means.std() == pytest.approx(DEVIATION * drawn.shape[axis] ** -0.5, rel=0.3)


@KINDS
def test_a_traced_key_gives_the_same_numbers(kind):
    draw, keys = kind(DEVIATION), jax.random.split(jax.random.key(2), 3)
    expected = [np.asarray(draw(key, (4, 5))) for key in keys]
    assert not np.array_equal(*expected[:2])
    stacked = jax.vmap(lambda key: draw(key, (4, 5)))
    np.testing.assert_array_equal(stacked(keys), expected)
    np.testing.assert_array_equal(jax.jit(stacked)(keys), expected)


def test_a_transformer_draws_what_torchvision_draws():
    sizes = {"width": 64, "depth": 3, "heads": 2, "bands": 3, "input_size": 64}
    model = VisionTransformer(**sizes, dropout=0.0, block_dropout=0.0, rngs=nnx.Rngs(0))
    found = {
        name.removesuffix(".value"): np.asarray(leaf)
        for name, leaf in named_leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param))).items()
    }
    xavier = (2 / (64 + 3 * 64)) ** 0.5
    expected = {
        "embedding.patches.kernel": (3 * 16**2) ** -0.5,
        "embedding.positions": 0.02,
        "blocks.attention.query.kernel": xavier,
        "blocks.attention.key_value.kernel": xavier,
        "blocks.attention.projection.kernel": (1 / (3 * 64)) ** 0.5,
        "blocks.expand.kernel": (2 / (64 + 256)) ** 0.5,
        "blocks.contract.kernel": (2 / (256 + 64)) ** 0.5,
        "blocks.contract.bias": 1e-6,
    }
    for name, deviation in expected.items():
        assert found[name].std() == pytest.approx(deviation, rel=0.1), name
    for block in ("blocks.attention.query.kernel", "blocks.expand.kernel"):
        assert not np.array_equal(*found[block])
    for name in ("embedding.class_token", "head.linear.kernel", "blocks.norm1.bias"):
        assert (found[name] == 0).all(), name


def test_a_member_draws_the_same_in_company():
    preprocessing = Preprocessing(("g",), 16, None, "none", 1.0, (0.0,), (1.0,))
    info = MemberInfo("light_transformer", preprocessing, dropout=0.1)
    keys = jax.random.split(jax.random.key(0), 2)
    together, alone = (initialise(info, some) for some in (keys, keys[1:]))
    for states, sole in zip(together[1:], alone[1:], strict=True):
        for mine, theirs in zip(jax.tree.leaves(states), jax.tree.leaves(sole), strict=True):
            np.testing.assert_array_equal(mine[1:], theirs)
