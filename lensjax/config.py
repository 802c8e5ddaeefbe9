"""Options: typed dataclasses, filled from defaults, then a YAML file, then the command line.

A config is a frozen dataclass whose fields are `name: Annotated[type, "help"] = default`. Types are
`str`, `int`, `float`, `bool`, `Path`, `Literal[...]` and unions of these with `None`.
"""

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

import yaml

from lensjax import errors
from lensjax.errors import UsageError, one_line

Config = TypeVar("Config")

# Beyond it a number is a slip of the keyboard, or a seed that JAX would cut off.
LARGEST_INTEGER = 2**31 - 1


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def parse(
    kind: type[Config], argv: Sequence[str], *, description: str, spellings: Mapping[str, str] = {}
) -> Config:
    """Returns the config that the command line `argv` (with its `--config` files) describes.

    Of several files the later ones go before. `spellings` maps other accepted option names to
    fields (`{"models": "ensemble"}`). Raises UsageError for an unknown key, naming the nearest
    known one, or a value of another type.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}
    parser = _Parser(description=description, allow_abbrev=False)
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file of these options; among several the last one counts",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for name, field in fields.items():
        _add_option(parser, field, hints[name], [k for k, v in spellings.items() if v == name])
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        word = unknown[0].split("=")[0]
        advice = (
            "" if word[:1] == "-" else ": a value with spaces goes in quotes, a switch has none"
        )
        raise errors.unknown("option", word, parser._option_string_actions, advice)
    given = vars(known)
    values: dict[str, Any] = {}
    for path in given.pop("config"):
        values |= _read_yaml(path, hints, spellings)
    values |= given
    del values["debug"]
    if values.get("seed", 0) < 0:
        raise UsageError("--seed must not be negative")
    return kind(**values)


def _add_option(
    parser: argparse.ArgumentParser, field: dataclasses.Field, hint: Any, spellings: list[str]
) -> None:
    """Adds the option of one field; absent from the result unless given."""
    names = [f"--{name.replace('_', '-')}" for name in [field.name, *spellings]]
    value_type, text = typing.get_args(hint)[:2]
    settings: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
    if "(default: " not in text:
        text += f" (default: {_shown(field.default)})"
    settings["help"] = text.replace("%", "%%")
    if value_type is bool:
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, **settings)
        return
    accepted = _alternatives(value_type)
    settings["metavar"] = "|".join(_name(kind) for kind in accepted if kind is not type(None))
    parser.add_argument(*names, type=_converter(accepted), **settings)


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    return ("no", "yes")[default] if isinstance(default, bool) else str(default)


def _alternatives(hint: Any) -> list[Any]:
    """Returns the single types and literal values that `hint` admits."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [kind for part in typing.get_args(hint) for kind in _alternatives(part)]
    return list(typing.get_args(hint)) if typing.get_origin(hint) is Literal else [hint]


def _name(kind: Any) -> str:
    names = {str: "TEXT", int: "N", float: "X", Path: "PATH"}
    return names.get(kind, str(kind)) if isinstance(kind, type) else str(kind)


def _converter(accepted: list[Any]) -> Callable[[str], Any]:
    """Returns a function from the text of an option to the first accepted kind that it fits."""

    def convert(text: str) -> Any:
        # Empty text is a variable of the shell that is not set: as a path it would be this folder.
        for kind in accepted if text.strip() else []:
            if not isinstance(kind, type):
                if text == str(kind):
                    return kind
            elif kind not in (bool, type(None)):
                try:
                    return _sensible(kind(text))
                except ValueError:
                    continue
        raise argparse.ArgumentTypeError(f"give {_wanted(accepted)}, not '{text}'")

    return convert


def _wanted(accepted: list[Any]) -> str:
    """Returns in words what the accepted kinds are."""
    names = {str: "text", int: "a whole number", float: "a number", Path: "a path"}
    names[bool] = "true or false"
    *others, last = (names.get(kind, str(kind)) for kind in accepted if kind is not type(None))
    return f"{', '.join(others)} or {last}" if others else last


def _sensible(value: Any) -> Any:
    """Returns the value, unless it is a number that no option takes."""
    if isinstance(value, float) and not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{value}' is not a finite number")
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise argparse.ArgumentTypeError(f"{value} is too large: {LARGEST_INTEGER} is the limit")
    return value


def _read_yaml(
    path: Path, hints: Mapping[str, Any], spellings: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the values in the YAML file at `path`, each of its field's type.

    Nodes are read rather than values: these show what stands there twice, and text as it stands.
    """
    try:
        root = yaml.compose(path.read_text(), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise UsageError(f"cannot read the config {path}: {reason}") from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"the config {path} must hold `key: value` lines")
    values: dict[str, Any] = {}
    for key, node in root.value:
        written = _written(key)
        name = written.replace("-", "_")
        name = spellings.get(name, name)
        where = f"{path}, line {key.start_mark.line + 1}"
        if name not in hints:
            raise UsageError(f"{where}: {errors.unknown('key', written, hints)}")
        if name in values:
            raise UsageError(f"{where}: {written} is there already: keep one of the two")
        try:
            values[name] = _value(node, _alternatives(typing.get_args(hints[name])[0]))
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{where}: {written}: {error}") from error
    return values


def _value(node: yaml.Node, accepted: list[Any]) -> Any:
    """Returns what stands in a YAML file, as one of the accepted kinds."""
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind == "null" and type(None) in accepted:
        return None
    if kind == "bool" and bool in accepted:
        return yaml.SafeLoader.bool_values[node.value.lower()]
    if kind in ("str", "int", "float", "timestamp"):
        return _converter(accepted)(node.value)
    raise argparse.ArgumentTypeError(f"give {_wanted(accepted)}, not {_written(node)}")


def _written(node: yaml.Node) -> str:
    """Returns the text at a node of a YAML file, or what stands there instead."""
    if isinstance(node, yaml.ScalarNode):
        return node.value
    return "a list" if isinstance(node, yaml.SequenceNode) else "keys of its own"
