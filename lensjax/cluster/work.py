"""Which rows to hand out next: ranges that grow with what a worker manages, shrink towards the end
so that nobody idles, and are halved where they keep ending their worker."""

from dataclasses import dataclass

# A range should take a worker so long: what it costs to begin one is then lost in the noise, and
# little is done again when the worker dies.
RANGE_SECONDS = 20.0
FIRST_ROWS = 256
MOST_KILLS = 3


@dataclass(frozen=True)
class Range:
    """Rows that belong together, and how many workers have died of them."""

    rows: range
    kills: int = 0


class Work:
    """The rows that nobody is at, in order, to be scored by so many workers."""

    def __init__(self, missing: list[range], workers: int) -> None:
        self._ranges = [Range(rows) for rows in missing]
        self._workers = workers

    def __len__(self) -> int:
        return sum(len(each.rows) for each in self._ranges)

    def take(self, per_second: float | None = None, batch: int = 1) -> Range:
        """Returns the next rows for a worker that manages so many per second in batches of a size,
        both of which are known once it has scored a range."""
        wanted = FIRST_ROWS if per_second is None else per_second * RANGE_SECONDS
        fair = len(self) / (2 * self._workers) if self._workers > 1 else len(self)
        count = max(1, round(min(wanted, fair) / batch)) * batch
        first = self._ranges.pop(0)
        # What has ended a worker is handed out as it is.
        if first.kills or len(first.rows) <= count:
            return first
        self._ranges.insert(0, Range(first.rows[count:]))
        return Range(first.rows[:count])

    def give_back(self, taken: Range, missing: list[range]) -> list[int]:
        """Takes back what is `missing` of a range whose worker has died, and returns the rows that
        have ended too many.

        The third time the range is halved; then each death halves what is left, down to one row.
        That has three tries of its own, for its worker may have died of something else.
        """
        at_fault: list[int] = []
        again: list[Range] = []
        for rows in missing:
            kills = taken.kills + 1
            if kills < MOST_KILLS:
                again.append(Range(rows, kills))
            elif len(rows) == 1:
                at_fault.append(rows.start)
            else:
                middle = len(rows) // 2
                again += [_half(rows[:middle]), _half(rows[middle:])]
        self._ranges = again + self._ranges
        return at_fault


def _half(rows: range) -> Range:
    return Range(rows, MOST_KILLS - 1 if len(rows) > 1 else 0)
