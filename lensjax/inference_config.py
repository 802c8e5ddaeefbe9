"""The options of a run: which members score which cutouts, how, and where the results go."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lensjax.asking import AskOptions
from lensjax.controls import ControlOptions
from lensjax.data.parts import WHOLE, Part
from lensjax.detection import DetectOptions
from lensjax.errors import UsageError, refuse
from lensjax.known import KnownOptions
from lensjax.places import is_address, place


@dataclass(frozen=True)
class InferenceConfig(AskOptions, ControlOptions, KnownOptions, DetectOptions):
    """A run: which members score which cutouts, how, and where the results go."""

    ensemble: str | None = None
    """Architectures, comma separated; resnet18:4 takes four members, `all` every one in the folder
    (None: the architectures that have a share in the stacked score). There are: resnet18,
    resnet18_x0_25, resnet34, vit_ti16, vit_s16, vit_b16, light_transformer, trans_enc_s."""
    checkpoints: Path | None = None
    """Folder of the members (None: checkpoints)."""
    data: str | None = None
    """Folder, catalogue, stack, FITS or {band} template, or its address (s3://...); without it a
    small simulated sky is scored."""
    output: str | Path = "results"
    """Folder of the results, or its address."""
    resume: bool = True
    """Continue an interrupted run with the same settings."""
    part: str | None = None
    """Score the K-th of N parts of the rows, given as K/N; without it all parts are merged."""
    top: int = 48
    """Candidates in the mosaic and the report."""
    cutouts: int = 0
    """Candidates from tiles that are written as FITS files with world coordinates."""
    profile: Path | None = None
    """Folder for a profiler trace of some batches."""
    benchmark: bool = False
    """Compare the speed of the compiled step with members and samples run one by one."""
    engine: Literal["local", "ray"] = "local"
    """Where cutouts are scored: on this machine, or by the actors of a Ray cluster."""
    address: str | None = None
    """The Ray cluster: auto, or ray://HOST:PORT; without it one is started on this machine."""
    actors: int | Literal["auto"] = "auto"
    """Ray actors that score; auto: one per accelerator, without any one per four cores."""
    deadline: float = 900.0
    """Seconds after which a Ray actor that has not finished its rows is ended."""
    hats: bool = False
    """Write the catalogue also in pieces of the sky, for LSDB: candidates.hats."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        for options in (AskOptions, ControlOptions, KnownOptions, DetectOptions):
            options.__post_init__(self)
        are_tiles = self.catalogue is not None or self.detect
        of_tiles = {
            "--cutouts": self.cutouts != 0,
            "--field": self.field is not None,
            "--north-up": self.north_up,
            "--mask-bits": self.mask_bits != InferenceConfig.mask_bits,
        }
        given = next((option for option, is_given in of_tiles.items() if is_given), "")
        wrong = {
            "--top must be at least 1": self.top < 1,
            f"{given} is for tiles: give --catalogue or --detect": bool(given) and not are_tiles,
            "--zero-point is for --controls and --detect: give one of them": (
                self.zero_point is not None and self.controls is None and not self.detect
            ),
            "--address, --actors and --deadline are for --engine ray": self.engine != "ray"
            and (self.address, self.actors, self.deadline)
            != (None, "auto", InferenceConfig.deadline),
            "--actors must be at least 1": self.actors != "auto" and self.actors < 1,
            "--deadline must be more than 0 s": not self.deadline > 0,
            "--engine ray needs an --output that is a folder": self.engine == "ray"
            and is_address(str(self.output)),
            "--profile and --benchmark are for --engine local": self.engine != "local"
            and (self.profile is not None or self.benchmark),
            "--benchmark times the step beside --no-batch-parallel: drop the latter": (
                self.benchmark and not self.batch_parallel
            ),
            "--benchmark times all members in one step: drop --cascade and --reuse": (
                self.benchmark and self.in_stages
            ),
        }
        refuse(wrong)
        self.rows_part()

    @property
    def folder(self) -> Path:
        """Returns the folder of the results."""
        return place(self.output)

    def rows_part(self) -> Part:
        """Returns the part of the rows to score, (K, N)."""
        if self.part is None:
            return WHOLE
        found = re.fullmatch(r"(\d+)/(\d+)", self.part)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"--part {self.part} is none: give K/N with K from 1 to N")
        return int(found[1]), int(found[2])
