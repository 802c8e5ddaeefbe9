"""scripts/infer.py: scores cutouts with an ensemble, writes the catalogue and its pictures."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lensjax import __version__, config, inference, runtime
from lensjax.data.formats import shards
from lensjax.data.formats.shards import Encoding
from lensjax.data.parts import rows_of
from lensjax.ensemble.checkpoint import ALL, find_members, member_folders, parse_ensemble
from lensjax.errors import UsageError
from lensjax.inference import InferenceConfig
from lensjax.places import is_local

# Where the repository has its members.
CHECKPOINTS = Path("checkpoints")


@dataclass(frozen=True)
class InferConfig(InferenceConfig):
    """Options of scripts/infer.py."""

    pack: Path | None = None
    """Write the cutouts to ArrayRecord shards in this folder and stop."""
    pack_as: Encoding = "raw"
    """Store pixels as they are, or integers as PNG."""
    samp: bool = False
    """Send the candidates to TOPCAT, Aladin and other programs that run here."""
    smoke: bool = False
    """Check within a minute that everything runs: few simulated cutouts where --data names none,
    and what there is of the members."""


def main(argv: Sequence[str]) -> None:
    """Runs the command and prints the metrics and where the results lie."""
    options = config.parse(
        InferConfig,
        argv,
        description=__doc__.split(": ", 1)[1],
        spellings={"models": "ensemble", "parallel": "batch_parallel"},
    )
    if options.pack is not None:
        print(pack(options, options.pack))
        return
    if options.samp:
        if options.part is not None or not is_local(options.folder):
            raise UsageError("--samp needs all rows (no --part), and an --output on this machine")
        from lensjax import samp  # an extra: that it lacks is said before anything is scored
    print(inference.infer(_with_defaults(options)).summary(options.folder))
    if options.samp:
        print(samp.send(options.folder / "candidates.vot"))


def _with_defaults(options: InferConfig) -> InferConfig:
    """Returns the options with the members in `checkpoints` where none are named, and with the
    demonstration's cutouts where it is meant."""
    if options.data is None and options.checkpoints is not None and not options.smoke:
        raise UsageError("--data is missing: name the cutouts, or leave out --checkpoints too")
    checkpoints, ensemble = options.checkpoints or CHECKPOINTS, options.ensemble
    if ensemble not in (None, ALL) and (options.smoke or options.data is None):
        ensemble = _available(checkpoints, ensemble)
    data = options.data
    if data is None:
        find_members(checkpoints, ensemble)  # says what is wrong before cutouts are drawn
        from lensjax import demonstration  # the simulator: nothing that others need

        data = str(demonstration.held_back(options.smoke))
    return dataclasses.replace(options, ensemble=ensemble, checkpoints=checkpoints, data=data)


def _available(checkpoints: Path, ensemble: str) -> str:
    """Returns the architectures of an ensemble that the folder has members of, and prints which it
    has none of. Where it has none at all, the ensemble is returned as it is."""
    wanted = list(parse_ensemble(ensemble))
    available = [name for name in wanted if member_folders(checkpoints, name)]
    if not available:
        return ensemble
    missing = ", ".join(name for name in wanted if name not in available)
    if missing:
        print(f"{checkpoints} holds no {missing} members: goes on with {', '.join(available)}")
    return ",".join(available)


def pack(options: InferConfig, folder: Path) -> str:
    """Writes the cutouts of `options.data`, or of the part of them, to shards in `folder`, with all
    their bands, and returns a line about them."""
    if options.data is None:
        raise UsageError("--data is missing: which cutouts are to be packed?")
    if options.detect:
        raise UsageError("--pack takes the objects that a run with --detect found as --catalogue")
    source = options.opened(options.data, None)
    rows = rows_of(options.rows_part(), len(source), shards.SHARD_ROWS)
    with runtime.progress("packing", len(rows), "cutouts") as advance:
        packed = shards.pack(
            source,
            folder,
            rows=rows,
            settings=options.of_data() | {"version": __version__},
            encoding=options.pack_as,
            resume=options.resume,
            progress=advance,
        )
    if options.part is not None:
        return (
            f"{folder}, part {options.part}: {packed} packed + {len(rows) - packed} rejected = "
            f"{len(rows)} rows; the same command without --part packs the rest and ends the shards"
        )
    return (
        f"{folder}: {packed} packed + {len(source) - packed} rejected = {len(source)} given; "
        f"{source.description}"
    )
