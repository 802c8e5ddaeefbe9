"""Settings that every test runs under."""

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def reference() -> str:
    """Folder of numbers computed by other programs (torchvision, lenstronomy)."""
    import pathlib

    return str(pathlib.Path(__file__).parent / "reference")
