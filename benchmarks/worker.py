"""What runs in the process of one program."""

import contextlib
import gc
import importlib
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Outputs(NamedTuple):
    """What a program computed. `values`: (member, batch). `errors`: their standard errors (member,
    batch) where they are means over random dropout samples, else None."""

    values: np.ndarray
    errors: np.ndarray | None = None


class Program(NamedTuple):
    """`run(count)` processes `count` batches of `batch` images each, and returns the last outputs
    when they are on the host."""

    run: Callable[[int], Outputs]
    batch: float
    device_peak_bytes: Callable[[], int | None] = lambda: None


class Warm(NamedTuple):
    """What is known of a program that has run twice: `outputs` are the second ones, so that a
    training step has to show that it learns; compilation is what the first run took longer."""

    process: int
    batch: float
    outputs: Outputs
    seconds: float
    compile_seconds: float


program: Program


def load(entry: str, settings: Mapping[str, Any]) -> Warm:
    """Loads the program `entry`, module:function, and runs it twice."""
    global program
    os.setpgrp()  # its own group, with the processes that it starts
    module, _, function = entry.partition(":")
    program = getattr(importlib.import_module(module), function)(**settings)
    gc.collect()
    # From here on the system's record of the peak memory counts (Linux).
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    first, _ = _timed(1)
    second, outputs = _timed(1)
    return Warm(os.getpid(), program.batch, outputs, second, max(0.0, first - second))


def run(count: int) -> tuple[float, int, int | None]:
    """Returns the seconds of `count` batches, and the peak memory so far, in bytes, of the process
    and on its device."""
    # Not timed: a virtual machine may have taken free memory from a waiting process.
    program.run(1)
    seconds, _ = _timed(count)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return seconds, peak, program.device_peak_bytes()


def _timed(count: int) -> tuple[float, Outputs]:
    start = time.perf_counter()
    outputs = program.run(count)
    return time.perf_counter() - start, outputs
