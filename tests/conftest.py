"""Settings that every test runs under."""

import os
from pathlib import Path

import jax
import pytest

# Programs that several tests share are compiled once, and the user's own cache is left alone.
os.environ["LENSJAX_CACHE"] = str(Path(__file__).parents[1] / ".pytest_cache" / "lensjax")

from lensjax import runtime  # noqa: E402

runtime.hush_absent_accelerators()
runtime.keep_compilations()
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def reference() -> str:
    """Folder of numbers computed by other programs (torchvision, lenstronomy)."""
    return str(Path(__file__).parent / "reference")
