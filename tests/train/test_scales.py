"""Which size is trained when, and from when on the largest counts."""

import numpy as np
import pytest

from lensjax.train.optimiser import optimiser
from lensjax.train.scales import active_at, first_step_at_largest


@pytest.mark.parametrize("schedule", ["joint", "progressive", "alternating"])
@pytest.mark.parametrize(("steps", "scales"), [(10, 3), (9, 3), (7, 1), (40, 2)])
def test_the_largest_size_counts_from_its_first_step(schedule, steps, scales):
    first = first_step_at_largest(schedule, steps, scales)
    active = [scales - 1 in active_at(schedule, step, steps, scales) for step in range(steps)]
    assert active[first] and not any(active[:first])


def test_where_the_largest_size_is_never_trained_the_last_step_counts():
    assert active_at("progressive", 0, 1, 2) == (0,)
    assert first_step_at_largest("progressive", 1, 2) == 0


def test_the_learning_rate_rises_anew_when_the_size_changes():
    """With steps that the sizes cannot share evenly."""
    steps, scales = 20, 3
    transformation = optimiser(
        learning_rate=1.0, weight_decay=0.0, steps=steps, warmup=0.5, phases=scales
    )
    weight = {"kernel": np.ones(1, np.float32)}
    state, moved = transformation.init(weight), []
    for _ in range(steps):
        updates, state = transformation.update(weight, state, weight)
        moved.append(float(updates["kernel"][0]))
    size = [active_at("progressive", step, steps, scales) for step in range(steps)]
    changes = [step for step in range(steps) if step == 0 or size[step] != size[step - 1]]
    assert [step for step, by in enumerate(moved) if by == 0] == changes
