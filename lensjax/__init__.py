"""Strong gravitational lens finding with compiled ensembles in JAX."""

import os
import time
from importlib.metadata import version

__version__ = "0.1.0"

# When the program came up, by `time.perf_counter`; all else is imported after this.
STARTED = time.perf_counter()


# Its library YNN is XLA's default for both; jaxlib of other versions may not know the setting.
EIGEN = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution,-individual_dot"


def _use_eigen() -> None:
    """Has XLA compute convolutions and products on the CPU with Eigen.

    With YNN convolutions take up to twice the time (3x3, 64 channels, 16x16 pixels: 96 against 180
    GFLOP/s on two cores of an AMD EPYC), and networks of many small products a tenth more. JAX
    reads the setting when it first meets a device. It is left alone where the user has set it; an
    unknown flag ends the process.
    """
    setting, flags = EIGEN.split("=")[0], os.environ.get("XLA_FLAGS", "")
    if setting not in flags and version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] = f"{flags} {EIGEN}".strip()


_use_eigen()
