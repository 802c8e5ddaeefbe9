"""The state of a training run on disk, so that a run killed anywhere goes on where it was."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array

from lensjax.cluster import hosts
from lensjax.ensemble import checkpoint
from lensjax.errors import LensjaxError, UsageError, one_line
from lensjax.files import make_folder
from lensjax.settings import differences, read_settings, write_settings

Tree = Any

SETTINGS = "settings.json"

# Besides the arrays: the index of a state, and what else the run writes meanwhile.
MARGIN = 4 * 2**20


class Snapshot(NamedTuple):
    """A run after so many steps: its arrays, and what else it needs, as JSON has it."""

    step: int
    arrays: Tree
    record: dict[str, Any]


class Snapshots:
    """The two newest states of a run, written to a folder while the run goes on.

    Orbax writes a state under another name and renames it when it is whole, so what is found is
    whole. States of a run with other `settings` are refused, with `resume` off they are discarded.
    What a run that has ended left is discarded as well.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self.folder = folder
        make_folder(folder)
        _claim(folder, settings, resume)
        self._manager = ocp.CheckpointManager(
            (folder / "steps").absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=2),
            item_handlers={
                "arrays": ocp.PyTreeCheckpointHandler(use_compression=False),
                "record": ocp.JsonCheckpointHandler(),
            },
        )

    def close(self) -> None:
        """Waits until what is being written is whole. Raises LensjaxError where it cannot be."""
        with self._said_clearly():
            self._manager.close()

    def save(self, snapshot: Snapshot) -> None:
        """Begins to write a state, each process what its devices hold of it. Nothing of that is
        read any more when this returns: the run may give it away. All processes must call it.

        Raises LensjaxError where there is no room for it, or the one before could not be written;
        the last whole one is kept.
        """
        arrays = jax.tree.map(_not_given_away, checkpoint.named_leaves(snapshot.arrays))
        with self._said_clearly():
            self._manager.wait_until_finished()
            # Found out by Orbax, it would be many pages from several threads.
            needed = MARGIN + sum(leaf.nbytes for leaf in arrays.values())
            free = shutil.disk_usage(self.folder).free
            if free < needed:
                raise LensjaxError(
                    f"no room left in {self.folder}: the state of the run needs "
                    f"{needed / 2**20:.0f} MiB, {free / 2**20:.0f} are free; make some, and the "
                    "same command goes on where the last state was kept"
                )
            self._manager.save(
                snapshot.step,
                args=ocp.args.Composite(
                    arrays=ocp.args.PyTreeSave(arrays), record=ocp.args.JsonSave(snapshot.record)
                ),
            )

    @contextmanager
    def _said_clearly(self) -> Iterator[None]:
        """Raises LensjaxError for what Orbax and the file system raise."""
        try:
            yield
        except (OSError, ValueError) as error:
            raise LensjaxError(
                f"cannot write the state of the run to {self.folder}: {one_line(error, 200)}; the "
                "last whole one is kept, from which the same command goes on"
            ) from error

    def newest(self, like: Tree) -> Snapshot | None:
        """Returns the newest state in a tree as `like`, None without any. An array whose `like` has
        a sharding is placed by it, each process reading its part, however it lay when it was saved;
        the others are NumPy's.

        Raises LensjaxError where an array is missing, unknown or of another shape, naming all.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        wanted = checkpoint.named_leaves(like)
        stored = self._manager.item_metadata(step)["arrays"].tree
        checkpoint.compare(self.folder / "steps" / str(step), wanted, stored)
        as_wanted = {name: _as(leaf) for name, leaf in wanted.items()}
        arrays, record = self._manager.restore(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.PyTreeRestore(restore_args=as_wanted), record=ocp.args.JsonRestore()
            ),
        ).values()
        leaves = [arrays[name] for name in wanted]
        return Snapshot(step, jax.tree.unflatten(jax.tree.structure(like), leaves), record)


def _not_given_away(leaf: Any) -> Any:
    """Returns an array that Orbax may still read while the next step runs. It copies what an
    accelerator holds; on a CPU it would write a view of what the step writes to."""
    on_cpu = isinstance(leaf, Array) and next(iter(leaf.devices())).platform == "cpu"
    return jnp.copy(leaf) if on_cpu else leaf


def _as(like: Any) -> ocp.RestoreArgs:
    """Returns how Orbax is to restore an array."""
    if hasattr(like, "sharding"):
        return ocp.ArrayRestoreArgs(sharding=like.sharding, dtype=like.dtype)
    return ocp.RestoreArgs(restore_type=np.ndarray)


def seeds_under_way(folder: Path) -> list[int]:
    """Returns the seeds of the run whose state in `folder` it can go on from, none without any."""
    if any(path.name.isdigit() for path in (folder / "steps").glob("*")):
        return read_settings(folder / SETTINGS).get("seeds", [])
    return []


def discard(folder: Path) -> None:
    """Removes the state of a run whose members are kept. Its metrics and its plan stay."""
    (folder / SETTINGS).unlink(missing_ok=True)
    shutil.rmtree(folder / "steps", ignore_errors=True)


def _claim(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Writes the settings of the run, or raises UsageError naming those that were others."""
    path = folder / SETTINGS
    others = differences(path, settings)
    held = seeds_under_way(folder)
    hosts.wait_for_all(f"read {folder}")
    if others and resume and held:
        raise UsageError(
            f"{folder} holds a run that was begun with {', '.join(others)}: give another "
            "--output, or --no-resume to begin anew"
        )
    if hosts.is_first() and (others or not resume):
        discard(folder)
        for left in (folder / "metrics.csv", *folder.glob("events.out.tfevents.*")):
            left.unlink(missing_ok=True)
        write_settings(path, settings)
