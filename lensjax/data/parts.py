"""Parts of the rows of a table: machines that share a survey take one each."""

from typing import NamedTuple

from astropy.table import Table

Part = tuple[int, int]
"""(K, N): the K-th, from 1, of N parts."""

WHOLE: Part = (1, 1)


class Rows(NamedTuple):
    """Some rows of a table, which they are, and how many there are in all."""

    table: Table
    rows: range
    given: int


def rows_of(part: Part, count: int, together: int = 1) -> range:
    """Returns the rows of a part of `count` rows; each so many of them, from the first, stay
    together."""
    number, of = part
    groups = -(-count // together)
    first, end = (together * (groups * at // of) for at in (number - 1, number))
    return range(min(first, count), min(end, count))
