"""`python -m lensjax COMMAND ...`, or `lensjax COMMAND ...` once installed: the scripts by name."""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lensjax import errors, launch


def main() -> NoReturn:
    """Runs the command that the command line names, or lists those that there are."""
    name, *arguments = sys.argv[1:] or ["--help"]
    command = name.replace("-", "_")
    if command not in commands():
        sys.exit(launch.run(listed, [name]))
    sys.argv = [f"lensjax {command}", *arguments]
    launch.run_script(command)


def listed(argv: Sequence[str]) -> None:
    """Prints a line for each command. Raises UsageError where `argv` is no wish for help."""
    known = commands()
    if argv[0] not in ("-h", "--help"):
        raise errors.unknown("command", argv[0], known)
    print("usage: lensjax COMMAND ..., with --help for the options of a command\n")
    for name, description in known.items():
        print(f"  {name:<16}{description}")


def commands() -> dict[str, str]:
    """Returns what each command does, by its name: the first line of its module, which is read
    here and not imported, for that takes seconds."""
    known = {}
    for path in sorted(Path(__file__).with_name("cli").glob("*.py")):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        script, _, description = first.partition(": ")
        if script == f"scripts/{path.name}":
            known[path.stem] = description
    return known


if __name__ == "__main__":
    main()
