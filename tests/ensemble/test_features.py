"""Features of members against each network alone."""

import numpy as np
import pytest
from flax import nnx

from lensjax.cutouts import Cutouts
from lensjax.data.brightness import measure
from lensjax.data.on_device import Transform, seen
from lensjax.data.preprocess import geometry
from lensjax.ensemble.checkpoint import nnx_state
from lensjax.ensemble.features import member_features
from lensjax.ensemble.stack import stack
from tests.ensemble.members import PREPROCESSING, random_member


def test_features_are_those_of_each_network_and_nan_where_unreadable():
    members = {
        "resnet18.0": random_member("resnet18", 0),
        "resnet18.1": random_member("resnet18", 2),
        "vit_s16": random_member("vit_s16", 1),
    }
    images = np.random.default_rng(3).normal(5.0, 2.0, (5, 32, 32, 2)).astype(np.float32)
    transform = Transform(PREPROCESSING, 0, (0, 1), geometry((32, 32), None, PREPROCESSING))
    shown = seen(transform, images, measure(images, *transform.measured))
    bad = images.copy()
    bad[3] = np.nan
    found = member_features(stack(members), Cutouts(bad, ("g", "r"), 0.2).source())
    assert set(found) == set(members)
    for name, member in members.items():
        model = nnx.eval_shape(lambda member=member: member.info.build(nnx.Rngs(0)))
        network = nnx.merge(nnx.graphdef(model), nnx_state(model, member.state))
        expected = np.asarray(nnx.jit(type(network).features)(network, shown))
        assert found[name].shape == expected.shape and np.isnan(found[name][3]).all()
        rows = [0, 1, 2, 4]
        assert found[name][rows] == pytest.approx(expected[rows], rel=2e-4, abs=2e-4)
