"""scripts/benchmark.py: times lensjax and its peers side by side, and compares what they say."""

import dataclasses
import fnmatch
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from lensjax import config, results, runtime
from lensjax.benchmark import arena, cases, table
from lensjax.benchmark.arena import Block, Pace
from lensjax.benchmark.cases import Case, Goal
from lensjax.errors import LensjaxError, UsageError
from lensjax.files import make_folder

PEERS = ("torch", "onnx", "onnxruntime", "openvino", "pandas")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Options of scripts/benchmark.py."""

    cases: str = "*"
    """What to measure, comma separated, with * and ?; --list shows the names."""
    contenders: str = "*"
    """Rows to fill, comma separated, with * and ?."""
    list: bool = False
    """Show the names of the cases and stop."""
    quick: bool = False
    """One small case of its own, in a minute or two."""
    data: bool = False
    """Reading files, beside PyTorch's DataLoader; made in OUTPUT/data."""
    items: int = 20000
    """Files of each kind and size, with --data; 30 GB."""
    batch_size: int = 128
    """Images a batch; a quarter for one network, an eighth at 224 px."""
    rounds: int = 5
    """Rounds, in each of which every contender has one turn."""
    seconds: float = 0.3
    """Seconds that a turn lasts about, at least one batch."""
    patience: float = 3.0
    """Seconds a batch may last at the rate of matrix products."""
    output: Path = Path("results")
    """Folder of benchmark.md and benchmark.json."""


def main(argv: Sequence[str]) -> None:
    """Carries out `argv`, prints each table as it is done, and writes them to the output folder.

    Raises LensjaxError where a contender failed or said something else than lensjax.
    """
    options = config.parse(BenchmarkConfig, argv, description=__doc__.split(": ", 1)[1])
    _check(options)
    known, goals = _known(options)
    if options.list:
        print("\n".join(case.name for case in known))
        return
    chosen = choose(known, options.cases, options.contenders)
    make_folder(options.output)
    pace = Pace(options.rounds, options.seconds, options.patience)
    blocks, text = [], list[str]()
    for block in arena.contest(chosen, pace, _tell):
        blocks.append(block)
        lines = list(table.block_lines(block))
        print("\n".join(lines), flush=True)
        text += lines
        _write(options, blocks, text)
    reached = list(table.goal_lines(goals, blocks))
    print("\n".join([*reached, f"{options.output / 'benchmark.md'}"]))
    _write(options, blocks, text + reached)
    odd = [
        f"{row.name} ({block.title})" for block in blocks for row in block.rows if not row.agrees
    ]
    if odd:
        raise LensjaxError(f"failed, or said something else than lensjax: {', '.join(odd)}")


def _known(options: BenchmarkConfig) -> tuple[list[Case], tuple[Goal, ...]]:
    """Returns the cases that there are, and what is to be reached in them."""
    if options.quick:
        return cases.quick_cases(), cases.GOALS
    if not options.data:
        return cases.all_cases(options.batch_size), cases.GOALS
    from lensjax.benchmark import reading  # brings in JAX, for which each contender has a process

    _tell("making files")
    folders = {
        size: reading.make(options.output / "data", size, options.items) for size in (64, 224)
    }
    rows = 50 * options.items
    catalogue = reading.make_catalogue(folders[64]["fits"], rows)
    return cases.reading_cases(folders, options.batch_size, catalogue, rows), cases.READING_GOALS


def choose(known: Sequence[Case], cases: str, contenders: str) -> list[Case]:
    """Returns the cases and, in each, the contenders that match comma-separated patterns.

    Raises UsageError for a pattern that matches nothing.
    """
    rows = dict.fromkeys(contender.name for case in known for contender in case.contenders)
    kept_cases = _matching("--cases", [case.name for case in known], cases)
    kept_rows = _matching("--contenders", list(rows), contenders)
    chosen = []
    for case in known:
        kept = tuple(contender for contender in case.contenders if contender.name in kept_rows)
        if case.name in kept_cases and kept:
            chosen.append(dataclasses.replace(case, contenders=kept))
    return chosen


def _matching(option: str, names: Sequence[str], patterns: str) -> set[str]:
    """Returns the `names` that match one of the patterns."""
    found = set()
    for pattern in (part.strip() for part in patterns.split(",")):
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise UsageError(
                f"{option}: nothing is called '{pattern}'; there are: {'; '.join(names)}"
            )
        found.update(matches)
    return found


def _write(options: BenchmarkConfig, blocks: Sequence[Block], text: Sequence[str]) -> None:
    """Writes benchmark.json and benchmark.md."""
    record = {
        "config": dataclasses.asdict(options),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "versions": runtime.versions() | _peer_versions(),
        "blocks": [dataclasses.asdict(block) for block in blocks],
    }
    results.write_json(options.output / "benchmark.json", record)
    (options.output / "benchmark.md").write_text("\n".join(text) + "\n")


def _peer_versions() -> dict[str, str]:
    """Returns the versions of those peers that are installed."""
    present = [name for name in PEERS if find_spec(name)]
    return {name: version(name) for name in present}


def _check(options: BenchmarkConfig) -> None:
    """Raises UsageError for numbers that make no sense."""
    for name in ("batch_size", "items", "rounds", "seconds", "patience"):
        if getattr(options, name) <= 0:
            raise UsageError(f"--{name.replace('_', '-')} must be above 0")


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
