"""The resolutions that a network is trained at: what each shows of a cutout, and when."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from lensjax.data.on_device import View
from lensjax.data.preprocess import geometry
from lensjax.errors import UsageError

Schedule = Literal["joint", "progressive", "alternating"]


def views_at(view: View, sizes: Sequence[int]) -> tuple[View, ...]:
    """Returns what networks of these input sizes, ascending, take of the canvas of `view`.

    All show the same part of the sky and share bands, stretch and normalisation; `seen` brings a
    canvas to the size of a view, antialiased. Raises UsageError for sizes that are none.
    """
    if not sizes or any(size < 1 for size in sizes) or len(set(sizes)) < len(sizes):
        raise UsageError(f"--scales wants different sizes of at least 1, not {list(sizes)}")
    views = []
    for size in sorted(sizes):
        if size == view.preprocessing.input_size:
            views.append(view)
            continue
        preprocessing = dataclasses.replace(view.preprocessing, input_size=size)
        of_canvas = geometry(view.geometry.shape, None, preprocessing, "resize")
        views.append(dataclasses.replace(view, preprocessing=preprocessing, geometry=of_canvas))
    return tuple(views)


def active_at(schedule: Schedule, step: int, steps: int, scales: int) -> tuple[int, ...]:
    """Returns the scales, counted from the smallest, that step number `step` of `steps` trains at.

    `joint`: all. `progressive`: one after the other, an equal share of the steps each.
    `alternating`: one, drawn from the step's number, so that a run that goes on draws the same.
    """
    if schedule == "joint":
        return tuple(range(scales))
    if schedule == "progressive":
        return (min(step * scales // steps, scales - 1),)
    return (int(np.random.default_rng(step).integers(scales)),)


def first_step_at_largest(schedule: Schedule, steps: int, scales: int) -> int:
    """Returns the number of the first step that trains at the largest scale, the member's own; of
    the last step where none does."""
    at_largest = (n for n in range(steps) if scales - 1 in active_at(schedule, n, steps, scales))
    return next(at_largest, steps - 1)


def scale_sets(schedule: Schedule, scales: int) -> tuple[tuple[int, ...], ...]:
    """Returns the sets of scales that steps train at."""
    every = tuple(range(scales))
    return (every,) if schedule == "joint" else tuple((scale,) for scale in every)
