"""Options: order of precedence, and one clear line for what is wrong."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from lensjax import config
from lensjax.errors import UsageError


@dataclass(frozen=True)
class Options:
    batch_size: int = 128
    """Cutouts per step."""
    ensemble: str = "resnet18"
    """Members."""
    fusion: Literal["stacked", "mean_prob"] = "stacked"
    """How."""
    budget: int | Literal["auto"] = "auto"
    """Bytes."""
    data: Path | None = None
    """Cutouts."""
    resume: bool = True
    """Go on."""
    rate: float = 0.1
    """Learning rate, 100 % of it."""
    seed: int = 0
    """Of the noise."""
    name: str | None = None
    """Of the run (None: its number)."""


def parse(*argv: str) -> Options:
    return config.parse(Options, argv, description="", spellings={"models": "ensemble"})


def test_defaults_then_file_then_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("batch-size: 64\nrate: 1e-3\nfusion: mean_prob\nresume: false\ndata: sky.npz\n")
    options = parse("--config", str(file), "--batch-size", "32")
    assert options == Options(
        batch_size=32, rate=1e-3, fusion="mean_prob", resume=False, data=Path("sky.npz")
    )


def test_of_several_files_the_last_one_counts(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("batch_size: 64\nrate: 0.5\n")
    second.write_text("batch_size: 32\n")
    found = parse("--config", str(first), "--config", str(second))
    assert found == Options(batch_size=32, rate=0.5)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("models: vit_b16", "ensemble", "vit_b16"),
        ("seed: 010", "seed", 10),
        ("seed: 1_000", "seed", 1000),
        ("name: 12:30", "name", "12:30"),
        ("name: 2024-01-01", "name", "2024-01-01"),
        ("name: 'no'", "name", "no"),
        ("name: ~", "name", None),
        ("resume: Off", "resume", False),
    ],
)
def test_a_file_says_what_the_command_line_would(tmp_path, line, field, value):
    """YAML's own reading of some of these is another number or type."""
    file = tmp_path / "run.yaml"
    file.write_text(line)
    assert getattr(parse("--config", str(file)), field) == value


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
        (["--batch-size", "many"], "--batch-size: invalid literal for int() with base 10: 'many'"),
        (
            ["--budget", "some"],
            "--budget: no type matching INT|{auto} could be",
        ),
        (
            ["--fusion", "mode"],
            "choice 'mode' for argument '--fusion'. Expected one of ('stacked', 'm",
        ),
        (["--data", ""], "--data is given an empty value: is a variable not set?"),
        (["--resume", "no"], "option 'no'; the nearest known one is '--no-resume': a value with"),
        (["--rate", "nan"], "--rate: 'nan' is not a finite number"),
        (["--rate=-1e999"], "--rate: '-inf' is not a finite number"),
        (["--batch-size", "1" + 30 * "0"], "is too large: 2147483647 is the limit"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--seed", str(2**32)], "is too large"),
        (["--config", "nowhere.yaml"], "cannot read the config nowhere.yaml: No such file"),
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
        ("batch_size: many", "run.yaml: --batch-size: invalid literal for int()"),
        ("resume: 3", "run.yaml: "),
        ("rate: 1\nresume: [yes]", "line 2: resume: give one value"),
        ("rate: {a: b}", "rate: give one value"),
        ("batch_size: [1, 2]", "batch_size: give one value"),
        ("batch_size: yes", "--batch-size: invalid literal for int() with base 10: 'yes'"),
        ("batch_size:", "--batch-size: invalid literal for int() with base 10: 'None'"),
        ("rate: .nan", "--rate: could not convert string to float: '.nan'"),
        ("rate: nan", "rate: 'nan' is not a finite number"),
        ("seed: 5\nrate: 1\nseed: 6", "line 3: seed is there already"),
        ("batch_size: 5\nbatch-size: 6", "line 2: batch-size is there already"),
        ("models: a\nensemble: b", "line 2: ensemble is there already"),
        ("[a]: 5", "unknown key 'a list'"),
        ("seed: 5\n---\nseed: 6", "cannot read the config"),
        ("- a\n- b", "must hold `key: value` lines"),
        ("a: [", "cannot read the config"),
        (2000 * "[", "cannot read the config"),
        ("data: !!python/object/apply:os.system ['echo']", "data: give one value"),
        ("data: !!python/name:os.system", "data: give one value"),
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
    for words in ("--batch-size INT", "(default: 128)", "--no-resume", "(default: None)", "100 %"):
        assert words in shown
    assert "Of the noise. (default: 0)" in shown and "--config FILE" in shown
