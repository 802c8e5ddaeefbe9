"""The contenders' networks are the same network: names, shapes, logits and costs."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from lensjax.benchmark import drawn, ours, plain_flax
from lensjax.models import registry
from lensjax.models.torch_import import tensor_shapes
from tests.models import drawn_weights

NAMES = {"resnet18": "resnet18", "vit_b16": "vit_b_16"}


def shapes(reference: str, architecture: str) -> dict[str, list[int]]:
    return json.loads((Path(reference) / "state_dict_shapes.json").read_text())[architecture]


@pytest.mark.parametrize("architecture", NAMES)
def test_names_and_shapes_are_those_of_torchvision(reference, architecture):
    model = nnx.eval_shape(
        lambda: registry.create(architecture, bands=3, input_size=224, rngs=nnx.Rngs(0))
    )
    expected = shapes(reference, NAMES[architecture])
    assert {name: list(shape) for name, shape in tensor_shapes(model).items()} == {
        name: shape for name, shape in expected.items() if "num_batches" not in name
    }
    for leaf, drawn_leaf in zip(("weight", "bias"), drawn.head(architecture), strict=True):
        assert expected[f"{drawn.HEADS[architecture][0]}.{leaf}"] == list(drawn_leaf.shape)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", NAMES)
def test_torch_networks_are_those_of_torchvision(reference, architecture):
    import torch

    from lensjax.benchmark import torch_networks

    network = torch_networks.build(architecture, bands=3, size=224)
    own = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert own == shapes(reference, NAMES[architecture])
    weights = drawn_weights.state_dict(reference, NAMES[architecture])
    network.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in weights.items()})
    images = drawn_weights.images(NAMES[architecture], 224).transpose(0, 3, 1, 2)
    with torch.no_grad():
        logits = network.head(network(torch.from_numpy(images.copy()))).numpy()
    expected = np.load(f"{reference}/reference_outputs.npz")[f"{NAMES[architecture]}_224_logit"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_costs_are_the_published_ones():
    """Torchvision states 1.814 and 17.564 thousand million multiplications and additions at
    224 px with 1000 classes. The last block of a transformer needs 1/13 or so less."""
    heads = {"resnet18": 512 * 1000, "vit_b16": 768 * 1000}
    published = {"resnet18": 1.814e9, "vit_b16": 17.564e9}
    share = {name: drawn.flops(name, 224) / 2 / (published[name] - heads[name]) for name in heads}
    assert share["resnet18"] == pytest.approx(1.0, abs=1e-3)
    assert 1 - 1 / 12 < share["vit_b16"] < 1 - 1 / 15


@pytest.mark.slow
def test_plain_flax_computes_the_same_logits():
    members = ["resnet18.0", "resnet18.1"]
    plain = plain_flax.ensemble(members, 32, eigen=True).prepare(1, 2).run(1)
    stacked = ours.ensemble(members, 32, "float32", "stacked").prepare(1, 2).run(1)
    np.testing.assert_allclose(plain.values, stacked.values, rtol=1e-4)
    assert np.ptp(plain.values[0]) > 0 and not np.array_equal(*plain.values)


def test_fewer_images_are_the_first_of_more():
    np.testing.assert_array_equal(drawn.images(2, 8), drawn.images(5, 8)[:2])


@pytest.mark.slow
def test_training_steps_learn():
    program = ours.training(["resnet18.0"], 32).prepare(2)
    losses = program.run(3).values[0]
    assert losses.shape == (3,) and np.isfinite(losses).all() and losses[2] != losses[0]


@pytest.mark.slow
def test_grouped_training_steps_are_the_same_steps():
    how = {"members": ["resnet18.0"], "size": 32, "sizes": (16, 32), "consistency": 1.0}
    at_once, grouped = (
        ours.training(**how, grouped=grouped).prepare(4).run(2).values for grouped in (False, True)
    )
    np.testing.assert_allclose(grouped, at_once, rtol=1e-4)
