"""The benchmark's result as Markdown."""

import statistics
from collections.abc import Iterator, Sequence

from lensjax.benchmark.arena import Block, Ratio, Row, paired
from lensjax.benchmark.cases import Goal

HEADS = (
    "contender",
    "images/s",
    "ratio",
    "peak memory",
    "on device",
    "compile",
    "share of product rate",
    "difference",
)

# What is measured of a row without another.
ALONE = {
    "rate": "rate a second",
    "share": "share of product rate",
    "growth": "growth of peak memory",
}


def block_lines(block: Block) -> Iterator[str]:
    """Yields the table of one block."""
    yield f"### {block.title}"
    yield ""
    yield f"Ratios over {block.reference}{_products(block)}."
    yield ""
    yield from _table(HEADS, [_cells(row) for row in block.rows if row.rates])
    yield ""
    silent = [f"- {row.name}: {row.note}" for row in block.rows if not row.rates]
    yield from [*silent, ""] if silent else ()


def goal_lines(goals: Sequence[Goal], blocks: Sequence[Block]) -> Iterator[str]:
    """Yields the table of those goals whose rows have been measured."""
    cells = []
    for goal in goals:
        reached = measured(goal, blocks)
        if reached is not None:
            met = (reached.median >= goal.bound) == goal.is_met_above
            sign = "at least" if goal.is_met_above else "at most"
            than = f"{goal.what} over {goal.than}" if goal.than else ALONE[goal.what]
            wanted = f"{sign} {goal.bound:.3g}"
            cells.append((goal.block, goal.row, than, wanted, _ratio(reached), _yes(met)))
    if cells:
        yield "### Goals"
        yield ""
        yield from _table(("case", "row", "measure", "wanted", "measured", "met"), cells)
        yield ""


def measured(goal: Goal, blocks: Sequence[Block]) -> Ratio | None:
    """Returns the ratio that `goal` speaks of, None where a row of it has no figures."""
    rows = {row.name: row for block in blocks if block.title == goal.block for row in block.rows}
    row, than = rows.get(goal.row), rows.get(goal.than)
    if row is None or not row.rates:
        return None
    if goal.what == "share":
        return row.share
    if goal.what == "growth":
        return _of_peaks(row.peak_bytes, row.first_peak_bytes) if row.rates[1:] else None
    if goal.what == "rate" and not goal.than:
        return paired(row.rates, [1.0] * len(row.rates))
    if than is None or not than.rates:
        return None
    if goal.what == "rate":
        return paired(row.rates, than.rates)
    return _of_peaks(row.peak_bytes, than.peak_bytes)


def _of_peaks(peak: int | None, other: int | None) -> Ratio:
    assert peak is not None and other is not None
    return Ratio(*(peak / other,) * 3)


def _products(block: Block) -> str:
    if not block.products:
        return ""
    return f"; matrix products at {statistics.median(block.products) / 1e9:.0f} GFLOP/s"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.name} (batch {row.batch})" if row.batch else row.name,
        f"{row.images_per_second:.4g}",
        _ratio(row.ratio),
        _bytes(row.peak_bytes),
        _bytes(row.device_peak_bytes),
        f"{row.compile_seconds:.1f} s",
        "" if row.share is None else f"{row.share.median:.0%}",
        _difference(row),
    )


def _difference(row: Row) -> str:
    if row.difference is None:
        return ""
    text = f"{row.difference:.1f} sigma" if row.in_standard_errors else f"{row.difference:.1e}"
    return text if row.agrees else f"{text} DISAGREES"


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    if ratio.low == ratio.high:
        return f"{ratio.median:.3g}"
    return f"{ratio.median:.3g} ({ratio.low:.3g} to {ratio.high:.3g})"


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.0f} MiB"


def _yes(met: bool) -> str:
    return "yes" if met else "NO"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a Markdown table, columns aligned; those with nothing in are left out."""
    kept = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    cells = [[row[i] for i in kept] for row in (heads, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(kept))]
    for number, row in enumerate(cells):
        yield "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        if number == 0:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
