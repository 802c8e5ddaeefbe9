"""scripts/export.py: writes an ensemble as one file that JAX and NumPy alone can run."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lensjax import config, inference
from lensjax.data import pipeline
from lensjax.data.bands import Wanted
from lensjax.data.preprocess import Fit
from lensjax.data.source import Arrays, source_of_arrays
from lensjax.ensemble import portable
from lensjax.ensemble.step import StepOptions
from lensjax.errors import UsageError, refuse
from lensjax.members import read_ensemble


@dataclass(frozen=True)
class ExportConfig(StepOptions):
    """Options of scripts/export.py."""

    ensemble: str | None = None
    """Architectures, comma separated; resnet18:4 takes four members, `all` every one in the folder
    (None: the architectures that have a share in the stacked score)."""
    checkpoints: Path = Path("checkpoints")
    """Folder of the members."""
    output: Path = Path("ensemble.npz")
    """File to write."""
    size: int | None = None
    """Pixels across of the cutouts that it will score (None: the first member's)."""
    pixel_scale: float | None = None
    """Arcsec per pixel of these cutouts (None: the first member's)."""
    fit: Fit = "auto"
    """How cutouts of another size than a member's are brought to it."""


def main(argv: Sequence[str]) -> None:
    """Runs the command and prints what the file takes."""
    print(export(config.parse(ExportConfig, argv, description=__doc__.split(": ", 1)[1])))


def export(options: ExportConfig) -> str:
    """Writes the ensemble and returns a line about it.

    Raises UsageError for members that are not there, and for cutouts that they cannot score.
    """
    wrong = {
        "--size must be at least 1": options.size is not None and options.size < 1,
        "--output must end in .npz": options.output.suffix != ".npz",
        "export needs flatbuffers: pip install 'lensjax[export]'": (
            importlib.util.find_spec("flatbuffers") is None
        ),
    }
    refuse(wrong)
    members = inference.find_members(options.checkpoints, options.ensemble)
    first = members.preprocessings[0]
    size, bands = options.size or first.input_size, members.bands
    scale = first.pixel_scale if options.pixel_scale is None else options.pixel_scale
    blank = np.broadcast_to(np.float32(0), (2, size, size, len(bands)))
    arrays = Arrays(blank, {}, bands, scale)
    cutouts = source_of_arrays(arrays, Path(f"cutouts of {size} pixels"), Wanted())
    pipeline.check_fields(cutouts, members.preprocessings, options.fit)
    input_spec = pipeline.input_spec(cutouts, members.preprocessings, options.fit)
    if input_spec.image_specs[0].shape != (size, size, len(bands)):
        raise UsageError(
            f"--size {size}: such cutouts show far more sky than the members see; cut out the "
            "middle first, and give the --size that is left"
        )
    ensemble = read_ensemble(members, members.ensemble)
    portable.save(options.output, ensemble, input_spec, options, bands)
    arcsec = "" if scale is None else f" of {scale:g} arcsec"
    return (
        f"{options.output}: {', '.join(ensemble.names)} for cutouts ({', '.join(bands)}) of {size} "
        f"pixels{arcsec}, on {', '.join(portable.PLATFORMS)}; "
        f"{options.output.stat().st_size / 2**20:.0f} MiB"
    )
