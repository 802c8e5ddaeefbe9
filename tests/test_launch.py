"""How a script ends, and that it starts anew with large pages just once."""

import gc
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
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 1


def test_a_pipe_that_breaks_elsewhere_is_no_secret(capsys):
    def main(argv):
        raise BrokenPipeError(32, "Broken pipe", "reader 3")

    assert launch.run(main, []) == 1
    assert capsys.readouterr().err == "error: reader 3: Broken pipe\n"


def test_an_import_is_not_searched_for_garbage_and_what_follows_is(tmp_path, monkeypatch):
    (tmp_path / "asks_whether.py").write_text("import gc\nsearched = gc.isenabled()\n")
    (tmp_path / "fails.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert not launch.imported("asks_whether").searched and gc.isenabled()
        with pytest.raises(ZeroDivisionError):
            launch.imported("fails")
        assert gc.isenabled()
    finally:
        gc.unfreeze()


PROGRAM = """
import os, sys
from lensjax import launch

print("starts", flush=True)
launch.set_allocation()
print(os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:])
"""


def lines(tmp_path, **environment: str) -> list[str]:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    inherited = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    ended = subprocess.run(
        [sys.executable, "-u", path, "one", "--two", "three four"],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.splitlines()


@pytest.mark.skipif(launch._glibc() < (2, 35), reason="large pages are a setting since glibc 2.35")
def test_a_program_starts_anew_once_with_its_arguments(tmp_path):
    assert lines(tmp_path) == ["starts", "starts", f"{launch.ALLOCATION} one --two three four"]


def test_the_users_own_settings_stay(tmp_path):
    own = "glibc.malloc.arena_max=1"
    assert lines(tmp_path, GLIBC_TUNABLES=own) == ["starts", f"{own} one --two three four"]


def test_what_was_not_started_as_a_program_is_left_alone(monkeypatch):
    """As in a notebook that runs a script: it would lose its kernel."""
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(sys, "argv", ["scripts/infer.py"])
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("starts anew"))
    launch.set_allocation()
    assert "GLIBC_TUNABLES" not in os.environ
