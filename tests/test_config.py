"""Options: order of precedence, and one clear line for what is wrong."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from lensjax import config
from lensjax.errors import UsageError


@dataclass(frozen=True)
class Options:
    batch_size: Annotated[int, "cutouts a step"] = 128
    ensemble: Annotated[str, "members"] = "resnet18"
    fusion: Annotated[Literal["stacked", "mean_prob"], "how"] = "stacked"
    budget: Annotated[int | Literal["auto"], "bytes"] = "auto"
    data: Annotated[Path | None, "cutouts"] = None
    resume: Annotated[bool, "go on"] = True
    rate: Annotated[float, "learning rate, 100 % of it"] = 0.1


def parse(*argv: str) -> Options:
    return config.parse(Options, argv, description="", spellings={"models": "ensemble"})


def test_defaults_then_file_then_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("batch-size: 64\nrate: 1e-3\nfusion: mean_prob\nresume: false\ndata: sky.npz\n")
    options = parse("--config", str(file), "--batch-size", "32")
    assert options == Options(
        batch_size=32, rate=1e-3, fusion="mean_prob", resume=False, data=Path("sky.npz")
    )


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--models", "vit_b16"], "ensemble", "vit_b16"),
        (["--budget", "auto"], "budget", "auto"),
        (["--budget", "5"], "budget", 5),
        (["--no-resume"], "resume", False),
        (["--rate", "2"], "rate", 2.0),
        (["--data", "a b"], "data", Path("a b")),
    ],
)
def test_values_have_their_types(argv, field, value):
    found = getattr(parse(*argv), field)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["--batchsize", "3"],
            "unknown option '--batchsize'; the nearest known one is '--batch-size'",
        ),
        (["--batch-size", "many"], "'many' is none of: N"),
        (["--fusion", "mode"], "'mode' is none of: stacked, mean_prob"),
        (["stray"], "unknown option 'stray'"),
        (["--config", "nowhere.yaml"], "cannot read the config nowhere.yaml"),
    ],
)
def test_wrong_use_is_one_line(argv, line):
    with pytest.raises(UsageError) as caught:
        parse(*argv)
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("batchsize: 3", "unknown key 'batchsize'; the nearest known one is 'batch_size'"),
        ("batch_size: many", "batch_size: 'many' is not of the type"),
        ("resume: 3", "resume: 3 is not of the type"),
        ("batch_size: [1, 2]", "is not of the type"),
        ("- a\n- b", "must hold `key: value` lines"),
        ("a: [", "cannot read the config"),
        ("x: !!python/object/apply:os.system ['echo']", "cannot read the config"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, line):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        parse("--config", str(file))
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_help_shows_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    for words in ("--batch-size N", "(default: 128)", "--no-resume", "(default: none)", "100 %"):
        assert words in shown
