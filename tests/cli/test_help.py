"""What --help says: every option of every command with its real default."""

import dataclasses
import importlib
import re
import typing

import pytest

from lensjax.models.registry import ARCHITECTURES

COMMANDS = {
    "infer": "InferConfig",
    "train": "TrainConfig",
    "evaluate": "EvaluateConfig",
    "simulate": "SimulateConfig",
    "import_weights": "ImportConfig",
    "benchmark": "BenchmarkConfig",
}


def shown(run, monkeypatch, command: str) -> dict[str, str]:
    """Returns what --help says of each option, by the first of its names."""
    monkeypatch.setenv("COLUMNS", "1000")
    ended = run(importlib.import_module(f"lensjax.cli.{command}").main, "--help")
    assert (ended.status, ended.error) == (0, "")
    options = re.split(r"\n  (?=-)", ended.out.split("\noptions:")[1])[1:]
    return {option.split()[0].rstrip(","): " ".join(option.split()) for option in options}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_shows_its_real_default(run, monkeypatch, command):
    said = shown(run, monkeypatch, command)
    config = getattr(importlib.import_module(f"lensjax.cli.{command}"), COMMANDS[command])
    hints = typing.get_type_hints(config, include_extras=True)
    fields = dataclasses.fields(config)
    assert {"-h", "--config", "--debug"} | {
        f"--{field.name.replace('_', '-')}" for field in fields
    } == set(said)
    for field in fields:
        text = typing.get_args(hints[field.name])[1]
        if "(default: " not in text:
            value = str(field.default)
            text += (
                f" (default: { {'None': 'none', 'True': 'yes', 'False': 'no'}.get(value, value) })"
            )
        assert said[f"--{field.name.replace('_', '-')}"].endswith(text)


@pytest.mark.parametrize("command", ["infer", "train", "import_weights"])
def test_the_architectures_are_named(run, monkeypatch, command):
    said = shown(run, monkeypatch, command)
    assert ", ".join(ARCHITECTURES) in said["--ensemble" if command == "infer" else "--arch"]
