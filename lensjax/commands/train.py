"""scripts/train.py: trains members on labelled cutouts."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lensjax import checkpoint, config, runtime
from lensjax.data.catalog import Source, open_source
from lensjax.data.preprocess import Fit, Preparation, Stretch
from lensjax.data.readers import Cutout, Unreadable
from lensjax.errors import UsageError
from lensjax.training.dataset import Labelled, read_labelled, split
from lensjax.training.pictures import with_pictures
from lensjax.training.trainer import Recipe, train_member, training_record


@dataclass(frozen=True)
class TrainConfig(Recipe):
    """Options of scripts/train.py."""

    arch: Annotated[str, "architectures to train, comma separated"] = "resnet18"
    members: Annotated[int, "members of each architecture"] = 1
    data: Annotated[Path | None, "labelled cutouts: .npz, catalogue or class folders"] = None
    bands: Annotated[str | None, "bands that the files hold, in order: i,r,g"] = None
    pixel_scale: Annotated[float | None, "arcsec/pixel, where the files do not say"] = None
    scales: Annotated[int | None, "input size in pixels (default: the cutouts' own)"] = None
    stretch: Annotated[Stretch, "brightness scale of the input"] = "asinh"
    softening: Annotated[float, "noise sigmas up to which asinh is linear"] = 2.0
    fit: Annotated[Fit, "how cutouts of another size are brought to the input size"] = "auto"
    pictures: Annotated[bool, "train on an 8-bit colour picture of each cutout as well"] = False
    validation_fraction: Annotated[float, "share of the groups held back"] = 0.15
    output: Annotated[Path, "folder of the members"] = Path("checkpoints")
    seed: Annotated[int, "seed of the first member; the next has the next"] = 0
    resume: Annotated[bool, "keep members that are there, trained alike"] = True


def main(argv: Sequence[str]) -> None:
    """Trains what `argv` asks for and prints a line for each member."""
    options = config.parse(TrainConfig, argv, description=__doc__.split(": ", 1)[1])
    runtime.hush_absent_accelerators()
    runtime.keep_compilations()
    for trained in train(options):
        print(trained.summary())


@dataclass(frozen=True)
class Trained:
    """A member that is there now. `is_new` is False where an earlier run had trained it."""

    folder: Path
    info: checkpoint.MemberInfo
    is_new: bool
    counts: str

    def summary(self) -> str:
        """Returns one line: where the member is and how it did on its validation data."""
        found = {name: self.info.metrics[name]["value"] for name in ("auroc", "tpr0", "tpr10")}
        shown = ", ".join(f"{name.upper()} {value:.4f}" for name, value in found.items())
        how = "trained" if self.is_new else "was there"
        return f"{self.folder}: {how}; validation {shown}; {self.counts}"


def train(options: TrainConfig) -> Iterator[Trained]:
    """Yields each member as soon as it is on disk, `OUTPUT/<architecture>/<seed>/`.

    Raises UsageError for data without labels, unknown architectures, and a folder that holds
    another member.
    """
    if options.data is None:
        raise UsageError("--data is missing: give labelled cutouts; scripts/simulate.py makes some")
    _check(options)
    architectures = list(checkpoint.parse_ensemble(options.arch))
    source = open_source(
        str(options.data), needed=None, bands=options.bands, pixel_scale=options.pixel_scale
    )
    cutout = _first_cutout(source)
    preparation = Preparation.unnormalised(
        source.bands,
        options.scales or min(cutout.image.shape[:2]),
        cutout.pixel_scale,
        options.stretch,
        options.softening,
    )
    data = read_labelled(source, preparation, options.fit)
    training, validation = split(data, options.validation_fraction)
    if options.pictures:
        training = with_pictures(training, options.seed)
    counts = f"{len(training)} cutouts, {len(validation)} for validation"
    counts += f", {len(source) - len(data)} left out (unreadable or without a label)"
    for architecture in architectures:
        for seed in range(options.seed, options.seed + options.members):
            folder = options.output / architecture / str(seed)
            yield Trained(folder, *train_one(options, training, validation, folder), counts)


def train_one(
    options: TrainConfig, training: Labelled, validation: Labelled, folder: Path
) -> tuple[checkpoint.MemberInfo, bool]:
    """Returns the member in `folder`, `<architecture>/<seed>`, and whether it was trained now.

    Raises UsageError where the folder holds a member that was trained otherwise.
    """
    architecture, seed = folder.parent.name, int(folder.name)
    recipe = Recipe(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Recipe)})
    if (folder / "member.json").exists() and options.resume:
        info = checkpoint.read_info(folder)
        wanted = training_record(recipe, training, seed)
        if info.training == wanted and info.preparation == training.preparation:
            return info, False
        raise UsageError(
            f"{folder} holds a member trained otherwise; give another --seed or --output, or "
            "--no-resume to replace it"
        )
    member = train_member(training, validation, architecture, recipe, seed)
    return checkpoint.save_member(folder, member), True


def _check(options: TrainConfig) -> None:
    """Raises UsageError for numbers that make no sense."""
    wrong = {
        "--members must be at least 1": options.members < 1,
        "--batch-size must be at least 1": options.batch_size < 1,
        "--epochs must be above 0": options.epochs <= 0,
        "--learning-rate must be above 0": options.learning_rate <= 0,
        "--validation-fraction must lie between 0 and 1": not 0 < options.validation_fraction < 1,
        "--dropout must lie in 0..1, below 1": not 0 <= options.dropout < 1,
        "--block-dropout must lie in 0..1, below 1": not 0 <= options.block_dropout < 1,
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise UsageError(message)


def _first_cutout(source: Source) -> Cutout:
    """Returns the first cutout that can be read: the others are brought to its size."""
    for row in range(len(source)):
        with contextlib.suppress(Unreadable):
            return source[row]
    raise UsageError(f"none of the {len(source)} cutouts can be read: {source.description}")
