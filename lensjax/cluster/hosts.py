"""Several processes that train together, on one machine or many: how they join and end, and what
each of them does of a run.

All run the same program on the same data. Each reads its own rows of every batch; the first alone
says how far the run is and writes files; to the state of the run each adds what its devices hold.
The coordination service of JAX, in the first process, notices where one is no more. Then all end
with the status START_AGAIN.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
import psutil
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lensjax.ensemble import sharding
from lensjax.errors import LensjaxError, UsageError, one_line, refuse

# As EX_TEMPFAIL of sysexits.h: nothing is wrong with the run, only with where it ran.
START_AGAIN = 75

AUTO = "auto"

# A process that does not answer for so long is gone, and all that wait for it end.
HEARTBEAT_SECONDS = 30
# All processes end at once, unless one fails alone.
SHUTDOWN_SECONDS = 20
# One that ends because another is gone is not to be taken for that one.
LINGER_SECONDS = 2.0

# What libraries say where they cannot reach another process.
CUT_OFF = re.compile(r"gloo|nccl|coordination service|barrier|heartbeat|socket closed", re.I)

# What SLURM (in a step, not in the shell of an allocation), Open MPI and TPU slices tell a process:
# how many there are, or the names of all.
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
NAMES = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")


# Held by the thread that ends the process: others may find out meanwhile.
_leaving = threading.Lock()
# What C calls and does not keep.
_handlers: list[Any] = []


# --- joining and ending ---


@contextlib.contextmanager
def joined(coordinator: str | None, processes: int | None, process: int | None) -> Iterator[None]:
    """Has this process be one of the `processes` of a run, inside the context, if there are more.

    `coordinator` is the address of process 0, HOST:PORT. None leaves it to JAX where the
    environment shows several processes, AUTO also where it does not. All but the first say nothing
    there. Where another process is lost, this one exits with START_AGAIN. Raises UsageError for
    options that do not go together, LensjaxError where the others cannot be reached.
    """
    _check(coordinator, processes, process)
    detected = coordinator is None and processes is None and _are_several(os.environ)
    if not detected and coordinator is None:
        yield
        return
    _initialize(None if coordinator == AUTO else coordinator, processes, process)
    others = _Others()
    with contextlib.ExitStack() as stack:
        if not is_first():
            null = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(null))
            stack.enter_context(contextlib.redirect_stderr(null))
        _exit_on_abort(START_AGAIN, others.message)
        try:
            yield
        except Exception as error:
            if _is_cut_off(error):
                _leave(START_AGAIN, others.message())
            # The others may not fail, and not end with this one, which JAX then aborts.
            _exit_on_abort(error.status if isinstance(error, LensjaxError) else 1)
            raise
    jax.distributed.shutdown()


def _check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Raises UsageError for options that do not go together."""
    count = processes or 1
    address = (coordinator or "").rpartition(":")
    wrong = {
        "--processes must be at least 1": processes is not None and processes < 1,
        f"--processes {processes} wants --coordinator HOST:PORT, where process 0 runs and a port "
        "that is free there": coordinator is None and count > 1,
        f"--process {process} wants --coordinator HOST:PORT and --processes too": (
            process is not None and (coordinator is None or processes is None)
        ),
        "--coordinator auto finds --processes and --process itself: leave them out": (
            coordinator == AUTO and processes is not None
        ),
        f"--coordinator {coordinator} must be HOST:PORT, as node1:8476, or auto": (
            coordinator not in (None, AUTO) and not (address[0] and address[2].isdecimal())
        ),
        f"--coordinator {coordinator} wants --processes N and --process I too: how many there are, "
        "and which of them this is, from 0": (
            coordinator not in (None, AUTO) and (processes is None or process is None)
        ),
        f"--process {process} is none of 0 to {count - 1}, as --processes {processes} has them": (
            process is not None and not 0 <= process < count
        ),
    }
    refuse(wrong)


def _are_several(environment: Mapping[str, str]) -> bool:
    """Returns whether the environment shows that this process is one of several.

    The shell of an allocation of SLURM shows tasks too, but of steps that are still to come.
    """
    counts = (environment.get(name, "") for name in COUNTS)
    names = (environment.get(name, "").split(",") for name in NAMES)
    return any(count.isdecimal() and int(count) > 1 for count in counts) or any(
        len(each) > 1 for each in names
    )


def _initialize(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the others. Raises LensjaxError where they cannot be reached."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM, of which `runtime.asked_to_stop` takes care.
    jax.config.update("jax_enable_preemption_service", False)
    failed = (
        f"cannot join the other processes at {coordinator or 'the address of the environment'}: "
        "start all of them, and give --coordinator HOST:PORT, --processes and --process where they "
        "are not found out"
    )
    _exit_on_abort(LensjaxError.status, lambda: f"error: {failed}")
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
        jax.devices()  # which waits for those of all
    except (RuntimeError, ValueError) as error:
        raise LensjaxError(f"{failed} ({one_line(error, 160)})") from error


class _Others:
    """Where the other processes run, so that it can be said which of them is gone."""

    def __init__(self) -> None:
        name = np.zeros(64, np.uint8)
        host = platform.node().encode()[: len(name)]
        name[: len(host)] = list(host)
        names, pids = multihost_utils.process_allgather((name, np.int32(os.getpid())))
        hosts = [bytes(row[row > 0]).decode(errors="replace") for row in names]
        self._host = hosts[jax.process_index()]
        self._processes = dict(enumerate(zip(hosts, pids.tolist(), strict=True)))
        del self._processes[jax.process_index()]

    def message(self) -> str:
        """Returns one line: which process is gone, as far as this host can tell, and what to do."""
        gone = [
            number
            for number, (host, pid) in self._processes.items()
            if host == self._host and not _is_alive(pid)
        ]
        far = [number for number, (host, _) in self._processes.items() if host != self._host]
        named = [f"process {number} ({self._processes[number][0]})" for number in gone or far]
        who = " and ".join(named) or "another process"
        if len(far) > 1 and not gone:
            who = f"one of {', '.join(named)}"
        return (
            f"error: {who} of this run is gone, and so the others end; what was saved is kept, and "
            "the same command goes on there"
        )


def _is_alive(pid: int) -> bool:
    """Returns whether a process of this host is there, and not only its exit status."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_cut_off(error: BaseException | None) -> bool:
    """Returns whether an error, or what it came from, is that another process is out of reach."""
    while error is not None:
        # Of the coordination service and of collectives; which type, depends on the platform.
        if isinstance(error, RuntimeError | ValueError) and CUT_OFF.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _leave(status: int, line: str | None = None) -> NoReturn:
    """Ends this process at once: what JAX does as Python ends would wait for the lost one."""
    with _leaving:
        if line:
            os.write(2, f"{line}\n".encode())
            time.sleep(LINGER_SECONDS)
        os._exit(status)


def _exit_on_abort(status: int, message: Callable[[], str | None] = lambda: None) -> None:
    """Has this process exit with `status` and a message where the coordination service aborts it.

    JAX offers no other way to learn of it: it happens in a thread of its own, in C++.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(_: int) -> None:
        _leave(status, message())

    _handlers.append(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


# --- what each process does ---


def is_first() -> bool:
    """Returns whether this process is the one that writes what all share."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns once all processes have called it with the same words."""
    multihost_utils.sync_global_devices(what)


def check_alike(what: str, settings: Mapping[str, Any]) -> None:
    """Raises UsageError where the processes have not all the same settings of what they do."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).digest()
    all_of_them = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    others = np.flatnonzero((all_of_them != all_of_them[0]).any(axis=1))
    if len(others):
        raise UsageError(
            f"process {', '.join(map(str, others))} has other {what} than process 0: start all "
            "processes of a run with the same command on the same files, or each with "
            "--processes 1 for a run of its own"
        )


def least(size: int) -> int:
    """Returns the smallest of the sizes that the processes have."""
    # In two parts, for JAX takes integers of 32 bits.
    parts = multihost_utils.process_allgather(np.array(divmod(size, 2**30), np.int32))
    high, low = min(map(tuple, parts.tolist()))
    return high * 2**30 + low


def own_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Returns which rows of each batch (row,) the devices of this process take, in order.

    Where all share the cutouts, process R of N takes `batch_size * R // N` up to
    `batch_size * (R + 1) // N`: the order of all rows is that of a sole process.
    """
    place = NamedSharding(mesh, sharding.BY_CUTOUT)
    taken = place.addressable_devices_indices_map((batch_size,)).values()
    return np.unique([np.arange(batch_size)[index] for index in taken])


def from_own_rows(leaf: Any, place: NamedSharding, *shape: int) -> Array:
    """Returns an array of this shape on the devices of all processes, of which each has its own
    rows in `leaf`, on the host."""
    return jax.make_array_from_process_local_data(place, leaf, shape)


def from_whole(tree: Any, places: Any) -> Any:
    """Returns a tree of arrays, which all processes have alike, on the devices of all. `places`:
    the NamedSharding of each, or one for all."""
    places = jax.tree.broadcast(places, tree)

    def placed(leaf: Any, place: NamedSharding) -> Array:
        if place.is_fully_addressable:
            return jax.device_put(leaf, place)
        return jax.make_array_from_callback(leaf.shape, place, lambda index: leaf[index])

    return jax.tree.map(placed, tree, places)


def on_host(tree: Any) -> Any:
    """Returns copies of a tree of arrays, NumPy's, whole in each process. All must call it."""

    def whole(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.array(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, tree)


class Agreement:
    """Whether any process wishes for something, such as to stop. All learn of a wish a step later,
    so that no device waits for the hosts; a sole process at once."""

    def __init__(self, mesh: Mesh) -> None:
        self._place = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._before: Array | None = None
        whole = NamedSharding(mesh, sharding.EVERYWHERE)
        self._any = jax.jit(lambda wishes: wishes.any(0), out_shardings=whole)

    def __call__(self, *wishes: bool) -> np.ndarray:
        """Returns the wishes of all at the call before (wish,), which need not be wished again."""
        new = np.array(wishes)
        if jax.process_count() == 1:
            return new
        known = np.zeros_like(new) if self._before is None else np.asarray(self._before)
        mesh = self._place.mesh
        own = np.tile(new & ~known, (len(mesh.local_devices), 1))
        self._before = self._any(from_own_rows(own, self._place, mesh.size, len(new)))
        return known
