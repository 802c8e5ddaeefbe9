"""Runs the programs of a case side by side, each in a process of its own.

A machine drifts: other work, heat, memory. So nothing is timed alone. In each round every program
runs once, while the others are stopped, in an order that is reversed from round to round, and what
counts is the ratio within a round.
"""

import contextlib
import multiprocessing
import os
import signal
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy.stats import binom

from benchmarks import worker
from benchmarks.cases import Case, Ratio, Row
from benchmarks.worker import Outputs, Warm

RELATIVE, SIGMA = "of the largest", "sigma"
# Largest differences, relative to the largest output or in standard errors, after some 20 layers.
TOLERANCES = {"float32": 2e-3, "tensorfloat32": 2e-2, "bfloat16": 0.1, SIGMA: 6.0}


class Runner:
    """The process of a program, which is stopped while it is not asked.

    Else threads and processes that read ahead would work while another program is timed.
    """

    def __init__(self, row: Row) -> None:
        self.row = row
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self.warm: Warm | None = None

    def start(self, settings: Mapping[str, Any]) -> None:
        """Loads and compiles the program."""
        self.warm = self._ask(worker.load, self.row.program, {**settings, **self.row.options})
        if self.warm is not None:
            self.row.batch, self.row.compile_seconds = self.warm.batch, self.warm.compile_seconds
            self._signal(signal.SIGSTOP)

    def run(self, seconds: float) -> None:
        """Runs once, for about so many seconds, and notes the rate."""
        if self.warm is None or self.row.note:
            return
        count = max(1, int(seconds / self.warm.seconds))
        found = self._ask(worker.run, count)
        if found is not None:
            took, self.row.peak_bytes, self.row.device_peak_bytes = found
            self.row.rates.append(self.row.batch * count / took)

    def close(self) -> None:
        """Ends the process."""
        self._signal(signal.SIGCONT)
        self.pool.shutdown()

    def _ask(self, function: Callable, *arguments: Any) -> Any:
        """Returns what a function of `worker` does; None where it fails, and the row says why."""
        self._signal(signal.SIGCONT)
        try:
            return self.pool.submit(function, *arguments).result()
        except Exception as error:
            self.row.note, self.row.agrees, self.row.rates = f"failed: {error}", False, []
            return None
        finally:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        if self.warm is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.warm.process, number)


def measure(case: Case, rounds: int, seconds: float, tell: Callable[[str], None]) -> None:
    """Fills in the rows of `case`, in `rounds` in which each program runs for about `seconds`."""
    runners = [Runner(row) for row in case.rows]
    with contextlib.ExitStack() as stack:
        # Compilations are timed, so none may come from an earlier run; a GPU is shared by all.
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = stack.enter_context(tempfile.TemporaryDirectory())
        for runner in runners:
            if "torch" in runner.row.program and find_spec("torchvision") is None:
                runner.row.note = "needs torchvision: pip install '.[peers]'"
                continue
            tell(f"{case.name}: compiling {runner.row.name}")
            stack.callback(runner.close)
            runner.start(case.settings)
        for number in range(rounds):
            tell(f"{case.name}: round {number + 1} of {rounds}")
            for runner in runners[:: 1 if number % 2 == 0 else -1]:
                runner.run(seconds)
    first = runners[0]
    for each in runners:
        if each.row.rates and first.row.rates and each.warm and first.warm:
            each.row.speedup = paired(first.row.rates, each.row.rates)
            judge(each.row, each.warm.outputs, first.warm.outputs)


def judge(row: Row, outputs: Outputs, truth: Outputs) -> None:
    """Fills in whether the outputs of a row agree with the first one's."""
    row.difference, row.unit = difference(outputs, truth)
    precision = row.options.get("precision", "float32")
    if row.device_peak_bytes is not None and precision == "float32":
        precision = "tensorfloat32"  # as factors are rounded on a GPU
    row.agrees = row.difference <= TOLERANCES[precision if row.unit == RELATIVE else SIGMA]


def paired(rates: Sequence[float], others: Sequence[float]) -> Ratio:
    """Returns the ratio of `rates` over `others` that were measured in the same rounds.

    Its interval is between two of the sorted ratios, whatever their distribution: each ratio is
    below the median with probability one half.
    """
    ratios = sorted(rate / other for rate, other in zip(rates, others, strict=True))
    outside = max(0, int(binom.ppf(0.025, len(ratios), 0.5)) - 1)
    return Ratio(statistics.median(ratios), ratios[outside], ratios[-1 - outside])


def difference(outputs: Outputs, truth: Outputs) -> tuple[float, str]:
    """Returns the largest difference of `outputs` from `truth`, and its unit.

    Both are cut to the images that they share. Means over a program's own random samples differ by
    chance: their unit is the standard error, pooled over a member's images. Else it is the largest
    output. NaN counts as infinite.
    """
    shared = min(outputs.values.shape[-1], truth.values.shape[-1])
    values, expected = outputs.values[..., :shared], truth.values[..., :shared]
    scale, unit = np.abs(expected).max(), RELATIVE
    if outputs.errors is not None:
        scale, unit = np.sqrt(2 * (outputs.errors**2).mean(axis=-1, keepdims=True)), SIGMA
    largest = float((np.abs(values - expected) / scale).max())
    return largest if np.isfinite(largest) else float("inf"), unit
