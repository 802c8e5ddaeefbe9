"""Settings that every test runs under."""

import contextlib
import functools
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import pytest
from hypothesis import settings
from jax._src import compiler

# XLA's older way to write machine code for CPUs takes half as long. A process reads this once.
FLAGS = os.environ.get("XLA_FLAGS", "")
HASTY_FLAGS = f"{FLAGS} --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = HASTY_FLAGS
# Programs that several tests share are compiled once, and the user's own cache is left alone.
os.environ["LENSJAX_CACHE"] = str(Path(__file__).parents[1] / ".pytest_cache" / "lensjax")

from lensjax import runtime  # noqa: E402
from lensjax.memory import Target, find_target  # noqa: E402
from lensjax.models import registry  # noqa: E402
from lensjax.models.vit import VisionTransformer  # noqa: E402
from lensjax.sky import draw  # noqa: E402
from lensjax.trust import envelope  # noqa: E402
from tests import networks  # noqa: E402

runtime.set_up()
jax.config.update("jax_numpy_rank_promotion", "raise")
# A shell has what runs in its background ignore Ctrl-C, and that is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same examples in every run, and no test that fails because the machine is busy.
settings.register_profile("tests", derandomize=True, deadline=None)
settings.load_profile("tests")


# Simulations are of few pictures: no chunk is filled up with hundreds.
draw.simulate.__kwdefaults__["chunk"] = 16


@pytest.fixture(scope="session")
def reference() -> str:
    """Folder of numbers computed by other programs (torchvision, lenstronomy)."""
    return str(Path(__file__).parent / "reference")


# What is tested there is not the networks.
OF_SMALL_NETWORKS = {"cli", "ensemble", "train"}


@pytest.fixture(autouse=True, scope="module")
def small_networks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Has the architectures be small ones in these folders; a module that wants the real ones
    defines a fixture of this name."""
    small = request.path.parent.name in OF_SMALL_NETWORKS
    with networks.small() if small else contextlib.nullcontext():
        yield


@pytest.fixture(scope="module")
def vit_tiny() -> Iterator[str]:
    """Name of a transformer that learns small pictures, and whose activations outweigh it."""
    build = functools.partial(VisionTransformer, width=64, depth=2, heads=2)
    depths = VisionTransformer.DEPTHS
    tiny = registry.Architecture("vit_tiny", (), 162_049, 32, depths, build)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.ARCHITECTURES, tiny.name, tiny)
        yield tiny.name


@pytest.fixture
def drawn_once(monkeypatch) -> None:
    """Has the paths of an envelope be drawn once for all surveys of a size, and fewer of them."""
    fewer = functools.cache(functools.partial(envelope.envelope, paths=2000))
    monkeypatch.setattr(envelope, "envelope", fewer)


@pytest.fixture(scope="session")
def h100() -> Target:
    """An H100 to compile for."""
    return find_target("h100")


@pytest.fixture(scope="session")
def v5e() -> Target:
    """A TPU v5e to compile for."""
    return find_target("v5e")


compile_options = compiler.get_compile_options


def options_for_users(*, backend: Any, env_options_overrides: dict, **given: Any) -> Any:
    """Returns the options of a compilation as they are without the hasty flags."""
    if backend.platform == "cpu":
        env_options_overrides = {"xla_cpu_use_fusion_emitters": True} | env_options_overrides
    return compile_options(backend=backend, env_options_overrides=env_options_overrides, **given)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Compiles in haste, also in processes that a test starts: most of the time of the tests is
    compilation. Those marked as optimised are compiled as for users."""
    haste = not item.get_closest_marker("optimised")
    jax.config.update("jax_disable_most_optimizations", haste)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(haste)
    os.environ["XLA_FLAGS"] = HASTY_FLAGS if haste else FLAGS
    options = compile_options if haste else options_for_users
    with mock.patch.object(compiler, "get_compile_options", options):
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts last what compiles for devices that are not there: once such a compiler is in a process,
    the profiler crashes in it."""
    targets = {"h100", "v5e"}
    items.sort(key=lambda item: not targets.isdisjoint(getattr(item, "fixturenames", ())))
