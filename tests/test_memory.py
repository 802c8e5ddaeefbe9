"""What compiled functions need, counted by hand; on devices that are not there where their
compilers are."""

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import psutil
import pytest
from jax import ShapeDtypeStruct

from lensjax import memory
from lensjax.errors import UsageError
from lensjax.memory import Footprint, find_target, parse_bytes

VECTOR = 4 * 1024


@jax.jit
def doubled_and_summed(matrix, vector):
    return 2 * vector, matrix.sum()


SHAPES = (ShapeDtypeStruct((1024, 256), jnp.bfloat16), ShapeDtypeStruct((1024,), jnp.float32))
ARGUMENTS, OUTPUTS = 2 * 1024 * 256 + VECTOR, VECTOR + 2


def test_arguments_and_outputs_are_counted_and_aliased_ones_once():
    plain = memory.footprint(doubled_and_summed, SHAPES)
    donating = jax.jit(doubled_and_summed, donate_argnums=1)
    donated = memory.footprint(donating, SHAPES)
    # Beside the two outputs the CPU keeps their two addresses.
    assert (plain.arguments, plain.outputs) == (ARGUMENTS, OUTPUTS + 16)
    assert (plain.aliased, donated.aliased) == (0, VECTOR)
    assert donated.peak == plain.peak - VECTOR
    assert Footprint(1, 20, 300, 4).peak == 317


def test_temporaries_are_counted():
    def twice_sorted(x):
        return jnp.sort(jnp.sort(jnp.outer(x, x), axis=0) ** 2, axis=1).sum()

    size = 512
    vector = ShapeDtypeStruct((size,), jnp.float32)
    assert memory.footprint(jax.jit(twice_sorted), (vector,)).temporaries >= 4 * size**2


def test_sizes_as_users_type_them():
    assert parse_bytes("3000000000") == parse_bytes("3GB") == 3 * 10**9
    assert parse_bytes("1.5GiB") == 3 * 2**29 and parse_bytes("2k") == 2000
    with pytest.raises(ValueError, match="'lots' is no size in bytes"):
        parse_bytes("lots")


@pytest.mark.slow
def test_an_h100_need_not_be_there(h100):
    assert "H100" in h100.device.device_kind
    found = memory.footprint(doubled_and_summed, SHAPES, h100)
    assert found.arguments == ARGUMENTS
    assert 0 <= found.outputs - OUTPUTS <= 64
    assert jnp.ones(3).sum() == 3  # the devices at hand stay as they were


@pytest.mark.slow
def test_a_tpu_need_not_be_there(v5e):
    found = memory.footprint(doubled_and_summed, SHAPES, v5e)
    assert found.arguments == ARGUMENTS


def test_a_target_without_its_compiler_says_what_to_install(monkeypatch):
    def none_registered(**_):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(memory.topologies, "get_topology_desc", none_registered)
    monkeypatch.setitem(sys.modules, "jax_plugins.xla_cuda12", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install '\.\[targets\]'"):
        find_target("h100")
    with pytest.raises(UsageError, match="pip install libtpu"):
        find_target("v5e")
    with pytest.raises(UsageError, match="unknown target 'h200': choose from h100, v5e"):
        find_target("h200")


def test_the_limit_of_an_accelerator_is_its_own_word():
    gpu = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 123, "bytes_in_use": 4})
    assert memory.memory_limit_bytes(gpu) == 123


CPU = SimpleNamespace(memory_stats=lambda: None)


@pytest.fixture
def control_groups(monkeypatch, tmp_path):
    """Returns a function that says which groups this process is in, and what these hold."""
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_CONTROL_GROUPS", tmp_path / "own")
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)

    def make(own: str, groups: dict[str, dict[str, object]]) -> int:
        (tmp_path / "own").write_text(own)
        for group, files in groups.items():
            (tmp_path / group).mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (tmp_path / group / name).write_text(f"{content}\n")
        return memory.memory_limit_bytes(CPU)

    return make


def limited(most: object, used: int, cached: int) -> dict[str, object]:
    stat = f"anon {used - cached}\nfile {cached}\ninactive_file {cached}\nactive_file 0"
    return {"memory.max": most, "memory.current": used, "memory.stat": stat}


def test_the_limit_of_a_cpu_is_what_machine_and_container_leave(control_groups):
    assert control_groups("0::/\n", {".": limited(3000, 1000, 0)}) == 2000
    assert control_groups("0::/\n", {".": limited("max", 1000, 0)}) > 2000
    assert memory.memory_limit_bytes(CPU) <= psutil.virtual_memory().total


def test_files_that_are_only_cached_leave_their_memory(control_groups):
    """Reading a large data set once fills a container with pages that nobody needs."""
    assert control_groups("0::/\n", {".": limited(3000, 2990, 2500)}) == 2510


def test_the_tightest_limit_of_nested_groups_counts(control_groups):
    groups = {
        ".": {},
        "slurm": limited(9000, 5000, 1000),
        "slurm/job": limited(4000, 3000, 1500),
        "slurm/job/task": limited("max", 100, 0),
        "other": limited(10, 10, 0),
    }
    assert control_groups("0::/slurm/job/task\n", groups) == 2500
    groups["slurm"] = limited(9000, 8000, 1000)
    assert control_groups("0::/slurm/job/task\n", groups) == 2000


def test_groups_of_version_1_limit_too(control_groups):
    def old(most: int) -> dict[str, object]:
        stat = "inactive_file 1\nhierarchical_memory_limit 1\ntotal_inactive_file 600"
        return {
            "memory.limit_in_bytes": most,
            "memory.usage_in_bytes": 1000,
            "memory.stat": stat,
        }

    own = "9:name=systemd:/docker/1\n4:memory,hugetlb:/docker/1\n1:cpu:/docker/1\n0::/docker/1\n"
    # The path is the host's: in the container its own group is the top.
    assert control_groups(own, {"memory": old(3000)}) == 2600
    assert control_groups(own, {"memory/docker/1": old(2000)}) == 1600
    assert control_groups(own, {"memory/docker/1": old(2**63 - 4096)}) == 2600


def test_without_control_groups_the_machine_is_the_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "OWN_CONTROL_GROUPS", tmp_path / "none")
    assert 0 < memory.memory_limit_bytes(CPU) <= psutil.virtual_memory().total


SAID = """
import lensjax
lensjax.NVIDIA_DEVICES = ("{nvidia}",)
import jax
print(jax.devices()[0].platform)
"""


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="this machine has an accelerator")
@pytest.mark.parametrize(("nvidia", "says"), [("/dev/no-gpu", False), ("/dev/null", True)])
def test_a_missing_driver_is_trouble_only_where_there_is_a_gpu(nvidia, says):
    """Whoever imports the package, a notebook too."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", SAID.format(nvidia=nvidia)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.stdout == "cpu\n"
    assert ("xla_cuda12" in ended.stderr) == says
