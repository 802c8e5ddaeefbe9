"""What makes JAX fast on a CPU and must be said to the process, not to a function.

Measured with jaxlib 0.10.2 on two cores of an AMD EPYC; `scripts/benchmark.py` shows where a
resnet18 stands against PyTorch with them.
"""

import ctypes
import os
import sys
from importlib.metadata import version

YNN_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"

# Names and numbers of <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def use_fast_convolutions() -> None:
    """Has XLA compute convolutions with Eigen, not with YNN, which takes up to twice the time.

    JAX reads the setting when it first meets a device. It is left alone where the user has set it,
    and for versions of jaxlib that may not know it: an unknown flag ends the process.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if YNN_FUSIONS not in flags and version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] = f"{flags} --{YNN_FUSIONS}=-individual_convolution".strip()


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for the next step, instead of giving it back to the system.

    XLA's buffers are new in each step; fetching their pages anew cost a tenth of a training step.
    Does nothing on systems without glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1)):
            mallopt(setting, value)
