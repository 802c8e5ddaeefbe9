"""The settings of a run on disk, by which another knows whether it may go on where that one was."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensjax.files import replacing


def differences(path: Path, settings: Mapping[str, Any]) -> list[str]:
    """Returns words for each setting that is not what a file has: `seed 0 (now 5)`."""
    old, new = _flat(read_settings(path)), _flat(json.loads(json.dumps(settings)))
    return [
        f"{name} {_short(old.get(name))} (now {_short(new.get(name))})"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the settings in a file, none where it is not there or is not whole."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes settings to a file that people can read."""
    with replacing(path) as file:
        file.write(json.dumps(settings, indent=1).encode())


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings in settings by names such as `members.resnet18`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, Mapping) else {}
        flat |= {f"{name}.{key}": item for key, item in inner.items()} or {name: value}
    return flat


def _short(value: Any) -> str:
    """Returns a setting as a message shows it: of a hash the first digits are enough."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1", str(value))
