"""`python -m lensjax`: the scripts by name."""

import subprocess
import sys
from pathlib import Path

import pytest

from lensjax.__main__ import commands

SCRIPTS = {path.stem for path in (Path(__file__).parents[1] / "scripts").glob("*.py")}


def lensjax(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lensjax", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_every_script_is_a_command_with_a_line_of_its_own():
    assert set(commands()) == SCRIPTS - {"benchmark"}  # whose code is not installed
    assert all(description[0].islower() for description in commands().values())


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_commands_are_listed(arguments):
    ended = lensjax(*arguments)
    assert ended.returncode == 0
    for name, description in commands().items():
        assert f"{name} " in ended.stdout and description in ended.stdout


def test_an_unknown_command_is_told_the_nearest():
    ended = lensjax("infr", "--data", "sky")
    assert ended.returncode == 2
    assert ended.stderr == "error: unknown command 'infr'; the nearest known one is 'infer'\n"


def test_a_command_gets_its_arguments_and_its_status_is_passed_on():
    ended = lensjax("evaluate", "--prediction", "x")
    assert ended.returncode == 2
    assert "unknown option '--prediction'; the nearest known one is '--predictions'" in ended.stderr
    said = lensjax("evaluate", "--help").stdout
    assert said.startswith("usage: lensjax evaluate ") and "--predictions" in said


def test_a_command_with_two_words_is_written_with_a_hyphen():
    assert lensjax("import-weights", "--wight", "x").stderr.endswith("one is '--weights'\n")
