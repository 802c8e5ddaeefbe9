"""What `member.json` may say. It can be edited by hand, and one number that is none would make all
scores alike without a word."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lensjax.data.preprocess import STRETCHES
from lensjax.models.registry import ARCHITECTURES


class Field(NamedTuple):
    """What a value must be, in words, and whether it is so."""

    wanted: str
    is_so: Callable[[Any], bool]
    optional: bool = False


def complaints(content: Any) -> list[str]:
    """Returns what is wrong with the content of a `member.json`, a line each: `dropout is 1.0, must
    be a number from 0 to below 1`."""
    if not isinstance(content, dict):
        return [f"it holds {_shown(content)}, must hold an object"]
    found = _of_fields(content, MEMBER)
    if not found:
        found += _of_fields(content["calibration"], CALIBRATION, "calibration.")
        found += _of_fields(content["preprocessing"], PREPROCESSING, "preprocessing.")
    if not found:
        bands = len(content["preprocessing"]["bands"])
        for name in ("mean", "std"):
            values = len(content["preprocessing"][name])
            if values != bands:
                found.append(
                    f"preprocessing.{name} has {values} numbers, must have {bands}, a band"
                )
    return found


def _of_fields(values: Mapping[str, Any], fields: Mapping[str, Field], path: str = "") -> list[str]:
    """Returns what is wrong with values, which must have these fields and no others."""
    needed = (name for name, field in fields.items() if not field.optional)
    found = [f"{path}{name} is missing" for name in needed if name not in values]
    found += [f"{path}{name} is unknown" for name in values if name not in fields]
    return found + [
        f"{path}{name} is {_shown(values[name])}, must be {field.wanted}"
        for name, field in fields.items()
        if name in values and not field.is_so(values[name])
    ]


def _shown(value: Any) -> str:
    return f"{value!r:.60}"


def _is_number(value: Any) -> bool:
    """Returns whether a value is a number, and one that float32 holds."""
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and abs(value) <= float(np.finfo(np.float32).max)


def _is_length(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_rate(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _lists(is_so: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Returns whether something is a list, not empty, of what is so."""
    return lambda values: isinstance(values, list) and bool(values) and all(map(is_so, values))


RATE = "a number from 0 to below 1"

MEMBER: Mapping[str, Field] = {
    "architecture": Field(
        "one of " + ", ".join(ARCHITECTURES), lambda v: isinstance(v, str) and v in ARCHITECTURES
    ),
    "preprocessing": Field("an object", _is_object),
    "dropout": Field(RATE, _is_rate),
    "block_dropout": Field(RATE, _is_rate, optional=True),
    "weights_sha256": Field("text", lambda v: isinstance(v, str)),
    "calibration": Field("an object", _is_object),
    **{
        name: Field("an object", _is_object, optional=True)
        for name in ("metrics", "training", "versions")
    },
}
CALIBRATION: Mapping[str, Field] = {
    "slope": Field("a number", _is_number),
    "intercept": Field("a number", _is_number),
    "brier": Field("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1),
}
PREPROCESSING: Mapping[str, Field] = {
    "bands": Field("a list of names", _lists(lambda v: isinstance(v, str) and v != "")),
    "input_size": Field("a whole number above 0", lambda v: type(v) is int and v > 0),
    "pixel_scale": Field("a number above 0, or null", lambda v: v is None or _is_length(v)),
    "stretch": Field("one of " + ", ".join(STRETCHES), lambda v: v in STRETCHES),
    "softening": Field("a number above 0", _is_length),
    "mean": Field("a list of numbers", _lists(_is_number)),
    "std": Field("a list of numbers above 0", _lists(_is_length)),
}
