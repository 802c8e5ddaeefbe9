"""Scores ranges of rows on the actors of a Ray cluster. Actors, nodes and this process may die at
any time: the ledger knows which rows are done."""

import contextlib
import logging
import os
import platform
import secrets
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lensjax import runtime
from lensjax.cluster.progress import ProgressLog
from lensjax.cluster.work import MOST_KILLS, Range, Work
from lensjax.errors import Interrupted, LensjaxError, UsageError, one_line
from lensjax.ledger import Columns, Ledger, overlap

ScoreRows = Callable[[range], Mapping[str, Any]]

CORES_PER_ACTOR = 4
STALL_SECONDS = 120.0
# No range ends so many actors in a row before the cutout at fault is found.
MOST_DEATHS_IN_A_ROW = 40
# A network file system may show what others wrote only after a while.
SETTLE_SECONDS = 60.0
OBJECT_STORE_BYTES = 80 * 2**20
KILLED = f"scoring it ended the process {MOST_KILLS} times, or did not end by --deadline"

# A cluster that is started here is reached from this machine alone, by who has the token.
PRIVATE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # otherwise Ray listens on every interface
    "RAY_AUTH_MODE": "token",
}


@dataclass(frozen=True)
class Actor:
    """A process that scores, and how fast it was with its last range, None before."""

    handle: Any
    name: str
    per_second: float | None = None
    batch: int = 1


@dataclass(frozen=True)
class Task:
    """A range that an actor is at, since when, and whether users know that this is long."""

    actor: Actor
    range: Range
    began: float
    is_told: bool = False


def score(
    make: Callable[[], ScoreRows],
    ledger: Ledger,
    reject: Callable[[int, str], Columns],
    folder: Path,
    *,
    address: str | None = None,
    actors: int | Literal["auto"],
    deadline: float,
) -> dict[str, Any]:
    """Has the rows scored that `ledger` lacks, and returns what run.json says of it.

    Each actor calls `make` once, and what that returns with one range of rows after another: it
    adds them to the ledger on disk and returns what `scoring.score` does. Of a cutout that ends its
    actors, `reject(row, reason)` gives the columns. The progress of each actor is written to
    `folder`. An actor that is at a range for more than `deadline` seconds is ended.

    Raises LensjaxError where an actor does, or where actors keep dying, Interrupted where the
    process is asked to stop. What is scored is kept.
    """
    missing = ledger.missing()
    count = sum(map(len, missing))
    reports: list[dict[str, Any]] = []
    with (
        _cluster(address) as ray,
        runtime.asked_to_stop() as asked_to_stop,
        contextlib.closing(ProgressLog(folder)) as log,
        runtime.progress("scoring", count, "cutouts") as advance,
    ):
        crew = Crew(ray, make, actors, deadline)
        work, left = Work(missing, crew.size), count
        while left and not asked_to_stop():
            crew.hand_out(work)
            for task, report in crew.ended():
                if report is None:
                    log.write("died", actor=task.actor.name, rows=_ends(task.range.rows))
                    still = [
                        gap for rows in ledger.missing() if (gap := overlap(rows, task.range.rows))
                    ]
                    for row in work.give_back(task.range, still):
                        ledger.add(row, reject(row, KILLED))
                        ledger.save()
                        log.write("rejected", row=row)
                before, left = left, len(work) + crew.rows_under_way()
                advance(before - left, actors=crew.size, queue=len(work))
                if report is not None:
                    reports.append(report)
                    log.scored(count - left, left, task.actor.name, report)
            for task in crew.stuck():
                said = (
                    f"{task.actor.name} is at {_words(task.range.rows)} for {STALL_SECONDS:.0f} s"
                )
                print(said, file=sys.stderr)
                log.write("stuck", actor=task.actor.name, rows=_ends(task.range.rows))
    if left:
        done = len(ledger.rows) - sum(map(len, ledger.missing()))
        raise Interrupted(
            f"stopped after {done} of {len(ledger.rows)} rows; the same command goes on there"
        )
    _settle(ledger)
    return _summary(reports) | {
        "scored_before": len(ledger.rows) - count,
        "actors": crew.size,
        "actors_died": crew.deaths,
    }


def _summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what the actors report of all ranges, in the order in which they ended: the rate is
    that from the first one on, by when actors have started."""
    if not reports:
        return {}
    seconds = reports[-1]["ended"] - reports[0]["ended"]
    scored = sum(len(range(*report["rows"])) for report in reports[1:])
    waits = [report["waiting_share"] for report in reports if report["waiting_share"] is not None]
    return reports[-1]["step"] | {
        "images_per_second": scored / seconds if seconds else None,
        "waiting_share": sum(waits) / len(waits) if waits else None,
    }


class Crew:
    """The actors of a cluster, and what each is at."""

    def __init__(
        self,
        ray: Any,
        make: Callable[[], ScoreRows],
        actors: int | Literal["auto"],
        deadline: float,
    ) -> None:
        wanted, needs = _needs(ray)
        self.size = wanted if actors == "auto" else actors
        self._ray, self._deadline = ray, deadline
        # What ends an actor ends it for good: another takes its place.
        remote = ray.remote(max_restarts=0, max_task_retries=0, **needs)(_Remote)
        self._new = lambda: remote.remote(make)
        self.deaths = self._deaths_in_a_row = self._begun = 0
        # A cluster may have room for an actor only later, when a machine has joined it.
        self._coming: dict[Any, Actor] = {}
        self._idle: list[Actor] = []
        self._tasks: dict[Any, Task] = {}
        for _ in range(self.size):
            self._begin()

    def rows_under_way(self) -> int:
        """Returns how many rows the actors are at."""
        return sum(len(task.range.rows) for task in self._tasks.values())

    def hand_out(self, work: Work) -> None:
        """Gives each idle actor a range, as long as there are any."""
        while self._idle and len(work):
            actor = self._idle.pop(0)
            taken = work.take(actor.per_second, actor.batch)
            self._tasks[actor.handle.score.remote(taken.rows)] = Task(
                actor, taken, time.monotonic()
            )

    def ended(self) -> Iterator[tuple[Task, dict[str, Any] | None]]:
        """Yields the tasks that have ended within a second, and what their actors report; None of
        one that has died.

        Ends actors that take too long. Raises LensjaxError where an actor does, Interrupted where
        the cluster has no machine any more.
        """
        if not self._tasks and not any(node["Alive"] for node in self._ray.nodes()):
            raise Interrupted("Ray has no machine any more; the same command goes on there")
        done, _ = self._ray.wait([*self._coming, *self._tasks], timeout=1.0)
        for reference in done:
            if reference in self._coming:
                self._arrive(reference)
                continue
            task = self._tasks.pop(reference)
            report = self._report(task, reference)
            if report is None:
                self._replace(task.actor)
            else:
                self._deaths_in_a_row = 0
                rate, batch = len(task.range.rows) / report["seconds"], report["step"]["batch_size"]
                self._idle.append(replace(task.actor, per_second=rate, batch=batch))
            yield task, report
        for task in self._tasks.values():
            if time.monotonic() - task.began > self._deadline:
                self._ray.kill(task.actor.handle)

    def stuck(self) -> Iterator[Task]:
        """Yields each task, once, that has lasted for long."""
        for reference, task in self._tasks.items():
            if not task.is_told and time.monotonic() - task.began > STALL_SECONDS:
                self._tasks[reference] = replace(task, is_told=True)
                yield task

    def _report(self, task: Task, reference: Any) -> dict[str, Any] | None:
        errors = self._ray.exceptions
        try:
            return dict(self._ray.get(reference))
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, Interrupted):  # its machine is taken from it
                return None
            if isinstance(cause, LensjaxError):
                raise cause from error
            raise LensjaxError(
                f"{task.actor.name} failed at {_words(task.range.rows)}: {type(cause).__name__}: "
                f"{one_line(cause, 300)}"
            ) from error
        except errors.RayError:
            return None

    def _begin(self) -> None:
        """Asks for another actor."""
        self._begun += 1
        actor = Actor(self._new(), f"actor {self._begun}")
        self._coming[actor.handle.ready.remote()] = actor

    def _arrive(self, reference: Any) -> None:
        """Takes an actor that is there, or another for one that has died on the way."""
        actor = self._coming.pop(reference)
        try:
            self._ray.get(reference)
            self._idle.append(actor)
        except self._ray.exceptions.RayError:
            self._replace(actor)

    def _replace(self, actor: Actor) -> None:
        """Has another actor take the place of one that has died, and makes sure that it has.

        Raises LensjaxError where too many die.
        """
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor.handle)
        self.deaths, self._deaths_in_a_row = self.deaths + 1, self._deaths_in_a_row + 1
        if self._deaths_in_a_row == MOST_DEATHS_IN_A_ROW:
            raise LensjaxError(
                f"{MOST_DEATHS_IN_A_ROW} Ray actors have died, one after the other, before they "
                "scored anything: does the memory suffice? --engine local says more"
            )
        self._begin()


class _Remote:
    """What an actor is: the function that `make` returns, made when it is first needed, so that
    what goes wrong is an answer and not the end of the actor."""

    def __init__(self, make: Callable[[], ScoreRows]) -> None:
        self._make = make
        self._score: ScoreRows | None = None

    def ready(self) -> None:
        """Returns when the actor is there."""

    def score(self, rows: range) -> dict[str, Any]:
        """Scores rows, and returns how fast that was and what it took."""
        if self._score is None:
            runtime.set_up()
            self._score = self._make()
        began = time.perf_counter()
        report = self._score(rows)
        return {
            **report,
            "rows": _ends(rows),
            "ended": time.time(),
            "seconds": time.perf_counter() - began,
            "host": platform.node(),
            "process": os.getpid(),
            "host_memory_bytes": runtime.peak_memory_bytes(),
            "device_memory_bytes": runtime.device_memory_bytes(),
        }


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster at an address, or to one of its own on this machine, which ends
    with this process."""
    with contextlib.ExitStack() as ending:
        if address is None:
            if "ray" in sys.modules and "RAY_AUTH_TOKEN" not in os.environ:
                raise UsageError("Ray is in use here already: say which cluster, as address='auto'")
            token = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
            os.environ |= {name: os.environ.get(name, to) for name, to in (PRIVATE | token).items()}
            # Sockets have names of at most 107 bytes: not below the user's own folder.
            temporary = tempfile.TemporaryDirectory("", "ray-", "/tmp", ignore_cleanup_errors=True)
            options: dict[str, Any] = {
                "_temp_dir": ending.enter_context(temporary),
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
            }
        else:
            options = {"address": address}
        try:
            import ray
        except ImportError as error:
            raise UsageError("--engine ray needs Ray: pip install '.[ray]'") from error
        try:
            with warnings.catch_warnings():
                # Ray forks only to start other programs, which harms no thread of JAX.
                warnings.filterwarnings("ignore", r"os\.fork\(\)", RuntimeWarning)
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except (OSError, RuntimeError, ValueError) as error:
            where = f"the Ray cluster at {address} cannot be reached" if address else "Ray fails"
            raise LensjaxError(f"{where}: {one_line(error, 300)}") from error
        ending.callback(ray.shutdown)
        yield ray


def _needs(ray: Any) -> tuple[int, dict[str, Any]]:
    """Returns how many actors a cluster has room for, and what Ray is to reserve for each: an
    accelerator, all the chips of a machine with TPUs, which belong to one process, or nothing."""
    resources = ray.cluster_resources()
    chips = [node["Resources"].get("TPU", 0) for node in ray.nodes() if node["Alive"]]
    if resources.get("GPU"):
        return int(resources["GPU"]), {"num_gpus": 1}
    if any(chips):
        hosts = [count for count in chips if count]
        return len(hosts), {"resources": {"TPU": min(hosts)}}
    spread = {"num_cpus": 0, "scheduling_strategy": "SPREAD"}
    return max(1, int(resources.get("CPU", 1)) // CORES_PER_ACTOR), spread


def _settle(ledger: Ledger) -> None:
    """Waits until what actors have written is seen here."""
    until = time.monotonic() + SETTLE_SECONDS
    while missing := ledger.missing():
        if time.monotonic() > until:
            raise LensjaxError(
                f"{_words(missing[0])} were scored by an actor, but are not in {ledger.folder}: "
                "--output must be on storage that all machines of the cluster share"
            )
        time.sleep(1.0)


def _ends(rows: range) -> list[int]:
    return [rows.start, rows.stop]


def _words(rows: range) -> str:
    return f"the rows {rows.start} to {rows.stop}"
