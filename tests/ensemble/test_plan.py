"""What a step takes at once: the choice, and what compilers say of the steps chosen."""

import dataclasses
import functools

import jax
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import monitoring

from lensjax.data.on_device import ImageSpec, InputSpec, Transform
from lensjax.data.preprocess import Preprocessing, geometry
from lensjax.ensemble import plan as planning
from lensjax.ensemble import sharding
from lensjax.ensemble.plan import CompiledStep, Size, batch_sizes, compile_step, ladders
from lensjax.ensemble.stack import stack
from lensjax.ensemble.step import StepOptions, place_weights
from lensjax.memory import Target, choose
from tests import networks
from tests.ensemble.members import PREPROCESSING, blank_member, random_member

MESH = sharding.mesh_of(jax.devices()[:1])
POWERS = [2**power for power in range(13)]
FIXED, BASE, DROPPED = 1000.0, 4.0, 2.0


def chosen(needs, budget, batches, *, samples: int) -> Size | None:
    return choose(ladders(batches, samples), needs, budget)


def needs(size: Size) -> float:
    """Bytes of a member with layers before and after its first dropout."""
    return FIXED + size.cutouts * (BASE + DROPPED * size.samples)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1e9, Size(4096, 10)),
        (FIXED + 1024 * 24, Size(1024, 10)),
        (FIXED + 1024 * 24 - 1, Size(512, 10)),
        (FIXED + 64 * 24, Size(64, 10)),
        (FIXED + 64 * 24 - 1, Size(64, 5)),
        (FIXED + 64 * 6, Size(64, 1)),
        (FIXED + 64 * 6 - 1, Size(32, 1)),
        (FIXED + 6, Size(1, 1)),
        (FIXED, None),
    ],
)
def test_samples_are_chunked_before_the_batch_is_less_than_full(budget, expected):
    assert chosen(needs, budget, POWERS, samples=10) == expected


@given(st.floats(1e3, 1e9), st.integers(1, 12))
def test_the_choice_fits_where_anything_does_and_asks_seldom(budget, samples):
    asked = set()

    def noted(size: Size) -> float:
        asked.add(size)
        return needs(size)

    found = chosen(noted, budget, POWERS, samples=samples)
    assert needs(found) <= budget if found else needs(Size(1, 1)) > budget
    assert len(asked) <= 12
    if found and found.cutouts > planning.FULL_BATCH:
        assert len(asked) <= 4


def test_a_given_batch_is_kept():
    assert chosen(needs, FIXED + 100 * 6, [100], samples=10) == Size(100, 1)
    assert chosen(needs, 1e9, [100], samples=10) == Size(100, 10)


def test_a_need_that_is_not_linear_is_still_met():
    def steep(size: Size) -> float:
        return np.inf if size.cutouts > 700 else needs(size)

    assert chosen(steep, 1e9, POWERS, samples=10) == Size(512, 10)
    assert chosen(lambda size: np.inf, 1e9, POWERS, samples=2) is None


@functools.cache
def preprocessing(size: int) -> Preprocessing:
    """A quick one to compile."""
    return dataclasses.replace(PREPROCESSING, input_size=size, stretch="none")


def input_spec(size: int) -> InputSpec:
    transform = Transform(
        preprocessing(size), 0, (0, 1), geometry((size, size), None, preprocessing(size))
    )
    return InputSpec((ImageSpec((size, size, 2), "float32"),), (transform,))


def test_batches_are_no_larger_than_the_data_and_the_host_allow(monkeypatch):
    eight = jax.sharding.AbstractMesh((2, 4, 1), (sharding.MEMBER, sharding.DATA, sharding.FSDP))
    assert batch_sizes(100, input_spec(32), MESH) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert batch_sizes(64, input_spec(32), MESH)[-1] == 64
    assert batch_sizes(0, input_spec(32), MESH) == [1]
    assert batch_sizes(100, input_spec(32), eight) == [8, 16, 32, 64, 128]
    assert batch_sizes(3, input_spec(32), eight) == [8]
    room_for_50 = 50 * input_spec(32).image_specs[0].nbytes * planning.BATCHES_ON_HOST
    memory = psutil.virtual_memory()._replace(available=room_for_50 / planning.SHARE_OF_HOST)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert batch_sizes(10**6, input_spec(32), MESH)[-1] == 32


def compiled(
    ensemble, batch: int, budget: int, mesh=MESH, size=32, samples=2, target=None
) -> CompiledStep:
    options = StepOptions(samples, "mean_prob")
    given = ensemble, mesh, input_spec(size), [batch], options
    return compile_step(*given, budget=budget, target=target)


@pytest.fixture(scope="module")
def dropping(vit_tiny):
    """Two transformers that drop in their blocks: what makes their step takes memory."""
    members = {
        str(seed): random_member(vit_tiny, seed, preprocessing(32), block_dropout=0.1)
        for seed in (0, 1)
    }
    return stack(members)


@pytest.fixture(scope="module")
def weights(dropping):
    return place_weights(dropping, MESH, StepOptions(2))


@pytest.mark.slow
@pytest.mark.optimised
def test_a_chunked_step_gives_the_same_scores_from_less_memory(dropping, weights):
    images = np.random.default_rng(0).normal(5.0, 2.0, (64, 32, 32, 2)).astype(np.float32)
    inputs = dataclasses.replace(input_spec(32).blank(64), images=(images,))
    at_once = compiled(dropping, 64, 2**40)
    assert at_once.cutouts == 64 and at_once.samples_at_once is None
    expected = jax.device_get(at_once.step(weights, inputs))
    # As soon as one byte is missing.
    chunked = compiled(dropping, 64, int(at_once.step_bytes) - 1)
    assert chunked.cutouts == 64 and chunked.samples_at_once == 1
    found = jax.device_get(chunked.step(weights, inputs))
    for name, values in expected._asdict().items():
        largest = np.abs(values).max()
        np.testing.assert_allclose(getattr(found, name), values, atol=2e-5 * largest, rtol=0)


def test_a_step_is_compiled_before_it_is_called(dropping, weights):
    step = compiled(dropping, 2, 2**40).step
    on_devices = jax.sharding.NamedSharding(MESH, sharding.BY_CUTOUT)
    inputs = jax.device_put(input_spec(32).blank(2), on_devices)
    compiled_anew = []

    def on_compilation(event, _, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled_anew.append(about["fun_name"])

    monitoring.register_event_duration_secs_listener(on_compilation)
    try:
        step(weights, inputs)
        assert compiled_anew == []
        jax.jit(lambda x: x + 1)(1.0)
        assert compiled_anew
    finally:
        monitoring.unregister_event_duration_listener(on_compilation)


def on_h100(target: Target, ensemble, samples: int, budget: int) -> CompiledStep:
    """Returns the step for 512 cutouts of 64 pixels."""
    mesh = sharding.mesh_of([target.device])
    return compiled(ensemble, 512, budget, mesh, 64, samples=samples, target=target)


@pytest.mark.slow
@pytest.mark.optimised
def test_samples_take_no_memory_on_an_h100_with_dropout_in_the_head(h100):
    with networks.real():
        members = {name: blank_member(name, preprocessing(64)) for name in ("resnet18", "vit_b16")}
        one, ten = (on_h100(h100, stack(members), samples, 2**30) for samples in (1, 10))
    assert ten.step_bytes < 1.1 * one.step_bytes
    # A budget of a hundredth of the card; 390 MB are weights.
    assert ten.step_bytes < 2**30 and ten.samples_at_once is None


@pytest.mark.slow
@pytest.mark.optimised
def test_chunks_bound_the_memory_of_dropout_in_blocks_on_an_h100(h100, vit_tiny):
    ensemble = stack({"a": blank_member(vit_tiny, preprocessing(64), block_dropout=0.1)})
    one = on_h100(h100, ensemble, 1, 2**40)
    together = on_h100(h100, ensemble, 10, 2**40)
    assert together.samples_at_once is None and together.step_bytes > 2 * one.step_bytes
    chunked = on_h100(h100, ensemble, 10, int(1.5 * one.step_bytes))
    assert chunked.samples_at_once and chunked.step_bytes <= chunked.memory_limit_bytes


@pytest.mark.slow
@pytest.mark.optimised
def test_a_step_for_a_tpu(v5e, vit_tiny):
    mesh = sharding.mesh_of([v5e.device])
    ensemble = stack({"a": blank_member(vit_tiny, preprocessing(32))})
    step = compiled(ensemble, 64, 2**30, mesh, samples=4, target=v5e)
    assert step.samples_at_once is None and step.step_bytes < 2**28
