"""What is measured: the cases, and the programs that do the same work in each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FLOAT32, BFLOAT16 = {"precision": "float32"}, {"precision": "bfloat16"}


@dataclass(frozen=True)
class Implementation:
    """A row of a table: `entry` is module:function."""

    name: str
    entry: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """Implementations of the work that `settings` describe, the first of them lensjax."""

    name: str
    settings: Mapping[str, Any]
    rows: tuple[Implementation, ...]


# The loop is how older systems ran an ensemble: model by model, each dropout sample a full pass.
# torch.compile, like lensjax, runs each backbone once and only the head once a sample.
SCORING = (
    Implementation("lensjax", "benchmarks.ours:scoring", FLOAT32),
    Implementation("PyTorch loop", "benchmarks.torch_programs:scoring", {"loop": True}),
    Implementation("torch.compile", "benchmarks.torch_programs:scoring", FLOAT32),
)
SCORING_BFLOAT16 = (
    Implementation("lensjax bfloat16", "benchmarks.ours:scoring", BFLOAT16),
    Implementation("torch.compile bfloat16", "benchmarks.torch_programs:scoring", BFLOAT16),
)
TRAINING = (
    Implementation("lensjax", "benchmarks.ours:training"),
    Implementation("PyTorch", "benchmarks.torch_programs:training"),
)


def all_cases(batch: int, samples: int, bfloat16: bool) -> list[Case]:
    """Returns the cases. At 224 px batches are an eighth, in training a quarter of `batch`."""
    rows = SCORING + (SCORING_BFLOAT16 if bfloat16 else ())
    pair, four = ("resnet18.0", "vit_b16.0"), tuple(f"resnet18.{seed}" for seed in range(4))
    cases = []
    for size, images in {64: batch, 224: max(1, batch // 8)}.items():
        for name, members in {"resnet18 + vit_b16": pair, "4 resnet18": four}.items():
            work = {"members": members, "size": size, "batch": images, "samples": samples}
            cases.append(Case(f"{name} at {size} px", work, rows))
        work = {"name": "resnet18.0", "size": size, "batch": max(1, images // 4)}
        cases.append(Case(f"resnet18 training step at {size} px", work, TRAINING))
    return cases


def quick_case() -> Case:
    """Returns a small case that shows whether everything runs."""
    work = {"members": ("resnet18.0", "resnet18.1"), "size": 32, "batch": 4, "samples": 3}
    return Case("2 resnet18 at 32 px", work, SCORING)


def reading(folders: Mapping[str, str], size: int, batch: int) -> list[Case]:
    """Returns the cases of reading, batching and stretching FITS files, and of ArrayRecord shards
    instead of the files that they were made of."""
    peer = Implementation(
        "DataLoader", "benchmarks.torch_programs:cutouts", {"folder": folders["fits"]}
    )
    ours = {
        kind: Implementation("lensjax", "benchmarks.reading:cutouts", {"folder": folder})
        for kind, folder in folders.items()
    }
    work = {"size": size, "batch": batch}
    return [Case(f"reading {kind} at {size} px", work, (row, peer)) for kind, row in ours.items()]
