"""Stand-ins for sbatch, srun and scontrol: they start the processes of a job on this machine, with
the variables that SLURM sets. `python -m tests.cluster.slurm COMMAND ...`"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Where they keep what they know: a file a job with its status, and wishes to be queued again.
STATE = "FAKE_SLURM"
MOST_STARTS = 5


def install(folder: Path) -> dict[str, str]:
    """Writes the commands into `folder` and returns the environment in which they are found."""
    for name in ("sbatch", "srun", "scontrol"):
        write(folder / name, f'exec {sys.executable} -m tests.cluster.slurm {name} "$@"')
    (folder / "state").mkdir()
    paths = {"PATH": f"{folder}:{os.environ['PATH']}", STATE: str(folder / "state")}
    return os.environ | paths | {"PYTHONPATH": str(Path(__file__).parents[2])}


def write(path: Path, text: str) -> None:
    """Writes a command of these lines of shell."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def sbatch(arguments: Sequence[str]) -> int:
    """Runs a job, or each task of an array, to its end, and prints its number."""
    state = Path(os.environ[STATE])
    script = arguments[-1]
    lines = [line.split()[1] for line in Path(script).read_text().splitlines() if "#SBATCH" in line]
    asked = dict(word.removeprefix("--").partition("=")[::2] for word in [*lines, *arguments[:-1]])
    _, _, before = asked.get("dependency", "").partition("afterok:")
    if before and any(path.read_text() != "0" for path in state.glob(f"{before}*.status")):
        raise SystemExit(f"{before} has failed")
    job = str(100 + len(list(state.iterdir())))
    print(job)
    first, _, last = asked.get("array", "").partition("-")
    tasks = [str(task) for task in range(int(first), int(last) + 1)] if first else [""]

    def run(task: str) -> None:
        own = {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "localhost"}
        own["SLURM_NTASKS"] = str(int(asked["nodes"]) * int(asked["ntasks-per-node"]))
        if task:
            own |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": task}
            own["SLURM_ARRAY_TASK_COUNT"] = str(len(tasks))
        name = f"{job}_{task}" if task else job
        (state / f"{name}.status").write_text(str(_until_done(state, name, script, own)))

    with ThreadPoolExecutor() as together:
        list(together.map(run, tasks))
    return 0


def _until_done(state: Path, name: str, script: str, own: Mapping[str, str]) -> int:
    """Returns the status of a job that is started again as long as it asks for it."""
    for start in range(MOST_STARTS):
        environment = os.environ | own | {"SLURM_RESTART_COUNT": str(start)}
        with (state / f"{name}.{start}.log").open("w") as log:
            status = subprocess.run(
                ["bash", script], env=environment, stdout=log, stderr=log
            ).returncode
            log.write(f"\nended with status {status}\n")
        again = state / f"{name}.again"
        if not again.exists():
            return status
        again.unlink()
    raise SystemExit(f"{name} was started {MOST_STARTS} times")


def srun(arguments: Sequence[str]) -> int:
    """Starts all tasks of a step, ends them where it is ended, and returns the highest status."""
    options = [word for word in arguments if word.startswith("--")]
    options = options[: next(i for i, word in enumerate(arguments) if not word.startswith("--"))]
    asked = dict(word.removeprefix("--").partition("=")[::2] for word in options)
    count = int(asked.get("ntasks", os.environ["SLURM_NTASKS"]))
    processes = []
    for number in range(count):
        own = {"SLURM_PROCID": str(number), "SLURM_NTASKS": str(count)}
        own |= {"SLURM_LOCALID": str(number), "SLURM_STEP_NODELIST": "localhost"}
        own |= {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": str(count)}
        command = arguments[len(options) :]
        processes.append(subprocess.Popen(command, env=os.environ | own))
    signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in processes])
    return max(process.wait() for process in processes)


def scontrol(arguments: Sequence[str]) -> int:
    """Notes that a job is to be queued again, or names the hosts of a job."""
    if arguments[0] == "requeue":
        (Path(os.environ[STATE]) / f"{arguments[1]}.again").touch()
    else:
        print(arguments[-1])
    return 0


if __name__ == "__main__":
    sys.exit({"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
