"""Weights trained with PyTorch (torchvision's or timm's names) brought into a lensjax model."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lensjax.errors import LensjaxError, UsageError
from lensjax.models.adapt import FIRST_KERNELS, to_bands
from lensjax.models.hybrid import HybridTransformer
from lensjax.models.torch_file import StateDict
from lensjax.models.vit import PATCH_SIZE, VisionTransformer, interpolate_position_embedding

# How the path of an array in the model becomes its name in the file: parts replaced in this order.
RESNET_NAMES = (
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
# The same, with torchvision's names and then timm's; `{layer}` counts the blocks.
VIT_NAMES = (
    ("embedding.patches", "conv_proj", "patch_embed.proj"),
    ("embedding.class_token", "class_token", "cls_token"),
    ("embedding.positions", "encoder.pos_embedding", "pos_embed"),
    ("blocks", "encoder.layers.encoder_layer_{layer}", "blocks.{layer}"),
    ("last", "encoder.layers.encoder_layer_{layer}", "blocks.{layer}"),
    ("norm1", "ln_1", "norm1"),
    ("norm2", "ln_2", "norm2"),
    ("attention.query.kernel", "self_attention.in_proj_weight", "attn.qkv.weight"),
    ("attention.query.bias", "self_attention.in_proj_bias", "attn.qkv.bias"),
    ("attention.key_value.kernel", "self_attention.in_proj_weight", "attn.qkv.weight"),
    ("attention.key_value.bias", "self_attention.in_proj_bias", "attn.qkv.bias"),
    ("attention.projection", "self_attention.out_proj", "attn.proj"),
    ("expand", "mlp.0", "mlp.fc1"),
    ("contract", "mlp.3", "mlp.fc2"),
    ("norm", "encoder.ln", "norm"),
    ("head.linear", "heads.head", "head"),
    ("kernel", "weight", "weight"),
    ("scale", "weight", "weight"),
)

# What counts steps and is no weight, and where people put a last layer of their own, alone or in a
# Sequential.
COUNTERS = ("num_batches_tracked", "n_averaged")
HEADS = {"fc", "head", "heads", "classifier", "last_linear", "linear", "output"}

FEW = 4
"""So many names are listed in a message."""


@dataclass(frozen=True)
class _Source:
    """Where an array of the model comes from: one tensor, or one a block to be stacked."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    rows: slice


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
    tensors, sources, notes = _matched(model, state_dict)
    if misfits := _misfits(tensors, sources):
        raise LensjaxError(f"the weights are not those of this architecture; {'; '.join(misfits)}")
    state, arrays = _arrays(model)
    for path, source in sources.items():
        stack = np.stack([_own_layout(tensors[name][source.rows]) for name in source.names])
        arrays[path][...] = jnp.asarray(stack.reshape(arrays[path].shape), arrays[path].dtype)
    nnx.update(model, state)
    return notes


def fits(model: nnx.Module, state_dict: StateDict) -> bool:
    """Returns whether these are weights for `model`, which may be abstract."""
    tensors, sources, _ = _matched(model, state_dict)
    return not _misfits(tensors, sources)


def tensor_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes that the weights of `model` have in torchvision."""
    sources = _sources(model, {})
    return {name: source.shape for source in sources.values() for name in source.names}


def _matched(
    model: nnx.Module, state_dict: StateDict
) -> tuple[StateDict, dict[str, _Source], tuple[str, ...]]:
    """Returns the tensors of a file by the model's names, where each array of the model comes from,
    and what was adapted."""
    sources = _sources(model, state_dict)
    tensors = _plain_names(state_dict, sources)
    notes = [*_adapt_bands(tensors, sources), *_adapt_positions(tensors, sources)]
    return tensors, sources, (*notes, *_adapt_head(tensors, sources))


def _arrays(model: nnx.Module) -> tuple[nnx.State, dict[str, nnx.Variable]]:
    """Returns what `model` has learnt, and the same variables by dotted path."""
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    return state, {".".join(map(str, path)): array for path, array in nnx.to_flat_state(state)}


def _sources(model: nnx.Module, state_dict: StateDict) -> dict[str, _Source]:
    """Returns where each array of `model`, by its path, comes from."""
    if isinstance(model, HybridTransformer):
        raise UsageError("neither torchvision nor timm has weights for this architecture")
    names = dict(RESNET_NAMES)
    if isinstance(model, VisionTransformer):
        is_timm = any(name.split(".")[-1] == "cls_token" for name in state_dict)
        names = {ours: theirs[is_timm] for ours, *theirs in VIT_NAMES}
    arrays = _arrays(model)[1]
    return {path: _source(path, array.shape, arrays, names) for path, array in arrays.items()}


def _plain_names(state_dict: StateDict, sources: dict[str, _Source]) -> StateDict:
    """Returns the tensors without what wrappers put before their names, the head under the name
    that it has in the model. Raises LensjaxError where a name would be there twice."""
    tensors = {n: tensor for n, tensor in state_dict.items() if not n.endswith(COUNTERS)}
    tensors = _renamed(tensors, _new_spelling)
    shared = os.path.commonprefix([*tensors]).rfind(".") + 1
    tensors = _renamed(tensors, lambda name: name[shared:])
    wanted = {name for source in sources.values() for name in source.names}
    first = _first(sources).names[0]
    before = sorted(n.removesuffix(first) for n in tensors if f".{n}".endswith(f".{first}"))
    if before:
        # A block may have a layer of the same name: the prefix of most names is meant.
        most = max(before, key=lambda prefix: sum(prefix + name in tensors for name in wanted))
        tensors = _renamed(tensors, lambda name: name.removeprefix(most))
    head = sources["head.linear.kernel"].names[0]
    others = [
        name.removesuffix("weight")
        for name, tensor in tensors.items()
        if name not in wanted and name.split(".")[0] in HEADS and tensor.ndim == 2
    ]
    if head not in tensors and len(others) == 1:
        (other,), ours = others, head.removesuffix("weight")
        tensors = _renamed(tensors, lambda name: re.sub(f"^{re.escape(other)}", ours, name))
    return tensors


def _new_spelling(name: str) -> str:
    """Returns the name that torchvision now has for a layer of the perceptron."""
    return name.replace("mlp.linear_1.", "mlp.0.").replace("mlp.linear_2.", "mlp.3.")


def _renamed(tensors: StateDict, rename: Callable[[str], str]) -> StateDict:
    renamed: StateDict = {}
    for name, tensor in tensors.items():
        if rename(name) in renamed:
            raise LensjaxError(
                f"the weights hold {rename(name)!r} twice, once as {name!r}: keep one"
            )
        renamed[rename(name)] = tensor
    return renamed


def _source(
    path: str, shape: tuple[int, ...], arrays: dict[str, nnx.Variable], names: dict[str, str]
) -> _Source:
    """Returns the name and shape, in PyTorch's layout, of the array at `path` in the model."""
    name = path
    for ours, theirs in names.items():
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
    match path:
        case "embedding.class_token":
            return 1, 1, *shape
        case "embedding.positions":
            return 1, *shape
        case "embedding.patches.kernel":
            inputs, width = shape
            return width, inputs // PATCH_SIZE**2, PATCH_SIZE, PATCH_SIZE
    return *shape[-1:], *shape[-2:-1], *shape[:-2]


def _own_layout(tensor: np.ndarray) -> np.ndarray:
    """Returns a tensor with its axes in the model's order."""
    axes = {2: (1, 0), 4: (2, 3, 1, 0)}
    return tensor.transpose(axes.get(tensor.ndim, range(tensor.ndim)))


def _first(sources: dict[str, _Source]) -> _Source:
    return next(sources[path] for path in FIRST_KERNELS if path in sources)


def _adapt_bands(tensors: StateDict, sources: dict[str, _Source]) -> Iterator[str]:
    """Fits the first layer to the model's bands; yields what it did, in words."""
    (name,), (_, bands, *_) = _first(sources).names, _first(sources).shape
    kernel = tensors.get(name)
    if kernel is not None and kernel.ndim == 4 and kernel.shape[1] not in (0, bands):
        tensors[name] = to_bands(kernel, bands, axis=1)
        yield f"first layer adapted from {kernel.shape[1]} bands to {bands}"


def _adapt_positions(tensors: StateDict, sources: dict[str, _Source]) -> Iterator[str]:
    """Resamples the position embedding to the model's grid; yields what it did, in words."""
    if positions := sources.get("embedding.positions"):
        (name,), (_, tokens, width) = positions.names, positions.shape
        embedding = tensors.get(name, np.zeros(0))
        old, new = (isqrt(max(count - 1, 0)) for count in (embedding.size // width, tokens))
        if old not in (0, new) and embedding.shape == (1, old**2 + 1, width):
            resampled = interpolate_position_embedding(embedding[0].astype(np.float32), old, new)
            tensors[name] = np.asarray(resampled)[None]
            yield f"position embedding adapted from a grid of {old}x{old} to {new}x{new}"


def _adapt_head(tensors: StateDict, sources: dict[str, _Source]) -> Iterator[str]:
    """Makes two outputs one, or takes a head that is not to be loaded out of both dictionaries;
    yields what it did, in words."""
    paths = ("head.linear.kernel", "head.linear.bias")
    names = [sources[path].names[0] for path in paths]
    held = [tensors.get(name, np.zeros(0)) for name in names]
    outputs = held[0].shape[:1]
    if [tensor.shape for tensor in held] == [(2, sources[paths[0]].shape[1]), (2,)]:
        for name, tensor in zip(names, held, strict=True):
            of_both = tensor.astype(np.float32)
            tensors[name] = of_both[1:] - of_both[:1]
        yield (
            "head with 2 outputs made one log-odds: the second, which is taken to be the lenses, "
            "less the first"
        )
    elif all(tensor.shape[:1] == outputs for tensor in held) and outputs not in ((), (1,)):
        for path, name in zip(paths, names, strict=True):
            del sources[path]
            tensors.pop(name, None)
        yield f"head with {outputs[0]} outputs left out: the new one has yet to be trained"


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
