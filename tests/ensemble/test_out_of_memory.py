"""Scoring where the memory does not suffice: nothing is lost, and nothing scored twice."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lensjax.data.catalog import open_source
from lensjax.ensemble import sharding
from lensjax.ensemble.plan import CompiledStep
from lensjax.ensemble.scoring import score
from lensjax.errors import LensjaxError
from lensjax.ledger import Ledger
from lensjax.predictions import Scores
from tests.ensemble.members import PREPROCESSING

ROWS, BATCH = 23, 8
MESH = sharding.mesh_of(jax.devices()[:1])
OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")


class Unfetchable:
    """A result whose computation ran out of memory."""

    def __array__(self, *_):
        raise OUT_OF_MEMORY


class Step:
    """A step whose scores are the cutouts' first pixels, for at most `most` cutouts at once."""

    def __init__(self, most: int, fails_at: str = "launch", error: Exception = OUT_OF_MEMORY):
        self.most, self.fails_at, self.error = most, fails_at, error
        self.sizes = []

    def __call__(self, weights, inputs) -> Scores:
        first = np.asarray(inputs.images[0])[:, 0, 0, 0]
        self.sizes.append(len(first))
        if len(first) <= self.most:
            return Scores(*[first] * 6, *[first[None]] * 3)
        if self.fails_at == "launch":
            raise self.error
        return Scores(*[Unfetchable()] * 9)


@pytest.fixture
def scored(tmp_path):
    """Returns a function that scores 23 cutouts and returns its timing, columns and the truth."""
    images = np.random.default_rng(0).normal(9.0, 2.0, (ROWS, 32, 32, 2)).astype(np.float32)
    np.savez(tmp_path / "stack.npz", images=images, bands=np.array(["g", "r"]))
    source = open_source(tmp_path / "stack.npz", needed=("g", "r"))
    ensemble = SimpleNamespace(names=("a",), preprocessings=(PREPROCESSING,))

    def run(step, batch=BATCH):
        parts = Ledger(tmp_path / "parts", {}, range(ROWS))
        compiled = CompiledStep(step, ensemble, MESH, None, batch)
        timing = score(compiled, None, source, parts, "resize")
        return timing, parts.columns(), images[:, 0, 0, 0]

    return run


@pytest.mark.parametrize("fails_at", ["launch", "fetch"])
@pytest.mark.parametrize(("most", "left"), [(8, 8), (7, 4), (4, 4), (3, 2), (1, 1)])
def test_a_batch_in_hand_is_scored_again_in_halves(scored, most, left, fails_at):
    step = Step(most, fails_at)
    timing, columns, expected = scored(step)
    assert timing["cutouts_at_once"] == left
    np.testing.assert_array_equal(columns["probability"], expected)
    np.testing.assert_array_equal(columns["member_logits"], expected[None])
    halvings = (BATCH // left).bit_length() - 1
    if halvings:
        # The first batch fails again alone and at each size, the second, under way by then, once.
        failed = {"launch": halvings + 2, "fetch": 2**halvings + 1}[fails_at]
        assert len([size for size in step.sizes if size > most]) == failed
    assert set(step.sizes[-2 * BATCH // left :]) == {left}


def test_halves_of_an_odd_batch_leave_nothing_out(scored):
    timing, columns, expected = scored(Step(3), batch=7)
    assert timing["cutouts_at_once"] == 3
    np.testing.assert_array_equal(columns["probability"], expected)


def test_memory_for_not_even_one_cutout_is_one_clear_line(scored):
    with pytest.raises(LensjaxError, match="does not suffice for a step with 1 cutout") as caught:
        scored(Step(0))
    assert "\n" not in str(caught.value)


def test_another_failure_of_the_device_is_not_taken_for_it(scored):
    step = Step(0, error=jax.errors.JaxRuntimeError("INTERNAL: the device is lost"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="the device is lost"):
        scored(step)
    assert step.sizes == [BATCH]
