"""Logs the metrics of each epoch to metrics.csv and TensorBoard."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lensjax.files import replacing

COLUMNS = (
    "step",
    "epoch",
    "member",
    "size",
    "training_loss",
    "loss",
    "auroc",
    "tpr0",
    "tpr10",
    "ece",
    "images_per_second",
)


class MetricLogger:
    """The metrics of a run, one row per epoch, member and input size.

    A run that goes on at `step` keeps the rows up to there: what it had written after is written
    again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        # It brings in PyTorch where that is installed: two seconds and half a gigabyte.
        from tensorboardX import SummaryWriter

        self.path = folder / "metrics.csv"
        text = _csv([COLUMNS, *_rows_until(self.path, step)]).encode()
        with replacing(self.path) as file:
            file.write(text)
        self._events = SummaryWriter(str(folder), purge_step=step + 1)

    def close(self) -> None:
        """Ends the file of TensorBoard's events."""
        self._events.close()

    def write(self, row: Mapping[str, float]) -> None:
        """Appends a row, with all of COLUMNS."""
        with self.path.open("a") as file:
            file.write(_csv([[f"{row[name]:.6g}" for name in COLUMNS]]))
        for name in COLUMNS[4:]:
            # A scale that the step did not train at has no training loss.
            if not math.isnan(row[name]):
                tag = f"{name}/{row['size']:.0f}px-member{row['member']:.0f}"
                self._events.add_scalar(tag, row[name], int(row["step"]))
        self._events.flush()


def _rows_until(path: Path, step: int) -> list[Sequence[str]]:
    """Returns the rows of the file that are no later than `step`; the last may be torn."""
    if not path.exists():
        return []
    rows = list(csv.reader(path.read_text().splitlines()))[1:]
    return [row for row in rows if len(row) == len(COLUMNS) and int(row[0]) <= step]


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
