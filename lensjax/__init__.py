"""Strong gravitational lens finding with compiled ensembles in JAX.

    import lensjax

    finder = lensjax.load_ensemble("checkpoints", "resnet18:2,vit_b16")
    candidates, rejects = finder.score("cutouts/")

`lensjax.api` holds what is named here; docs/tour.ipynb walks through it. Commands of the same
names, as `lensjax infer`, write catalogues of large surveys.
"""

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lensjax.api import (
        Cutouts,
        LensFinder,
        Scored,
        evaluate,
        load_ensemble,
        simulate,
        train_members,
    )

__version__ = "0.1.0"
__all__ = [
    "Cutouts",
    "LensFinder",
    "Scored",
    "evaluate",
    "load_ensemble",
    "simulate",
    "train_members",
]

# As JAX tells whether there is a GPU; the last is that of the Windows Subsystem for Linux.
NVIDIA_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Returns False where JAX reports that its plugin for CUDA, which also compiles for GPUs that
    are not there, has found none."""
    has_gpu = any(map(os.path.exists, NVIDIA_DEVICES))
    return has_gpu or "jax_plugins.xla_cuda" not in record.getMessage()


# Before JAX is first asked for devices, by a command or in a notebook.
logging.getLogger("jax._src.xla_bridge").addFilter(_is_worth_saying)


def __getattr__(name: str) -> Any:
    """Returns a name of the API, with which JAX is imported: `import lensjax` alone is quick."""
    if name in __all__:
        return getattr(importlib.import_module("lensjax.api"), name)
    raise AttributeError(f"module 'lensjax' has no attribute '{name}'")
