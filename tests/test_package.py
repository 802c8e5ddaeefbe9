"""What importing the package does."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet


def in_a_new_process(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_package_alone_is_quick_and_changes_no_setting():
    code = "import os; before = dict(os.environ); import lensjax, sys; "
    loaded = in_a_new_process(code + "print(before == dict(os.environ), *sys.modules)").split()
    assert loaded[0] == "True" and not {"jax", "jaxlib", "numpy"} & set(loaded)


def test_scoring_does_not_wait_for_what_it_does_not_use():
    loaded = in_a_new_process("import lensjax.cli.infer, sys; print(*sys.modules)").split()
    unused = {
        *("sklearn", "skimage", "matplotlib", "torch", "astropy.wcs", "astropy.cosmology"),
        *("tifffile", "h5py", "zarr", "scipy.ndimage"),
        *("lensjax.demonstration", "lensjax.sky", "lensjax.train", "lensjax.report"),
    }
    assert not unused & set(loaded)


def test_a_demonstration_that_is_there_is_scored_without_what_training_logs_to():
    loaded = in_a_new_process("import lensjax.demonstration, sys; print(*sys.modules)").split()
    # The second brings in the first where it is installed.
    assert not {"torch", "tensorboardX"} & set(loaded)


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
