"""The page for users of PyTorch speaks of options, functions and files that there are."""

import dataclasses
import re
from pathlib import Path

import pytest

from lensjax.cli import import_weights, infer, train
from lensjax.ensemble import checkpoint
from lensjax.models import registry

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "coming-from-pytorch.md").read_text()
CONFIGS = (infer.InferConfig, train.TrainConfig, import_weights.ImportConfig)
SPELLINGS = {"--models", "--parallel", "--no-parallel"}


def test_options_are_those_of_the_commands():
    fields = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    named = set(re.findall(r"--[a-z][a-z-]+", PAGE))
    assert len(named) > 20
    assert named - SPELLINGS <= {f"--{field.replace('_', '-')}" for field in fields}


def test_files_and_functions_are_there():
    for path in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / path).exists(), path
    for path in re.findall(r"`(lensjax/[\w/.]+)`", PAGE):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`checkpoint\.(\w+)`", PAGE):
        assert hasattr(checkpoint, name), name


@pytest.mark.parametrize("spelling", ["vit_b_16", "vit_base_patch16_224"])
def test_spellings_of_torchvision_and_timm_are_known(spelling):
    assert f"`{spelling}`" in PAGE and registry.resolve(spelling).name == "vit_b16"
