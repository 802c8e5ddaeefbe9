"""The demonstration: a small simulated sky, and members trained on it, kept in the cache folder.

It runs when scripts/infer.py is given no data, and names its members `demo` for use on other data.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from lensjax import __version__, runtime
from lensjax.ensemble import checkpoint
from lensjax.simulation import SimulateConfig, simulate_survey
from lensjax.train.config import Hyperparameters
from lensjax.training import TrainConfig, train

ENSEMBLE = "resnet18,vit_b16"


@dataclass(frozen=True)
class Demonstration:
    """What is simulated and how each kind of architecture is trained on it."""

    sky: SimulateConfig
    convolutional: Hyperparameters
    transformer: Hyperparameters
    minutes: float
    """About how long the first run takes on two cores, with both default architectures."""


# Few minutes of training ask for lenses that a person would see at once: wide rings, bright arcs.
CLEAR_ARCS = SimulateConfig(size=48, einstein_radius=1.5, arc_snr=100.0, sources="hubble", seed=1)

# A transformer of 86 million weights sees each cutout far fewer times than a resnet18 in the same
# minutes: it stays a weak member, which the fused score must know how to handle.
FULL = Demonstration(
    sky=dataclasses.replace(CLEAR_ARCS, count=6400, test_fraction=0.08),
    convolutional=Hyperparameters(batch_size=32, epochs=6.0, learning_rate=1e-3, pictures=True),
    transformer=Hyperparameters(batch_size=32, epochs=0.5, learning_rate=1e-4, pictures=True),
    minutes=12.0,
)
SMOKE = Demonstration(
    sky=dataclasses.replace(CLEAR_ARCS, count=512, test_fraction=0.25),
    convolutional=Hyperparameters(batch_size=32, epochs=2.0, pictures=True),
    transformer=Hyperparameters(batch_size=32, epochs=0.3, learning_rate=2e-4, pictures=True),
    minutes=1.0,
)


@dataclass(frozen=True)
class Prepared:
    """Where the members and the held-back cutouts of the demonstration are."""

    members: Path
    held_back: Path


def announce(ensemble: str, smoke: bool, then: str) -> str:
    """Returns what will be made for `ensemble`, what the run does `then`, and how long it takes."""
    demonstration = SMOKE if smoke else FULL
    folder = _folder(demonstration)
    members = folder / "members"
    missing = _missing(members, ensemble)
    if not missing:
        return f"Demonstration: members and held-back cutouts are in {folder}; seconds to go."
    return (
        f"Demonstration: simulates {demonstration.sky.count} cutouts, trains {', '.join(missing)}, "
        f"keeps all in {folder}, and {then}. About "
        f"{demonstration.minutes:.0f} minutes on two cores the first time, seconds after that."
    )


def prepare(ensemble: str, smoke: bool) -> Prepared:
    """Returns the demonstration's members and held-back cutouts, made first where they are not."""
    demonstration = SMOKE if smoke else FULL
    folder = _folder(demonstration)
    sky, members = folder / "sky", folder / "members"
    if not (sky / "truth.csv").exists():
        simulate_survey(dataclasses.replace(demonstration.sky, output=sky))
    for name, count in _missing(members, ensemble).items():
        hyperparameters = (
            demonstration.transformer if name.startswith("vit") else demonstration.convolutional
        )
        options = TrainConfig(
            **dataclasses.asdict(hyperparameters),
            arch=name,
            members=count,
            data=str(sky / "train.npz"),
            output=members,
        )
        for _ in train(options):
            pass
    return Prepared(members, sky / "test.npz")


def _missing(members: Path, ensemble: str) -> dict[str, int]:
    """Returns how many members each architecture of `ensemble` needs, where not all are there."""
    wanted = {name: count or 1 for name, count in checkpoint.parse_ensemble(ensemble).items()}
    return {
        name: count
        for name, count in wanted.items()
        if len(checkpoint.member_folders(members, name)) < count
    }


def _folder(demonstration: Demonstration) -> Path:
    """Returns the folder of this demonstration; another version or other settings have another."""
    said = json.dumps(dataclasses.asdict(demonstration), sort_keys=True, default=str) + __version__
    return runtime.cache_folder() / f"demo-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
