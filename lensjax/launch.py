"""What a script does around its command: one line for an error, and an exit status."""

import contextlib
import importlib
import io
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from lensjax.errors import Interrupted, LensjaxError

INTERRUPTED = "interrupted: what was not written yet is lost; run it again"


def run_script(command: str) -> NoReturn:
    """Runs the command of that name on the command line's arguments, and exits as `run` says."""

    def main(argv: Sequence[str]) -> None:
        from lensjax import runtime  # with JAX, which takes seconds

        runtime.set_up()
        importlib.import_module(f"lensjax.cli.{command}").main(argv)

    sys.exit(run(main, sys.argv[1:]))


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Returns the exit status of `main`; prints what went wrong.

    0; 1 where it failed, or nobody reads what it prints; 2 for wrong use; 3 where it was asked to
    end and kept its state; 130 for Ctrl-C where there was none to keep. A process that has lost
    others of its run ends before, with `hosts.START_AGAIN`.
    """
    status = 0
    try:
        main(argv)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        status = 130
    except SystemExit as ended:
        status = int(ended.code or 0)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            return 1
        if "--debug" in argv:
            traceback.print_exc()
        message, status = _said(error)
        print(" ".join(message.split()), file=sys.stderr)
    # Asked here: Python would find out as it ends, and complain.
    return 1 if _reader_has_gone() else status


def _said(error: Exception) -> tuple[str, int]:
    """Returns the message for an error, and the exit status."""
    if isinstance(error, Interrupted):
        return str(error), error.status
    if isinstance(error, LensjaxError):
        return f"error: {error}", error.status
    if isinstance(error, OSError):
        return f"error: {error.filename or 'system'}: {error.strerror or error}", 1
    return f"error: {type(error).__name__}: {error} (--debug shows where)", 1


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
