"""What --help says: every option of every command with its real default."""

import dataclasses
import importlib
import re
import shlex

import pytest

from lensjax.models.registry import ARCHITECTURES
from lensjax.sky.survey import SURVEYS

COMMANDS = {
    "infer": "InferConfig",
    "train": "TrainConfig",
    "evaluate": "EvaluateConfig",
    "simulate": "SimulateConfig",
    "select": "SelectConfig",
    "import_weights": "ImportConfig",
    "launch": "LaunchConfig",
    "certify": "CertifyConfig",
    "grades": "GradesConfig",
    "round": "RoundConfig",
}


def shown(run, monkeypatch, command: str) -> dict[str, str]:
    """Returns what --help says of each option, by the first of its names."""
    monkeypatch.setenv("COLUMNS", "79")
    ended = run(importlib.import_module(f"lensjax.cli.{command}").main, "--help")
    assert (ended.status, ended.error) == (0, "")
    table = "\n".join(line.strip("│| ") for line in ended.out.splitlines())
    options = re.split(r"\n(?=--[a-z])", table.split(" options ")[1])[1:]
    return {re.split(r"[\s,]", option)[0]: " ".join(option.split()) for option in options}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_shows_its_help_and_its_default(run, monkeypatch, command):
    said = shown(run, monkeypatch, command)
    config = getattr(importlib.import_module(f"lensjax.cli.{command}"), COMMANDS[command])
    fields = {f"--{field.name.replace('_', '-')}": field for field in dataclasses.fields(config)}
    assert set(said) == set(fields)
    for option, field in fields.items():
        # Lines are broken after the commas of a value as well.
        default = f"(default: {shlex.quote(str(field.default))})".replace(" ", "")
        assert default in said[option].replace(" ", ""), option
        assert len(said[option].partition("(default:")[0].split()) > 3, option


@pytest.mark.parametrize("command", ["infer", "train", "import_weights"])
def test_the_architectures_are_named(run, monkeypatch, command):
    said = shown(run, monkeypatch, command)
    assert ", ".join(ARCHITECTURES) in said["--ensemble" if command == "infer" else "--arch"]


@pytest.mark.parametrize("command", ["simulate", "select"])
def test_the_surveys_are_named(run, monkeypatch, command):
    said = shown(run, monkeypatch, command)["--survey"]
    assert all(name in said for name in SURVEYS)
