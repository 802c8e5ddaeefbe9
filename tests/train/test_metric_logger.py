"""metrics.csv and TensorBoard's events of a run that is stopped and goes on."""

import csv
import math
from contextlib import closing

from tensorboardX.proto.event_pb2 import Event

from lensjax.train.metric_logger import COLUMNS, MetricLogger


def row(step: int, member: int = 0) -> dict[str, float]:
    return dict.fromkeys(COLUMNS, 0.25) | {"step": step, "member": member, "size": 64}


def steps(folder) -> list[str]:
    return [line["step"] for line in csv.DictReader((folder / "metrics.csv").open())]


def test_rows_after_the_step_that_a_run_goes_on_from_are_written_again(tmp_path):
    with closing(MetricLogger(tmp_path, 0)) as metric_logger:
        for step in (10, 20, 30):
            metric_logger.write(row(step))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("40,0.2")  # torn by a power cut
    with closing(MetricLogger(tmp_path, 20)) as metric_logger:
        assert steps(tmp_path) == ["10", "20"]
        metric_logger.write(row(30))
    assert steps(tmp_path) == ["10", "20", "30"]
    (first, *_) = csv.DictReader((tmp_path / "metrics.csv").open())
    assert tuple(first) == COLUMNS and first["auroc"] == "0.25"


def test_tensorboard_finds_the_metrics_of_each_member(tmp_path, caplog):
    with closing(MetricLogger(tmp_path, 0)) as metric_logger:
        metric_logger.write(row(10, member=1))
        metric_logger.write(row(20, member=1) | {"training_loss": math.nan})
    (events,) = tmp_path.glob("events.out.tfevents.*")
    found = {
        value.tag: (event.step, value.simple_value)
        for event in read(events.read_bytes())
        for value in event.summary.value
    }
    assert found["auroc/64px-member1"] == (20, 0.25)
    assert found["training_loss/64px-member1"] == (10, 0.25) and not caplog.records


def read(content: bytes) -> list[Event]:
    """Returns the events of a file of records: length (8), checksum (4), record, checksum (4)."""
    events = []
    while content:
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return events
