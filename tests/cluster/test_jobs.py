"""Job files: their form, what they run, and that no word of a command is changed on the way."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml

from lensjax.cli import launch as launch_command
from lensjax.cluster import jobs
from lensjax.errors import UsageError
from tests.cli.conftest import run  # noqa: F401
from tests.cluster import slurm

ROOT = Path(__file__).parents[2]
ODD = '/data/my $(survey) o\'brien "2" *'
COMMANDS = {
    "infer": ["infer", "--data", ODD, "--output=/data/out"],
    "train": ["train", "--data", ODD, "--members", "2"],
}
JOBS = sorted({path.name.partition(".")[0] for path in jobs.TEMPLATES.glob("[a-z]*-*.*")})
CLOUD = {"image": "registry.org/lensjax:0.1", "volume": "survey", "zone": "us-west4-a"}
OF_RAY = ["--engine", "ray", "--address", "auto", "--actors"]


def rendered(job: str, **more) -> dict[str, str]:
    """Returns the files of a job, `slurm-infer`, for three machines with two accelerators each."""
    system, _, what = job.rpartition("-")
    settings = {"nodes": 3, "accelerators": 2, "command": shlex.join(COMMANDS[what])}
    if not system.startswith("slurm"):
        settings |= CLOUD
    return jobs.render(jobs.LaunchConfig(system=system, **settings | more))


def documents(job: str, **more) -> list[dict]:
    (text,) = rendered(job, **more).values()
    return list(yaml.safe_load_all(text))


def test_every_system_has_its_jobs():
    systems = typing.get_args(jobs.System)
    every = {f"{system}-{what}" for system in systems for what in COMMANDS}
    assert every - set(JOBS) == {"slurm-ray-train"} and set(JOBS) <= every


@pytest.mark.parametrize("job", [job for job in JOBS if "slurm" in job or "tpu" in job])
def test_scripts_are_sound_shell(job, tmp_path):
    for name, text in rendered(job, setup="module load cuda").items():
        (tmp_path / name).write_text(text)
        subprocess.run(["bash", "-n", name], cwd=tmp_path, check=True)
        assert text.startswith("#!/usr/bin/env bash\n# Start it with: ")
        if shutil.which("shellcheck"):
            checked = ["shellcheck", "--exclude=SC2016", name]  # a path of the user's may hold a $
            subprocess.run(checked, cwd=tmp_path, check=True)


def test_what_slurm_is_asked_for_stands_before_the_first_command():
    more = {"partition": "gpu", "account": "lens", "accelerator": "h100", "cpus": 9, "hours": 2}
    text = rendered("slurm-train", setup="module load cuda", **more)["slurm-train.sbatch"]
    head, _, rest = text.partition("module load cuda\n")
    asked = re.findall(r"^#SBATCH --(\S+)$", head, re.M)
    assert "#SBATCH" not in rest and asked == [
        *("nodes=3", "job-name=lensjax", "ntasks-per-node=2", "cpus-per-task=4", "mem=65536M"),
        *("gpus-per-node=h100:2", "partition=gpu", "account=lens", "time=2:00:00"),
        *("output=%x-%j.log", "open-mode=append", "requeue", "signal=TERM@300"),
    ]
    assert "srun --kill-on-bad-exit=1 " in rest


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Returns a function that runs lines of shell and returns what lensjax and ray were given in
    each call."""
    (tmp_path / "bin").mkdir()
    environment = slurm.install(tmp_path / "bin")
    log = tmp_path / "calls"
    note = "import json, sys; print(json.dumps(sys.argv[1:]))"
    noted = f'{sys.executable} -c "{note}" "$@" >> {log}'
    slurm.write(tmp_path / "bin" / "lensjax", noted)
    is_there = f"until grep -q -e --head {log}; do sleep 0.02; done"
    start = f'[ "$1" = health-check ] && {{ {is_there}; exit 0; }}; {noted}; sleep 1'
    slurm.write(tmp_path / "bin" / "ray", start)
    slurm.write(tmp_path / "bin" / "curl", "echo 1")
    there = 'case $word in --command=*) exec bash -c "${word#--command=}";; esac'
    slurm.write(tmp_path / "bin" / "gcloud", f"for word; do {there}; done")
    environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost", "SLURM_NTASKS": "1"}

    def run_lines(text: str, **more: str) -> list[list[str]]:
        subprocess.run(["bash", "-c", text], env=environment | more, check=True, timeout=50)
        return [json.loads(line) for line in log.read_text().splitlines()]

    return run_lines


def lines_of(job: str, **more) -> str:
    """Returns the lines of shell that a machine runs."""
    if job.startswith("skypilot"):
        return "\n".join(each["run"] for each in documents(job, **more) if "run" in each)
    if job == "kubernetes-infer":
        return documents(job, **more)[0]["data"]["run.sh"]
    return next(iter(rendered(job, **more).values()))


@pytest.mark.parametrize(
    ("job", "added"),
    [
        ("slurm-infer", [["--part", "2/3"]]),
        ("slurm-train", [[]]),
        ("slurm-ray-infer", [[*OF_RAY, "6"]]),
        ("kubernetes-infer", [[*OF_RAY, "6"]]),
        ("skypilot-infer", [["--part", "2/3"], []]),
        (
            "skypilot-train",
            [["--coordinator", "10.0.0.1:8476", "--processes", "3", "--process", "1"]],
        ),
        ("tpu-vm-infer", [["--part", "2/3"], []]),
        ("tpu-vm-train", [[]]),
    ],
)
def test_lensjax_is_given_the_words_that_were_written(shell, job, added):
    variables = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    variables |= {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "3"}
    variables |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n10.0.0.3"}
    called = shell(lines_of(job, setup="greeting='a b' && export greeting"), **variables)
    ours = [words for words in called if words[0] in COMMANDS]
    assert ours == [[*COMMANDS[job.split("-")[-1]], *more] for more in added]


def test_ray_on_slurm_has_no_dashboard_and_a_token_that_no_command_shows(shell):
    called = shell(lines_of("slurm-ray-infer"))
    (head,) = [words for words in called if "--head" in words]
    assert "--include-dashboard=false" in head and "--port=20007" in head
    assert any(re.fullmatch(r"--node-ip-address=[\d.]+", word) for word in head)
    text = lines_of("slurm-ray-infer")
    assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN" in text
    assert text.count("$RAY_AUTH_TOKEN") == 0


def test_a_job_in_an_image_runs_there():
    assert "srun --ntasks=1 --cpus-per-task=8 apptainer exec --nv lens.sif lensjax infer " in (
        lines_of("slurm-infer", image="lens.sif")
    )
    text = lines_of("slurm-ray-infer", image="lens.sif")
    assert text.count("apptainer exec --nv lens.sif ray ") == 2


@pytest.mark.parametrize(
    "statuses, starts", [([3, 3, 0], 3), ([75, 0], 2), ([137, 1], 2), ([2], 1)]
)
@pytest.mark.parametrize("job", ["slurm-infer", "slurm-train"])
def test_slurm_queues_again_what_can_go_on(tmp_path, job, statuses, starts):
    """Each start ends with the next status."""
    environment = slurm.install(tmp_path)
    ends = f"echo x >> {tmp_path}/starts; set -- {' '.join(map(str, statuses))}; "
    ends += f"shift $(($(wc -l < {tmp_path}/starts) - 1)); exit $1"
    slurm.write(tmp_path / "lensjax", ends)
    name, text = next(
        each for each in rendered(job, accelerators=1, nodes=1).items() if "sbatch" in each[0]
    )
    (tmp_path / name).write_text(text)
    subprocess.run(["sbatch", tmp_path / name], env=environment, check=True, timeout=50)
    known = 1 if job == "slurm-infer" and statuses[0] != 3 else starts
    assert (tmp_path / "starts").read_text() == "x\n" * known
    assert (tmp_path / "state" / "100.status").read_text() == str(statuses[known - 1])


def test_accidents_of_a_training_have_an_end(tmp_path):
    environment = slurm.install(tmp_path)
    slurm.write(tmp_path / "lensjax", "exit 75")
    (tmp_path / "job").write_text(rendered("slurm-train", restarts=2)["slurm-train.sbatch"])
    subprocess.run(["sbatch", tmp_path / "job"], env=environment, check=True, timeout=50)
    assert len(list((tmp_path / "state").glob("100.*.log"))) == 3


def test_a_ray_job_is_as_kuberay_wants_it():
    config_map, ray_job = documents("kubernetes-infer", accelerator="nvidia-h100-80gb")
    assert (config_map["apiVersion"], config_map["kind"]) == ("v1", "ConfigMap")
    assert (ray_job["apiVersion"], ray_job["kind"]) == ("ray.io/v1", "RayJob")
    spec = ray_job["spec"]
    assert spec["entrypoint"] == "bash /lensjax/run.sh" and spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "scripts/launch/versions.txt").read_text()
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0"} and head["serviceType"] == "ClusterIP"
    (workers,) = cluster["workerGroupSpecs"]
    assert {workers[name] for name in ("replicas", "minReplicas", "maxReplicas")} == {3}
    pod = workers["template"]["spec"]
    assert limits(pod) == {"memory": "65536Mi", "nvidia.com/gpu": 2}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert "nvidia.com/gpu" not in limits(head["template"]["spec"])
    for each in (pod, head["template"]["spec"]):
        check_pod(each)


def test_a_job_set_starts_all_processes_again():
    (job_set,) = documents("kubernetes-train")
    pod = check_job_set(job_set)
    assert limits(pod) == {"memory": "65536Mi", "nvidia.com/gpu": 2}
    (container,) = pod["containers"]
    assert container["command"] == [
        "lensjax",
        *(each.replace("$(", "$$(") for each in COMMANDS["train"]),
    ]
    assert container["args"] == [
        "--coordinator=lensjax-train-0-0.lensjax:8476",  # the first pod of the replicated job
        *("--processes=3", "--process=$(PROCESS)"),
    ]
    assert [each["name"] for each in container["env"]] == ["PROCESS"]


def test_a_job_set_for_tpus_leaves_the_hosts_to_jax():
    (job_set,) = documents("kubernetes-train", topology="4x4", accelerators=4)
    pod = check_job_set(job_set)
    assert limits(pod) == {"memory": "65536Mi", "google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert "args" not in pod["containers"][0]


def check_job_set(job_set: dict) -> dict:
    """Checks what JobSet's documentation asks for and returns the pod."""
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = job_set["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 10 and spec["network"]["enableDNSHostnames"]
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (replicated["name"], replicated["replicas"], job["backoffLimit"]) == ("train", 1, 0)
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (3, 3, "Indexed")
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # as a podFailurePolicy needs it
    check_pod(job["template"]["spec"])
    return job["template"]["spec"]


def limits(pod: dict) -> dict:
    return pod["containers"][0]["resources"]["limits"]


def check_pod(pod: dict) -> None:
    """Checks that a pod is no root's, and that what its container shows is there."""
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    (container,) = pod["containers"]
    assert container["image"] == CLOUD["image"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]} and "data" in mounted
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "survey"}


@pytest.mark.parametrize("job, again", [("skypilot-infer", [3]), ("skypilot-train", [3, 75])])
def test_tasks_of_skypilot(job, again):
    *first, task = documents(job, accelerator="H100", volume="gs://survey")
    assert {"name", "resources", "file_mounts", "run"} <= set(task)
    resources = task["resources"]
    assert resources["accelerators"] == "H100:2" and resources["memory"] == "64+"
    assert resources["job_recovery"]["recover_on_exit_codes"] == again
    assert task["file_mounts"] == {"/data": {"source": "gs://survey", "mode": "MOUNT"}}
    if first:  # a pipeline: its name, and what is done before
        assert list(first[0]) == ["name"] and first[1]["num_nodes"] == 3


def test_the_image_is_pinned_and_no_root():
    steps = [
        line.split(maxsplit=1)
        for line in (ROOT / "scripts/launch/Dockerfile")
        .read_text()
        .replace("\\\n", "")
        .splitlines()
        if line and not line.startswith("#")
    ]
    of_image = dict(steps)
    assert set(of_image) <= {"FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "CMD"}
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", of_image["FROM"])
    assert of_image["USER"] == "1000:1000" and json.loads(of_image["CMD"])[0] == "lensjax"
    for name, given in steps:
        if name == "COPY":
            *sources, target = given.split()
            assert target.startswith("/build/") and all((ROOT / each).exists() for each in sources)
    definition = (ROOT / "scripts/launch/apptainer.def").read_text()
    assert f"From: {of_image['FROM']}\n" in definition
    for source in re.findall(r"^    (\S+) /build", definition.split("%post")[0], re.M):
        assert (ROOT / source).exists()


def test_the_versions_of_the_image_are_all_named():
    lines = (ROOT / "scripts/launch/versions.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert {"jax", "jaxlib", "jax-cuda12-plugin", "flax", "ray"} <= {
        pin.partition("==")[0] for pin in pins
    }


def test_files_are_written_and_named(run, tmp_path):  # noqa: F811
    folder = tmp_path / "my jobs"
    ended = run(launch_command.main, "--output", folder, "--nodes", 3, "--", *COMMANDS["infer"])
    assert ended.status == 0, ended.error
    names = ["slurm-infer.sbatch", "slurm-infer.sh"]
    assert ended.out.splitlines()[:2] == [str(folder / name) for name in names]
    assert (folder / names[0]).read_text() == rendered("slurm-infer", accelerators=1)[names[0]]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("write it last, after `--`", ["--system", "slurm"]),
        ("write it last, after `--`", ["--", "simulate"]),
        ("write it last, after `--`", ["--nodes", "2", "--"]),
        ("leave out --part=1/2", ["--", "infer", "--part=1/2"]),
        ("No closing quotation", ["--command", "infer --data 'x"]),
        (
            "slurm-ray has no job for train: choose from kuber",
            ["--system=slurm-ray", "--", "train"],
        ),
        ("--nodes must be at least 1", ["--nodes", "0", "--", "infer"]),
        ("--accelerators must be at least 0", ["--accelerators", "-1", "--", "infer"]),
        ("--name 'My_Job'", ["--name", "My_Job", "--", "infer"]),
        ("--partition 'gpu x'", ["--partition", "gpu x", "--", "infer"]),
        ("--setup must be one line", ["--setup", "a\nb", "--", "infer"]),
        ("--memory: 'much' is no size", ["--memory", "much", "--", "infer"]),
        ("--image is missing", ["--system", "kubernetes", "--", "infer"]),
        ("--volume is missing", ["--system", "skypilot", "--image", "x", "--", "infer"]),
        ("--zone is missing", ["--system", "tpu-vm", "--", "train"]),
        ("nearest known one is '--nodes'", ["--node", "2", "--", "infer"]),
    ],
)
def test_wrong_use_is_one_clear_line(run, tmp_path, words, options):  # noqa: F811
    ended = run(launch_command.main, f"--output={tmp_path / 'jobs'}", *options)
    assert ended.status == 2 and words in ended.error and ended.error.count("\n") == 1
    assert not (tmp_path / "jobs").exists()


def test_render_says_so_too():
    with pytest.raises(UsageError, match="which command is to run"):
        jobs.render(jobs.LaunchConfig())
