"""Members on disk: `DIR/<architecture>/<member>/`, an Orbax checkpoint, `member.json`, the scores
of the validation data and a model card."""

import dataclasses
import functools
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict
from zipfile import BadZipFile

import jax
import msgspec
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import nnx

from lensjax.data.pixel_statistics import STATISTICS
from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble import calibration
from lensjax.ensemble.quantisation import SCALES, quantised, quantised_form
from lensjax.errors import LensjaxError, UsageError, one_line, unknown
from lensjax.files import replacing_folder, standing_folders
from lensjax.memory import aligned_zeros
from lensjax.models import registry

ALL = "all"
"""An ensemble of every member in a folder."""
LEARNED = (nnx.Param, nnx.BatchStat)
# A file that has more gets no further array, or part of one, and none of these is larger: all files
# are below 48 MiB, as hosts of repositories want it.
FILE_BYTES = 24 * 2**20
# Of several processes the first alone saves members, and Orbax is not to wait for the others.
SAVED_BY_FIRST = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="member"
)
Store = Literal["float32", "int8"]
"""How the kernels are stored: as they are, or as int8 with a scale for each output channel."""
Rate = Annotated[float, msgspec.Meta(ge=0, lt=1)]
# One that float32 holds: others would make all scores alike without a word.
Number = Annotated[float, msgspec.Meta(ge=-3e38, le=3e38)]
State = dict[str, Any]
"""The parameters and batch statistics of one member: arrays by dotted name."""
Validation = dict[str, np.ndarray]
"""`id`, `label` and `logit` (n,) of the objects that a member was validated on."""


class Calibration(TypedDict):
    """Calibrated log-odds are slope * logit + intercept; `brier`: of their probabilities."""

    slope: Number
    intercept: Number
    brier: Annotated[float, msgspec.Meta(ge=0, le=1)]


@dataclass(frozen=True)
class MemberInfo:
    """What `member.json` says: all that is needed to apply the member as it was trained."""

    architecture: str
    preprocessing: Preprocessing
    dropout: Rate
    block_dropout: Rate = 0.0
    weights_sha256: str = ""
    calibration: Calibration = field(
        default_factory=lambda: Calibration(slope=1.0, intercept=0.0, brier=0.25)
    )
    metrics: dict[str, Any] = field(default_factory=dict)
    verdict: dict[str, Any] = field(default_factory=dict)
    """Of a member that learned from grades: what those held back say of it, as `train.verdict`
    has it."""
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    store: Store = "float32"
    notes: str = ""

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the network of this member, with weights newly drawn from `rngs`."""
        return registry.create(self.architecture, **self._settings(), rngs=rngs)

    def abstract_model(self) -> nnx.Module:
        """Returns the network of this member with `ShapeDtypeStruct` in place of weights."""
        return nnx.merge(*_abstract_model(self.architecture, **self._settings()))

    def identity(self, validation: Validation | None) -> str:
        """Returns the SHA-256 of all that the member's scores depend on: its weights, what it sees
        and how, dropout, calibration, and the validation data that ensembles are weighed by."""
        said = self._seen_and_computed() | {"calibration": self.calibration}
        text = json.dumps([said, arrays_sha256(validation or {})], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def identity_of_logits(self) -> str:
        """Returns the SHA-256 of all that the member's logits depend on before they are calibrated:
        its weights, what it sees and how, and dropout."""
        text = json.dumps(self._seen_and_computed(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _seen_and_computed(self) -> dict[str, Any]:
        said = dataclasses.asdict(self)
        not_seen = ("calibration", "metrics", "verdict", "training", "versions", "store", "notes")
        for name in not_seen:
            del said[name]
        return said

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
    pixels: np.ndarray | None = None
    """(n, statistic) float32, the STATISTICS of `pixel_statistics` of cutouts that it was
    calibrated on."""


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


def save_member(folder: Path, member: Member, store: Store = "float32") -> MemberInfo:
    """Writes `member` to `folder`, whole or not at all, and returns its info with the hash of what
    is stored."""
    from lensjax.ensemble.model_card import model_card  # takes a while to import

    state = jax.tree.map(np.asarray, member.state)
    if store == "int8":
        state = quantised(state)
    info = dataclasses.replace(member.info, weights_sha256=arrays_sha256(state), store=store)
    record = dataclasses.asdict(info)
    with replacing_folder(folder) as draft:
        # Trained weights are noise to a compressor: 8 % smaller, and half as long again to read.
        with ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(
                use_compression=False, multiprocessing_options=SAVED_BY_FIRST
            ),
            multiprocessing_options=SAVED_BY_FIRST,
        ) as checkpointer:
            weights = (draft / "weights").absolute()
            checkpointer.save(weights, state, ocdbt_target_data_file_size=FILE_BYTES)
        if member.validation is not None:
            np.savez(draft / "validation.npz", allow_pickle=False, **member.validation)
        if member.pixels is not None:
            arrays = {"pixels": member.pixels, "statistics": list(STATISTICS)}
            np.savez_compressed(draft / "pixels.npz", allow_pickle=False, **arrays)  # type: ignore[arg-type]
        (draft / "member.json").write_text(json.dumps(record, indent=2) + "\n")
        card = model_card(record, state, member.validation)
        (draft / "README.md").write_text(card, encoding="utf-8")
    return info


def load_member(folder: Path) -> Member:
    """Returns the member in `folder`.

    Raises LensjaxError where a file is missing or damaged, or where names, shapes or types of the
    weights are not those of the architecture; all differences are named together.
    """
    info = read_info(folder)
    weights = read_weights(folder, info)
    return Member(info, weights, read_validation(folder), read_pixels(folder))


def read_weights(folder: Path, info: MemberInfo) -> State:
    """Returns the weights of the member in `folder` that `info` describes, float32 however they are
    stored, each where a CPU's device takes it from without a copy. Raises as `load_member` does.

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
        wanted = state_of(info.abstract_model())
        compare(folder, quantised_form(wanted) if info.store == "int8" else wanted, arrays)
        # The largest first, so that little is held beside them while they are read.
        largest_first = sorted(arrays, key=lambda name: -arrays[name].size)
        stored = {name: _read(arrays[name]) for name in largest_first}
    except (OSError, ValueError, KeyError) as error:
        raise LensjaxError(
            f"the weights in {folder}/weights cannot be read ({one_line(error, 160)}); train or "
            "import the member again"
        ) from error
    if arrays_sha256(stored) != info.weights_sha256:
        raise LensjaxError(f"the weights of {folder} are not those that member.json names (sha256)")
    for name in [name for name in stored if name.endswith(SCALES)]:
        kernel, scales = name.removesuffix(SCALES), stored.pop(name)
        room = aligned_zeros(stored[kernel].shape, np.float32)
        stored[kernel] = np.multiply(stored[kernel], scales, out=room)
    return stored


def _read(array: ts.TensorStore) -> np.ndarray:
    room = aligned_zeros(array.shape, array.dtype.numpy_dtype)
    ts.array(room).write(array).result()
    return room


def find_members(checkpoints: Path, ensemble: str | None) -> dict[str, Path]:
    """Returns the folders of the members that `ensemble` names, by column name, in its order.

    `ensemble` is `resnet18,vit_b16` or `resnet18:4,vit_b16:2`; an architecture without a number
    takes all that are found, `all` is every member of the folder, and None those of the
    architectures that have a share in the stacked score, which is the same without the others.
    Raises UsageError where an architecture is unknown, or has no members or too few.
    """
    if ensemble is None:
        return _with_a_share(find_members(checkpoints, ALL))
    if ensemble == ALL:
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


def members_at(folder: Path, ensemble: str | None) -> list[Path]:
    """Returns the folder of a member, if it is one, else those that `find_members` finds in it."""
    if (folder / "member.json").is_file():
        return [folder]
    return list(find_members(folder, ensemble).values())


def _with_a_share(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Returns those of all members whose architecture has a share in the stacked score. Members of
    one architecture stay together, for what their seeds change says how sure they are."""
    infos = [read_info(folder) for folder in folders.values()]
    slope = [info.calibration["slope"] for info in infos]
    intercept = [info.calibration["intercept"] for info in infos]
    validations = [read_validation(folder) for folder in folders.values()]
    stacking, _ = calibration.member_stacking(slope, intercept, validations)
    kept = {info.architecture for info, share in zip(infos, stacking.share, strict=True) if share}
    return {
        name: folder
        for (name, folder), info in zip(folders.items(), infos, strict=True)
        if info.architecture in kept
    }


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
        "some with scripts/train.py, import some with scripts/import_weights.py, or name with "
        "--checkpoints a folder that has some, such as checkpoints/ of the lensjax repository"
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
    """Returns what `member.json` in `folder` says. Raises LensjaxError, naming the field, where it
    is damaged or says what cannot be: it can be edited by hand."""
    path = folder / "member.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "preparation" in content:  # as version 0.1 wrote it
            content["preprocessing"] = content.pop("preparation")
        info = msgspec.convert(content, MemberInfo)
        registry.resolve(info.architecture)
        names = [each.name for each in dataclasses.fields(MemberInfo)]
        for name in content.keys() - names:
            raise unknown("field", name, names)
    except (
        *(OSError, ValueError, TypeError, RecursionError),
        *(msgspec.ValidationError, UsageError),
    ) as error:
        raise LensjaxError(f"{path} cannot be read: {one_line(error, 200)}") from error
    return info


def read_validation(folder: Path) -> Validation | None:
    """Returns the validation data of the member in `folder`, None where it has none. Raises
    LensjaxError where they are damaged or say what cannot be."""
    path = folder / "validation.npz"
    found = _read_arrays(path, ("id", "label", "logit"))
    if found is None:
        return None
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


def read_pixels(folder: Path) -> np.ndarray | None:
    """Returns the `Member.pixels` of the member in `folder`, None where it has none, or those of
    another version. Raises LensjaxError where they are damaged."""
    path = folder / "pixels.npz"
    found = _read_arrays(path, ("statistics", "pixels"))
    if found is None or found["statistics"].tolist() != list(STATISTICS):
        return None
    pixels = found["pixels"]
    if pixels.dtype.kind != "f" or pixels.ndim != 2 or pixels.shape[1] != len(STATISTICS):
        raise LensjaxError(f"{path}: pixels must be a row of {len(STATISTICS)} numbers a cutout")
    return pixels


def _read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Returns the arrays of these names in an .npz, None where there is none. Raises LensjaxError
    where it cannot be read."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (OSError, ValueError, TypeError, LookupError, EOFError, BadZipFile, zlib.error) as error:
        wanted = f"{', '.join(names[:-1])} and {names[-1]}"
        raise LensjaxError(
            f"{path} cannot be read as an .npz with {wanted} ({one_line(error, 160)})"
        ) from error
