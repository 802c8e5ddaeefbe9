"""What a script does before and after its command: how memory is taken, one line for an error."""

import gc
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NoReturn

from lensjax.errors import Interrupted, LensjaxError

ALLOCATION = f"glibc.malloc.hugetlb=1:glibc.malloc.arena_max={os.cpu_count() or 1}"


def run_script(command: str) -> NoReturn:
    """Runs the command of that name on the command line's arguments, and exits as `run` says."""
    set_allocation()
    # Imported here: the program may just have started anew.
    module = f"lensjax.commands.{command}"
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
    """Returns the exit status of `main`, 0, 1 (failed), 2 (wrong use) or 3 (told to end, and its
    state kept); prints what went wrong."""
    try:
        main(argv)
    except KeyboardInterrupt:
        return 130
    except SystemExit as ended:
        return int(ended.code or 0)
    except Interrupted as ended:
        print(ended, file=sys.stderr)
        return ended.status
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        if isinstance(error, LensjaxError):
            message, status = str(error), error.status
        elif isinstance(error, OSError):
            message, status = f"{error.filename or 'system'}: {error.strerror or error}", 1
        else:
            message, status = f"{type(error).__name__}: {error} (--debug shows where)", 1
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return status
    return 0


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
