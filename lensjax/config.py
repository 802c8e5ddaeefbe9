"""Options: typed dataclasses, filled from defaults, then a YAML file, then the command line.

A config is a frozen dataclass whose fields are `name: Annotated[type, "help"] = default`. Types are
`str`, `int`, `float`, `bool`, `Path`, `Literal[...]` and unions of these with `None`.
"""

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

import yaml

from lensjax.errors import UsageError, one_line

Config = TypeVar("Config")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def parse(
    kind: type[Config], argv: Sequence[str], *, description: str, spellings: Mapping[str, str] = {}
) -> Config:
    """Returns the config that the command line `argv` (with its `--config` file) describes.

    `spellings` maps other accepted option names to fields (`{"models": "ensemble"}`).
    Raises UsageError for an unknown key, naming the nearest known one, or a value of another type.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}
    parser = _Parser(description=description, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of these options")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for name, field in fields.items():
        _add_option(parser, field, hints[name], [k for k, v in spellings.items() if v == name])
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UsageError(
            _unknown("option", unknown[0].split("=")[0], parser._option_string_actions)
        )
    given = vars(known)
    values = _read_yaml(given.pop("config"), hints, fields)
    given.pop("debug")
    return kind(**(values | given))


def _add_option(
    parser: argparse.ArgumentParser, field: dataclasses.Field, hint: Any, spellings: list[str]
) -> None:
    """Adds the option of one field; absent from the result unless given."""
    names = [f"--{name.replace('_', '-')}" for name in [field.name, *spellings]]
    value_type, text = typing.get_args(hint)[:2]
    settings: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
    settings["help"] = f"{text} (default: {_shown(field.default)})".replace("%", "%%")
    if value_type is bool:
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, **settings)
        return
    accepted = _alternatives(value_type)
    settings["metavar"] = "|".join(_name(kind) for kind in accepted if kind is not type(None))
    parser.add_argument(*names, type=_converter(accepted), **settings)


def _shown(default: Any) -> str:
    return {None: "none", True: "yes", False: "no"}.get(default, str(default))


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
        for kind in accepted:
            if not isinstance(kind, type):
                if text == str(kind):
                    return kind
            elif kind is not type(None):
                try:
                    return kind(text)
                except ValueError:
                    continue
        wanted = ", ".join(_name(kind) for kind in accepted if kind is not type(None))
        raise argparse.ArgumentTypeError(f"'{text}' is none of: {wanted}")

    return convert


def _read_yaml(path: Path | None, hints: Mapping[str, Any], fields: Mapping[str, Any]) -> dict:
    """Returns the values in the YAML file at `path`, each of its field's type."""
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = one_line(error)
        raise UsageError(f"cannot read the config {path}: {reason}") from error
    if not isinstance(content, dict):
        raise UsageError(f"the config {path} must hold `key: value` lines")
    values = {}
    for written, value in content.items():
        name = str(written).replace("-", "_")
        if name not in fields:
            raise UsageError(f"{path}: {_unknown('key', str(written), fields)}")
        accepted = _alternatives(typing.get_args(hints[name])[0])
        if bool in accepted or value is None:
            fits = type(value) in accepted
        else:
            fits = not isinstance(value, (bool, list, dict))
        try:
            values[name] = (
                value if bool in accepted or value is None else _converter(accepted)(str(value))
            )
        except argparse.ArgumentTypeError:
            fits = False
        if not fits:
            raise UsageError(
                f"{path}: {written}: {value!r} is not of the type that {written} takes"
            )
    return values


def _unknown(what: str, written: str, known: Any) -> str:
    near = difflib.get_close_matches(written, list(known), n=1, cutoff=0.0)
    return f"unknown {what} '{written}'; the nearest known one is '{near[0]}'"
