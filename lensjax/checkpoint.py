"""Members on disk: `DIR/<architecture>/<member>/`, an Orbax checkpoint beside `member.json`."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from lensjax.data.on_device import aligned
from lensjax.data.preprocess import Preparation
from lensjax.errors import LensjaxError, UsageError
from lensjax.models import registry

LEARNED = (nnx.Param, nnx.BatchStat)
# Orbax reads an array chunk by chunk, each once more than the array itself. Chunks that are much
# smaller than this are taken from memory that glibc does not give back.
CHUNK_BYTES = 64 * 2**20
# Arrays that are larger are read one by one: Orbax takes the memory for all that it reads at once.
TOGETHER_BYTES = 32 * 2**20
State = dict[str, Any]
"""The parameters and batch statistics of one member: arrays by dotted name."""
Validation = dict[str, np.ndarray]
"""`id`, `label` and `logit` (n,) of the objects that a member was validated on."""


@dataclass(frozen=True)
class MemberInfo:
    """What `member.json` says: all that is needed to apply the member as it was trained."""

    architecture: str
    preparation: Preparation
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

    def outline(self) -> nnx.Module:
        """Returns the network of this member with `ShapeDtypeStruct` in place of weights."""
        return nnx.merge(*_outline(self.architecture, **self._settings()))

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
            "bands": len(self.preparation.bands),
            "input_size": self.preparation.input_size,
            "dropout": self.dropout,
            "block_dropout": self.block_dropout,
        }


@functools.cache
def _outline(architecture: str, **settings: Any) -> tuple[nnx.GraphDef, nnx.State]:
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
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        # Trained weights are noise to a compressor: 8 % smaller, and half as long again to read.
        with ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
            in_chunks = dict.fromkeys(host_state, ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES))
            checkpointer.save((partial / "weights").absolute(), host_state, save_args=in_chunks)
        if member.validation is not None:
            np.savez(partial / "validation.npz", allow_pickle=False, **member.validation)
        (partial / "member.json").write_text(json.dumps(_to_json(info), indent=2) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
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
    device takes it from without a copy. Raises as `load_member` does."""
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            path = (folder / "weights").absolute()
            stored = checkpointer.metadata(path).item_metadata.tree
            compare(folder, state_of(info.outline()), stored)
            state: State = {}
            for names in _turns(stored):
                part = ocp.args.PyTreeRestore(
                    dict.fromkeys(names, 0),
                    dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray)),
                    partial_restore=True,
                )
                read = checkpointer.restore(path, args=part)
                state |= {name: aligned(read.pop(name)) for name in names}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise LensjaxError(
            f"the weights of {folder} cannot be read ({type(error).__name__}: {error}); "
            "train or import the member again"
        ) from error
    if arrays_sha256(state) != info.weights_sha256:
        raise LensjaxError(f"the weights of {folder} are not those that member.json names (sha256)")
    return state


def _turns(stored: Mapping[str, Any]) -> list[list[str]]:
    """Returns the names of arrays to be read together: large ones alone, the largest first, so that
    little is held twice, then all others."""
    sizes = {name: math.prod(leaf.shape) * leaf.dtype.itemsize for name, leaf in stored.items()}
    large = [name for name, size in sizes.items() if size > TOGETHER_BYTES]
    alone = [[name] for name in sorted(large, key=sizes.__getitem__, reverse=True)]
    return [*alone, [name for name in stored if name not in large]]


def find_members(checkpoints: Path, ensemble: str | None) -> dict[str, Path]:
    """Returns the folders of the members that `ensemble` names, by column name, in its order.

    `ensemble` is `resnet18,vit_b16` or `resnet18:4,vit_b16:2`; an architecture without a number
    takes all that are found, and None all that the folder holds. Raises UsageError where an
    architecture is unknown, or has no members or too few.
    """
    if ensemble is None:
        held = {folder.parent.name for folder in _member_folders(checkpoints, "*")}
        if not held:
            raise UsageError(_lacks(checkpoints, "holds no members", "<architecture>"))
        ensemble = ",".join(sorted(held))
    found: dict[str, Path] = {}
    for architecture, count in parse_ensemble(ensemble).items():
        folders = sorted(
            _member_folders(checkpoints, architecture),
            key=lambda path: [
                int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)
            ],
        )
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


def _member_folders(checkpoints: Path, architecture: str) -> Iterator[Path]:
    """Yields the folders of members of an architecture, `*`: of all. What is hidden is a draft."""
    for record in checkpoints.glob(f"{architecture}/*/member.json"):
        if not record.parent.name.startswith(".") and not record.parent.parent.name.startswith("."):
            yield record.parent


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
        return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in state.items()}

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
    """Returns what `member.json` in `folder` says. Raises LensjaxError where it cannot be read."""
    try:
        content = json.loads((folder / "member.json").read_text())
        content["preparation"] = Preparation.from_json(content["preparation"])
        return MemberInfo(**content)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LensjaxError(
            f"{folder}/member.json cannot be read ({type(error).__name__}: {error})"
        ) from error


def _to_json(info: MemberInfo) -> dict[str, Any]:
    return dataclasses.asdict(info) | {"preparation": info.preparation.to_json()}


def read_validation(folder: Path) -> Validation | None:
    """Returns the validation data of the member in `folder`, None where it has none."""
    path = folder / "validation.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ("id", "label", "logit")}
