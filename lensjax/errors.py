"""What a user sees when something cannot go on: one line, and an exit status."""

import difflib
from collections.abc import Iterable, Mapping


def one_line(error: object, length: int | None = None) -> str:
    """Returns what an error says on one line, of at most so many characters, all of them printable:
    libraries quote the bytes that they do not understand."""
    text = " ".join(str(error).split())[:length]
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


class LensjaxError(Exception):
    """A run that failed. The message is one line: what is wrong, where, what to do."""

    status = 1


class UsageError(LensjaxError):
    """A command that cannot be carried out as it was given."""

    status = 2


class Interrupted(LensjaxError):
    """A run that was asked to stop (SIGTERM, Ctrl-C) and has kept what it had done."""

    status = 3


def unknown(what: str, written: str, known: Iterable[str], advice: str = "") -> UsageError:
    """Returns the error about a name that is none of those known, with the nearest of them."""
    nearest = difflib.get_close_matches(written, list(known), n=1, cutoff=0.0)[0]
    return UsageError(f"unknown {what} '{written}'; the nearest known one is '{nearest}'{advice}")


def refuse(wrong: Mapping[str, bool]) -> None:
    """Raises UsageError with the first message that holds."""
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise UsageError(message)
