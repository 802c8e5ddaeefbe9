"""scripts/benchmark.py: times lensjax and PyTorch side by side, and compares their outputs."""

import functools
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cases, compare
from benchmarks.cases import Case, Row
from lensjax import config, runtime
from lensjax.errors import LensjaxError, UsageError

HEADS = ("program", "images/s", "lensjax is faster by", "memory", "on device", "compile", "apart")
FILES = 2000


@dataclass(frozen=True)
class BenchmarkConfig:
    """Options of scripts/benchmark.py."""

    cases: str = ""
    """Only cases with this text in their name."""
    bfloat16: bool = False
    """Score in bfloat16 as well."""
    samples: int = 10
    """Dropout samples; 1 means dropout off."""
    batch_size: int = 128
    """Images a batch; an eighth at 224 px, a quarter in training."""
    rounds: int = 6
    """Rounds, in each of which every program runs once."""
    seconds: float = 0.5
    """Seconds that a program runs in a round, at least one batch."""


def main(argv: Sequence[str]) -> None:
    """Carries out `argv`: prints a table for each case.

    Raises LensjaxError where a program failed or its outputs differ from those of lensjax.
    """
    options = config.parse(BenchmarkConfig, argv, description=__doc__.split(": ", 1)[1])
    for name in ("samples", "batch_size", "rounds", "seconds"):
        if getattr(options, name) <= 0:
            raise UsageError(f"--{name.replace('_', '-')} must be above 0")
    tell = functools.partial(print, file=sys.stderr, flush=True)
    versions = ", ".join(f"{name} {version}" for name, version in runtime.versions().items())
    print(f"{platform.platform()}, {os.cpu_count()} cores, {versions}\n")
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for case in _chosen(options, Path(folder)):
            compare.measure(case, options.rounds, options.seconds, tell)
            print("\n".join(lines(case)), flush=True)
            wrong += [f"{row.name} ({case.name})" for row in case.rows if not row.agrees]
    if wrong:
        raise LensjaxError(f"failed, or differs from lensjax: {', '.join(wrong)}")


def _chosen(options: BenchmarkConfig, folder: Path) -> list[Case]:
    """Returns the cases that the options name, with the files that they read in `folder`.

    Raises UsageError where there are none.
    """
    known = cases.all_cases(folder, options.batch_size, options.samples, options.bfloat16)
    chosen = [case for case in known if options.cases in case.name]
    if not chosen:
        names = "; ".join(case.name for case in known)
        raise UsageError(f"--cases: none has '{options.cases}' in its name; there are: {names}")
    if any("reading" in case.name for case in chosen):
        from benchmarks import reading  # imports JAX, for which each program has its own process

        reading.make(folder, cases.READING_SIZE, FILES)
    return chosen


def lines(case: Case) -> Iterator[str]:
    """Yields the lines of a Markdown table."""
    yield f"### {case.name}, batches of {case.settings['batch']}\n"
    yield f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}"
    yield from (f"| {' | '.join(_cells(row))} |" for row in case.rows if row.rates)
    yield from (f"\n{row.name}: {row.note}" for row in case.rows if not row.rates)
    yield ""


def _cells(row: Row) -> tuple[str, ...]:
    ratio, apart = row.speedup, row.difference
    return (
        row.name,
        f"{statistics.median(row.rates):.4g}",
        "" if ratio is None else f"{ratio.median:.3g} ({ratio.low:.3g} to {ratio.high:.3g})",
        _bytes(row.peak_bytes),
        _bytes(row.device_peak_bytes),
        f"{row.compile_seconds:.1f} s",
        "" if apart is None else f"{apart:.1g} {row.unit}{'' if row.agrees else ' DISAGREES'}",
    )


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.0f} MiB"
