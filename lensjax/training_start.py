"""What a training keeps of the members that it starts from, where no option says otherwise."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lensjax.data.preprocess import Preprocessing
from lensjax.ensemble import checkpoint
from lensjax.train import finetune
from lensjax.train.config import Hyperparameters
from lensjax.training_config import TrainConfig


def start_folders(options: TrainConfig) -> list[Path]:
    """Returns the folders of the members that those to train start from."""
    seeds = range(options.seed, options.seed + options.members)
    of_each = [finetune.origins(options, each) for each in checkpoint.parse_ensemble(options.arch)]
    return list(dict.fromkeys(f[seed % len(f)] for f in of_each for seed in seeds if f))


def preprocessing_of(
    options: TrainConfig, bands: Sequence[str], side: int, pixel_scale: float | None
) -> Preprocessing:
    """Returns how networks see cutouts of `side` pixels of `pixel_scale` arcsec (None: not known),
    not normalised: as the members that they start from, where no option says otherwise.

    Networks from nothing, of another size than the cutouts', see the same sky in other pixels,
    unless it is to be cropped.
    """
    size = max(options.sizes() or [of_start(options, "input_size") or side])
    if pixel_scale is not None and options.fit != "crop":
        pixel_scale *= side / size
    if options.fit in ("auto", "resample"):
        pixel_scale = of_start(options, "pixel_scale") or pixel_scale
    softening = options.softening
    if softening is None:
        softening = of_start(options, "softening") or 2.0
    stretch = options.stretch or of_start(options, "stretch") or "asinh"
    return Preprocessing.unnormalised(bands, size, pixel_scale, stretch, softening)


def of_start(options: TrainConfig, name: str) -> Any:
    """Returns what the members to start from have in common, None where there are none."""
    architectures = checkpoint.parse_ensemble(options.arch)
    folders = [folder for each in architectures for folder in finetune.origins(options, each)]
    return finetune.kept(folders, name)


def hyperparameters_of(options: TrainConfig) -> Hyperparameters:
    """Returns the hyperparameters; dropout not given is that of the members to start from."""
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(Hyperparameters)}
    for rate in ("dropout", "block_dropout"):
        if given[rate] is None:
            given[rate] = of_start(options, rate)
    return Hyperparameters(**given)
