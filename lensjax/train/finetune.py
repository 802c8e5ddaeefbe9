"""Fine-tuning: the weights that training starts from, and the learning rates of the layers."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from lensjax.data.bands import Wanted, select
from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble import checkpoint
from lensjax.ensemble.checkpoint import MemberInfo, State, dotted, named_leaves
from lensjax.errors import UsageError
from lensjax.models.adapt import FIRST_KERNELS, to_bands
from lensjax.models.vit import interpolate_position_embedding
from lensjax.train.config import Hyperparameters
from lensjax.train.grow import obstacle, widened
from lensjax.train.schedule import IDENTITY


def origins(of: Hyperparameters, architecture: str) -> list[Path]:
    """Returns the folders of the members that networks of an architecture start from: those of
    `--start-from`, that of `--grow-from`, or none.

    Raises UsageError where there are none of the architecture, or none that can be grown into it.
    """
    if of.grow_from is not None:
        folder = Path(of.grow_from)
        if not (folder / "member.json").is_file():
            raise UsageError(f"--grow-from {folder}: give the folder of a member, with member.json")
        held = checkpoint.read_info(folder)
        reason = obstacle(held, architecture)
        if reason is not None:
            raise UsageError(
                f"--grow-from {folder}: a {held.architecture} cannot become a {architecture}: "
                f"{reason}"
            )
        return [folder]
    if of.start_from is None:
        return []
    found = checkpoint.members_at(Path(of.start_from), architecture)
    known = checkpoint.read_info(found[0]).architecture
    if known != architecture:
        raise UsageError(f"--start-from {of.start_from}: a {known} is no {architecture}")
    return found


def starts(
    folders: Sequence[Path], info: MemberInfo, seeds: Sequence[int]
) -> tuple[nnx.State, nnx.State]:
    """Returns the parameters and batch statistics that these seeds start from, stacked.

    The members in `folders` are taken in turn by the seed, so that a seed always starts from the
    same one. Raises LensjaxError where weights do not fit.
    """
    rows = [_fitted(folders[seed % len(folders)], info, seed) for seed in seeds]
    stacked = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
    state = checkpoint.nnx_state(info.abstract_model(), stacked)
    params, statistics = nnx.split_state(state, nnx.Param, nnx.BatchStat)
    return params, statistics


def hashes(folders: Iterable[Path]) -> list[str]:
    """Returns the hashes of the weights of members."""
    return [checkpoint.read_info(folder).weights_sha256 for folder in folders]


# What networks keep of the members that they start from, and the options that override it.
KEPT = {
    "input_size": "--scales",
    "pixel_scale": "--fit resize",
    "stretch": "--stretch",
    "softening": "--softening",
    "dropout": "--dropout",
    "block_dropout": "--block-dropout",
}


def kept(folders: Iterable[Path], name: str) -> Any:
    """Returns what the members in `folders` have in common, one of KEPT; None without any.

    Raises UsageError where they differ.
    """
    values = {_said(checkpoint.read_info(folder), name) for folder in folders} or {None}
    if len(values) > 1:
        told = ", ".join(sorted(map(str, values)))
        raise UsageError(
            f"the members to start from differ in {_words(name)} ({told}): "
            f"give {KEPT[name]}, or train one architecture at a time"
        )
    return values.pop()


def seen_by(folders: Iterable[Path]) -> Preprocessing:
    """Returns how the members in `folders` see cutouts, with the mean of their normalisations.

    Raises UsageError where they differ in anything else.
    """
    held = [checkpoint.read_info(folder).preprocessing for folder in folders]
    zeros, ones = (0.0,) * len(held[0].bands), (1.0,) * len(held[0].bands)
    if len({each.normalised(zeros, ones) for each in held}) > 1:
        raise UsageError(
            "the members to start from see cutouts in different ways (bands, input size, pixel "
            "scale or stretch): train them one by one, with --arch and --seed"
        )
    mean, std = (np.mean([getattr(each, name) for each in held], 0) for name in ("mean", "std"))
    return held[0].normalised(mean, std)


def account(folders: Sequence[Path], info: MemberInfo) -> str:
    """Returns one line: what a network keeps of the members that it starts from, and what not."""
    held = checkpoint.read_info(folders[0])
    same = {name: _said(held, name) == _said(info, name) for name in KEPT}
    # Neither a pixel scale that is not known nor dropout that is none is worth mentioning.
    keeps = [f"{_words(n)} {_said(info, n)}" for n in KEPT if same[n] and _said(info, n)]
    new = [
        f"{_words(name)} {_said(info, name)} instead of {_said(held, name)}"
        for name in KEPT
        if not same[name]
    ]
    bands, of_held = info.preprocessing.bands, held.preprocessing.bands
    learned = [band for band in bands if _place(band, of_held) is not None]
    keeps += [f"what was learned of {', '.join(learned)}"] if learned else []
    unknown = [band for band in bands if band not in learned]
    new += [f"{', '.join(unknown)}, with the mean of {', '.join(of_held)}"] if unknown else []
    how = "starts" if held.architecture == info.architecture else "grows"
    line = f"{info.architecture} {how} from {', '.join(map(str, folders))}: keeps "
    return line + ", ".join(keeps) + (f"; new: {', '.join(new)}" if new else "")


def _said(info: MemberInfo, name: str) -> Any:
    return getattr(info if hasattr(info, name) else info.preprocessing, name)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _fitted(folder: Path, info: MemberInfo, seed: int) -> State:
    """Returns the weights of the member in `folder` for the bands and the input size of `info`, and
    grown, by a draw of the `seed`, where it is wider."""
    found = checkpoint.read_info(folder)
    if found.architecture != info.architecture:
        narrow = dataclasses.replace(info, architecture=found.architecture)
        wide = checkpoint.state_of(info.abstract_model())
        return widened(_fitted(folder, narrow, seed), wide, np.random.default_rng(seed))
    state = dict(checkpoint.read_weights(folder, found))
    bands, held = info.preprocessing.bands, found.preprocessing.bands
    for name in FIRST_KERNELS:
        if name in state and bands != held:
            state[name] = _first_kernel(state[name], held, bands)
    positions = "embedding.positions"
    wanted = checkpoint.state_of(info.abstract_model())
    if positions in wanted:
        old, new = (round((len(s[positions]) - 1) ** 0.5) for s in (state, wanted))
        state[positions] = np.asarray(interpolate_position_embedding(state[positions], old, new))
    checkpoint.compare(folder, wanted, state)
    return state


def _first_kernel(kernel: np.ndarray, held: Sequence[str], bands: Sequence[str]) -> np.ndarray:
    """Returns a first kernel (..., held band and so on, output) for other bands: those that it
    knows by name keep what was learned of them, each other one gets the mean over all. Where it
    knows none of them, images alike in all bands give the response that they gave."""
    outputs = kernel.shape[-1]
    # Networks on patches have pixels and bands in one axis, the bands inside.
    apart = kernel.reshape(-1, len(held), outputs)
    places = [_place(band, held) for band in bands]
    if any(place is not None for place in places):
        mean = apart.mean(1)
        fitted = np.stack([mean if at is None else apart[:, at] for at in places], axis=1)
    else:
        fitted = to_bands(apart, len(bands), axis=1)
    if kernel.ndim == 2:
        return fitted.reshape(-1, outputs)
    return fitted.reshape(*kernel.shape[:2], len(bands), outputs)


def _place(band: str, held: Sequence[str]) -> int | None:
    """Returns which of the bands held is meant, by the rules for data; None where none is."""
    try:
        return select(tuple(held), Wanted((band,))).planes[0]
    except UsageError:
        return None


def layerwise(
    depths: Mapping[str, int], decay: float, frozen: Sequence[str]
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Returns what is done to gradients before, and to updates after, an optimiser.

    The update of a layer is multiplied by `decay` for each layer that follows it (Clark et al.
    2020, "ELECTRA", section 3.1), and weights whose names begin as one of `frozen` stay as they
    are. `depths`: the order of the network's parts, as it states it itself.
    """

    def hold(updates: Any, params: Any) -> Any:
        del params
        return _mapped(lambda name, leaf: leaf * (not _begins(name, frozen)), updates)

    def pace(updates: Any, params: Any) -> Any:
        del params
        places = {n: _places(n, leaf, depths) for n, leaf in named_leaves(updates).items()}
        layers = sorted(set().union(*places.values()))

        def slowed(name: str, leaf: Array) -> Array:
            after = [len(layers) - 1 - layers.index(place) for place in places[name]]
            factors = decay ** np.array(after, np.float32)
            return leaf * factors.reshape(-1, *[1] * (leaf.ndim - 1))

        return _mapped(slowed, updates)

    before = optax.stateless(hold) if frozen else IDENTITY
    return before, optax.chain(before, optax.stateless(pace) if decay != 1 else IDENTITY)


def frozen_names(option: str | None, params: Any) -> list[str]:
    """Returns the beginnings of names that `--freeze` lists.

    Raises UsageError where one is that of no parameter, or where all are frozen.
    """
    frozen = [part.strip() for part in option.split(",")] if option else []
    names = list(named_leaves(params))
    for part in frozen:
        if not any(_begins(name, [part]) for name in names):
            known = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise UsageError(f"--freeze {part}: no weights are called so; the network has {known}")
    if all(_begins(name, frozen) for name in names):
        raise UsageError(f"--freeze {option} leaves nothing to train")
    return frozen


def _places(name: str, leaf: Array, depths: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Returns where the rows of a parameter stand in the network, in an order that sorts."""
    part, *rest = name.split(".")
    if part == "blocks":  # a row a block
        return [(depths[part], row) for row in range(leaf.shape[0])]
    return [(depths[part], *(int(word) for word in rest if word.isdigit()))]


def _begins(name: str, beginnings: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{beginning}.") for beginning in beginnings)


def _mapped(function: Callable[[str, Array], Array], tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(dotted(path), leaf), tree)
