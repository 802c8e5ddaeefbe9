"""What importing the package does."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

IMPORTED = """
import os, sys
before = dict(os.environ)
import lensjax
print(before == dict(os.environ), *sys.modules)
import lensjax.cli.infer
print(*sys.modules)
import lensjax.demonstration
print(*sys.modules)
"""


@pytest.fixture(scope="module")
def loaded() -> list[set[str]]:
    """What is there after importing the package, then what scores, then the demonstration."""
    command = [sys.executable, "-c", IMPORTED]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return [set(line.split()) for line in ended.stdout.splitlines()]


def test_the_package_alone_is_quick_and_changes_no_setting(loaded):
    assert "True" in loaded[0] and not {"jax", "jaxlib", "numpy"} & loaded[0]


def test_scoring_does_not_wait_for_what_it_does_not_use(loaded):
    unused = {
        *("sklearn", "skimage", "matplotlib", "torch", "astropy.wcs", "astropy.cosmology"),
        *("tifffile", "h5py", "zarr", "scipy.ndimage"),
        *("lensjax.demonstration", "lensjax.sky", "lensjax.train", "lensjax.report"),
    }
    assert "lensjax.cli.infer" in loaded[1] and not unused & loaded[1]


def test_a_demonstration_that_is_there_is_scored_without_what_training_logs_to(loaded):
    # The second brings in the first where it is installed.
    assert "lensjax.demonstration" in loaded[2] and not {"torch", "tensorboardX"} & loaded[2]


PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.14"])
def test_the_compiler_for_gpus_is_of_the_version_of_jaxlib(python):
    """JAX's packages name no version of it: pip alone would take the newest."""
    wanted = {"python_version": python, "sys_platform": "linux"}
    asked = map(Requirement, PROJECT["optional-dependencies"]["targets"])
    found = {each.name: each.specifier for each in asked if each.marker.evaluate(wanted)}
    (version,) = found["jaxlib"]
    assert version.operator == "==" and found == {
        "jaxlib": SpecifierSet(f"=={version.version}"),
        "jax-cuda12-pjrt": SpecifierSet(f"=={version.version}"),
    }
    bounds = [each for each in map(Requirement, PROJECT["dependencies"]) if each.name == "jax"]
    assert version.version in bounds[0].specifier


def test_what_changes_from_version_to_version_has_a_bound_above():
    bounds = {each.name: each.specifier for each in map(Requirement, PROJECT["dependencies"])}
    for extra in ("cuda12", "cuda13", "tpu"):
        (more,) = map(Requirement, PROJECT["optional-dependencies"][extra])
        assert more.specifier == bounds["jax"]
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array-record"):
        assert any(bound.operator == "<" for bound in bounds[name])
