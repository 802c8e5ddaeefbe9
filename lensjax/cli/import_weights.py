"""scripts/import_weights.py: makes a member of a torchvision or timm file, or of another."""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flax import nnx

from lensjax import config, runtime
from lensjax.data.catalog import DataOptions
from lensjax.data.preprocess import Preprocessing, Stretch
from lensjax.ensemble import checkpoint
from lensjax.ensemble.checkpoint import Member, MemberInfo
from lensjax.errors import LensjaxError, UsageError, one_line, refuse
from lensjax.files import standing_folders
from lensjax.models import registry
from lensjax.models.torch_file import StateDict, read_state_dict
from lensjax.models.torch_import import fits, load_torch_weights


@dataclass(frozen=True)
class ImportConfig:
    """Options of scripts/import_weights.py."""

    arch: str = "resnet18"
    """Architecture of the weights: resnet18, resnet18_x0_25, resnet34, vit_ti16, vit_s16,
    vit_b16, light_transformer, trans_enc_s."""
    weights: str | None = None
    """File of the state dict, .safetensors or .pth; hf://OWNER/REPOSITORY[@REVISION][/FILE]; or the
    folder of a member, to store it anew."""
    output: Path = Path("members")
    """Folder of the members."""
    name: str | None = None
    """Name of the member (None: that of the file or repository)."""
    bands: str = "i,r,g"
    """Bands that the member sees, in order."""
    input_size: int | None = None
    """Pixels across (None: the architecture's own)."""
    pixel_scale: float | None = None
    """Arcsec/pixel that the member expects (with the folder of a member: in place of its own)."""
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
    store: checkpoint.Store = "float32"
    """How the member is stored; int8 takes a quarter of the space and changes scores a little."""
    calibrated_on: str | None = None
    """Labelled cutouts on which to calibrate and measure the member; the statistics of their pixels
    are stored with it, by which scoring knows what is unlike them."""
    notes: Path | None = None
    """Markdown file of what the model card is to say as well."""


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
        raise UsageError("--weights is missing: give a .safetensors or .pth file, or hf://...")
    if options.pixel_scale is not None and not options.pixel_scale > 0:
        raise UsageError(f"--pixel-scale {options.pixel_scale} must be above 0")
    path, source, default_name = _located(options.weights)
    is_member = (path / "member.json").is_file()
    info = _info_of_member(options, path) if is_member else _info(options, source)
    name = options.name or default_name
    if Path(name).name != name or name.startswith("."):
        raise UsageError(
            f"--name '{name}' must be a plain name: it is a folder in {options.output}"
        )
    folder = options.output / info.architecture / name
    if folder.exists() or name in standing_folders(folder.parent):
        raise UsageError(f"{folder} exists; give another --name or --output, or delete it")
    if options.notes is not None:
        info = dataclasses.replace(info, notes=_text(options.notes))
    member, adapted = _of_member(path, info) if is_member else _converted(options, path, info)
    if options.calibrated_on is not None:
        member, note = _calibrated(options.calibrated_on, member)
        adapted = (*adapted, note)
    info = checkpoint.save_member(folder, member, options.store)
    lines = [f"{folder}: {info.architecture}, weights sha256 {info.weights_sha256[:12]}"]
    return "\n".join([*lines, *(f"  {note}" for note in adapted)])


def _located(weights: str) -> tuple[Path, dict[str, str], str]:
    """Returns where weights are, what the member's record says of that, and a name for it."""
    if not weights.startswith("hf://"):
        path = Path(weights)
        return path, {"file": path.name}, path.name if path.is_dir() else path.stem
    try:
        from lensjax.models.hub import fetch
    except ModuleNotFoundError as error:
        raise UsageError(f"{weights} needs {error.name}: pip install 'lensjax[hub]'") from error
    found = fetch(weights)
    record = {key: getattr(found, key) for key in ("repository", "revision", "file")}
    return found.path, record, found.repository.split("/")[1]


def _info_of_member(options: ImportConfig, folder: Path) -> MemberInfo:
    """Returns what the member in `folder` is, at the pixel scale that the options say. All else it
    stays, whatever they say."""
    for field in dataclasses.fields(options):
        is_default = getattr(options, field.name) == field.default
        used = ("weights", "output", "name", "pixel_scale", "store", "calibrated_on", "notes")
        if field.name not in used and not is_default:
            option = field.name.replace("_", "-")
            raise UsageError(f"--{option} does not go with a member: {folder}/member.json says it")
    info = checkpoint.read_info(folder)
    if options.pixel_scale is None:
        return info
    preprocessing = dataclasses.replace(info.preprocessing, pixel_scale=options.pixel_scale)
    return dataclasses.replace(info, preprocessing=preprocessing, metrics={}, verdict={})


def _of_member(folder: Path, info: MemberInfo) -> tuple[Member, tuple[str, ...]]:
    """Returns the member in a folder as `info` describes it, and what was adapted in words. What
    was measured at another pixel scale is left out."""
    member = checkpoint.load_member(folder)
    if info.preprocessing == member.info.preprocessing:
        return dataclasses.replace(member, info=info), ()
    field = f"sees {info.preprocessing.field:.3g} arcsec"
    return Member(info, member.state), (f"{field}; what was measured at its old scale is left out",)


def _info(options: ImportConfig, source: dict[str, str]) -> MemberInfo:
    """Returns what the options say of a member with the weights from `source`."""
    architecture = registry.resolve(options.arch)
    bands = tuple(band.strip() for band in options.bands.split(","))
    wrong = {
        f"--bands {options.bands} has an empty name": not all(bands),
        f"--dropout {options.dropout} must lie in 0..1, below 1": not 0 <= options.dropout < 1,
    }
    refuse(wrong)
    preprocessing = Preprocessing(
        bands=bands,
        input_size=options.input_size or architecture.default_input_size,
        pixel_scale=options.pixel_scale,
        stretch=options.stretch,
        softening=options.softening,
        mean=_per_band("mean", options.mean, len(bands), 0.0),
        std=_per_band("std", options.std, len(bands), 1.0),
    )
    return MemberInfo(
        architecture.name,
        preprocessing,
        options.dropout,
        training={"imported_from": source},
        versions=runtime.versions(),
    )


def _converted(
    options: ImportConfig, path: Path, info: MemberInfo
) -> tuple[Member, tuple[str, ...]]:
    """Returns a member with the weights of a state dict, and what was adapted in words."""
    model, tensors = info.build(nnx.Rngs(options.seed)), read_state_dict(path)
    try:
        adapted = load_torch_weights(model, tensors)
    except LensjaxError as error:
        fitting = _fitting(info, tensors)
        if not fitting:
            raise type(error)(f"{options.weights}: {error}") from error
        raise UsageError(
            f"{options.weights} does not hold weights of {info.architecture}; they fit --arch "
            + " or ".join(fitting)
        ) from error
    return Member(info, checkpoint.state_of(model)), adapted


def _calibrated(data: str, member: Member) -> tuple[Member, str]:
    """Returns the member calibrated and measured on labelled cutouts, whose pixels it then knows,
    and a note on them. Raises UsageError unless there are both lenses and others."""
    from lensjax.train.data import check_classes, read_labelled
    from lensjax.train.finish import as_member
    from lensjax.train.head import features_of, logits_of
    from lensjax.train.known_pixels import known_pixels

    training, preprocessing = member.info.training, member.info.preprocessing
    source = DataOptions().opened(data, preprocessing.bands)
    found = read_labelled(source, preprocessing, training.get("fit", "auto")).observed()
    check_classes("--calibrated-on", found.labels)
    logits = logits_of(member.state, features_of(member, found.transform, found))
    pixels = known_pixels(found, training.get("pictures", False))
    member = as_member(member.info, member.state, logits, training.get("seed", 0), found, pixels)
    return member, f"calibrated on {len(found)} cutouts, {int(found.labels.sum())} of them lenses"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--notes {path} cannot be read ({one_line(error)})") from error


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
