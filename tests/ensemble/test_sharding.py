"""A batch and its members shared among devices: the same scores, and no image travels."""

import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from lensjax.ensemble import sharding
from lensjax.errors import UsageError

# Other devices than this process has, hence a process of its own; it prints a line of JSON.
ON_EIGHT_DEVICES = """
import json, re
import jax, numpy as np
from jax.sharding import NamedSharding
from lensjax import runtime
from lensjax.ensemble import sharding
from lensjax.ensemble.stack import stack
from lensjax.ensemble.step import StepOptions, ensemble_step, place_weights
from tests import networks
from tests.ensemble.members import random_member
from tests.ensemble.test_step import inputs

runtime.set_up()
architectures = ["resnet18"] * 4 + ["vit_s16"]
with networks.small():
    ensemble = stack({f"m{i}": random_member(name, i) for i, name in enumerate(architectures)})
options = StepOptions(seed=1)
found = {}
for members, data in [(1, 1), (1, 8), (2, 4), (8, 1)]:
    mesh = sharding.mesh_of(jax.devices()[: members * data], members)
    weights = place_weights(ensemble, mesh, options)
    batch = jax.device_put(inputs(16), NamedSharding(mesh, sharding.BY_CUTOUT))
    step = ensemble_step(ensemble, mesh, options)
    compiled = step.lower(weights, batch).compile()
    with jax.transfer_guard("disallow"):
        scores = jax.device_get(compiled(weights, batch))
    moves = "all-gather|all-to-all|all-reduce|collective-permute|collective-broadcast"
    moved = re.findall(rf"= (.*?) (?:{moves})(?:-start)?\\(", compiled.as_text())
    found[f"{members} x {data}"] = {
        "logit": scores.logit.tolist(),
        "logit_std": scores.logit_std.tolist(),
        "member_logits": scores.member_logits.tolist(),
        "moved": [
            [int(n) for n in shape.split(",")]
            for result in moved
            for shape in re.findall(r"\\[([\\d,]+)\\]", result)
        ],
        "resident": sum(
            jax.tree.leaves(part)[0].addressable_shards[0].data.shape[0]
            for part in weights.states[0]
        ),
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def on_eight_devices() -> dict[str, dict]:
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", ON_EIGHT_DEVICES]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.optimised
def test_scores_do_not_depend_on_the_devices(on_eight_devices):
    one = on_eight_devices["1 x 1"]
    for found in on_eight_devices.values():
        for name in ("logit", "logit_std", "member_logits"):
            largest = max(1.0, np.abs(one[name]).max())
            np.testing.assert_allclose(found[name], one[name], atol=1e-5 * largest, rtol=0)


@pytest.mark.slow
@pytest.mark.optimised
def test_devices_exchange_nothing_but_logits(on_eight_devices):
    """The axis of two splits the four resnet18, so that their logits must meet for the fusion."""
    resnets, samples, batch = 4, 10, 16
    for shape, found in on_eight_devices.items():
        moved = sum(math.prod(size) for size in found["moved"])
        assert moved <= (resnets * samples * batch if shape == "2 x 4" else 0), (shape, moved)
    assert on_eight_devices["2 x 4"]["moved"]


@pytest.mark.slow
@pytest.mark.optimised
def test_weights_are_shared_where_the_axis_divides_them(on_eight_devices):
    resident = {shape: found["resident"] for shape, found in on_eight_devices.items()}
    assert resident == {"1 x 1": 4, "1 x 8": 4, "2 x 4": 2, "8 x 1": 4}


def test_a_batch_is_rounded_up_to_what_devices_share():
    mesh = jax.sharding.AbstractMesh((2, 4, 1), (sharding.MEMBER, sharding.DATA, sharding.FSDP))
    assert [sharding.divisible(size, mesh) for size in (1, 8, 9, 128)] == [8, 8, 16, 128]


def test_devices_that_are_no_rectangle_are_wrong_use():
    with pytest.raises(UsageError, match="--member-shards 2 does not divide the 1 devices"):
        sharding.mesh_of(jax.devices()[:1], 2)
