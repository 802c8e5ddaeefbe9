"""Rates by a clock that only the steps move."""

import jax
import pytest

from lensjax.ensemble import rate, sharding
from tests.ensemble.test_step import inputs


def test_the_median_turn_counts_and_the_first_does_not(monkeypatch):
    now, turns = [0.0], []
    monkeypatch.setattr(rate.time, "perf_counter", lambda: now[0])

    def step(name, seconds):
        lasting = iter(seconds)

        def run(weights, placed):
            assert isinstance(placed.images[0], jax.Array)
            turns.append(name)
            now[0] += next(lasting)

        return run

    steps = {"fast": step("fast", [60.0, 0.5, 9.0, 0.25]), "slow": step("slow", [90.0, 4, 4, 8])}
    mesh = sharding.mesh_of(jax.devices()[:1])
    found = rate.side_by_side(steps, None, inputs(8), mesh)
    assert found == {"fast": pytest.approx(16.0), "slow": pytest.approx(2.0)}
    assert turns == ["fast", "slow"] * 4
