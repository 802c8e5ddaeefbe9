"""The progress of each actor: JSON lines, and scalars for TensorBoard."""

import json
import time
from pathlib import Path
from typing import Any

from lensjax.files import make_folder

LINES = "progress.jsonl"
SCALARS = ("images_per_second", "waiting_share", "host_memory_bytes", "device_memory_bytes")


class ProgressLog:
    """What happens in a run, an event a line, appended to `progress.jsonl` in a folder."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter  # it takes seconds where PyTorch is installed

        make_folder(folder)
        self._lines = (folder / LINES).open("a")
        self._scalars = SummaryWriter(str(folder))

    def close(self) -> None:
        """Ends both files."""
        self._lines.close()
        self._scalars.close()

    def write(self, event: str, **about: Any) -> None:
        """Appends an event, with the time in seconds since 1970."""
        print(
            json.dumps({"time": time.time(), "event": event} | about), file=self._lines, flush=True
        )

    def scored(self, done: int, left: int, actor: str, report: dict[str, Any]) -> None:
        """Appends what an actor reports of a range, when so many rows are done and left."""
        shown = {name: value for name, value in report.items() if name != "step"}
        self.write("scored", actor=actor, left=left, **shown)
        for name in SCALARS:
            if report.get(name) is not None:
                self._scalars.add_scalar(f"{name}/{actor}", report[name], done)
        self._scalars.add_scalar("rows_left", left, done)
        self._scalars.flush()
