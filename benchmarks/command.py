"""scripts/benchmark.py: times lensjax and PyTorch side by side, and compares their outputs."""

import dataclasses
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cases, compare
from benchmarks.cases import Case
from benchmarks.compare import Row
from lensjax import config, results, runtime
from lensjax.errors import LensjaxError, UsageError
from lensjax.files import make_folder

HEADS = "program", "images/s", "lensjax is faster by", "peak memory", "on device", "compile"


@dataclass(frozen=True)
class BenchmarkConfig:
    """Options of scripts/benchmark.py."""

    cases: str = ""
    """Only cases with this text in their name."""
    quick: bool = False
    """One small case, in about a minute."""
    data: bool = False
    """Read files instead, made in OUTPUT/data."""
    bfloat16: bool = False
    """Score in bfloat16 as well."""
    items: int = 2000
    """Files of each kind, with --data."""
    samples: int = 10
    """Dropout samples; 1 means dropout off."""
    batch_size: int = 128
    """Images a batch; an eighth at 224 px, a quarter in training."""
    rounds: int = 6
    """Rounds, in each of which every program runs once."""
    seconds: float = 0.5
    """Seconds that a program runs in a round, at least one batch."""
    output: Path = Path("results")
    """Folder of benchmark.json."""


def main(argv: Sequence[str]) -> None:
    """Carries out `argv`: prints a table for each case, and writes benchmark.json.

    Raises LensjaxError where a program failed or its outputs differ from those of lensjax.
    """
    options = config.parse(BenchmarkConfig, argv, description=__doc__.split(": ", 1)[1])
    for name in ("items", "samples", "batch_size", "rounds", "seconds"):
        if getattr(options, name) <= 0:
            raise UsageError(f"--{name.replace('_', '-')} must be above 0")
    make_folder(options.output)
    measured = {}
    for case in _chosen(options):
        rows = compare.measure(case, options.rounds, options.seconds, _tell)
        print(
            "\n".join(lines(f"{case.name}, batches of {case.settings['batch']}", rows)), flush=True
        )
        measured[case.name] = rows
        record = {
            "config": dataclasses.asdict(options),
            "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
            "versions": runtime.versions(),
            "cases": {name: list(map(dataclasses.asdict, rows)) for name, rows in measured.items()},
        }
        results.write_json(options.output / "benchmark.json", record)
    wrong = [
        f"{row.name} ({name})" for name, rows in measured.items() for row in rows if not row.agrees
    ]
    if wrong:
        raise LensjaxError(f"failed, or differs from lensjax: {', '.join(wrong)}")


def _chosen(options: BenchmarkConfig) -> list[Case]:
    """Returns the cases that the options speak of. Raises UsageError where there are none."""
    if options.quick:
        known = [cases.quick_case()]
    elif options.data:
        from benchmarks import reading  # imports JAX, which only --data needs here

        folders = reading.make(options.output / "data", 64, options.items)
        known = cases.reading(folders, 64, options.batch_size)
    else:
        known = cases.all_cases(options.batch_size, options.samples, options.bfloat16)
    chosen = [case for case in known if options.cases in case.name]
    if not chosen:
        names = "; ".join(case.name for case in known)
        raise UsageError(f"--cases: none has '{options.cases}' in its name; there are: {names}")
    return chosen


def lines(title: str, rows: Sequence[Row]) -> Iterator[str]:
    """Yields the lines of a Markdown table."""
    yield f"### {title}\n"
    yield f"| {' | '.join((*HEADS, 'difference'))} |"
    yield f"|{'---|' * (len(HEADS) + 1)}"
    yield from (f"| {' | '.join(_cells(row))} |" for row in rows if row.rates)
    yield ""
    yield from (f"{row.name}: {row.note}\n" for row in rows if not row.rates)


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


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
