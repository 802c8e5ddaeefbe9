"""The machine that a run is on, its cache folder, and the progress that a user sees."""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import jax
import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")
Launched = TypeVar("Launched")

TPU_DEVICES = ("accel*", "vfio/[0-9]*")

# Progress is told after so many seconds or batches, but not twice a second.
LOG_INTERVAL_SECONDS = 10.0
LOG_INTERVAL_BATCHES = 10
LEAST_LOG_INTERVAL_SECONDS = 1.0


def cache_folder() -> Path:
    """Returns the folder that outlives runs: `$LENSJAX_CACHE`, or the user's cache folder."""
    named = os.environ.get("LENSJAX_CACHE")
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(user_cache) / "lensjax"


def set_up() -> None:
    """Turns on the persistent compilation cache, and keeps libtpu, where it is installed as a
    compiler, from reporting that there is no TPU. Call before JAX is first asked for devices.
    """
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    # libtpu writes to the terminal itself, so it must not be asked.
    has_tpu = any(chips for pattern in TPU_DEVICES for chips in Path("/dev").glob(pattern))
    if find_spec("libtpu") and not has_tpu and not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cuda,cpu")


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on, by package."""
    packages = ("lensjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def devices() -> list[str]:
    """Returns the kind of each device that JAX computes on."""
    return [f"{device.platform}: {device.device_kind}" for device in jax.devices()]


def peak_memory_bytes() -> int:
    """Returns the largest resident memory that this process has had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def seconds_since_start() -> float:
    """Returns how long ago this process was started."""
    return time.time() - psutil.Process().create_time()


def give_back_memory() -> None:
    """Gives what this process no longer uses back to the system: glibc keeps it for later."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or none
        ctypes.CDLL(None).malloc_trim(0)


def one_ahead(launch: Callable[[Item], Launched], items: Iterable[Item]) -> Iterator[Launched]:
    """Yields launch(item) in order, each when the next is under way already.

    What `launch` returns may still be being computed: then the device works on the next item while
    the host takes care of this one.
    """
    ahead: list[Launched] = []
    for item in items:
        ahead.append(launch(item))
        if len(ahead) == 2:
            yield ahead.pop(0)
    yield from ahead


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGTERM or Ctrl-C has come: the run can end well.

    A second one ends the process at once.
    """
    came: list[int] = []
    # Python lets the main thread alone say what a signal does.
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, _: Any) -> None:
        came.append(number)
        signal.signal(number, before[signal.Signals(number)])
        # Past Python's own buffers: it may be in the middle of a print.
        os.write(2, b"\nstopping as soon as what is under way can be kept; again stops at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """Yields `advance(count, **shown)`, which shows rate, time left and the values in `shown`.

    A bar on a terminal; elsewhere a log line every ten batches or ten seconds, of quick batches one
    a second, and one at the end.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        with contextlib.ExitStack() as stack:
            yield _bar(stack, console, what, total, unit)
        return
    done, batches, shown = 0, 0, ""
    start = written = time.perf_counter()

    def write() -> None:
        nonlocal written, batches
        written, batches = time.perf_counter(), 0
        elapsed = written - start
        rate = done / max(elapsed, 1e-9)
        left = (total - done) / rate if done else 0.0
        line = (
            f"{done}/{total} {unit}, {rate:.0f}/s, {elapsed:.0f} s gone, {left:.0f} s left {shown}"
        )
        print(f"{what}: {line}".rstrip(), file=sys.stderr, flush=True)

    def advance(count: int, **values: Any) -> None:
        nonlocal done, batches, shown
        done, batches, shown = done + count, batches + 1, _describe(values)
        waited = time.perf_counter() - written
        are_many = batches >= LOG_INTERVAL_BATCHES and waited >= LEAST_LOG_INTERVAL_SECONDS
        if are_many or waited >= LOG_INTERVAL_SECONDS:
            write()

    yield advance
    if batches:
        write()


def _bar(
    stack: contextlib.ExitStack, console: Console, what: str, total: int, unit: str
) -> Callable[..., None]:
    """Returns the `advance` of a progress bar that lives as long as `stack`."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
    )
    bar = stack.enter_context(Progress(*columns, console=console))
    task = bar.add_task(what, total=total, rate="", shown="")
    start = time.perf_counter()

    def advance(count: int, **shown: Any) -> None:
        done = bar.tasks[0].completed + count
        rate = done / max(time.perf_counter() - start, 1e-9)
        bar.update(task, advance=count, rate=f"{rate:.0f} {unit}/s", shown=_describe(shown))

    return advance


def _describe(shown: dict[str, Any]) -> str:
    return " ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in shown.items()
    )
