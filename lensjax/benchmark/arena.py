"""The contest: all contenders of a case wait in processes of their own and take turns.

A machine drifts: other work, heat, memory. So nothing is timed alone. In each round every contender
runs once, in an order that turns around from round to round, and what counts is the ratio within
a round; of these the median is told, with the interval that holds it.
"""

import contextlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binom

from lensjax.benchmark.cases import PRODUCTS, Case, Contender
from lensjax.benchmark.contract import Outputs

# Largest difference of logits, relative to the largest logit: rounding through some 20 layers.
TOLERANCES = {"float32": 2e-3, "bfloat16": 0.1}
# Where JAX and PyTorch round the factors of float32 products to TensorFloat-32.
TOLERANCE_ON_GPU = 2e-2
# Largest difference of means over random samples, in standard errors.
STANDARD_ERRORS = 6.0

# Compilations are timed, so none may come from an earlier run; a GPU is shared by all contenders.
ENVIRONMENT = {
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


class Ratio(NamedTuple):
    """The median of the ratios within rounds and, from `low` to `high`, its 95 % interval; with
    fewer than six rounds, which bound no such interval, all of them."""

    median: float
    low: float
    high: float


@dataclass
class Row:
    """What one contender did. `note` says why where there are no figures.

    `images_per_second`: the median over the rounds. `ratio`: over the block's reference. `share`:
    of the machine's matrix-product rate, in the same rounds. `peak_bytes`: since it was prepared;
    `first_peak_bytes`: of these, until its first turn had ended. `difference`: the largest from the
    first contender's outputs, relative to the largest of these, or in standard errors where
    `in_standard_errors`.
    """

    name: str
    note: str = ""
    device: str = ""
    batch: int = 0
    rates: list[float] = field(default_factory=list)
    images_per_second: float | None = None
    ratio: Ratio | None = None
    share: Ratio | None = None
    peak_bytes: int | None = None
    first_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    compile_seconds: float | None = None
    difference: float | None = None
    in_standard_errors: bool = False
    agrees: bool = True


@dataclass(frozen=True)
class Block:
    """A case in one variant. `products`: the matrix-product rate (operations/s) in each round, none
    where the share of it means nothing."""

    title: str
    reference: str
    products: list[float]
    rows: list[Row]


class ContenderError(Exception):
    """A contender's process ended; the message says why."""


class Worker:
    """The process of a contender (`worker.py`), stopped with its own processes until it is asked.

    Else threads and processes that read ahead would work in the time of the next contender.
    """

    def __init__(self, contender: Contender, settings: Mapping[str, Any], scratch: str) -> None:
        environment = os.environ | ENVIRONMENT | {"TMPDIR": scratch}
        self._log = tempfile.TemporaryFile("w+", dir=scratch)  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lensjax.benchmark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
            process_group=0,
        )
        self._first = {"entry": contender.entry, "settings": {**settings, **contender.options}}

    def start(self) -> dict[str, Any]:
        """Returns the answer to the entry and its settings: the weights are loaded."""
        return self.ask(self._first)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the answer. Raises ContenderError where the process failed or was killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ContenderError(self._how_it_ended())
        self._signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer

    def close(self) -> None:
        """Lets the process end."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _how_it_ended(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        last = (self._log.read().strip().splitlines() or ["without a word"])[-1]
        killed = " (killed: out of memory?)" if status == -9 else ""
        return f"its process ended with status {status}{killed}: {last}"


@dataclass
class Entrant:
    """A contender in the arena and its row of the block at hand; without a worker it sits out."""

    contender: Contender
    row: Row
    worker: Worker | None = None
    outputs: Outputs | None = None
    units: float = 0.0
    count: int = 1

    def turn(self) -> None:
        """Runs one turn and notes the rate; a contender that fails is out."""
        with self.may_fail() as worker:
            answer = worker.ask({"run": self.count})
            self.row.rates.append(self.units * self.count / answer["seconds"])
            self.row.peak_bytes = answer["peak_bytes"]
            self.row.first_peak_bytes = self.row.first_peak_bytes or answer["peak_bytes"]
            self.row.device_peak_bytes = answer["device_peak_bytes"]

    def prepare(self, variant: Mapping[str, Any], batch: int, seconds: float) -> None:
        """Makes the contender ready for `variant`, with a new row, for turns of about `seconds`."""
        self.row = Row(self.row.name, self.row.note, self.row.device, batch)
        self.outputs = None
        with self.may_fail() as worker:
            answer = worker.ask({"prepare": {**variant, **({"batch": batch} if batch else {})}})
            self.units = answer["units"]
            self.count = max(1, int(seconds / max(answer["seconds"], 1e-9)))
            self.row.compile_seconds = answer["compile_seconds"]
            errors = answer["errors"]
            self.outputs = Outputs(
                np.array(answer["values"]), None if errors is None else np.array(errors)
            )

    @contextlib.contextmanager
    def may_fail(self) -> Iterator[Worker]:
        """Yields the worker; where it fails the row says so and the entrant is out."""
        assert self.worker is not None
        try:
            yield self.worker
        except ContenderError as error:
            self.row.note, self.row.agrees, self.worker = f"failed: {error}", False, None
            self.row.rates = []


@dataclass(frozen=True)
class Pace:
    """How long things may take: `rounds` of turns of about `seconds`, unless a case is particular.

    `patience` is what a batch may take, in seconds: on a slow machine all get smaller ones.
    """

    rounds: int
    seconds: float
    patience: float


def contest(cases: Sequence[Case], pace: Pace, tell: Callable[[str], None]) -> Iterator[Block]:
    """Yields the blocks of `cases` as they are done; `tell` hears what is being done."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        products = enter(stack, PRODUCTS, {}, scratch, tell)
        for product in running(products):
            product.prepare({}, 0, pace.seconds)
        for product in running(products):
            product.turn()
        # Once: all blocks of a case shall have the same batches.
        peak = max(product.row.rates[0] for product in running(products))
        for case in cases:
            tell(case.name)
            with contextlib.ExitStack() as of_case, tempfile.TemporaryDirectory() as folder:
                entrants = enter(of_case, case.contenders, case.settings, folder, tell)
                for variant in case.variants:
                    yield block(case, variant, entrants, products, peak, pace, tell)


def enter(
    stack: contextlib.ExitStack,
    contenders: Sequence[Contender],
    settings: Mapping[str, Any],
    scratch: str,
    tell: Callable[[str], None],
) -> list[Entrant]:
    """Returns the contenders with their weights loaded; their processes end with `stack`."""
    entrants = []
    for contender in contenders:
        entrant = Entrant(contender, Row(contender.name))
        entrants.append(entrant)
        missing = [name for name in contender.needs if importlib.util.find_spec(name) is None]
        if missing:
            entrant.row.note = f"needs {', '.join(missing)}: pip install '.[peers]'"
            continue
        tell(f"  loading {contender.name}")
        entrant.worker = Worker(contender, settings, scratch)
        stack.callback(entrant.worker.close)
        with entrant.may_fail() as worker:
            entrant.row.device = worker.start()["device"]
    return entrants


def block(
    case: Case,
    variant: Mapping[str, Any],
    entrants: Sequence[Entrant],
    products: Sequence[Entrant],
    peak: float,
    pace: Pace,
    tell: Callable[[str], None],
) -> Block:
    """Returns the result of one variant of a case. `peak` (operations/s) bounds its batches."""
    samples = variant.get("samples")
    title = case.name if samples is None else f"{case.name}, T = {samples}"
    for entrant in running(entrants):
        tell(f"  preparing {entrant.contender.name}, {title}")
        passes = (samples or 1) if entrant.contender.every_sample else 1
        batch = affordable(case.batch, (case.flops or 0.0) * passes, peak, pace.patience)
        entrant.prepare(variant, batch, pace.seconds * case.turn)
    for product in running(products):
        product.row.rates = []
    rounds = pace.rounds * case.rounds
    beside = products if case.flops else ()
    for turns in range(rounds):
        tell(f"  round {turns + 1} of {rounds}, {title}")
        for entrant in [*beside, *entrants][:: 1 if turns % 2 == 0 else -1]:
            if entrant.worker is not None:
                entrant.turn()
    measured = [product.row.rates for product in running(beside)]
    best_products = [max(rates) for rates in zip(*measured, strict=True)]
    return judged(case, title, entrants, best_products)


def running(entrants: Sequence[Entrant]) -> list[Entrant]:
    """Returns those that have a process."""
    return [entrant for entrant in entrants if entrant.worker is not None]


def affordable(batch: int, operations: float, peak: float, patience: float) -> int:
    """Returns `batch`, or what of it `patience` seconds hold: a power of two, one at the least.

    An image is taken to last `operations` at the rate `peak` (operations/s).
    """
    if batch * operations <= patience * peak:
        return batch
    return 2 ** int(np.log2(max(1.0, patience * peak / operations)))


def judged(case: Case, title: str, entrants: Sequence[Entrant], products: list[float]) -> Block:
    """Returns the block of what the entrants' rows hold: ratios, shares, agreement."""
    by_name = {entrant.row.name: entrant.row for entrant in entrants}
    present = [name for name in case.references if name in by_name and by_name[name].rates]
    reference = present[0] if present else ""
    on_gpu = any("cuda" in entrant.row.device for entrant in entrants)
    truth = entrants[0].outputs
    for entrant in entrants:
        row = entrant.row
        if not row.rates:
            continue
        row.images_per_second = statistics.median(row.rates)
        if reference:
            row.ratio = paired(row.rates, by_name[reference].rates)
        if case.flops:
            row.share = paired([rate * case.flops for rate in row.rates], products)
        if truth is not None and entrant.outputs is not None:
            tolerance = TOLERANCES[entrant.contender.precision]
            tolerance = max(tolerance, TOLERANCE_ON_GPU) if on_gpu else tolerance
            row.difference, row.in_standard_errors = difference(entrant.outputs, truth)
            bound = STANDARD_ERRORS if row.in_standard_errors else tolerance
            row.agrees = row.difference <= bound
    return Block(title, reference, products, [entrant.row for entrant in entrants])


def paired(rates: Sequence[float], others: Sequence[float]) -> Ratio:
    """Returns the ratio of `rates` over `others` that were measured in the same rounds.

    Its interval is between two of the sorted ratios, whatever their distribution: each is below the
    median as a coin shows heads.
    """
    ratios = sorted(rate / other for rate, other in zip(rates, others, strict=True))
    outside = max(0, int(binom.ppf(0.025, len(ratios), 0.5)) - 1)
    return Ratio(statistics.median(ratios), ratios[outside], ratios[-1 - outside])


def difference(outputs: Outputs, truth: Outputs) -> tuple[float, bool]:
    """Returns the largest difference of `outputs` from `truth`, and if it is in standard errors.

    Both are cut to the images that they share. Means over random samples of the contender's own
    are a draw each: their difference is measured by their error, as large in both, which is pooled
    over the images of a member. Else it is relative to the largest output. NaN counts as infinite.
    """
    shared = min(outputs.values.shape[-1], truth.values.shape[-1])
    values, expected = outputs.values[..., :shared], truth.values[..., :shared]
    apart = np.abs(values - expected)
    if outputs.errors is None:
        scale = np.abs(expected).max()
    else:
        scale = np.sqrt(2 * (outputs.errors**2).mean(axis=-1, keepdims=True))
    largest = float((apart / scale).max())
    return largest if np.isfinite(largest) else float("inf"), outputs.errors is not None
