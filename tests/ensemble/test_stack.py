"""Members on an axis: the same ensemble whether the weights are there at once or are read."""

import dataclasses

import jax
import numpy as np
import pytest

from lensjax.ensemble import sharding
from lensjax.ensemble.checkpoint import load_member, read_info, read_weights, save_member
from lensjax.ensemble.stack import abstract_ensemble, stack, with_weights
from lensjax.ensemble.step import StepOptions, abstract_weights, place_weights
from tests.ensemble.members import random_member

MESH = sharding.mesh_of(jax.devices()[:1])
OPTIONS = StepOptions(mc_samples=2, seed=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two groups, one of which has two members, the other batch normalisation to be folded."""
    root = tmp_path_factory.mktemp("members")
    names = {"vit.0": "vit_s16", "resnet": "resnet18", "vit.1": "vit_s16"}
    for seed, (name, architecture) in enumerate(names.items()):
        save_member(root / name, random_member(architecture, seed))
    return {name: root / name for name in names}


def read_one_by_one(folders):
    infos = {name: read_info(folder) for name, folder in folders.items()}
    abstract = abstract_ensemble(infos, dict.fromkeys(infos))
    return with_weights(abstract, infos, lambda name: read_weights(folders[name], infos[name]))


def test_weights_read_one_by_one_are_those_of_members_at_hand(folders):
    members = {name: load_member(folder) for name, folder in folders.items()}
    whole, read = stack(members), read_one_by_one(folders)
    assert read.names == whole.names == ("vit.0", "vit.1", "resnet")
    assert read.groups == whole.groups
    jax.tree.map(np.testing.assert_array_equal, read.states, whole.states)
    # What is stacked leaves the members as they were.
    assert all(member.state for member in members.values())


def test_weights_on_a_cpu_are_not_copied(folders):
    ensemble = read_one_by_one({"vit.0": folders["vit.0"]})
    placed = place_weights(ensemble, MESH, OPTIONS)
    for leaf, on_device in zip(
        jax.tree.leaves(ensemble.states), jax.tree.leaves(placed.states), strict=True
    ):
        assert on_device.unsafe_buffer_pointer() == leaf.ctypes.data


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_outline_has_the_form_of_the_weights(folders, precision):
    options = dataclasses.replace(OPTIONS, precision=precision)
    placed = place_weights(read_one_by_one(folders), MESH, options)
    infos = {name: read_info(folder) for name, folder in folders.items()}
    abstract = abstract_weights(abstract_ensemble(infos, dict.fromkeys(infos)), MESH, options)

    def form(leaf):
        return leaf.shape, leaf.dtype, leaf.sharding

    assert jax.tree.map(form, abstract) == jax.tree.map(form, placed)
