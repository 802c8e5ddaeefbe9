"""The options of a training: which members learn what, how, and where they go."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lensjax.cluster import hosts
from lensjax.data.catalog import DataOptions
from lensjax.data.preprocess import Stretch
from lensjax.ensemble import checkpoint
from lensjax.errors import refuse
from lensjax.train.config import Hyperparameters

# As `--data`, what is no file.
SIMULATED = "simulated"


@dataclass(frozen=True)
class TrainConfig(Hyperparameters, DataOptions):
    """Options of scripts/train.py."""

    arch: str = "resnet18"
    """Architectures to train, comma separated: resnet18, resnet18_x0_25, resnet34, vit_ti16,
    vit_s16, vit_b16, light_transformer, trans_enc_s."""
    members: int = 1
    """Members of each architecture, trained together."""
    data: str | None = None
    """Labelled cutouts, as --data of infer.py takes them, or `simulated` for an endless stream of
    simulated lenses (None: simulated)."""
    sky: Path | None = None
    """YAML file of simulate.py's options, for simulated data: count is an epoch's."""
    stretch: Stretch | None = None
    """Brightness scale of the input (None: of the members to start from, else asinh)."""
    softening: float | None = None
    """Noise sigmas up to which asinh is linear (None: of the members to start from, else 2)."""
    validation_fraction: float = 0.15
    """Fraction of the groups held back for validation."""
    output: Path = Path("members")
    """Folder of the members."""
    store: checkpoint.Store = "float32"
    """How members are stored; int8 takes a quarter of the space and changes scores a little."""
    seed: int = 0
    """Seed of the first member; each further member adds 1."""
    resume: bool = True
    """Keep finished members and continue an interrupted run."""
    member_shards: int = 1
    """Distribute the members over this many devices; the others share the cutouts."""
    fsdp: int = 1
    """Distribute weights, optimiser state and averages over this many devices, which still share
    the cutouts: for networks that fill the memory of one device."""
    coordinator: str | None = None
    """Where process 0 of several runs, HOST:PORT, the same for all; `auto` asks the cluster (None:
    auto under srun, mpirun and on TPU slices of GKE, else this process trains alone)."""
    processes: int | None = None
    """Number of processes that train together; 1 for a run of its own also under srun or mpirun."""
    process: int | None = None
    """Which of the processes this is, from 0."""
    memory_budget: str = "auto"
    """Memory of a step on each device: bytes, 16GiB, or auto."""
    plan: bool = False
    """Print how much memory a step needs, write OUTPUT/plan.json and stop."""
    target: Literal["h100", "v5e"] | None = None
    """Plan for this device, which need not be present."""
    save_minutes: float = 10.0
    """Minutes between two saves of the state of the run."""
    smoke: bool = False
    """Try within a minute or two that all runs: few steps on the first cutouts of --data, or on
    small simulated ones; members go to the cache folder unless --output is given."""


def check(options: TrainConfig) -> None:
    """Raises UsageError for options that make no sense, and where processes that train together
    were given others."""
    wrong = {
        "--members must be at least 1": options.members < 1,
        "--batch-size must be at least 1": options.batch_size < 1,
        "--start-from and --grow-from exclude each other": bool(
            options.start_from and options.grow_from
        ),
        "--replay mixes its sky with graded cutouts: give --data and --start-from": bool(
            options.replay and not (options.start_from and options.data not in (None, SIMULATED))
        ),
        "--replay-share must lie between 0 and 1": not 0 < options.replay_share < 1,
        "--replay keeps what the members see, to compare them with what they were: drop --scales, "
        "--stretch and --softening": bool(
            options.replay and (options.scales or options.stretch or options.softening)
        ),
        "--replay keeps the last epoch and the shares of a batch: drop --patience and --balanced": (
            bool(options.replay and (options.patience or options.balanced))
        ),
        "--head-only learns from graded cutouts: give --replay": (
            options.head_only and options.replay is None
        ),
        "--keep-start must lie in 0..1, below 1": not 0 <= options.keep_start < 1,
        "--keep-start keeps weights of --start-from: give that too": bool(
            options.keep_start and not options.start_from
        ),
        "--teacher-weight must lie in 0..1": not 0 <= options.teacher_weight <= 1,
        f"--teachers {options.teachers} is the folder of the members to train as well: name the "
        "teachers in it, as --teacher-ensemble resnet18": (
            options.teachers is not None
            and options.teacher_ensemble is None
            and Path(options.teachers).absolute() == options.output.absolute()
        ),
        "--teacher-ensemble chooses among --teachers: give that too": (
            options.teachers is None and options.teacher_ensemble is not None
        ),
        "--teacher-features is the weight of what --teachers see, 0 or more: give these too": (
            options.teacher_features < 0 or (options.teacher_features > 0 and not options.teachers)
        ),
        "--micro-batches must be at least 1": options.micro_batches < 1,
        "--member-shards must be at least 1": options.member_shards < 1,
        "--fsdp must be at least 1": options.fsdp < 1,
        "--focusing must be 0 or at least 1": not (options.focusing == 0 or options.focusing >= 1),
        "--layer-decay must lie in 0..1, above 0": not 0 < options.layer_decay <= 1,
        "--consistency-weight must not be negative": options.consistency_weight < 0,
        "--average-decay must lie in 0..1, below 1": not 0 <= (options.average_decay or 0) < 1,
        "--epochs must be above 0": options.epochs <= 0,
        "--save-minutes must not be negative": options.save_minutes < 0,
        "--patience must be at least 1": options.patience is not None and options.patience < 1,
        "--learning-rate must be above 0": options.learning_rate <= 0,
        "--validation-fraction must lie between 0 and 1": not 0 < options.validation_fraction < 1,
        "--dropout must lie in 0..1, below 1": not 0 <= (options.dropout or 0) < 1,
        "--block-dropout must lie in 0..1, below 1": not 0 <= (options.block_dropout or 0) < 1,
        "--augment-shift must lie in 0..0.5": not 0 <= options.augment_shift <= 0.5,
        "--augment-seeing must lie in 0..10": not 0 <= options.augment_seeing <= 10,
        "--augment-zoom must lie in 0..1": not 0 <= options.augment_zoom <= 1,
        "--augment-depth must lie in 0..5": not 0 <= options.augment_depth <= 5,
        "--pictures does not go with --stretch zscale": (
            options.pictures and options.stretch == "zscale"
        ),
        "--augment-flux must not be negative": not 0 <= options.augment_flux < math.inf,
        "--augment-colour must not be negative": not 0 <= options.augment_colour < math.inf,
        "--augment-noise must not be negative": not 0 <= options.augment_noise < math.inf,
    }
    refuse(wrong)
    hosts.check_alike("options", dataclasses.asdict(options) | {"process": None})
