"""What a script does before and after its command: how memory is taken, one line for an error."""

import contextlib
import gc
import importlib
import io
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NoReturn

from lensjax.errors import Interrupted, LensjaxError

ALLOCATION = f"glibc.malloc.hugetlb=1:glibc.malloc.arena_max={os.cpu_count() or 1}"
INTERRUPTED = "interrupted: what was not written yet is lost; run it again"


def run_script(command: str) -> NoReturn:
    """Runs the command of that name on the command line's arguments, and exits as `run` says."""
    set_allocation()
    # Imported here: the program may just have started anew.
    module = f"lensjax.cli.{command}"
    sys.exit(run(lambda argv: imported(module).main(argv), sys.argv[1:]))


def imported(name: str) -> ModuleType:
    """Returns the module of that name, imported.

    Python searches for garbage as it goes, and what imports make is none: without the search they
    take four fifths of the time. Nor is any of it searched later.
    """
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Returns the exit status of `main`; prints what went wrong.

    0; 1 where it failed, or nobody reads what it prints; 2 for wrong use; 3 where it was told to
    end and kept its state; 130 for Ctrl-C where there was none to keep.
    """
    status = 0
    try:
        main(argv)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        status = 130
    except SystemExit as ended:
        status = int(ended.code or 0)
    except Interrupted as ended:
        print(ended, file=sys.stderr)
        status = ended.status
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            return 1
        if "--debug" in argv:
            traceback.print_exc()
        message, status = _said(error)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    # Asked here: Python would find out as it ends, and complain.
    return 1 if _reader_has_gone() else status


def _said(error: Exception) -> tuple[str, int]:
    """Returns what a user is told of an error, and the exit status."""
    if isinstance(error, LensjaxError):
        return str(error), error.status
    if isinstance(error, OSError):
        return f"{error.filename or 'system'}: {error.strerror or error}", 1
    return f"{type(error).__name__}: {error} (--debug shows where)", 1


def _reader_has_gone() -> bool:
    """Returns whether nobody reads what is printed any more, as after `| head`; it is dropped."""
    gone = False
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
        with contextlib.suppress(io.UnsupportedOperation):  # no file, as in a notebook
            pipe = select.poll()
            pipe.register(stream.fileno(), 0)
            if any(event & select.POLLERR for _, event in pipe.poll(0)):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                gone = True
    return gone


def set_allocation() -> None:
    """Starts the program anew, once, with large pages for large arrays and an arena a core.

    XLA takes memory for those anew in each step, and each page of it is a fault. With pages of
    2 MiB instead of 4 KiB a training step of a resnet18 on 128 pixels takes 0.84 of the time, and
    adding a number to an array of 77 MB a quarter. Of the eight arenas a core that there would be,
    each keeps what has been freed in it: scoring with one a core peaks 50 MiB lower. The C library
    reads the settings when a program starts. Nothing is done where it is not glibc 2.35 or newer,
    where its settings are the user's, and where this is not the program that was started.
    """
    if "GLIBC_TUNABLES" in os.environ or sys.argv[0] not in sys.orig_argv or _glibc() < (2, 35):
        return
    os.environ["GLIBC_TUNABLES"] = ALLOCATION
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _glibc() -> tuple[int, ...]:
    """Returns the version of the C library, (0,) where it is another one."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, ValueError):
        return (0,)
    return tuple(map(int, version.split("."))) if name == "glibc" else (0,)
