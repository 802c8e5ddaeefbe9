"""The pages speak of options, functions, files and pages that there are."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from benchmarks.command import BenchmarkConfig
from benchmarks.unlike import UnlikeConfig
from lensjax.cluster.cost import CostConfig
from lensjax.cluster.jobs import OURS
from lensjax.ensemble import checkpoint
from lensjax.models import registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = {
    "infer": "InferConfig",
    "train": "TrainConfig",
    "simulate": "SimulateConfig",
    "evaluate": "EvaluateConfig",
    "import_weights": "ImportConfig",
    "export": "ExportConfig",
    "select": "SelectConfig",
    "certify": "CertifyConfig",
    "grades": "GradesConfig",
    "round": "RoundConfig",
    "launch": "LaunchConfig",
}
# Other spellings, and options of every command and of other programs.
OTHERS = {"--models", "--parallel", "--no-parallel", "--help", "--config", "--debug"}
OTHERS |= {"--no-resume", "--no-head-only", "--logdir", "--dist", *OURS}


def options() -> set[str]:
    kinds = [BenchmarkConfig, CostConfig, UnlikeConfig]
    for command, name in CONFIGS.items():
        kinds.append(getattr(importlib.import_module(f"lensjax.cli.{command}"), name))
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    return OTHERS | {f"--{name.replace('_', '-')}" for name in fields}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= options()
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"`(?:python )?((?:lensjax|scripts|configs|benchmarks)/[\w/.]*)", text):
        assert (ROOT / path).exists(), path
    for command in re.findall(r"lensjax (\w+) --", text):
        assert command in CONFIGS, command
    for name in re.findall(r"`checkpoint\.(\w+)`", text):
        assert hasattr(checkpoint, name), name


def test_the_page_for_users_of_pytorch_has_the_names_of_torchvision_and_timm():
    text = (ROOT / "docs" / "coming-from-pytorch.md").read_text()
    for spelling in ("vit_b_16", "vit_base_patch16_224"):
        assert f"`{spelling}`" in text and registry.resolve(spelling).name == "vit_b16"
