"""The profiler trace of a run: which of its batches are traced, and the stages that show in it.

The stages of the host are named here, those of the device by `jax.named_scope` in the step.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import jax

Item = TypeVar("Item")

# The first batch compiles, and the second is under way before the first is done.
UNSTEADY_BATCHES = 2
TRACED_BATCHES = 5

stage = jax.profiler.TraceAnnotation


def is_stage(name: str) -> Callable[[Callable], Callable]:
    """Returns a decorator: each call of the function is a stage of that name."""
    return partial(jax.profiler.annotate_function, name=name)


def waits(name: str, items: Iterable[Item], seconds: list[float]) -> Iterator[Item]:
    """Yields the items; each wait for one is a stage of that name, and adds to `seconds`."""
    iterator = iter(items)
    while True:
        began = time.perf_counter()
        with stage(name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        seconds.append(time.perf_counter() - began)
        yield item


def traced(items: Iterable[Item], folder: Path | None) -> Iterator[Item]:
    """Yields the items; what happens from the third to the seventh, or as far as there are any, is
    traced into `folder`, if one is given."""
    if folder is None:
        yield from items
        return
    options = jax.profiler.ProfileOptions()
    # A line for each call of a Python function would bury the stages.
    options.python_tracer_level = 0
    number = 0
    with contextlib.ExitStack() as tracing:
        for number, item in enumerate(items, start=1):
            yield item
            if number == UNSTEADY_BATCHES:
                tracing.enter_context(jax.profiler.trace(folder, profiler_options=options))
            elif number == UNSTEADY_BATCHES + TRACED_BATCHES:
                tracing.close()
    if number <= UNSTEADY_BATCHES:
        print(f"no trace: {number} are too few batches, it starts with the third", file=sys.stderr)
