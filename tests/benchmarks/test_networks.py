"""The programs' networks are the same network: names, shapes and logits."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from benchmarks import ours
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


@pytest.mark.slow
@pytest.mark.parametrize("architecture", NAMES)
def test_torch_networks_are_those_of_torchvision(reference, architecture):
    import torch

    from benchmarks import torch_programs

    network = torch_programs.network(architecture, 224)
    own = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert own == shapes(reference, NAMES[architecture])
    weights = drawn_weights.state_dict(reference, NAMES[architecture])
    network.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in weights.items()})
    images = drawn_weights.images(NAMES[architecture], 224).transpose(0, 3, 1, 2)
    with torch.no_grad():
        logits = network.head(network(torch.from_numpy(images.copy()))).numpy()
    expected = np.load(f"{reference}/reference_outputs.npz")[f"{NAMES[architecture]}_224_logit"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_training_steps_learn():
    losses = ours.training("resnet18.0", 32, 2).run(3).values[0]
    assert losses.shape == (3,) and np.isfinite(losses).all() and losses[2] != losses[0]
