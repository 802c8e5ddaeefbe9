"""Settings that every test runs under."""

import importlib.util
import os
from pathlib import Path

import jax
import pytest

# Programs that several tests share are compiled once, and the user's own cache is left alone.
os.environ["LENSJAX_CACHE"] = str(Path(__file__).parents[1] / ".pytest_cache" / "lensjax")

from lensjax import runtime  # noqa: E402
from lensjax.footprint import Target, find_target  # noqa: E402

runtime.hush_absent_accelerators()
runtime.keep_compilations()
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def reference() -> str:
    """Folder of numbers computed by other programs (torchvision, lenstronomy)."""
    return str(Path(__file__).parent / "reference")


@pytest.fixture(scope="session")
def h100() -> Target:
    """An H100 to compile for."""
    if importlib.util.find_spec("jax_plugins.xla_cuda12") is None:
        pytest.skip("needs the extra `targets`")
    return find_target("h100")


@pytest.fixture(scope="session")
def v5e() -> Target:
    """A TPU v5e to compile for."""
    pytest.importorskip("libtpu")
    return find_target("v5e")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts last what compiles for devices that are not there: once such a compiler is in a process,
    the profiler crashes in it."""
    targets = {"h100", "v5e"}
    items.sort(key=lambda item: not targets.isdisjoint(getattr(item, "fixturenames", ())))
