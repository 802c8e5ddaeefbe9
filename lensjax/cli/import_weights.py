"""scripts/import_weights.py: makes a member of a torchvision or timm state dict."""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flax import nnx

from lensjax import config, runtime
from lensjax.data.preprocess import Preprocessing, Stretch
from lensjax.ensemble import checkpoint
from lensjax.ensemble.checkpoint import Member, MemberInfo
from lensjax.errors import LensjaxError, UsageError, refuse
from lensjax.files import standing_folders
from lensjax.models import registry
from lensjax.models.torch_file import StateDict, read_state_dict
from lensjax.models.torch_import import fits, load_torch_weights


@dataclass(frozen=True)
class ImportConfig:
    """Options of scripts/import_weights.py."""

    arch: str = "resnet18"
    """Architecture of the weights: resnet18, resnet34, vit_ti16, vit_s16, vit_b16,
    light_transformer, trans_enc_s."""
    weights: Path | None = None
    """File of the state dict, .safetensors or .pth."""
    output: Path = Path("checkpoints")
    """Folder of the members."""
    name: str | None = None
    """Name of the member (None: that of the file)."""
    bands: str = "i,r,g"
    """Bands that the member sees, in order."""
    input_size: int | None = None
    """Pixels across (None: the architecture's own)."""
    pixel_scale: float | None = None
    """Arcsec/pixel that the member expects."""
    stretch: Stretch = "none"
    """Brightness scale of the input; none: pixels as they are."""
    softening: float = 2.0
    """Noise sigmas up to which asinh is linear."""
    mean: str | None = None
    """Per band, taken off after the stretch: 0.485,0.456,0.406."""
    std: str | None = None
    """Per band, divided by after that: 0.229,0.224,0.225."""
    dropout: float = 0.2
    """Dropout rate before the last layer."""
    seed: int = 0
    """Seed of a new last layer, where the file's does not fit."""


def main(argv: Sequence[str]) -> None:
    """Runs the command and prints where the member is."""
    options = config.parse(ImportConfig, argv, description=__doc__.split(": ", 1)[1])
    print(import_member(options))


def import_member(options: ImportConfig) -> str:
    """Returns lines on the member written to OUTPUT/<arch>/<name>/, and on what was adapted.

    Raises UsageError for options that do not fit, LensjaxError where the file cannot be read or
    its names and shapes are not those of the architecture.
    """
    if options.weights is None:
        raise UsageError("--weights is missing: give a .safetensors or .pth file")
    architecture = registry.resolve(options.arch)
    bands = tuple(band.strip() for band in options.bands.split(","))
    preprocessing = Preprocessing(
        bands=bands,
        input_size=options.input_size or architecture.default_input_size,
        pixel_scale=options.pixel_scale,
        stretch=options.stretch,
        softening=options.softening,
        mean=_per_band("mean", options.mean, len(bands), 0.0),
        std=_per_band("std", options.std, len(bands), 1.0),
    )
    wrong = {
        f"--bands {options.bands} has an empty name": not all(bands),
        f"--pixel-scale {options.pixel_scale} must be above 0": (
            options.pixel_scale is not None and options.pixel_scale <= 0
        ),
        f"--dropout {options.dropout} must lie in 0..1, below 1": not 0 <= options.dropout < 1,
    }
    refuse(wrong)
    name = options.name or options.weights.stem
    if Path(name).name != name or name.startswith("."):
        raise UsageError(
            f"--name '{name}' must be a plain name: it is a folder in {options.output}"
        )
    folder = options.output / architecture.name / name
    if folder.exists() or name in standing_folders(folder.parent):
        raise UsageError(f"{folder} exists; give another --name, or delete it")
    info = MemberInfo(
        architecture.name,
        preprocessing,
        options.dropout,
        training={"imported_from": options.weights.name},
        versions=runtime.versions(),
    )
    model, tensors = info.build(nnx.Rngs(options.seed)), read_state_dict(options.weights)
    try:
        notes = load_torch_weights(model, tensors)
    except LensjaxError as error:
        fitting = _fitting(info, tensors)
        if not fitting:
            raise type(error)(f"{options.weights}: {error}") from error
        raise UsageError(
            f"{options.weights} does not hold weights of {info.architecture}; they fit --arch "
            + " or ".join(fitting)
        ) from error
    info = checkpoint.save_member(folder, Member(info, checkpoint.state_of(model)))
    lines = [f"{folder}: {architecture.name}, weights sha256 {info.weights_sha256[:12]}"]
    return "\n".join([*lines, *(f"  {note}" for note in notes)])


def _fitting(info: MemberInfo, tensors: StateDict) -> list[str]:
    """Returns the architectures that weights are of, at their own input size."""
    found = []
    for name, architecture in registry.ARCHITECTURES.items():
        size = architecture.default_input_size
        preprocessing = dataclasses.replace(info.preprocessing, input_size=size)
        other = dataclasses.replace(info, architecture=name, preprocessing=preprocessing)
        with contextlib.suppress(UsageError):
            if fits(other.abstract_model(), tensors):
                found.append(name)
    return found


def _per_band(option: str, text: str | None, bands: int, default: float) -> tuple[float, ...]:
    if text is None:
        return (default,) * bands
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--{option} '{text}' must be numbers with commas between") from error
    if len(values) != bands or (option == "std" and min(values) <= 0):
        raise UsageError(f"--{option} '{text}' must be {bands} numbers, one per band, std above 0")
    return values
