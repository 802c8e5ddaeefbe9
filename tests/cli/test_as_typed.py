"""Lines that users of the PyTorch system type run as they stand."""

from pathlib import Path
from unittest.mock import MagicMock

import pytest

from lensjax import demonstration
from lensjax.cli import infer, train
from lensjax.errors import UsageError

INFER = "--models resnet18,vit_b_16 --parallel --batch-size 64 --mc-samples 10"
TRAIN = "--scales 224,448,672 --arch resnet18 --batch-size 32"


def test_infer_with_parallel_and_torchvisions_names_is_the_demonstration(
    run, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    asked = []

    def held_back(smoke: bool):
        raise UsageError(f"far enough, smoke is {smoke}")

    monkeypatch.setattr(infer, "find_members", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(demonstration, "held_back", held_back)
    ended = run(infer.main, *INFER.split())
    assert ended.error == "error: far enough, smoke is False\n"
    assert asked == [(Path("checkpoints"), "resnet18,vit_b_16")]


@pytest.mark.parametrize(("switch", "together"), [("--parallel", True), ("--no-parallel", False)])
def test_parallel_is_batch_parallel(monkeypatch, switch, together):
    kept = []
    monkeypatch.setattr(infer, "_with_defaults", lambda options: kept.append(options) or options)
    monkeypatch.setattr(infer.inference, "infer", lambda options: MagicMock())
    infer.main([switch, "--part", "1/2"])
    assert kept[0].batch_parallel is together


def test_train_with_scales_and_no_data_is_on_the_simulated_sky(run, monkeypatch):
    asked = []
    monkeypatch.setattr(train, "train", lambda options: asked.append(options) or [])
    ended = run(train.main, *TRAIN.split())
    assert ended.status == 0
    (options,) = asked
    assert (options.data, options.arch, options.batch_size) == (train.SIMULATED, "resnet18", 32)
    assert options.sizes() == [224, 448, 672]
