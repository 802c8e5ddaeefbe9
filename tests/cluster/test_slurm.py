"""Jobs as SLURM would start them. The array job, with real scoring: the catalogue of one run, byte
for byte. The training, with two processes, one of which is killed: the member of one process."""

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from lensjax import pages
from lensjax.cli import infer, train
from lensjax.cluster import hosts, jobs
from tests import networks, processes
from tests.cli.conftest import images, members, stack_file  # noqa: F401
from tests.cluster import slurm, test_hosts

# Draws no pictures, which take as long as all the rest.
LENSJAX = """
from lensjax import __main__, pages
from tests import networks

pages.draw = lambda *_: None
with networks.small():
    __main__.main()
"""

# The second process is killed at a step of the first start.
TRAINING = """
import os, signal
from lensjax import __main__, runtime
from tests import processes
from tests.cluster import test_hosts

if (os.environ["SLURM_PROCID"], os.environ["SLURM_RESTART_COUNT"]) == ("1", "0"):
    runtime.progress = processes.progress_until(test_hosts.DIES, signal.SIGKILL)
with test_hosts.small_network():
    __main__.main()
"""


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Where sbatch and srun are found."""
    return slurm.install(tmp_path)


def install_lensjax(folder: Path, program: str) -> None:
    """Writes a lensjax with small networks beside them."""
    (folder / "small.py").write_text(program)
    slurm.write(folder / "lensjax", f'exec {sys.executable} {folder}/small.py "$@"')


@pytest.mark.slow
def test_an_array_job_gives_the_catalogue_of_one_run(
    environment,
    members,  # noqa: F811
    stack_file,  # noqa: F811
    tmp_path,
):
    install_lensjax(tmp_path, LENSJAX)
    options = ["--checkpoints", str(members), "--data", str(stack_file), "--mc-samples", "2"]
    outputs = [tmp_path / "my local run", tmp_path / "my array's run"]
    commands = [["infer", *options, "--output", str(output)] for output in outputs]
    with networks.small(), mock.patch.object(pages, "draw", lambda *_: None):
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


@pytest.mark.slow
def test_a_training_that_loses_a_process_is_queued_again_and_goes_on(environment, tmp_path):
    install_lensjax(tmp_path, TRAINING)
    cutouts, one = processes.write_cutouts(tmp_path), tmp_path / "one"
    options = test_hosts.options(cutouts, one, **test_hosts.RARELY)
    with test_hosts.small_network():
        train.main(options)
    together = tmp_path / "together"
    command = shlex.join(["train", *test_hosts.options(cutouts, together)])
    jobs.write(jobs.LaunchConfig(accelerators=2, restarts=1, output=tmp_path, command=command))
    with socket.create_server(("127.0.0.1", 0)) as free:  # else it is that of the job's number
        environment |= {"JAX_COORDINATOR_PORT": str(free.getsockname()[1])}
    job = ["sbatch", tmp_path / "slurm-train.sbatch"]
    subprocess.run(job, env=environment, check=True, timeout=processes.LIMIT_SECONDS)

    logs = [path.read_text() for path in sorted((tmp_path / "state").glob("100.*.log"))]
    print(*logs)
    assert len(logs) == 2
    (line,) = re.findall("^error: .*", logs[0], re.MULTILINE)
    assert line.startswith("error: process 1 (") and "is gone" in line
    assert f"ended with status {hosts.START_AGAIN}\n" in logs[0]
    assert "ended with status 0\n" in logs[1]
    (left,) = set(re.findall(r"training .*/(\d+) images", logs[1]))
    assert 2 <= test_hosts.STEPS - int(left) / test_hosts.BATCH <= test_hosts.DIES
    with test_hosts.small_network():
        test_hosts.assert_same_member(together, one)
