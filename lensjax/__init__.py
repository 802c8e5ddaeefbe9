"""Strong gravitational lens finding with compiled ensembles in JAX."""

import logging
import os
import time

import jaxlib

__version__ = "0.1.0"

# When the program came up, by `time.perf_counter`; all else is imported after this.
STARTED = time.perf_counter()

# Whether XLA is of a version whose own settings, here and elsewhere, have been tried: one that it
# does not know ends the program.
XLA_IS_KNOWN = jaxlib.__version__.startswith("0.10.")

# As JAX tells whether there is a GPU; the last is that of the Windows Subsystem for Linux.
NVIDIA_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")

# What XLA's library YNN computes on the CPU, by default products and convolutions.
YNN_SETTING = "xla_cpu_experimental_ynn_fusion_type"
EIGEN = f"--{YNN_SETTING}=-individual_convolution,-individual_dot"


def _use_eigen() -> None:
    """Has XLA compute convolutions and products on the CPU with Eigen.

    With YNN convolutions take up to twice the time (3x3, 64 channels, 16x16 pixels: 96 against 180
    GFLOP/s on two cores of an AMD EPYC), and networks of many small products a tenth more. JAX
    reads the setting when it first meets a device. It is left alone where the user has set it.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if YNN_SETTING not in flags and XLA_IS_KNOWN:
        os.environ["XLA_FLAGS"] = f"{flags} {EIGEN}".strip()


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Returns False where JAX reports that its plugin for CUDA, which also compiles for GPUs that
    are not there, has found none."""
    has_gpu = any(map(os.path.exists, NVIDIA_DEVICES))
    return has_gpu or "jax_plugins.xla_cuda" not in record.getMessage()


_use_eigen()
# Before JAX is first asked for devices, whoever asks.
logging.getLogger("jax._src.xla_bridge").addFilter(_is_worth_saying)
