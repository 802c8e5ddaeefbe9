"""What graders have said of cutouts, as the pages on which they grade export it."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lensjax.data.formats.tables import read_table, standardise, texts
from lensjax.errors import UsageError
from lensjax.labels import GRADES

NAMES = [grade for grade in GRADES if grade]


class Grade(NamedTuple):
    """What somebody says of a cutout: a grade ("" for none), the kind of impostor, and when."""

    id: str
    grader: str
    grade: str
    kind: str
    time: datetime
    ra: float
    dec: float


def read_grades(path: Path) -> Iterator[Grade]:
    """Yields the grades of a file that a page has exported. Where it names no grader, the file's
    name stands for one.

    Raises UsageError for a file without the columns id and grade, and for what is no grade, place
    or time.
    """
    table = standardise(read_table(path), str(path))
    if missing := [name for name in ("id", "grade") if name not in table.colnames]:
        raise UsageError(f"{path} has no column {' and '.join(missing)}: give what a page exports")
    empty, nowhere = [""] * len(table), np.full(len(table), np.nan)
    names = ("id", "grader", "grade", "class", "time")
    columns = [list(texts(table[name])) if name in table.colnames else empty for name in names]
    places = [table[name].tolist() if name in table.colnames else nowhere for name in ("ra", "dec")]
    for id_, grader, grade, kind, time, *place in zip(*columns, *places, strict=True):
        if grade.upper() not in GRADES:
            raise UsageError(
                f"{path} gives {id_} the grade {grade!r}: grades are {', '.join(NAMES)}"
            )
        when = _time(time, f"{path} gives {id_}")
        yield Grade(id_, grader or path.stem, grade.upper(), kind, when, *place)


def _time(text: str, where: str) -> datetime:
    """Returns a time; one that is not given is before all others."""
    try:
        given = datetime.fromisoformat(text) if text else datetime.min
    except ValueError as error:
        raise UsageError(f"{where} the time {text!r}: write 2026-01-31T12:00:00Z") from error
    return given if given.tzinfo else given.replace(tzinfo=UTC)


def latest(given: Iterable[Grade]) -> tuple[list[Grade], list[str]]:
    """Returns the last grade that each grader gave each cutout, those without a grade left out, and
    a line for each grader of whom there were others."""
    by_cutout: dict[tuple[str, str], list[Grade]] = {}
    for grade in given:
        by_cutout.setdefault((grade.grader, grade.id), []).append(grade)
    last_of_each, replaced = [], dict.fromkeys(sorted({grader for grader, _ in by_cutout}), 0)
    for (grader, id_), grades in sorted(by_cutout.items()):
        last = max(grades, key=lambda each: (each.time, each.grade, each.kind))
        rivals = sorted({each.grade for each in grades if each.time == last.time})
        if len(rivals) > 1:
            raise UsageError(
                f"{grader} gives {id_} the grades {' and '.join(map(repr, rivals))}, of which none "
                "is the later: keep one of them"
            )
        replaced[grader] += len({each.grade for each in grades}) > 1
        last_of_each += [last] if last.grade else []
    return last_of_each, [
        f"{grader} gave several grades to {count} cutouts: the latest of each counts"
        for grader, count in replaced.items()
        if count
    ]
