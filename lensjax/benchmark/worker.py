"""The process of one contender: `python -m lensjax.benchmark.worker`, JSON lines in and out.

The first line names the entry and its settings, each further one is a request: `prepare` a variant
or `run` so many times, after a run that is not timed. Between requests the process is blocked on
its standard input. What libraries print goes to the standard error; the answers alone go to the
standard output.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

from lensjax.benchmark.contract import Loaded, Program
from lensjax.errors import one_line

PREFIX = "lensjax.benchmark."


def main() -> None:
    """Answers requests until the standard input ends; an exception is the last answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        serve(sys.stdin, answers)
    except Exception as error:
        traceback.print_exc()
        say(answers, {"error": f"{type(error).__name__}: {one_line(error)}"})
        sys.exit(1)


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Loads the contender that the first line names and answers the other lines."""
    first = json.loads(requests.readline())
    module, _, function = first["entry"].partition(":")
    loaded: Loaded = getattr(importlib.import_module(PREFIX + module), function)(
        **first["settings"]
    )
    say(answers, {"device": loaded.device})
    program: Program | None = None
    for line in requests:
        request = json.loads(line)
        if "prepare" in request:
            program = None  # Or the memory of both would count.
            forget_peak()
            program, answer = prepared(loaded, request["prepare"])
        else:
            assert program is not None
            program.ready(1 + request["run"])
            # Not timed: a virtual machine takes free memory away while the process waits.
            program.run(1)
            start = time.perf_counter()
            program.run(request["run"])
            answer = {"seconds": time.perf_counter() - start}
        memory = {"peak_bytes": peak_bytes(), "device_peak_bytes": loaded.device_peak_bytes()}
        say(answers, answer | memory)


def prepared(loaded: Loaded, variant: dict[str, Any]) -> tuple[Program, dict[str, Any]]:
    """Returns the program for `variant`, warm, and what is known of it.

    What the first run takes longer than the second counts as compilation. The outputs are those of
    the second run, so that a training step has to show that it learnt.
    """
    program = loaded.prepare(**variant)
    program.ready(2)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        outputs = program.run(1)
        seconds.append(time.perf_counter() - start)
    return program, {
        "seconds": seconds[1],
        "units": program.units,
        "compile_seconds": program.compile_seconds + max(0.0, seconds[0] - seconds[1]),
        "values": outputs.values.tolist(),
        "errors": None if outputs.errors is None else outputs.errors.tolist(),
    }


def forget_peak() -> None:
    """Lets the record of the peak memory start again from now, where the system can (Linux)."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Returns the largest resident memory since `forget_peak`. (`runtime` would bring in JAX.)"""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def say(answers: IO[str], answer: dict[str, Any]) -> None:
    """Writes one answer."""
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
