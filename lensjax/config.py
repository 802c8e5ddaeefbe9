"""Options: frozen dataclasses, filled from defaults, then YAML files, then the command line.

The fields' docstrings are the help. `tyro` reads the command line; a YAML file is read as the words
that would say the same there, so that both take the same values.
"""

import argparse
import contextlib
import io
import itertools
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from lensjax import errors
from lensjax.errors import UsageError, one_line

Config = TypeVar("Config")

# What is left of `s3://bucket` in a `Path`.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/[^/]", re.IGNORECASE)
# Beyond it a number is a slip of the keyboard, or a seed that JAX would cut off.
LARGEST_INTEGER = 2**31 - 1

OF_ALL = """Every command also takes --config FILE, a YAML file of its options (of several files the
last one counts), and --debug, to show the traceback of an error."""


def parse(
    kind: type[Config], argv: Sequence[str], *, description: str, spellings: Mapping[str, str] = {}
) -> Config:
    """Returns the config that the command line `argv` (with its `--config` files) describes.

    `spellings` maps other accepted names to fields (`{"models": "ensemble"}`). Raises UsageError
    for an unknown key, naming the nearest known one, and for a value of another type.
    """
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    common.add_argument("--config", type=Path, action="append", default=[])
    common.add_argument("--debug", action="store_true")
    try:
        given, words = common.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from error
    of_files = {path: list(_from_yaml(path, kind, spellings)) for path in given.config}
    respelled = [_respelled(word, spellings) for word in words]
    about = f"{description[:1].upper()}{description[1:]}\n\n{OF_ALL}"
    try:
        return _parsed(kind, [*sum(of_files.values(), []), *respelled], about)
    except UsageError:
        for path, its_words in of_files.items():
            try:
                _parsed(kind, its_words, "")
            except UsageError as error:
                raise UsageError(f"{path}: {error}") from error
        raise


def _parsed(kind: type[Config], words: list[str], description: str) -> Config:
    """Returns the config that the words of a command line describe. Raises as `parse` does."""
    _refuse_empty(words)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config, unknown = tyro.cli(
                kind, args=words, description=description, return_unknown_args=True
            )
    except SystemExit as ended:
        if ended.code:
            raise UsageError(_message(said.getvalue())) from None
        raise
    if unknown:
        is_value = not unknown[0].startswith("-")
        advice = ": a value with spaces goes in quotes, a switch has none" if is_value else ""
        raise errors.unknown("option", unknown[0].split("=")[0], _flags(kind), advice)
    for name, value in vars(config).items():
        _check(f"--{name.replace('_', '-')}", value)
    return config


def _refuse_empty(words: Sequence[str]) -> None:
    """Raises UsageError for an empty value, which as a path would be the folder that one is in."""
    before = ""
    for word in words:
        option, equals, value = (
            word.partition("=") if word.startswith("--") else (before, "=", word)
        )
        if equals and not value.strip():
            raise UsageError(f"{option} is given an empty value: is a variable not set?")
        before = word


def _message(panel: str) -> str:
    """Returns the first paragraph of a panel of tyro's, below its title, on one line."""
    lines = [line.strip("│ ").strip("─-") for line in panel.splitlines()[1:]]
    said = " ".join(itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines)))
    return said.removeprefix("Error parsing ")


def _flags(kind: type) -> Iterator[str]:
    """Yields every option of a config as the command line has it."""
    yield from ("--help", "--config", "--debug")
    for name, hint in typing.get_type_hints(kind).items():
        yield f"--{name.replace('_', '-')}"
        if hint is bool:
            yield f"--no-{name.replace('_', '-')}"


def _check(option: str, value: Any) -> None:
    """Raises UsageError for a number that no option takes, and for an address where a folder or a
    file of this machine is meant."""
    if isinstance(value, Path) and _ADDRESS.match(str(value)):
        raise UsageError(
            f"{option} takes a place of this machine: of `infer` --data and --output may be an "
            "address, and so may --data of `train`"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{option}: '{value}' is not a finite number")
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise UsageError(f"{option}: {value} is too large: {LARGEST_INTEGER} is the limit")
    if option == "--seed" and value < 0:
        raise UsageError("--seed must not be negative")


def _respelled(word: str, spellings: Mapping[str, str]) -> str:
    """Returns a word of the command line with the field's own name in place of another spelling."""
    name, equals, value = word.partition("=")
    for other, field in spellings.items():
        own = field.replace("_", "-")
        name = {f"--{other}": f"--{own}", f"--no-{other}": f"--no-{own}"}.get(name, name)
    return name + equals + value


def _from_yaml(path: Path, kind: type, spellings: Mapping[str, str]) -> Iterator[str]:
    """Yields the words of a command line that say what the YAML file at `path` says.

    Nodes are read rather than values: these show what stands there twice, and text as it stands.
    Raises UsageError for what is no `key: value`, with the line.
    """
    try:
        root = yaml.compose(path.read_text(), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise UsageError(f"cannot read the config {path}: {reason}") from error
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise UsageError(f"the config {path} must hold `key: value` lines")
    hints, seen = typing.get_type_hints(kind), set()
    for key, node in root.value if root is not None else ():
        where = f"{path}, line {key.start_mark.line + 1}"
        written = key.value if isinstance(key, yaml.ScalarNode) else "a list"
        name = spellings.get(written, written).replace("-", "_")
        if name not in hints:
            raise UsageError(f"{where}: {errors.unknown('key', written, hints)}")
        if name in seen:
            raise UsageError(f"{where}: {written} is there already: keep one of the two")
        seen.add(name)
        if not isinstance(node, yaml.ScalarNode) or "python" in node.tag:
            raise UsageError(f"{where}: {written}: give one value")
        yield _word(name, node, hints[name])


def _word(name: str, node: yaml.ScalarNode, hint: Any) -> str:
    """Returns the word of a command line that gives the option `name` the value at a node."""
    option = name.replace("_", "-")
    tag = node.tag.removeprefix("tag:yaml.org,2002:")
    if hint is bool and tag == "bool":
        return (
            f"--{option}" if yaml.SafeLoader.bool_values[node.value.lower()] else f"--no-{option}"
        )
    return f"--{option}={'None' if tag == 'null' else node.value}"
