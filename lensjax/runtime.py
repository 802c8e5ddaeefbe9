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
from datetime import timedelta
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import jax
import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

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


def device() -> str:
    """Returns what this process computes on: `2 x gpu: NVIDIA H200`, or of a CPU also the number of
    threads. The last digits of a score depend on it."""
    devices = jax.local_devices()
    kind = f"{len(devices)} x {devices[0].platform}: {devices[0].device_kind}"
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{kind}, {threads} threads" if devices[0].platform == "cpu" else kind


def peak_memory_bytes() -> int:
    """Returns the largest resident memory that this process has had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_memory_bytes() -> int | None:
    """Returns the most memory of a device that this process has had, in bytes; None on CPUs."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


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
    columns = TextColumn("{task.description:<22}"), BarColumn(24), TextColumn("{task.fields[said]}")
    start = logged = time.perf_counter()
    done, batches, said = 0, 0, ""

    def log() -> None:
        nonlocal logged, batches
        logged, batches = time.perf_counter(), 0
        if not console.is_terminal:
            print(f"{what}: {said}", file=sys.stderr, flush=True)

    def advance(count: int, **shown: Any) -> None:
        nonlocal done, batches, said
        done, batches, now = done + count, batches + 1, time.perf_counter()
        rate = max(done, 1) / max(now - start, 1e-9)
        left = timedelta(seconds=round((total - done) / rate))
        values = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
        said = " ".join([f"{done}/{total} {unit}, {rate:.0f}/s, {left} left", *values])
        bar.update(task, completed=done, said=said)
        are_many = batches >= LOG_INTERVAL_BATCHES and now - logged >= LEAST_LOG_INTERVAL_SECONDS
        if are_many or now - logged >= LOG_INTERVAL_SECONDS:
            log()

    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, said="")
        yield advance
        if batches:
            log()
