"""scripts/train.py: trains members on labelled cutouts."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lensjax import checkpoint, config, runtime
from lensjax.data.catalog import open_source
from lensjax.data.preprocess import Fit, Preparation, Stretch
from lensjax.errors import UsageError
from lensjax.training.dataset import Labelled, read_labelled, split
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
    validation_fraction: Annotated[float, "share of the groups held back"] = 0.15
    output: Annotated[Path, "folder of the members"] = Path("checkpoints")
    seed: Annotated[int, "seed of the first member; the next has the next"] = 0
    resume: Annotated[bool, "keep members that are there, trained alike"] = True


def main(argv: Sequence[str]) -> None:
    """Trains what `argv` asks for and prints a line for each member."""
    options = config.parse(TrainConfig, argv, description=__doc__.split(": ", 1)[1])
    runtime.keep_compilations()
    for trained in train(options):
        print(trained.summary())


@dataclass(frozen=True)
class Trained:
    """A member that is there now. `is_new` is False where an earlier run had trained it."""

    folder: Path
    info: checkpoint.MemberInfo
    is_new: bool

    def summary(self) -> str:
        """Returns one line: where the member is and how it did on its validation data."""
        found = {name: self.info.metrics[name]["value"] for name in ("auroc", "tpr0", "tpr10")}
        shown = ", ".join(f"{name.upper()} {value:.4f}" for name, value in found.items())
        return f"{self.folder}: {'trained' if self.is_new else 'was there'}; validation {shown}"


def train(options: TrainConfig) -> Iterator[Trained]:
    """Yields each member as soon as it is on disk, `OUTPUT/<architecture>/<seed>/`.

    Raises UsageError for data without labels, unknown architectures, and a folder that holds
    another member.
    """
    if options.data is None:
        raise UsageError("--data is missing: give labelled cutouts; scripts/simulate.py makes some")
    architectures = list(checkpoint.parse_ensemble(options.arch))
    source = open_source(
        str(options.data), needed=None, bands=options.bands, pixel_scale=options.pixel_scale
    )
    cutout = source[0]
    preparation = Preparation(
        bands=source.bands,
        input_size=options.scales or min(cutout.image.shape[:2]),
        pixel_scale=cutout.pixel_scale,
        stretch=options.stretch,
        softening=options.softening,
        mean=(0.0,) * len(source.bands),
        std=(1.0,) * len(source.bands),
    )
    data = read_labelled(source, preparation, options.fit)
    training, validation = split(data, options.validation_fraction)
    for architecture in architectures:
        for seed in range(options.seed, options.seed + options.members):
            yield train_one(options, training, validation, architecture, seed)


def train_one(
    options: TrainConfig, training: Labelled, validation: Labelled, architecture: str, seed: int
) -> Trained:
    """Returns the member of `architecture` and `seed`, trained and saved unless it is there."""
    folder = options.output / architecture / str(seed)
    recipe = Recipe(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Recipe)})
    if (folder / "member.json").exists() and options.resume:
        info = checkpoint.read_info(folder)
        wanted = training_record(recipe, training, seed)
        if info.training == wanted and info.preparation == training.preparation:
            return Trained(folder, info, is_new=False)
        raise UsageError(
            f"{folder} holds a member trained otherwise; give another --seed or --output, or "
            "--no-resume to replace it"
        )
    member = train_member(training, validation, architecture, recipe, seed)
    return Trained(folder, checkpoint.save_member(folder, member), is_new=True)
