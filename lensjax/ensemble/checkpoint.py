"""Members on disk: `DIR/<architecture>/<member>/`, an Orbax checkpoint and `member.json`."""

import dataclasses
import functools
import hashlib
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import nnx
from numpy.typing import DTypeLike

from lensjax.data.preprocess import STRETCHES, Preprocessing
from lensjax.errors import LensjaxError, UsageError, one_line
from lensjax.files import replacing_folder, standing_folders
from lensjax.models import registry

LEARNED = (nnx.Param, nnx.BatchStat)
# Orbax reads an array chunk by chunk, each once more than the array itself. Chunks that are much
# smaller than this are taken from memory that glibc does not give back.
CHUNK_BYTES = 64 * 2**20
State = dict[str, Any]
"""The parameters and batch statistics of one member: arrays by dotted name."""
Validation = dict[str, np.ndarray]
"""`id`, `label` and `logit` (n,) of the objects that a member was validated on."""


@dataclass(frozen=True)
class MemberInfo:
    """What `member.json` says: all that is needed to apply the member as it was trained."""

    architecture: str
    preprocessing: Preprocessing
    dropout: float
    block_dropout: float = 0.0
    weights_sha256: str = ""
    calibration: dict[str, float] = field(
        default_factory=lambda: {"slope": 1.0, "intercept": 0.0, "brier": 0.25}
    )
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the network of this member, with weights newly drawn from `rngs`."""
        return registry.create(self.architecture, **self._settings(), rngs=rngs)

    def abstract_model(self) -> nnx.Module:
        """Returns the network of this member with `ShapeDtypeStruct` in place of weights."""
        return nnx.merge(*_abstract_model(self.architecture, **self._settings()))

    def identity(self, validation: Validation | None) -> str:
        """Returns the SHA-256 of all that the member's scores depend on: its weights, what it sees
        and how, dropout, calibration, and the validation data that ensembles are weighed by."""
        said = _to_json(self)
        for name in ("metrics", "training", "versions"):
            del said[name]
        text = json.dumps([said, arrays_sha256(validation or {})], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _settings(self) -> dict[str, Any]:
        return {
            "bands": len(self.preprocessing.bands),
            "input_size": self.preprocessing.input_size,
            "dropout": self.dropout,
            "block_dropout": self.block_dropout,
        }


@functools.cache
def _abstract_model(architecture: str, **settings: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns a network without weights; kept, for tracing one takes a third of a second."""
    create = functools.partial(registry.create, architecture, **settings)
    return nnx.split(nnx.eval_shape(lambda: create(rngs=nnx.Rngs(0))))


@dataclass(frozen=True)
class Member:
    """A trained network."""

    info: MemberInfo
    state: State
    validation: Validation | None = None


def state_of(model: nnx.Module) -> State:
    """Returns the parameters and batch statistics of `model` as arrays by dotted name."""
    return named_leaves(nnx.to_pure_dict(nnx.state(model, LEARNED)))


def nnx_state(model: nnx.Module, state: State) -> nnx.State:
    """Returns `state` in the form that `nnx.merge` takes with the graph of `model`.

    The arrays may carry further leading axes (members). `model` may be abstract.
    """
    learned = nnx.state(model, LEARNED)
    values = jax.tree_util.tree_map_with_path(
        lambda path, _: state[dotted(path)], nnx.to_pure_dict(learned)
    )
    nnx.replace_by_pure_dict(learned, values)
    return learned


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their dotted path, in the order of the leaves."""
    return {dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def dotted(path: tuple[Any, ...]) -> str:
    """Returns the path of a leaf as its name: stages.0.blocks.1.first.conv.kernel."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def save_member(folder: Path, member: Member) -> MemberInfo:
    """Writes `member` to `folder`, whole or not at all, and returns its info with the hash."""
    host_state = jax.tree.map(np.asarray, member.state)
    info = dataclasses.replace(member.info, weights_sha256=arrays_sha256(host_state))
    with replacing_folder(folder) as draft:
        # Trained weights are noise to a compressor: 8 % smaller, and half as long again to read.
        with ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
            in_chunks = dict.fromkeys(host_state, ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES))
            checkpointer.save((draft / "weights").absolute(), host_state, save_args=in_chunks)
        if member.validation is not None:
            np.savez(draft / "validation.npz", allow_pickle=False, **member.validation)
        (draft / "member.json").write_text(json.dumps(_to_json(info), indent=2) + "\n")
    return info


def load_member(folder: Path) -> Member:
    """Returns the member in `folder`.

    Raises LensjaxError where a file is missing or damaged, or where names, shapes or types of the
    weights are not those of the architecture; all differences are named together.
    """
    info = read_info(folder)
    return Member(info, read_weights(folder, info), read_validation(folder))


def read_weights(folder: Path, info: MemberInfo) -> State:
    """Returns the weights of the member in `folder` that `info` describes, each where a CPU's
    device takes it from without a copy. Raises as `load_member` does.

    What Orbax wrote is read with the library below it: Orbax lets threads print tracebacks where a
    file is missing, and takes the memory for all arrays at once.
    """
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder / 'weights'}/"}}
    try:
        keys = (key.decode() for key in ts.KvStore.open(store).result().list().result())
        arrays = {
            name: ts.open({"driver": "zarr", "kvstore": store | {"path": name}}, read=True).result()
            for name in (key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray"))
        }
        if not arrays:
            raise FileNotFoundError("there are none")
        compare(folder, state_of(info.abstract_model()), arrays)
        # The largest first, so that little is held beside them while they are read.
        largest_first = sorted(arrays, key=lambda name: -arrays[name].size)
        state = {name: _read(arrays[name]) for name in largest_first}
    except (OSError, ValueError, KeyError) as error:
        raise LensjaxError(
            f"the weights in {folder}/weights cannot be read ({one_line(error, 160)}); train or "
            "import the member again"
        ) from error
    if arrays_sha256(state) != info.weights_sha256:
        raise LensjaxError(f"the weights of {folder} are not those that member.json names (sha256)")
    return state


def _read(array: ts.TensorStore) -> np.ndarray:
    room = aligned_zeros(array.shape, array.dtype.numpy_dtype)
    ts.array(room).write(array).result()
    return room


def find_members(checkpoints: Path, ensemble: str | None) -> dict[str, Path]:
    """Returns the folders of the members that `ensemble` names, by column name, in its order.

    `ensemble` is `resnet18,vit_b16` or `resnet18:4,vit_b16:2`; an architecture without a number
    takes all that are found, and None all that the folder holds. Raises UsageError where an
    architecture is unknown, or has no members or too few.
    """
    if ensemble is None:
        held = [name for name in standing_folders(checkpoints) if member_folders(checkpoints, name)]
        if not held:
            raise UsageError(_lacks(checkpoints, "holds no members", "<architecture>"))
        unknown = [name for name in held if name not in registry.ARCHITECTURES]
        if unknown:
            raise UsageError(
                f"{checkpoints} holds members of {', '.join(unknown)}, which is no architecture; "
                f"there are: {', '.join(registry.ARCHITECTURES)}"
            )
        ensemble = ",".join(sorted(held))
    found: dict[str, Path] = {}
    for architecture, count in parse_ensemble(ensemble).items():
        folders = member_folders(checkpoints, architecture)
        if not folders or len(folders) < (count or 1):
            number = f"holds {len(folders)} of {count}" if folders else "holds no"
            what = f"{number} {architecture} members"
            raise UsageError(_lacks(checkpoints, what, architecture))
        folders = folders[:count]
        names = (
            [architecture]
            if len(folders) == 1
            else [f"{architecture}.{index}" for index in range(len(folders))]
        )
        found |= dict(zip(names, folders, strict=True))
    return found


def member_folders(checkpoints: Path, architecture: str) -> list[Path]:
    """Returns the folders of the members of an architecture, in natural order of their names."""

    def key(name: str) -> list[int | str]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]

    named = standing_folders(checkpoints / architecture)
    folders = [named[name] for name in sorted(named, key=key)]
    return [folder for folder in folders if (folder / "member.json").is_file()]


def _lacks(checkpoints: Path, what: str, architecture: str) -> str:
    """Returns the message that a folder lacks members, and the three ways on."""
    return (
        f"{checkpoints} {what} (wanted {checkpoints}/{architecture}/<member>/member.json); train "
        "some with scripts/train.py, import some with scripts/import_weights.py, or use "
        "--checkpoints demo"
    )


def parse_ensemble(ensemble: str) -> dict[str, int | None]:
    """Returns the number of members (None: all) by architecture name, from `resnet18:4,vit_b16`."""
    wanted: dict[str, int | None] = {}
    for part in ensemble.split(","):
        name, _, count = part.strip().partition(":")
        architecture = registry.resolve(name).name
        if count and not (count.isdigit() and int(count) > 0):
            raise UsageError(
                f"--ensemble: '{part.strip()}' wants a positive number after the colon"
            )
        if architecture in wanted:
            raise UsageError(f"--ensemble names {architecture} twice; write {architecture}:2")
        wanted[architecture] = int(count) if count else None
    return wanted


def arrays_sha256(arrays: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of all `arrays` with their names, shapes and types."""
    digest = hashlib.sha256()
    for name, leaf in sorted(arrays.items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def compare(folder: Path, wanted: State, stored: Mapping[str, Any]) -> None:
    """Raises LensjaxError naming every array in `folder` that is missing, unknown, or of another
    shape than wanted."""

    def described(state: Mapping[str, Any]) -> dict[str, str]:
        return {name: f"{leaf.dtype.name}{list(leaf.shape)}" for name, leaf in state.items()}

    want, have = described(wanted), described(stored)
    differences = [f"{name} is missing" for name in sorted(want.keys() - have.keys())]
    differences += [f"{name} is unknown" for name in sorted(have.keys() - want.keys())]
    differences += [
        f"{name} is {have[name]}, wanted {want[name]}"
        for name in sorted(want.keys() & have.keys())
        if want[name] != have[name]
    ]
    if differences:
        raise LensjaxError(f"{folder} does not fit its network: " + "; ".join(differences))


def read_info(folder: Path) -> MemberInfo:
    """Returns what `member.json` in `folder` says. Raises LensjaxError, naming the fields, where it
    is damaged or says what cannot be."""
    path = folder / "member.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LensjaxError(f"{path} cannot be read ({one_line(error, 200)})") from error
    if isinstance(content, dict) and "preparation" in content:  # as version 0.1 wrote it
        content["preprocessing"] = content.pop("preparation")
    if not isinstance(content, dict):
        raise LensjaxError(f"{path}: it holds {content!r:.60}, must hold an object")
    wrong = _complaints(content, FIELDS) or _wrong_lengths(content["preprocessing"])
    if wrong:
        raise LensjaxError(f"{path}: {'; '.join(wrong)}")
    return MemberInfo(
        **content | {"preprocessing": Preprocessing.from_json(content["preprocessing"])}
    )


def _to_json(info: MemberInfo) -> dict[str, Any]:
    return dataclasses.asdict(info) | {"preprocessing": info.preprocessing.to_json()}


def _is_number(value: Any) -> bool:
    """Returns whether a value is a number, and one that float32 holds."""
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and abs(value) <= float(np.finfo(np.float32).max)


def _are(is_so: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Returns whether something is a list, not empty, of what is so."""
    return lambda values: isinstance(values, list) and bool(values) and all(map(is_so, values))


_RATE = ("a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1)
_NUMBER = ("a number", _is_number)
_OBJECT = ("an object", lambda v: isinstance(v, dict))

# What member.json may say: in words and as a test, or the fields of an object. It can be edited by
# hand, and one number that is none would make all scores alike without a word.
FIELDS: Mapping[str, Any] = {
    "architecture": (
        "one of " + ", ".join(registry.ARCHITECTURES),
        lambda v: isinstance(v, str) and v in registry.ARCHITECTURES,
    ),
    "preprocessing": {
        "bands": ("a list of names", _are(lambda v: isinstance(v, str) and v != "")),
        "input_size": ("a whole number above 0", lambda v: type(v) is int and v > 0),
        "pixel_scale": (
            "a number above 0, or null",
            lambda v: v is None or (_is_number(v) and v > 0),
        ),
        "stretch": ("one of " + ", ".join(STRETCHES), lambda v: v in STRETCHES),
        "softening": ("a number above 0", lambda v: _is_number(v) and v > 0),
        "mean": ("a list of numbers", _are(_is_number)),
        "std": ("a list of numbers above 0", _are(lambda v: _is_number(v) and v > 0)),
    },
    "dropout": _RATE,
    "block_dropout": _RATE,
    "weights_sha256": ("text", lambda v: isinstance(v, str)),
    "calibration": {
        "slope": _NUMBER,
        "intercept": _NUMBER,
        "brier": ("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1),
    },
    **dict.fromkeys(("metrics", "training", "versions"), _OBJECT),
}
OPTIONAL = {"block_dropout", "metrics", "training", "versions"}


def _complaints(values: Mapping[str, Any], fields: Mapping[str, Any], path: str = "") -> list[str]:
    """Returns what is wrong with values that must have these fields and no others, a line each:
    `dropout is 1.0, must be a number from 0 to below 1`."""
    found = [f"{path}{name} is missing" for name in fields.keys() - OPTIONAL - values.keys()]
    found += [f"{path}{name} is unknown" for name in values.keys() - fields.keys()]
    for name in fields.keys() & values.keys():
        inner = fields[name] if isinstance(fields[name], dict) else None
        wanted, is_so = fields[name] if inner is None else _OBJECT
        if not is_so(values[name]):
            found.append(f"{path}{name} is {values[name]!r:.60}, must be {wanted}")
        elif inner is not None:
            found += _complaints(values[name], inner, f"{name}.")
    return sorted(found)


def _wrong_lengths(preprocessing: Mapping[str, Any]) -> list[str]:
    bands = len(preprocessing["bands"])
    return [
        f"preprocessing.{name} has {len(preprocessing[name])} numbers, must have {bands}, a band"
        for name in ("mean", "std")
        if len(preprocessing[name]) != bands
    ]


def read_validation(folder: Path) -> Validation | None:
    """Returns the validation data of the member in `folder`, None where it has none. Raises
    LensjaxError where they are damaged or say what cannot be."""
    path = folder / "validation.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("id", "label", "logit")}
    except (OSError, ValueError, TypeError, LookupError, EOFError, BadZipFile, zlib.error) as error:
        raise LensjaxError(
            f"{path} cannot be read as an .npz with id, label and logit ({one_line(error, 160)})"
        ) from error
    label, logit = found["label"], found["logit"]
    wrong = {
        "id, label and logit must be lists of the same length": not (
            label.ndim == 1 and found["id"].shape == label.shape == logit.shape
        ),
        "label must be 0 for some objects and 1 for the others": set(np.unique(label)) != {0, 1},
        "logit must be finite numbers": not (
            logit.dtype.kind in "fiu" and np.isfinite(logit).all()
        ),
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise LensjaxError(f"{path}: {message}")
    return found


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Returns zeros that begin at a multiple of 64 bytes, which a CPU takes without a copy."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + nbytes].view(dtype).reshape(shape)
