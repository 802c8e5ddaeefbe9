"""Job files: a command for SLURM, Kubernetes, SkyPilot or TPU VMs, from one set of parameters.

The files of a system and a command are the templates of that name, `slurm-infer.*`.
"""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lensjax.errors import UsageError, refuse
from lensjax.files import make_folder, replacing
from lensjax.memory import parse_bytes

System = Literal["slurm", "slurm-ray", "kubernetes", "skypilot", "tpu-vm"]

TEMPLATES = Path(__file__).with_name("templates")

# What the job files say themselves.
OURS = ("--part", "--engine", "--address", "--actors", "--coordinator", "--processes", "--process")

# Kubernetes adds to a name, and allows 63 letters in all.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_WORD = re.compile(r"[\w.,:/@+=-]+")


@dataclass(frozen=True)
class LaunchConfig:
    """Options of scripts/launch.py: what runs where, and on how much."""

    system: System = "slurm"
    """Where it runs: slurm: an array job that scores, or srun that trains; slurm-ray: Ray in one
    SLURM job; kubernetes: a RayJob or a JobSet; skypilot; tpu-vm."""
    command: str | None = None
    """The command, infer or train with its options, as one text; or write it last, after `--`."""
    output: Path = Path("jobs")
    """Folder of the job files."""
    name: str = "lensjax"
    """Name of the job, and of the TPU VM."""
    nodes: int = 1
    """Machines; of an array job the parts."""
    accelerators: int = 1
    """GPUs or TPU chips of a machine."""
    accelerator: str | None = None
    """Their kind, as the system names it: h100, nvidia-h100-80gb, tpu-v5-lite-podslice."""
    topology: str | None = None
    """Topology of TPUs on Kubernetes, 4x4 for example; the accelerators are TPUs then."""
    cpus: int = 8
    """Cores of a machine."""
    memory: str = "64GiB"
    """Memory of a machine."""
    hours: int = 24
    """SLURM's time limit; what is not done by then goes on in the same job, queued again."""
    partition: str | None = None
    """Partition of SLURM."""
    account: str | None = None
    """Account of SLURM."""
    zone: str | None = None
    """Zone of the TPU VM."""
    image: str | None = None
    """Container image with lensjax; with SLURM a file of Apptainer."""
    volume: str | None = None
    """What is at /data in the container: a claim (Kubernetes) or a bucket (SkyPilot)."""
    setup: str | None = None
    """Shell line to run first, such as `module load cuda && source venv/bin/activate`."""
    restarts: int = 10
    """How often a run is started again after an accident."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        names = ("accelerator", "topology", "partition", "account", "zone", "image", "volume")
        for option in names:
            value = getattr(self, option)
            if value is not None and not _WORD.fullmatch(value):
                raise UsageError(f"--{option} '{value}' holds a blank or a sign that no name has")
        in_container = self.system in ("kubernetes", "skypilot")
        least = {"nodes": 1, "cpus": 1, "hours": 1, "accelerators": 0, "restarts": 0}
        wrong = {
            f"--{option} must be at least {number}": getattr(self, option) < number
            for option, number in least.items()
        }
        wrong |= {
            f"--name '{self.name}': at most 40 of a-z, 0-9 and hyphens, a letter first": (
                not _NAME.fullmatch(self.name)
            ),
            "--command and --setup must be one line": any(
                "\n" in text for text in (self.command or "", self.setup or "")
            ),
            f"--image is missing: {self.system} runs a container, see scripts/launch/Dockerfile": (
                in_container and self.image is None
            ),
            f"--volume is missing: what does {self.system} show at /data?": (
                in_container and self.volume is None
            ),
            "--zone is missing: in which zone is the TPU VM?": (
                self.system == "tpu-vm" and self.zone is None
            ),
        }
        refuse(wrong)
        self.memory_mib()
        if self.command is not None:
            self.words()

    def words(self) -> list[str]:
        """Returns the words of the command, the first of them infer or train."""
        try:
            words = shlex.split(self.command or "")
        except ValueError as error:
            raise UsageError(f"--command {self.command}: {error}") from error
        if not words or words[0] not in ("infer", "train"):
            raise UsageError(
                "which command is to run? write it last, after `--`: infer or train with options"
            )
        for word in words:
            if word.split("=")[0] in OURS:
                raise UsageError(f"leave out {word}: the job files say it themselves")
        return words

    def memory_mib(self) -> int:
        """Returns the memory of a machine in MiB."""
        try:
            return parse_bytes(self.memory) // 2**20
        except ValueError as error:
            raise UsageError(f"--memory: {error}") from error


def write(config: LaunchConfig) -> list[Path]:
    """Writes the job files into `config.output` and returns their paths.

    Raises UsageError where there are none for the system and the command.
    """
    files = render(config)
    make_folder(config.output)
    for name, text in files.items():
        with replacing(config.output / name) as file:
            file.write(text.encode())
    return [config.output / name for name in files]


def render(config: LaunchConfig) -> dict[str, str]:
    """Returns the text of each job file by its name. Raises as `write` does."""
    words = config.words()
    names = sorted(path.name for path in TEMPLATES.glob(f"{config.system}-{words[0]}.*"))
    if not names:
        others = {path.name.split(f"-{words[0]}.")[0] for path in TEMPLATES.glob(f"*-{words[0]}.*")}
        raise UsageError(
            f"--system {config.system} has no job for {words[0]}: "
            f"choose from {', '.join(sorted(others))}"
        )
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"quote": shlex.quote, "json": json.dumps, "literal": _literal}
    values: dict[str, Any] = {
        "job": config,
        "words": words,
        "setup": f"{config.setup}\n" if config.setup else "",
        "line": _shell_line(config, words),
        "actors": config.nodes * max(1, config.accelerators),
    }
    return {name: templates.get_template(name).render(values) for name in names}


def _shell_line(config: LaunchConfig, words: list[str]) -> str:
    """Returns the command as a shell reads it; on SLURM it runs in the image where there is one."""
    inside = []
    if config.system.startswith("slurm") and config.image is not None:
        inside = ["apptainer", "exec", "--nv", config.image]
    return shlex.join([*inside, "lensjax", *words])


def _literal(words: list[str]) -> list[str]:
    """Returns words of which Kubernetes replaces nothing: it takes $(NAME) for a variable."""
    return [word.replace("$(", "$$(") for word in words]
