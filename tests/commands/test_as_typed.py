"""Lines that users of the PyTorch system type run as they stand."""

import pytest

from lensjax.commands import demo, infer
from lensjax.errors import UsageError

LINE = "--models resnet18,vit_b_16 --parallel --batch-size 64 --mc-samples 10"


def test_infer_with_parallel_and_torchvisions_names_is_the_demonstration(run, monkeypatch):
    asked = []

    def prepare(*arguments):
        asked.append(arguments)
        raise UsageError("far enough")

    monkeypatch.setattr(demo, "prepare", prepare)
    ended = run(infer.main, *LINE.split())
    assert ended.error == "error: far enough\n"
    assert asked == [("resnet18,vit_b_16", False)]


@pytest.mark.parametrize(("switch", "together"), [("--parallel", True), ("--no-parallel", False)])
def test_parallel_is_batch_parallel(monkeypatch, switch, together):
    kept = []
    monkeypatch.setattr(infer, "_with_members", lambda options: kept.append(options) or options)
    monkeypatch.setattr(infer, "infer_part", lambda options: "")
    infer.main([switch, "--part", "1/2"])
    assert kept[0].batch_parallel is together
