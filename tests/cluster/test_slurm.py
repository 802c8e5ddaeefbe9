"""The array job as SLURM would start it, with real scoring: the catalogue of one run, byte for
byte."""

import shlex
import subprocess
import sys
from unittest import mock

import pytest

from lensjax import inference
from lensjax.cli import infer
from lensjax.cluster import jobs
from tests import networks
from tests.cli.conftest import images, members, stack_file  # noqa: F401
from tests.cluster import slurm

# Draws no pictures, which take as long as all the rest.
LENSJAX = """
from lensjax import __main__, inference
from tests import networks

inference.draw = lambda *_: None
with networks.small():
    __main__.main()
"""


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Where sbatch, srun, and a lensjax with small networks are found."""
    found = slurm.install(tmp_path)
    (tmp_path / "small.py").write_text(LENSJAX)
    slurm.write(tmp_path / "lensjax", f'exec {sys.executable} {tmp_path}/small.py "$@"')
    return found


@pytest.mark.slow
def test_an_array_job_gives_the_catalogue_of_one_run(
    environment,
    members,  # noqa: F811
    stack_file,  # noqa: F811
    tmp_path,
):
    options = ["--checkpoints", str(members), "--data", str(stack_file), "--mc-samples", "2"]
    outputs = [tmp_path / "my local run", tmp_path / "my array's run"]
    commands = [["infer", *options, "--output", str(output)] for output in outputs]
    with networks.small(), mock.patch.object(inference, "draw", lambda *_: None):
        infer.main(commands[0][1:])
    jobs.write(
        jobs.LaunchConfig(nodes=3, output=tmp_path / "jobs", command=shlex.join(commands[1]))
    )
    submit = tmp_path / "jobs" / "slurm-infer.sh"
    said = subprocess.run(
        ["bash", submit], env=environment, check=True, capture_output=True, text=True
    )
    assert said.stdout.startswith("array job 100 scores 3 parts, job ")
    logs = sorted((tmp_path / "state").glob("100_*.log"))
    for number, log in enumerate(logs, 1):
        assert f"part {number}/3: rows" in log.read_text()
    assert len(logs) == 3 and not (outputs[1] / ".scores").exists()
    for name in ("candidates.csv", "candidates.fits", "predictions.npz", "rejects.csv"):
        first, second = (output.joinpath(name).read_bytes() for output in outputs)
        assert first == second, name
