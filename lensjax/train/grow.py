"""Grows a trained network into a wider one of the same layers that computes the same.

Every channel, and with the channels every attention head, becomes several, and what is read from
one is shared among its copies (Chen et al. 2016, "Net2Net"). Mean and variance over repeated
channels are what they were, so normalisation needs nothing more.
"""

import dataclasses

import numpy as np
from flax import nnx

from lensjax.ensemble.checkpoint import MemberInfo, State, state_of
from lensjax.models.vit import Attention


def widened(narrow: State, wide: State, rng: np.random.Generator) -> State:
    """Returns the weights of a network, repeated to the shapes of a wider one, whose logits are the
    same to rounding.

    Were all copies read with the same weight they would learn the same and stay copies. So their
    weights, which sum to what was, are unequal (Wang et al. 2024, "LEMON", section 4.2): a draw is
    added that sums to zero over the copies, of the size that gives a weight the spread that it has
    in a network drawn anew at this width, one over the root of the inputs. (Trained on, such a
    network was a little better than with a twentieth of the draw.)
    """
    return {name: _repeated(name, leaf, wide[name].shape, rng) for name, leaf in narrow.items()}


def _repeated(
    name: str, leaf: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    factors = [new // old for new, old in zip(shape, leaf.shape, strict=True)]
    # Keys and values are the two halves of one axis.
    halves = leaf.reshape(*leaf.shape[:-1], 2 if ".key_value." in name else 1, -1)
    wide = np.tile(halves, (*factors[:-1], 1, factors[-1])).reshape(shape)
    if not name.endswith("kernel") or factors[-2] == 1:
        return wide
    copies, inputs = factors[-2], leaf.shape[-2]
    spread = np.sqrt(np.square(leaf, dtype=np.float64).mean() / copies)
    draw = rng.normal(0, spread, (*shape[:-2], copies, inputs, shape[-1]))
    draw -= draw.mean(-3, keepdims=True)
    return (wide / copies + draw.reshape(shape)).astype(leaf.dtype)


def obstacle(held: MemberInfo, architecture: str) -> str | None:
    """Returns why a member cannot be grown into an architecture, None where it can."""
    plain = dataclasses.replace(held, dropout=0.0, block_dropout=0.0)
    narrow, wide = (
        dataclasses.replace(plain, architecture=name).abstract_model()
        for name in (held.architecture, architecture)
    )
    old, new = state_of(narrow), state_of(wide)
    if type(narrow) is not type(wide):
        return "it is a network of another kind"
    if old.keys() != new.keys():
        return "it has another number of layers"
    factors = {
        name: [divmod(a, b) for a, b in zip(new[name].shape, leaf.shape, strict=True)]
        for name, leaf in old.items()
    }
    every = {factor for of_array in factors.values() for factor in of_array}
    if any(found[0] != (1, 0) for name, found in factors.items() if name.startswith("blocks.")):
        return "it has another number of layers"
    if every == {(1, 0)}:
        return "it is as wide already: take --start-from"
    if any(rest or not factor for factor, rest in every):
        return "the new width is no multiple of its own"
    if _head_widths(narrow) != _head_widths(wide):
        return "its attention heads have another width"
    return None


def _head_widths(model: nnx.Module) -> set[int]:
    found = [module for _, module in nnx.iter_modules(model) if isinstance(module, Attention)]
    return {module.query.kernel.shape[-1] // module.heads for module in found}
