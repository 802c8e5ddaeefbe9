"""Weights trained with PyTorch (torchvision's or timm's names) brought into a lensjax model."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lensjax.errors import LensjaxError, UsageError
from lensjax.models.adapt import FIRST_KERNELS, to_bands
from lensjax.models.hybrid import HybridTransformer
from lensjax.models.torch_file import StateDict
from lensjax.models.vit import PATCH_SIZE, VisionTransformer, interpolate_position_embedding

# How the path of an array in the model becomes its name in the file: parts replaced in this order.
# `{layer}` counts the blocks of a transformer.
Names = tuple[tuple[str, str], ...]

RESNET_NAMES: Names = (
    ("stem.entry.conv", "conv1"),
    ("stem.entry.norm", "bn1"),
    ("stages.0.blocks", "layer1"),
    ("stages.1.blocks", "layer2"),
    ("stages.2.blocks", "layer3"),
    ("stages.3.blocks", "layer4"),
    ("first.conv", "conv1"),
    ("first.norm", "bn1"),
    ("second.conv", "conv2"),
    ("second.norm", "bn2"),
    ("shortcut.conv", "downsample.0"),
    ("shortcut.norm", "downsample.1"),
    ("head.linear", "fc"),
    ("kernel", "weight"),
    ("scale", "weight"),
    ("mean", "running_mean"),
    ("var", "running_var"),
)

TORCHVISION_VIT_NAMES: Names = (
    ("embedding.patches", "conv_proj"),
    ("embedding.class_token", "class_token"),
    ("embedding.positions", "encoder.pos_embedding"),
    ("blocks", "encoder.layers.encoder_layer_{layer}"),
    ("last", "encoder.layers.encoder_layer_{layer}"),
    ("norm1", "ln_1"),
    ("norm2", "ln_2"),
    ("attention.query.kernel", "self_attention.in_proj_weight"),
    ("attention.query.bias", "self_attention.in_proj_bias"),
    ("attention.key_value.kernel", "self_attention.in_proj_weight"),
    ("attention.key_value.bias", "self_attention.in_proj_bias"),
    ("attention.projection", "self_attention.out_proj"),
    ("expand", "mlp.0"),
    ("contract", "mlp.3"),
    ("norm", "encoder.ln"),
    ("head.linear", "heads.head"),
    ("kernel", "weight"),
    ("scale", "weight"),
)

TIMM_VIT_NAMES: Names = (
    ("embedding.patches", "patch_embed.proj"),
    ("embedding.class_token", "cls_token"),
    ("embedding.positions", "pos_embed"),
    ("blocks", "blocks.{layer}"),
    ("last", "blocks.{layer}"),
    ("attention.query", "attn.qkv"),
    ("attention.key_value", "attn.qkv"),
    ("attention.projection", "attn.proj"),
    ("expand", "mlp.fc1"),
    ("contract", "mlp.fc2"),
    ("head.linear", "head"),
    ("kernel", "weight"),
    ("scale", "weight"),
)

# What torchvision first called the layers of the perceptron, what counts steps and is no weight,
# and where people put a last layer of their own, alone or in a Sequential.
OLD_SPELLINGS = (("mlp.linear_1.", "mlp.0."), ("mlp.linear_2.", "mlp.3."))
COUNTERS = ("num_batches_tracked", "n_averaged")
HEADS = ("fc", "head", "heads", "classifier", "last_linear", "linear", "output")

FEW = 4
"""So many names are listed in a message."""


@dataclass(frozen=True)
class _Source:
    """Where an array of the model comes from: one tensor, or one a block to be stacked."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    rows: slice


class _Match(NamedTuple):
    """The tensors of a file by the model's names, where each array comes from, what was adapted,
    and what does not fit, in words: none where all does."""

    tensors: StateDict
    sources: dict[str, _Source]
    notes: tuple[str, ...]
    misfits: tuple[str, ...]


def load_torch_weights(model: nnx.Module, state_dict: StateDict) -> tuple[str, ...]:
    """Puts the weights of a torchvision or timm network into `model`, in place.

    Returns one line for each adaptation made: the first layer to another number of bands (the mean
    over the file's bands, scaled so that an image alike in all bands gives the same response), the
    position embedding to another grid, and the head: of two outputs it becomes their difference,
    of more or none the model keeps its own fresh weights. Names may have a prefix (`module.`), and
    the head may be in a Sequential (`fc.1`) or beside the rest (`classifier`).

    Raises LensjaxError saying how many tensors are missing, unexpected, of the wrong shape or not
    finite, and which are the first. The model is then as it was.
    """
    tensors, sources, notes, misfits = _match(model, state_dict)
    if misfits:
        told = "; ".join(misfits)
        raise LensjaxError(f"the weights are not those of this architecture; {told}")
    state, arrays = _arrays(model)
    for path, source in sources.items():
        stack = np.stack([_own_layout(tensors[name][source.rows]) for name in source.names])
        arrays[path][...] = jnp.asarray(stack.reshape(arrays[path].shape), arrays[path].dtype)
    nnx.update(model, state)
    return notes


def fits(model: nnx.Module, state_dict: StateDict) -> bool:
    """Returns whether these are weights for `model`, which may be abstract."""
    return not _match(model, state_dict).misfits


def _match(model: nnx.Module, state_dict: StateDict) -> _Match:
    sources = _sources(_arrays(model)[1], _naming(model, state_dict))
    tensors = _plain_names(state_dict, sources)
    notes = _adapt(tensors, sources)
    return _Match(tensors, sources, notes, _misfits(tensors, sources))


def tensor_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes that the weights of `model` have in torchvision."""
    sources = _sources(_arrays(model)[1], _naming(model, {}))
    return {name: source.shape for source in sources.values() for name in source.names}


def _arrays(model: nnx.Module) -> tuple[nnx.State, dict[str, nnx.Variable]]:
    """Returns what `model` has learnt, and the same variables by dotted path."""
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    return state, {".".join(map(str, path)): array for path, array in nnx.to_flat_state(state)}


def _sources(arrays: dict[str, nnx.Variable], names: Names) -> dict[str, _Source]:
    return {path: _source(path, array.shape, arrays, names) for path, array in arrays.items()}


def _plain_names(state_dict: StateDict, sources: dict[str, _Source]) -> StateDict:
    """Returns the tensors without what wrappers put before their names, the head under the name
    that it has in the model. Raises LensjaxError where a name would be there twice."""
    tensors = {n: tensor for n, tensor in state_dict.items() if not n.endswith(COUNTERS)}
    tensors = _renamed(tensors, _new_spelling)
    tensors = _moved(tensors, _shared_prefix(tensors), "")
    wanted = {name for source in sources.values() for name in source.names}
    (first,) = (sources[path].names[0] for path in FIRST_KERNELS if path in sources)
    before = sorted(n.removesuffix(first) for n in tensors if f".{n}".endswith(f".{first}"))
    if before:
        # A block may have a layer of the same name: the prefix of most names is meant.
        most = max(before, key=lambda prefix: sum(prefix + name in tensors for name in wanted))
        tensors = _moved(tensors, most, "")
    head = sources["head.linear.kernel"].names[0]
    others = [
        name
        for name, tensor in tensors.items()
        if name not in wanted and name.split(".")[0] in HEADS and tensor.ndim == 2
    ]
    if head not in tensors and len(others) == 1:
        tensors = _moved(tensors, *(name.removesuffix("weight") for name in (others[0], head)))
    return tensors


def _new_spelling(name: str) -> str:
    for old, new in OLD_SPELLINGS:
        name = name.replace(old, new)
    return name


def _moved(tensors: StateDict, old: str, new: str) -> StateDict:
    """Returns the tensors, those whose names begin with `old` under names that begin with `new`."""
    return _renamed(
        tensors, lambda name: new + name.removeprefix(old) if name.startswith(old) else name
    )


def _renamed(tensors: StateDict, rename: Callable[[str], str]) -> StateDict:
    renamed: StateDict = {}
    for name, tensor in tensors.items():
        if rename(name) in renamed:
            raise LensjaxError(
                f"the weights hold {rename(name)!r} twice, once as {name!r}: keep one"
            )
        renamed[rename(name)] = tensor
    return renamed


def _shared_prefix(names: Iterable[str]) -> str:
    """Returns the parts, up to a dot, that all names begin with."""
    shared = os.path.commonprefix(list(names))
    return shared[: shared.rfind(".") + 1]


def _naming(model: nnx.Module, tensors: StateDict) -> Names:
    match model:
        case VisionTransformer():
            is_timm = any(name.split(".")[-1] == "cls_token" for name in tensors)
            return TIMM_VIT_NAMES if is_timm else TORCHVISION_VIT_NAMES
        case HybridTransformer():
            raise UsageError("neither torchvision nor timm has weights for this architecture")
    return RESNET_NAMES


def _source(
    path: str, shape: tuple[int, ...], arrays: dict[str, nnx.Variable], names: Names
) -> _Source:
    """Returns the name and shape, in PyTorch's layout, of the array at `path` in the model."""
    name = path
    for ours, theirs in names:
        name = re.sub(rf"(?<![^.]){re.escape(ours)}(?![^.])", theirs, name)
    layers = range(1)
    if path.startswith("blocks."):
        layers, shape = range(shape[0]), shape[1:]
    elif path.startswith("last."):
        before = arrays["blocks." + path.removeprefix("last.")].shape[0]
        layers = range(before, before + 1)
    rows = slice(None)
    if ".query." in path:
        rows, shape = slice(0, shape[-1]), (*shape[:-1], 3 * shape[-1])
    elif ".key_value." in path:
        rows, shape = slice(shape[-1] // 2, None), (*shape[:-1], shape[-1] // 2 * 3)
    return _Source(tuple(name.format(layer=i) for i in layers), _torch_shape(path, shape), rows)


def _torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    match path, shape:
        case "embedding.class_token", (width,):
            return 1, 1, width
        case "embedding.positions", (tokens, width):
            return 1, tokens, width
        case "embedding.patches.kernel", (inputs, width):
            return width, inputs // PATCH_SIZE**2, PATCH_SIZE, PATCH_SIZE
        case _, (rows, columns, inputs, outputs):
            return outputs, inputs, rows, columns
        case _, (inputs, outputs):
            return outputs, inputs
        case _, other:
            return other


def _own_layout(tensor: np.ndarray) -> np.ndarray:
    """Returns a tensor with its axes in the model's order."""
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    return tensor.T if tensor.ndim == 2 else tensor


def _adapt(tensors: StateDict, sources: dict[str, _Source]) -> tuple[str, ...]:
    """Fits the first layer, the positions and the head to the model where that has a meaning.

    Changes `tensors`; a head that is not to be loaded is taken out of both dictionaries.
    """
    notes = []
    (first,) = (sources[name] for name in FIRST_KERNELS if name in sources)
    kernel = tensors.get(first.names[0])
    if kernel is not None and kernel.ndim == 4 and kernel.shape[1] not in (0, first.shape[1]):
        held, bands = kernel.shape[1], first.shape[1]
        tensors[first.names[0]] = to_bands(kernel, bands, axis=1)
        notes.append(f"first layer adapted from {held} bands to {bands}")

    positions = sources.get("embedding.positions")
    embedding = None if positions is None else tensors.get(positions.names[0])
    if positions is not None and embedding is not None and embedding.size and embedding.ndim == 3:
        old, new = (isqrt(shape[1] - 1) for shape in (embedding.shape, positions.shape))
        if old not in (0, new) and embedding.shape == (1, old**2 + 1, positions.shape[2]):
            resampled = interpolate_position_embedding(embedding[0].astype(np.float32), old, new)
            tensors[positions.names[0]] = np.asarray(resampled)[None]
            notes.append(f"position embedding adapted from a grid of {old}x{old} to {new}x{new}")

    weight, bias = (sources[f"head.linear.{leaf}"] for leaf in ("kernel", "bias"))
    held_head = [tensors.get(source.names[0], np.zeros(0)) for source in (weight, bias)]
    outputs = held_head[0].shape[:1]
    if [tensor.shape for tensor in held_head] == [(2, weight.shape[1]), (2,)]:
        for source in (weight, bias):
            of_both = tensors[source.names[0]].astype(np.float32)
            tensors[source.names[0]] = of_both[1:] - of_both[:1]
        notes.append(
            "head with 2 outputs made one log-odds: the second, which is taken to be the lenses, "
            "less the first"
        )
    elif all(tensor.shape[:1] == outputs for tensor in held_head) and outputs not in ((), (1,)):
        for leaf, source in (("kernel", weight), ("bias", bias)):
            del sources[f"head.linear.{leaf}"]
            tensors.pop(source.names[0], None)
        notes.append(f"head with {outputs[0]} outputs left out: the new one has yet to be trained")
    return tuple(notes)


def _misfits(tensors: StateDict, sources: dict[str, _Source]) -> tuple[str, ...]:
    """Returns in words what is missing, unexpected, of the wrong shape or not finite."""
    expected = {name: source.shape for source in sources.values() for name in source.names}
    misfits = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "of the wrong shape": [
            f"{name} (is {tensors[name].shape}, should be {shape})"
            for name, shape in sorted(expected.items())
            if name in tensors and tensors[name].shape != shape
        ],
        "not finite": [
            name
            for name in sorted(expected.keys() & tensors.keys())
            if not np.isfinite(tensors[name].astype(np.float32)).all()
        ],
    }
    return tuple(
        f"{what}: {', '.join(names[:FEW])}"
        + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
        for what, names in misfits.items()
        if names
    )
