"""Strong gravitational lens finding with compiled ensembles in JAX."""

import logging
import os
import time

__version__ = "0.1.0"

# When the program came up, by `time.perf_counter`; all else is imported after this.
STARTED = time.perf_counter()

# As JAX tells whether there is a GPU; the last is that of the Windows Subsystem for Linux.
NVIDIA_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Returns False where JAX reports that its plugin for CUDA, which also compiles for GPUs that
    are not there, has found none."""
    has_gpu = any(map(os.path.exists, NVIDIA_DEVICES))
    return has_gpu or "jax_plugins.xla_cuda" not in record.getMessage()


# Before JAX is first asked for devices, whoever asks.
logging.getLogger("jax._src.xla_bridge").addFilter(_is_worth_saying)
