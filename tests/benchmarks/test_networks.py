"""The programs' networks are the same network: names, shapes and logits."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from benchmarks import ours
from lensjax.models import registry
from lensjax.models.torch_import import tensor_shapes

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
def test_training_steps_learn():
    losses = ours.training("resnet18.0", 32, 2).run(3).values[0]
    assert losses.shape == (3,) and np.isfinite(losses).all() and losses[2] != losses[0]
