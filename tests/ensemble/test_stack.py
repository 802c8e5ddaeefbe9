"""Members on an axis: the same ensemble whether the weights are there at once or come later."""

import dataclasses

import jax
import numpy as np
import pytest

from lensjax.checkpoint import load_member, read_weights, save_member
from lensjax.ensemble import placement, predict
from lensjax.ensemble.stack import outline, stack, stacked_weights
from tests.ensemble.members import random_member

MESH = placement.mesh_of(jax.devices()[:1])
SETTINGS = {"mesh": MESH, "seed": 3, "samples": 2, "precision": "bfloat16"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two groups, one of which has two members, the other batch normalisation to be folded."""
    root = tmp_path_factory.mktemp("members")
    names = {"vit.0": "vit_s16", "resnet": "resnet18", "vit.1": "vit_s16"}
    for seed, (name, architecture) in enumerate(names.items()):
        save_member(root / name, random_member(architecture, seed))
    return {name: root / name for name in names}


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_weights_that_come_later_are_those_of_members_at_hand(folders):
    members = {name: load_member(folder) for name, folder in folders.items()}
    infos = {name: member.info for name, member in members.items()}
    whole, before = stack(members), outline(infos, dict.fromkeys(infos))
    assert (before.names, before.groups) == (whole.names, whole.groups)
    assert before.names == ("vit.0", "vit.1", "resnet")
    assert shapes(before.states) == shapes(whole.states)
    later = stacked_weights(before, infos, lambda name: read_weights(folders[name], infos[name]))
    jax.tree.map(np.testing.assert_array_equal, later, whole.states)
    # What is stacked leaves the members as they were.
    assert all(member.state for member in members.values())


def test_a_step_can_be_compiled_before_the_weights_are_there(folders):
    members = {name: load_member(folder) for name, folder in folders.items()}
    infos = {name: member.info for name, member in members.items()}
    before = predict.place_weights(outline(infos, dict.fromkeys(infos)), **SETTINGS)
    placed = predict.place_weights(stack(members), **SETTINGS)
    assert jax.tree.structure(before) == jax.tree.structure(placed)
    assert shapes(before) == shapes(placed)
    for expected, leaf in zip(jax.tree.leaves(before), jax.tree.leaves(placed), strict=True):
        assert expected.sharding == leaf.sharding


def test_weights_on_a_cpu_are_not_copied(folders):
    info = load_member(folders["vit.0"]).info
    ensemble = outline({"a": info}, {"a": None})
    states = stacked_weights(ensemble, {"a": info}, lambda _: read_weights(folders["vit.0"], info))
    ensemble = dataclasses.replace(ensemble, states=states)
    placed = predict.place_weights(ensemble, **SETTINGS | {"precision": "float32"})
    for leaf, on_device in zip(
        jax.tree.leaves(states), jax.tree.leaves(placed.states), strict=True
    ):
        assert on_device.unsafe_buffer_pointer() == leaf.ctypes.data
