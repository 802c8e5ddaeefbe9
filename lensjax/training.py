"""Training members, from the options to members on disk; and the plan of a training's memory."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from lensjax import config, results, runtime
from lensjax.cluster import hosts
from lensjax.data import pipeline
from lensjax.data.catalog import DataOptions
from lensjax.data.identity import content_sha256
from lensjax.data.noise_free import noise_of
from lensjax.data.on_device import ImageSpec, Transform
from lensjax.data.planes import Cutout, Unreadable
from lensjax.data.preprocess import Preprocessing, Stretch, geometry
from lensjax.data.source import Source
from lensjax.ensemble import checkpoint, sharding
from lensjax.errors import UsageError, refuse
from lensjax.files import make_folder, standing_folders
from lensjax.memory import find_target, in_gib
from lensjax.simulation import SimulateConfig, simulate_survey, sources_of, survey_of
from lensjax.train import finetune, snapshots
from lensjax.train.config import Hyperparameters
from lensjax.train.data import Labelled, first_of_each_class, read_labelled, split
from lensjax.train.head import learn_head
from lensjax.train.loop import train_members
from lensjax.train.plan import budget_bytes, plan_training, steps_per_second
from lensjax.train.replay import Replayed, replayed
from lensjax.train.setup import TrainingData, member_info, set_up, training_record
from lensjax.train.simulated import Simulated, Sky, simulated
from lensjax.train.verdict import judged, sentence

LEFT_OUT = "left out (unreadable, blank, of weight 0 or without a label)"
# As `--data`, what is no file.
SIMULATED = "simulated"

SMOKE_SKY = SimulateConfig(count=160, size=48)


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


def announcement(options: TrainConfig) -> str:
    """Returns one line: what a training without --data trains on, and how long it is."""
    sky = _sky_options(options)
    survey, batch = survey_of(sky), options.batch_size
    own_size = _preprocessing(options, survey.bands, survey.size, survey.pixel_scale).input_size
    sizes = ", ".join(map(str, sorted(options.sizes()) or [own_size]))
    steps = max(1, round(options.epochs * (sky.count // batch)))
    return (
        f"No --data: trains on simulated cutouts without end, as {survey.name} sees them "
        f"({', '.join(survey.bands)}; {survey.size}x{survey.size} pixels), at {sizes} pixels: "
        f"{steps} steps of {batch} cutouts. The progress says how long that takes on this machine, "
        "--plan how much memory; --epochs makes it shorter."
    )


def shrunk(options: TrainConfig, given: Collection[str]) -> TrainConfig:
    """Returns the options of a run of a minute or two that goes the same way; `given` are those of
    the command line.

    At most two scales, small ones, and two members of each architecture, and neither weights to
    start from nor a budget: these belong to the devices of the run. Data that a config names
    may not be there yet: small simulated ones stand in for them.
    """
    folder, is_own = runtime.cache_folder() / "smoke", "--output" in given
    data = options.data
    if data not in (None, SIMULATED) and "--data" not in given and not Path(data).exists():
        print(f"{data} is not there: small simulated cutouts instead", file=sys.stderr)
        data = None
    options = dataclasses.replace(options, bands=None, pixel_scale=None) if not data else options
    if data is None:
        data = str(folder / "train.npz")
        if not (folder / "truth.csv").exists():
            simulate_survey(dataclasses.replace(SMOKE_SKY, output=folder))
    sizes = (32, 48)[: len(options.sizes())]
    return dataclasses.replace(
        options,
        data=data,
        scales=",".join(map(str, sizes)) or None,
        members=min(options.members, 2),
        batch_size=8,
        micro_batches=min(options.micro_batches, 2),
        epochs=0.4,
        validation_fraction=0.25,
        memory_budget="auto",
        start_from=None,
        replay=None,
        keep_start=0.0,
        grow_from=None,
        teachers=None,
        output=options.output if is_own else folder / "members",
        resume=options.resume and is_own,
    )


@dataclass(frozen=True)
class Trained:
    """A member that is there now. `is_new` is False where an earlier run had trained it."""

    folder: Path
    info: checkpoint.MemberInfo
    is_new: bool
    counts: str

    def summary(self) -> str:
        """Returns where the member is and how it did on its validation data, and a second line on
        held-back grades where it learned from others."""
        found = {name: self.info.metrics[name]["value"] for name in ("auroc", "tpr0", "tpr10")}
        shown = ", ".join(f"{name.upper()} {value:.4f}" for name, value in found.items())
        how = "trained" if self.is_new else "was there"
        said = [f"{self.folder}: {how}; validation {shown}; {self.counts}"]
        if self.info.verdict:
            said.append(f"{self.folder} {sentence(self.info.verdict)}")
        return "\n".join(said)


def train(options: TrainConfig) -> Iterator[Trained]:
    """Yields each member as soon as it is on disk, `OUTPUT/<architecture>/<seed>/`.

    Raises UsageError for data without labels, unknown architectures, and a folder that holds
    another member.
    """
    if options.target is not None:
        raise UsageError("--target is for --plan: a run is planned for the devices that it is on")
    _check(options)
    architectures = list(checkpoint.parse_ensemble(options.arch))
    training, validation, counts = _data(options)
    for architecture in architectures:
        yield from _team(options, training, validation, architecture, counts)


def _data(options: TrainConfig) -> tuple[TrainingData, Labelled, str]:
    """Returns what is trained on, what validates, and their numbers in words."""
    if options.data in (None, SIMULATED):
        endless, validation = _simulated(options)
        counts = f"{len(endless)} simulated cutouts per epoch, {len(validation)} for validation"
        return endless, validation, counts
    if options.replay is not None:
        return _replayed(options, options.replay)
    source, preprocessing = _opened(options)
    if options.smoke:
        source = first_of_each_class(source, SMOKE_SKY.count // 2)
    data = _read(options, source, preprocessing)
    if data.threads:
        print(
            f"more cutouts than the memory holds: each batch reads its own from {options.data}; "
            "fastest from shards, which infer.py --pack writes",
            file=sys.stderr,
        )
    training, validation = split(data, options.validation_fraction)
    counts = f"{len(training)} cutouts, {len(validation)} for validation"
    counts += f", {len(source) - len(data)} {LEFT_OUT}"
    if data.flagged:
        counts += f"; {data.flagged} of those kept have no data in some band"
    return training, validation, counts


def _read(options: DataOptions, source: Source, preprocessing: Preprocessing) -> Labelled:
    """Returns the labelled cutouts of a source, and what they are."""
    data = read_labelled(source, preprocessing, options.fit)
    origin = options.of_data() | {"data_sha256": content_sha256(source)}
    return dataclasses.replace(data, origin=origin)


def _replayed(options: TrainConfig, sky: str) -> tuple[Replayed, Replayed, str]:
    """Returns what `_data` does: the graded cutouts of `--data` mixed with those of a known sky, as
    the members to start from see them."""
    preprocessing = finetune.seen_by(_starts(options))
    of_sky = dataclasses.replace(options, bands=None, pixel_scale=None, format="auto")

    def read(which: TrainConfig, data: str) -> tuple[Labelled, str]:
        source = which.opened(data, preprocessing.bands)
        pipeline.check_fields(source, (preprocessing,), options.fit)
        found = _read(which, source, preprocessing)
        return found, f"{len(source) - len(found)} {LEFT_OUT}"

    (graded, not_graded), (known, not_known) = read(options, str(options.data)), read(of_sky, sky)
    training, validation = replayed(
        graded, known, options.replay_share, options.validation_fraction, preprocessing
    )
    counts = (
        f"{training.graded} graded cutouts and {len(training) - training.graded} replayed, "
        f"{validation.graded} and {len(validation) - validation.graded} for validation; of those "
        f"graded {not_graded}, of the others {not_known}"
    )
    return training, validation, counts


def _starts(options: TrainConfig) -> list[Path]:
    """Returns the folders of the members that those to train start from."""
    seeds = range(options.seed, options.seed + options.members)
    of_each = [finetune.origins(options, each) for each in checkpoint.parse_ensemble(options.arch)]
    return list(dict.fromkeys(f[seed % len(f)] for f in of_each for seed in seeds if f))


def _simulated(options: TrainConfig) -> tuple[Simulated, Labelled]:
    """Returns the endless training set that `--sky` describes, and its validation set."""
    sky = _sky_options(options)
    survey, stamps = survey_of(sky), sources_of(sky)
    if stamps is not None and sky.test_fraction:
        stamps, _ = stamps.split(sky.test_fraction, "test")  # as simulate.py does it
    return simulated(
        Sky(survey, sky.lens_fraction, sky.seed, stamps),
        sky.count,
        round(options.validation_fraction * sky.count),
        _preprocessing(options, survey.bands, survey.size, survey.pixel_scale),
    )


def _sky_options(options: TrainConfig) -> SimulateConfig:
    """Returns the options of simulate.py that `--sky` gives.

    Raises UsageError for options that do not go with them.
    """
    given = [] if options.sky is None else ["--config", str(options.sky)]
    sky = config.parse(SimulateConfig, given, description="")
    wrong = {
        "--bootstrap wants cutouts that return; simulated ones do not": options.bootstrap,
        f"{options.sky}: noise_free is for simulate.py: no cutout of --data {SIMULATED} returns": (
            sky.noise_free
        ),
        f"{options.sky}: backgrounds are for simulate.py, not for --data {SIMULATED}": (
            sky.backgrounds is not None
        ),
    }
    refuse(wrong)
    if options.smoke:
        sky = dataclasses.replace(sky, count=SMOKE_SKY.count, size=SMOKE_SKY.size)
    return sky


def _team(
    options: TrainConfig,
    training: TrainingData,
    validation: Labelled,
    architecture: str,
    counts: str,
) -> Iterator[Trained]:
    """Yields the members of an architecture, those that were there and those trained now.

    Raises UsageError where a folder holds a member that was trained otherwise.
    """
    hyperparameters = _hyperparameters(options)
    folder, missing = options.output / architecture, []
    wanted = range(options.seed, options.seed + options.members)
    for seed in wanted:
        info = _kept(
            folder / str(seed),
            options,
            training_record(hyperparameters, training, architecture),
            training,
        )
        if info is None:
            missing.append(seed)
        else:
            yield Trained(folder / str(seed), info, False, counts)
    if not missing:
        return
    folders = finetune.origins(hyperparameters, architecture)
    new = member_info(training, architecture, hyperparameters)
    if folders:
        print(finetune.account(folders, new), file=sys.stderr)
    seeds = _seeds_of_run(folder / "runs", wanted, missing) if options.resume else missing
    run = folder / "runs" / "-".join(map(str, seeds))
    if options.head_only:
        assert isinstance(training, Replayed) and isinstance(validation, Replayed)
        of_seeds = ((folders[seed % len(folders)], new, seed) for seed in seeds)
        members = [learn_head(*each, training, validation) for each in of_seeds]
    else:
        members = train_members(
            *(training, validation, architecture, hyperparameters, seeds, run),
            mesh=sharding.mesh_of(jax.devices(), options.member_shards, options.fsdp),
            memory_budget=options.memory_budget,
            resume=options.resume,
            save_seconds=60 * options.save_minutes,
        )
    for seed, member in zip(seeds, members, strict=True):
        if seed in missing:
            if isinstance(validation, Replayed):
                member = judged(member, folders[seed % len(folders)], validation)
            info = member.info
            if hosts.is_first():
                info = checkpoint.save_member(folder / str(seed), member, options.store)
            if info.verdict and hosts.is_first():
                results.write_json(run / f"verdict-{seed}.json", info.verdict)
            yield Trained(folder / str(seed), info, True, counts)
    if hosts.is_first():
        snapshots.discard(run)
    hosts.wait_for_all(f"members in {folder}")


def _seeds_of_run(runs: Path, wanted: Sequence[int], missing: list[int]) -> list[int]:
    """Returns the seeds to train together: those of a run that was stopped and has all that are
    missing, else the missing.

    Raises UsageError where a run was stopped that shares but some of them.
    """
    for folder in sorted(runs.glob("*")):
        seeds = snapshots.seeds_under_way(folder)
        if set(seeds).isdisjoint(missing):
            continue
        if set(missing) <= set(seeds) <= set(wanted):
            return seeds
        raise UsageError(
            f"{folder} holds a stopped training of the seeds {', '.join(map(str, seeds))}: "
            f"--seed {min(seeds)} --members {len(seeds)} goes on with it; delete that folder to "
            "train others"
        )
    return missing


def make_plan(options: TrainConfig) -> str:
    """Returns the table of what a training step needs, and writes it to OUTPUT/plan.json.

    Without data the cutouts are taken to be as large as the largest scale, in three bands unless
    `bands` says otherwise. Raises UsageError as `train` does, and for several architectures.
    """
    _check(options)
    (architecture, *others) = checkpoint.parse_ensemble(options.arch)
    if others:
        raise UsageError("--plan takes one architecture at a time")
    image_spec, transform = _image_spec(options)
    hyperparameters = _hyperparameters(options)
    budget = options.memory_budget
    if options.target and budget == "auto":
        raise UsageError("--target wants a --memory-budget such as 70GiB: the device is not here")
    target = find_target(options.target) if options.target else None
    devices = jax.local_devices()[:1] if target else jax.devices()
    shards = (1, 1) if target else (options.member_shards, options.fsdp)
    mesh = sharding.mesh_of(devices, *shards)
    info = checkpoint.MemberInfo(architecture, transform.preprocessing, *hyperparameters.rates())
    seeds = range(options.seed, options.seed + options.members)
    labels = np.zeros(options.batch_size, np.float32)
    setup, state = set_up(info, transform, labels, hyperparameters, seeds, mesh)
    plan = plan_training(
        *(setup, state, image_spec),
        batch_size=options.batch_size,
        budget=budget_bytes(budget, mesh),
        target=target,
        compare=True,
    )
    record, lines = plan.record() | {"memory_budget": budget}, [plan.table()]
    if target is None:
        state = hosts.from_whole(state, sharding.places(state, mesh))
        record["steps_per_second"] = steps_per_second(plan, state, image_spec)
        lines.append(f"{record['steps_per_second']:.3g} steps/s at the last set of scales")
        peak = (mesh.local_devices[0].memory_stats() or {}).get("peak_bytes_in_use")
        if peak is not None:
            record["measured_peak_bytes"] = peak
            lines.append(f"measured peak {in_gib(peak)}")
    if hosts.is_first():
        make_folder(options.output)
        results.write_json(options.output / "plan.json", record)
    return "\n".join([*lines, str(options.output / "plan.json")])


def _image_spec(options: TrainConfig) -> tuple[ImageSpec, Transform]:
    """Returns how cutouts travel to the device, and what the largest scale takes of them."""
    if options.replay is not None:
        seen = finetune.seen_by(_starts(options))
        return _square(options, seen.bands, seen.input_size, seen.pixel_scale)
    if options.data == SIMULATED:
        survey = survey_of(_sky_options(options))
        return _square(options, survey.bands, survey.size, survey.pixel_scale)
    if options.data is not None:
        source, preprocessing = _opened(options)
        input_spec = pipeline.input_spec(source, (preprocessing,), options.fit)
        image_spec = input_spec.image_specs[input_spec.transforms[0].image]
        is_bare = noise_of(source.table, source.bands) is not None
        return dataclasses.replace(image_spec, noise_free=is_bare), input_spec.transforms[0]
    size = max(options.sizes(), default=None) or _of_start(options, "input_size")
    if size is None:
        raise UsageError("--plan wants --data or --scales: how large are the cutouts?")
    return _square(options, tuple((options.bands or "i,r,g").split(",")), size, options.pixel_scale)


def _square(
    options: TrainConfig, bands: Sequence[str], size: int, pixel_scale: float | None
) -> tuple[ImageSpec, Transform]:
    """Returns what `_image_spec` does, for cutouts of `size` pixels that are not there yet."""
    preprocessing = _preprocessing(options, bands, size, pixel_scale)
    of_image = geometry((size, size), pixel_scale, preprocessing)
    transform = Transform(preprocessing, 0, tuple(range(len(bands))), of_image)
    return ImageSpec((size, size, len(bands)), "float32"), transform


def _opened(options: TrainConfig) -> tuple[Source, Preprocessing]:
    """Returns the cutouts of `--data` and how networks see them."""
    assert options.data is not None
    source = options.opened(options.data, None)
    cutout = _first_cutout(source)
    side = min(cutout.image.shape[:2])
    return source, _preprocessing(options, source.bands, side, cutout.pixel_scale)


def _preprocessing(
    options: TrainConfig, bands: Sequence[str], side: int, pixel_scale: float | None
) -> Preprocessing:
    """Returns how networks see cutouts of `side` pixels of `pixel_scale` arcsec (None: not known),
    not normalised: as the members that they start from, where no option says otherwise.

    Networks from nothing, of another size than the cutouts', see the same sky in other pixels,
    unless it is to be cropped.
    """
    size = max(options.sizes() or [_of_start(options, "input_size") or side])
    if pixel_scale is not None and options.fit != "crop":
        pixel_scale *= side / size
    if options.fit in ("auto", "resample"):
        pixel_scale = _of_start(options, "pixel_scale") or pixel_scale
    softening = options.softening
    if softening is None:
        softening = _of_start(options, "softening") or 2.0
    stretch = options.stretch or _of_start(options, "stretch") or "asinh"
    return Preprocessing.unnormalised(bands, size, pixel_scale, stretch, softening)


def _of_start(options: TrainConfig, name: str) -> Any:
    """Returns what the members to start from have in common, None where there are none."""
    architectures = checkpoint.parse_ensemble(options.arch)
    folders = [folder for each in architectures for folder in finetune.origins(options, each)]
    return finetune.kept(folders, name)


def _hyperparameters(options: TrainConfig) -> Hyperparameters:
    """Returns the hyperparameters; dropout not given is that of the members to start from."""
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(Hyperparameters)}
    for rate in ("dropout", "block_dropout"):
        if given[rate] is None:
            given[rate] = _of_start(options, rate)
    return Hyperparameters(**given)


def _kept(
    folder: Path, options: TrainConfig, record: dict[str, Any], training: TrainingData
) -> checkpoint.MemberInfo | None:
    """Returns the member in `folder`, None where there is none or it is to be trained anew."""
    there = standing_folders(folder.parent).get(folder.name)
    if there is None or not ((there / "member.json").exists() and options.resume):
        return None
    info = checkpoint.read_info(there)
    wanted = record | {"seed": int(folder.name)}
    if info.training == wanted and info.preprocessing == training.preprocessing:
        return info
    raise UsageError(
        f"{folder} holds a member trained otherwise; give another --seed or --output, or "
        "--no-resume to replace it"
    )


def _check(options: TrainConfig) -> None:
    """Raises UsageError for numbers that make no sense."""
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


def _first_cutout(source: Source) -> Cutout:
    """Returns the first cutout that can be read: the others are brought to its size."""
    for row in range(len(source)):
        with contextlib.suppress(Unreadable):
            return source[row]
    raise UsageError(f"none of the {len(source)} cutouts can be read: {source.description}")
