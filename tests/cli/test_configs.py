"""Every file in configs/: as a whole run in small, and with its real networks as far as XLA."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from lensjax import config, demonstration, inference, training_plan, training_smoke
from lensjax.cli import infer, train
from lensjax.data import pipeline
from lensjax.data.bands import Wanted
from lensjax.data.preprocess import Preprocessing
from lensjax.data.source import Arrays, source_of_arrays
from lensjax.ensemble import checkpoint, sharding
from lensjax.ensemble import plan as ensemble_plan
from lensjax.memory import Footprint
from lensjax.simulation import SimulateConfig
from lensjax.train import plan as train_plan
from lensjax.training_config import TrainConfig
from tests import networks
from tests.cli.conftest import PREPROCESSING
from tests.ensemble.members import random_member
from tests.train import small

OPTIONS = {"infer": infer.InferConfig, "train": TrainConfig}


def command_of(path: Path) -> str:
    """Returns the command that a configuration's first lines name."""
    return re.search(rf"# python scripts/(\w+)\.py --config {path}", path.read_text())[1]


CONFIGS = sorted(Path("configs").glob("*.yaml"))
OF_TRAINING = [path for path in CONFIGS if command_of(path) == "train"]


def name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_its_options_are_those_of_its_command(path):
    options = config.parse(OPTIONS[command_of(path)], ["--config", str(path)], description="")
    assert options != OPTIONS[command_of(path)]()


@pytest.fixture(scope="module")
def members_in_small(tmp_path_factory) -> Path:
    """A folder with a member of each architecture that a configuration scores with."""
    folder = tmp_path_factory.mktemp("members")
    for architecture in ("resnet18", "vit_b16"):
        member = random_member(architecture, 0, PREPROCESSING)
        checkpoint.save_member(folder / architecture / "0", member)
    return folder


# Three of the same command take a minute each; their training step is traced below.
TRACED = ("multi_resnet18", "multi_vit_b16", "simulated")
RUN = [path for path in CONFIGS if path.stem not in TRACED]


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=name)
def test_it_runs_in_small(run, path, members_in_small, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LENSJAX_CACHE", str(tmp_path_factory.getbasetemp() / "configs"))
    monkeypatch.setattr("lensjax.train.simulated.MEASURED", 64)
    monkeypatch.setattr(
        demonstration, "SMOKE_SKY", SimulateConfig(count=40, size=32, test_fraction=1.0)
    )
    monkeypatch.setattr(training_smoke, "SMOKE_SKY", SimulateConfig(count=80, size=32))
    command = command_of(path)
    main = {"infer": infer.main, "train": train.main}[command]
    options = small.UNCHANGED if command == "train" else ("--checkpoints", members_in_small)
    ended = run(main, "--config", path, "--smoke", "--output", tmp_path / "out", *options)
    assert ended.status == 0, ended
    said = {"infer": "scored + 0 rejected", "train": ": trained; validation"}
    assert said[command] in ended.out


@pytest.fixture
def lowered(monkeypatch) -> list[str]:
    """What is planned for is lowered and not compiled: returns the programs, as they come."""
    programs: list[str] = []

    def lower(function, arguments, target=None) -> Footprint:
        programs.append(function.lower(*arguments).as_text())
        return Footprint(1, 1, 1, 0)

    for module in (ensemble_plan, train_plan):
        monkeypatch.setattr(module, "footprint", lower)
    return programs


@pytest.mark.slow
@pytest.mark.parametrize("path", OF_TRAINING, ids=name)
def test_its_training_step_is_a_program(run, path, tmp_path, lowered, monkeypatch):
    monkeypatch.setattr(training_plan, "steps_per_second", lambda *_: 1.0)
    options = config.parse(TrainConfig, ["--config", str(path)], description="")
    data = ("--data", options.data if options.data == train.SIMULATED else "None")
    scales = ("--scales", options.scales or "64")
    start = ("--start-from", "None", "--output", tmp_path)
    with networks.real():
        ended = run(train.main, "--config", path, "--plan", *data, *scales, *start)
    assert ended.status == 0, ended
    assert any("stablehlo.convolution" in text or "dot_general" in text for text in lowered)


@pytest.mark.slow
def test_the_surveys_scoring_step_is_a_program(lowered):
    options = config.parse(
        infer.InferConfig, ["--config", "configs/survey.yaml", "--batch-size", "64"], description=""
    )
    sees = Preprocessing.unnormalised(("g", "r", "i"), 224, 0.2, "asinh", 2.0)
    infos = {
        f"{architecture}.{index}": checkpoint.MemberInfo(architecture, sees, 0.2)
        for architecture, count in checkpoint.parse_ensemble(options.ensemble).items()
        for index in range(count)
    }
    members = inference.Members({}, infos, dict.fromkeys(infos), (sees,), sees.bands)
    images = np.zeros((2, 224, 224, 3), np.float32)
    arrays = Arrays(images, {}, sees.bands, 0.2)
    source = source_of_arrays(arrays, Path("zeros"), Wanted())
    with networks.real():
        input_spec = pipeline.input_spec(source, members.preprocessings, options.fit)
        mesh = sharding.mesh_of(jax.local_devices()[:1])
        inference.compile_step(members, input_spec, len(source), options, mesh)
    (text,) = lowered
    assert "64x224x224x3" in text and "bf16" in text
