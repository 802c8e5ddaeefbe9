"""What a contender gives the process that runs it.

The entry of a contender is a function `entry(**settings) -> Loaded`, which loads the weights.
`Loaded.prepare(**variant) -> Program` makes it ready for one variant of a case (a number of
samples, say). `Program.run(count)` does `count` units of work and returns when the results are on
the host; before the clock starts, `Program.ready(count)` fetches what these units take. What is
counted as a unit (a batch through an ensemble, a training step, a batch of cutouts read) is the
contender's affair: the arena sees rates.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

Precision = Literal["float32", "bfloat16"]


class Outputs(NamedTuple):
    """What a program computed, to be compared: the last axis may be of any length.

    `values`: (member, batch). `errors`: their standard errors where they are means over random
    samples of the contender's own, else None.
    """

    values: np.ndarray
    errors: np.ndarray | None = None


def is_there(count: int) -> None:
    """Fetches nothing: all that a program takes is in its memory."""


class Program(NamedTuple):
    """`run(count)` does `count` times `units` (images, or operations) and returns the outputs."""

    run: Callable[[int], Outputs]
    units: float
    compile_seconds: float = 0.0
    """What making ready took before the first run, where another variant may have paid it."""
    ready: Callable[[int], None] = is_there


class Loaded(NamedTuple):
    """A contender with its weights in memory. `device` says in words where it computes."""

    prepare: Callable[..., Program]
    device: str
    device_peak_bytes: Callable[[], int | None] = lambda: None


def mean_over_samples(logits: np.ndarray) -> Outputs:
    """Returns the mean of logits (member, sample, batch); one sample stands for itself."""
    samples = logits.shape[1]
    if samples == 1:
        return Outputs(logits[:, 0])
    return Outputs(logits.mean(1), logits.std(1, ddof=1) / np.sqrt(samples))
