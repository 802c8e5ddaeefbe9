"""Commands in processes of their own, with small networks, that a test stops and waits for."""

import contextlib
import itertools
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import numpy as np

from lensjax import launch, runtime
from tests import networks

LIMIT_SECONDS = 300.0

# Processes begin as copies of one that has imported all there is to import.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["lensjax.cli.infer", "lensjax.cli.train", __name__])


def begin(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Returns a process that runs `target`, which has been started."""
    in_haste = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "True"
    how = in_haste, os.environ["XLA_FLAGS"]
    process = _CONTEXT.Process(target=_compiling, args=(how, target, *arguments))
    process.start()
    return process


def _compiling(how: tuple[bool, str], target: Callable[..., None], *arguments: object) -> None:
    """Compiles as the test does that began the process."""
    in_haste, os.environ["XLA_FLAGS"] = how
    jax.config.update("jax_disable_most_optimizations", in_haste)
    target(*arguments)


def ended(process: BaseProcess) -> int:
    """Returns the exit status of a process, which has ended."""
    process.join(LIMIT_SECONDS)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"still at work after {LIMIT_SECONDS} s")
    return process.exitcode


def run(main: Callable, arguments: Sequence[str], errors: Path) -> None:
    """Runs a command as its script would, in a process that ends with it."""
    runtime.set_up()
    with networks.small(), errors.open("w") as file, contextlib.redirect_stderr(file):
        sys.exit(launch.run(main, arguments))


def write_cutouts(folder: Path) -> Path:
    """Writes 96 cutouts to train on, every other with a bright square, and returns their path."""
    rng = np.random.default_rng(0)
    label = np.arange(96) % 2
    images = rng.normal(0, 1, (96, 16, 16, 1)).astype(np.float32)
    images[label == 1, 6:10, 6:10] += 2.0
    path = folder / "cutouts.npz"
    np.savez(path, images=images, label=label, id=np.arange(96), bands=np.array(["g"]))
    return path


def progress_until(
    step: int, number: int, seconds: float = 0.0
) -> Callable[..., AbstractContextManager[Callable[..., None]]]:
    """Returns what stands in for `runtime.progress` where a process is to send itself a signal at a
    step of its own, as `signal_itself` does."""

    @contextlib.contextmanager
    def progress(*_: object) -> Iterator[Callable[..., None]]:
        steps = itertools.count(1)

        def advance(*_: object, **__: object) -> None:
            if next(steps) == step:
                signal_itself(number, seconds)

        yield advance

    return progress


def signal_itself(number: int, seconds: float = 0.0) -> None:
    """Sends this process a signal, later where seconds are given. It comes when it should, however
    busy the machine is: another process may have to wait for its turn."""
    if seconds:
        threading.Timer(seconds, os.kill, (os.getpid(), number)).start()
    else:
        os.kill(os.getpid(), number)
