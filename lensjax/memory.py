"""How much device memory a program takes, how much there is, and which candidate fits.

The compiler says what a program takes; `choose` asks it about candidates and takes the best that
fits a budget. The device may be one that this machine does not have: JAX compiles for a `Target`
where the compiler for it is installed. (`lower(lowering_platforms=...)` would not do: it silently
compiles for the device at hand.)
"""

import bisect
import importlib.util
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import psutil
from jax import ShapeDtypeStruct
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding
from numpy.typing import DTypeLike

from lensjax.errors import UsageError

T = TypeVar("T")

CONTROL_GROUPS, OWN_CONTROL_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

# The compiler counts neither the workspace of cuDNN nor the gaps between blocks of memory.
SHARE_OF_ACCELERATOR = 0.9


@dataclass(frozen=True)
class Footprint:
    """Bytes of device memory that one call of a compiled function takes."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    """Outputs that are written over arguments: counted in both."""

    @property
    def peak(self) -> int:
        """Returns the bytes of all together. Workspace of cuDNN is not in the compiler's count."""
        return self.arguments + self.outputs + self.temporaries - self.aliased


@dataclass(frozen=True)
class Target:
    """A device to compile for, and how."""

    device: jax.Device
    compiler_options: Mapping[str, Any] = field(default_factory=dict)


def choose(
    ladders: Iterable[Sequence[T]], peak_bytes: Callable[[T], float], budget: float
) -> T | None:
    """Returns the best candidate whose peak fits the budget, None where none does.

    `ladders` come in the order of preference; in each the candidates ascend, in what they need and
    in preference. Few of them are asked: the largest, then those that a bisection asks.
    """
    for candidates in ladders:
        if not candidates:
            continue
        *smaller, largest = candidates
        if peak_bytes(largest) <= budget:
            return largest
        fitting = bisect.bisect_right(smaller, budget, key=peak_bytes)
        if fitting:
            return smaller[fitting - 1]
    return None


def compile_for(function: Any, arguments: Any, target: Target | None = None) -> jax.stages.Compiled:
    """Returns the jitted `function` compiled for arguments of these shapes.

    `arguments` is a tuple of trees of arrays or `jax.ShapeDtypeStruct`, and of what is static. With
    a `target` the program is compiled for that device and cannot be called here.
    """
    if target is None:
        return function.lower(*arguments).compile()
    function = getattr(function, "without_options", function)  # which are for the device at hand
    there = SingleDeviceSharding(target.device)

    def placed(leaf: Any) -> Any:
        is_static = not hasattr(leaf, "dtype")
        return leaf if is_static else ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there)

    arguments = jax.tree.map(placed, arguments)
    with warnings.catch_warnings():
        # JAX keeps the program in its cache but cannot read it without the device: it compiles.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        return function.lower(*arguments).compile(dict(target.compiler_options))


def footprint(function: Any, arguments: Any, target: Target | None = None) -> Footprint | None:
    """Returns the Footprint, on each device, of a jitted function as `compile_for` compiles it;
    None where the compiler says that the memory does not suffice."""
    try:
        stats: Any = compile_for(function, arguments, target).memory_analysis()
    except Exception as error:
        if is_out_of_memory(error):
            return None
        raise
    return Footprint(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
    )


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes that a tree of arrays, or of their abstract values with a sharding, takes
    on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether a device, or a compiler for one, says that the memory does not suffice."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def find_target(name: str) -> Target:
    """Returns the Target called `name`: h100 or v5e.

    Raises UsageError where the name is unknown or the compiler for it is not installed.
    """
    known = {"h100": _h100, "v5e": _v5e}
    if name not in known:
        raise UsageError(f"unknown target {name!r}: choose from {', '.join(known)}")
    return known[name]()


def parse_bytes(text: str) -> int:
    """Returns the bytes that a user means: a number, `16GiB` or `3.5GB`. Raises ValueError."""
    match = re.fullmatch(r"(\d+\.?\d*) ?(?:([kMGT])(i?))?B?", text)
    if match is None:
        raise ValueError(f"{text!r} is no size in bytes such as 16GiB or 3.5GB")
    number, prefix, binary = match.groups()
    power = " kMGT".index(prefix) if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def in_gib(size: float) -> str:
    """Returns so many bytes in words."""
    return f"{size / 2**30:.2f} GiB"


def memory_budget(mesh: Mesh, share_of_host: float) -> int:
    """Returns the bytes that a program may take on each device of `mesh`; on a CPU this share of
    what is left."""
    device = mesh.local_devices[0]
    share = share_of_host if device.platform == "cpu" else SHARE_OF_ACCELERATOR
    return int(share * memory_limit_bytes(device))


def memory_limit_bytes(device: jax.Device) -> int:
    """Returns the memory that JAX may take on `device`; on a CPU its part of what is left."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return host_bytes_left() // jax.local_device_count()


def host_bytes_left() -> int:
    """Returns the bytes that machine, container and `ulimit` leave to this process: what is free,
    and what holds files that can be read again."""
    available = psutil.virtual_memory().available
    return int(min(available, _control_group_bytes_left(), _process_limit_bytes_left()))


def _process_limit_bytes_left() -> float:
    """Returns what the limits on this process's own memory leave, infinity without any."""
    if not hasattr(psutil, "RLIMIT_DATA"):  # another system than Linux
        return math.inf
    process = psutil.Process()
    used, left = process.memory_info(), [math.inf]
    for limit, taken in ((psutil.RLIMIT_AS, used.vms), (psutil.RLIMIT_DATA, used.data)):
        most, _ = process.rlimit(limit)
        if most != psutil.RLIM_INFINITY:
            left.append(max(most - taken, 0))
    return min(left)


def _control_group_bytes_left() -> float:
    """Returns what the tightest limit on this process's control groups, or on a group that they
    are in, leaves; infinity without a limit.

    Lines are `number:controllers:path`, without controllers for groups of version 2. In a container
    the path may be the host's, of which only the top is there: the container's own group.
    """
    try:
        lines = OWN_CONTROL_GROUPS.read_text().splitlines()
    except OSError:  # another system than Linux
        return float("inf")
    left = [float("inf")]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = CONTROL_GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = CONTROL_GROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = top / path.lstrip("/")
        left += [_group_bytes_left(each, *names) for each in (group, *group.parents)]
    return min(left)


def _group_bytes_left(group: Path, limit: str, used: str, cached: str) -> float:
    """Returns what the limit of one control group leaves, infinity where it has none.

    Files that are only cached do not count as used: the kernel drops them before it refuses memory.
    """
    try:
        most, taken = (int((group / name).read_text()) for name in (limit, used))
    except (OSError, ValueError):  # no such group, or its limit is "max"
        return float("inf")
    counts = dict(map(str.split, (group / "memory.stat").read_text().splitlines()))
    return max(most - max(taken - int(counts[cached]), 0), 0)


def _h100() -> Target:
    description = files("lensjax").joinpath("targets/h100.txtpb").read_text()
    # The devices at hand first: the plugin for CUDA, once it is in, would be asked for some.
    jax.devices()
    try:
        devices = _cuda_devices(description)
    except NotImplementedError:
        _register_cuda_compiler()
        devices = _cuda_devices(description)
    # Which kernel multiplies best is measured on the device. Without it, a guess at a Triton kernel
    # may not even compile; cuBLAS always does.
    return Target(devices[0], {"xla_gpu_enable_triton_gemm": False})


def _cuda_devices(description: str) -> list[jax.Device]:
    return topologies.get_topology_desc(
        platform="cuda", target_config=description, topology="1x1x1"
    ).devices


def _register_cuda_compiler() -> None:
    """Makes the CUDA plugin known to JAX, which leaves it out where there is no driver."""
    try:
        plugin = importlib.import_module("jax_plugins.xla_cuda12")
    except ModuleNotFoundError as error:
        raise UsageError(
            "the compiler for NVIDIA GPUs is not installed: pip install '.[targets]'"
        ) from error
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    jax.config.update("jax_platforms", "cpu")  # or it would look for the driver again
    try:
        plugin.initialize()
    finally:
        jax.config.update("jax_platforms", platforms)


def _v5e() -> Target:
    # Without these libtpu asks Google's servers where it is, and refuses a second process.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError("the compiler for TPUs is not installed: pip install libtpu")
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=[1, 1, 1]
    ).devices
    # Ten times faster to compile; the memory is what is asked about.
    return Target(devices[0], {"exec_time_optimization_effort": -1.0})


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Returns zeros that begin at a multiple of 64 bytes, which a CPU takes without a copy."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + nbytes].view(dtype).reshape(shape)
