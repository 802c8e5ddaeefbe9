"""How a script ends."""

import os
import subprocess
import sys

import pytest

from lensjax import launch
from lensjax.errors import Interrupted, LensjaxError, UsageError


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (None, 0, ""),
        (UsageError("no such folder"), 2, "error: no such folder\n"),
        (LensjaxError("it broke"), 1, "error: it broke\n"),
        (OSError(28, "No space left on device", "out.csv"), 1, "error: out.csv: No space left"),
        (
            ZeroDivisionError("by zero"),
            1,
            "error: ZeroDivisionError: by zero (--debug shows where)",
        ),
        (KeyboardInterrupt(), 130, f"{launch.INTERRUPTED}\n"),
        (Interrupted("stopped after 3 steps"), 3, "stopped after 3 steps\n"),
    ],
)
def test_exit_status_and_message(capsys, error, status, line):
    def main(argv):
        if error:
            raise error

    assert launch.run(main, []) == status
    printed = capsys.readouterr().err
    assert printed.startswith(line) and "Traceback" not in printed
    assert printed.count("\n") == bool(error)


def test_debug_shows_where(capsys):
    assert launch.run(lambda argv: 1 / 0, ["--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


# Prints more than a pipe holds, as whole lines or in one go as `--help` does.
TALKS = """
import sys
from lensjax import launch

def main(argv):
    {what}
    print("it went on", file=sys.stderr)

sys.exit(launch.run(main, []))
"""
LINES = "[print(line, flush=True) for line in range(10**5)]"


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("what", [LINES, "print('x' * 10**6); sys.exit(0)"])
def test_a_reader_that_has_gone_ends_it_quietly(what, buffered):
    with subprocess.Popen(
        [sys.executable, "-c", TALKS.format(what=what)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": buffered},
    ) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.communicate(timeout=60)[1] == b""
        assert process.returncode == 1


def test_a_pipe_that_breaks_elsewhere_is_no_secret(capsys):
    def main(argv):
        raise BrokenPipeError(32, "Broken pipe", "reader 3")

    assert launch.run(main, []) == 1
    assert capsys.readouterr().err == "error: reader 3: Broken pipe\n"
