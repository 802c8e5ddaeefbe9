"""What is measured: the cases, and the programs that do the same work in each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

READING_SIZE = 64


class Ratio(NamedTuple):
    """The median of the ratios within rounds and, from `low` to `high`, its 95 % interval; with
    fewer than six rounds, which bound no such interval, all of them."""

    median: float
    low: float
    high: float


@dataclass
class Row:
    """A program, module:function, with its own `options`, and what was measured of it.

    `note` says why where there are no figures. `rates`: images per second, one a round. `speedup`:
    of the first row over this one. `difference`: the largest from the first row's outputs, in
    `unit`.
    """

    name: str
    program: str
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    batch: float = 0
    rates: list[float] = field(default_factory=list)
    speedup: Ratio | None = None
    peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    compile_seconds: float = 0.0
    difference: float | None = None
    unit: str = ""
    agrees: bool = True


class Case(NamedTuple):
    """Programs that do the work that `settings` describe, the first of them lensjax."""

    name: str
    settings: Mapping[str, Any]
    rows: Sequence[Row]


def scoring(members: Sequence[str], size: int, batch: int, samples: int, bfloat16: bool) -> Case:
    """Returns the case of an ensemble, `name.seed` each, that scores images of `size` pixels.

    The loop is how older systems ran an ensemble: model by model, each dropout sample a full pass.
    torch.compile, like lensjax, runs each backbone once and only the head once a sample.
    """
    rows = []
    for precision in ["float32", "bfloat16"] if bfloat16 else ["float32"]:
        ours, theirs = "benchmarks.ours:scoring", "benchmarks.torch_programs:scoring"
        rows.append(Row(f"lensjax, {precision}", ours, {"precision": precision}))
        for peer, loop in {"PyTorch loop": True, "torch.compile": False}.items():
            options: dict[str, Any] = {"precision": precision, "loop": loop}
            rows.append(Row(f"{peer}, {precision}", theirs, options))
    work = {"members": members, "size": size, "batch": batch, "samples": samples}
    architectures = Counter(member.split(".")[0] for member in members)
    names = [name if count == 1 else f"{count} {name}" for name, count in architectures.items()]
    return Case(f"{' + '.join(names)} at {size} px", work, rows)


def training(size: int, batch: int) -> Case:
    """Returns the case of training steps of a resnet18."""
    rows = [Row("lensjax", "benchmarks.ours:training")]
    rows.append(Row("PyTorch", "benchmarks.torch_programs:training"))
    work = {"name": "resnet18.0", "size": size, "batch": batch}
    return Case(f"training step of resnet18 at {size} px", work, rows)


def reading(kind: str, folder: Path, batch: int) -> Case:
    """Returns the case of reading, batching and stretching `fits` files, or the `shards` that were
    made of them, for which PyTorch has the files."""
    rows = [Row("lensjax", "benchmarks.reading:cutouts", {"folder": str(folder / kind)})]
    files = {"folder": str(folder / "fits")}
    rows.append(Row("DataLoader", "benchmarks.torch_programs:cutouts", files))
    work = {"size": READING_SIZE, "batch": batch}
    return Case(f"reading {kind} at {READING_SIZE} px", work, rows)


def all_cases(folder: Path, batch: int, samples: int, bfloat16: bool) -> list[Case]:
    """Returns the cases. At 224 px batches are an eighth, in training a quarter of `batch`."""
    pair, four = ["resnet18.0", "vit_b16.0"], [f"resnet18.{seed}" for seed in range(4)]
    cases = []
    for size, images in {64: batch, 224: max(1, batch // 8)}.items():
        cases += [scoring(each, size, images, samples, bfloat16) for each in (pair, four)]
        cases.append(training(size, max(1, images // 4)))
    return cases + [reading(kind, folder, batch) for kind in ("fits", "shards")]
