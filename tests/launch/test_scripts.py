"""tpu_pod.sh and kubernetes.sh: what they would do, that a dry run does nothing, and what they refuse."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nml_jax.core import hosts

LAUNCH = Path(__file__).parents[2] / "launch"
AWKWARD = [
    "python",
    "-c",
    "print(\"it's\", 'a  b', '$HOME', '$(X)', '`x`', '\\\\n')\n\tprint(1)",
    "",
    "*",
    "--a=b c",
]


@pytest.fixture
def tools(tmp_path):
    """A folder for PATH in which every tool writes its arguments down, or what it is given on standard input."""
    for name in ("gcloud", "kubectl", "git", "sbatch", "srun", "scontrol", "scancel"):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(
            f"#!{sys.executable}\n"
            "import json, os, sys\n"
            "with open(os.environ['CALLS'], 'a') as file:\n"
            f"    print(json.dumps(['{name}', *sys.argv[1:]]), file=file)\n"
            f"if '{name}' == 'kubectl':\n"
            "    open(os.environ['CALLS'] + '.stdin', 'w').write(sys.stdin.read())\n"
        )
        tool.chmod(0o755)
    return tmp_path


def run(tools: Path, script: str, *args: str) -> tuple[int, str, list]:
    """(exit status, standard output or error, the tools that were called)."""
    calls = tools / "calls"
    calls.unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", LAUNCH / script, *args],
        env={"PATH": f"{tools / 'bin'}:{os.environ['PATH']}", "CALLS": str(calls)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    made = [yaml.safe_load(line) for line in calls.read_text().splitlines()] if calls.exists() else []
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr, made


POD = ["--name=pod", "--zone=us-central2-b", "--project=p"]
PLACE = ["--zone=us-central2-b", "--project=p"]
VM = ["gcloud", "compute", "tpus", "tpu-vm"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (
            ["create", *POD, "--type=v4-32", "--version=tpu-ubuntu2204-base", "--spot"],
            [
                [
                    *VM,
                    "create",
                    "pod",
                    *PLACE,
                    "--accelerator-type=v4-32",
                    "--version=tpu-ubuntu2204-base",
                    "--spot",
                ]
            ],
        ),
        (
            ["logs", *POD],
            [[*VM, "ssh", "pod", *PLACE, "--worker=0", "--command=tail -n 100 -f nml_jax.log"]],
        ),
        (["delete", *POD], [[*VM, "delete", "pod", *PLACE]]),
    ],
)
def test_tpu_pod(tools, args, expected):
    status, printed, calls = run(tools, "tpu_pod.sh", *args, "--dry_run")
    assert (status, calls) == (0, [])
    assert [shlex.split(line) for line in printed.splitlines()] == expected
    assert run(tools, "tpu_pod.sh", *args) == (0, "", expected)


def test_tpu_pod_copies_the_committed_files_and_installs_them_on_all_workers(tools):
    status, printed, calls = run(tools, "tpu_pod.sh", "copy", *POD, "--dry_run")
    assert (status, calls) == (0, [])
    archive, copy, install = (shlex.split(line) for line in printed.splitlines())
    assert archive == ["git", "archive", "--format=tar.gz", "--output=nml_jax.tar.gz", "HEAD"]
    assert copy == [*VM, "scp", "nml_jax.tar.gz", "pod:nml_jax.tar.gz", *PLACE, "--worker=all"]
    assert install[:-1] == [*VM, "ssh", "pod", *PLACE, "--worker=all"]
    assert install[-1].startswith("--command=mkdir -p nml_jax && tar -xzf nml_jax.tar.gz -C nml_jax && ")
    assert install[-1].endswith("python3.11 -m venv venv && venv/bin/pip install -q -e 'nml_jax[tpu]'")
    _, _, real = run(tools, "tpu_pod.sh", "copy", *POD)
    assert real[0][:3] == archive[:3]
    assert real[0][3].endswith("/nml_jax.tar.gz")
    assert real[1][5] == real[0][3].removeprefix("--output=")
    assert real[2] == install
    assert not Path(real[1][5]).parent.exists()  # the folder made for it is gone


@pytest.mark.parametrize("detach", [False, True])
def test_tpu_pod_runs_the_command_word_for_word_on_all_workers(tools, detach, tmp_path):
    options = ["run", *POD, *["--detach"] * detach]
    command = ["--", sys.executable, "-c", "import sys; print(sys.argv[1:])", *AWKWARD]
    status, printed, calls = run(tools, "tpu_pod.sh", *options, "--dry_run", *command)
    assert (status, calls) == (0, [])
    _, _, [real] = run(tools, "tpu_pod.sh", *options, *command)
    assert shlex.split(printed) == real
    assert real[:-1] == [*VM, "ssh", "pod", *PLACE, "--worker=all"]
    # What a worker's shell makes of it: the same words.
    home = tmp_path / "home"
    (home / "nml_jax").mkdir(parents=True)
    (home / "venv" / "bin").mkdir(parents=True)
    (home / "venv" / "bin" / "activate").write_text("")
    shell = ["bash", "-c", real[-1].removeprefix("--command=")]
    done = subprocess.run(shell, cwd=home, capture_output=True, text=True, check=True, timeout=30)
    output = done.stdout
    if detach:
        deadline = 100
        while not (output := (home / "nml_jax.log").read_text()) and (deadline := deadline - 1):
            subprocess.run(["sleep", "0.1"], check=True)
        assert done.stdout == ""
    assert output.strip().splitlines()[-1] == str(AWKWARD)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ([], "unknown action ''"),
        (["start", *POD], "unknown action 'start'"),
        (["run", *POD, "python", "x.py"], "unknown argument python"),
        (["run", *POD], "needs a command"),
        (["run", "--name=pod", "--", "true"], "--name and --zone"),
        (["create", *POD], "--type and --version"),
        (["delete", *POD, "--", "true"], "only run"),
        (["delete", *POD, "--force"], "unknown argument --force"),
    ],
)
def test_tpu_pod_usage(tools, args, word):
    status, error, calls = run(tools, "tpu_pod.sh", *args)
    assert (status, calls) == (2, [])
    assert word in error
    assert "usage: launch/tpu_pod.sh create|copy|run|logs|delete" in error


JOB = ["--name=job", "--image=repo/image:tag", "--processes=4"]


def manifest(tools: Path, *args: str) -> tuple[dict, dict]:
    """The service and the job of a dry run, which are those that kubectl is given otherwise."""
    status, printed, calls = run(tools, "kubernetes.sh", "--dry_run", *args)
    assert (status, calls) == (0, [])
    status, _, calls = run(tools, "kubernetes.sh", *args)
    assert status == 0
    space = [a for a in args if a.startswith("--namespace")]
    assert calls == [["kubectl", "apply", "--filename=-", *space]]
    assert (tools / "calls.stdin").read_text() == printed
    return tuple(yaml.safe_load_all(printed))


def test_kubernetes(tools):
    options = [
        "--gpus=8",
        "--cpu=32",
        "--memory=64Gi",
        "--claim=data:/mnt/my data",
        "--namespace=team",
        "--port=99",
    ]
    service, job = manifest(tools, *JOB, *options, "--", "python", "-m", "nml_jax.main")
    assert service["metadata"]["name"] == "job"
    assert service["spec"] == {
        "clusterIP": "None",  # headless
        "publishNotReadyAddresses": True,
        "selector": {"job-name": "job"},
    }
    spec = job["spec"]
    assert (job["kind"], job["apiVersion"], job["metadata"]["name"]) == ("Job", "batch/v1", "job")
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    pod = spec["template"]["spec"]
    assert (pod["subdomain"], pod["restartPolicy"]) == ("job", "Never")
    [container] = pod["containers"]
    assert container["image"] == "repo/image:tag"
    assert container["command"][-3:] == ["python", "-m", "nml_jax.main"]
    assert container["resources"] == {
        "requests": {"cpu": "32", "memory": "64Gi"},
        "limits": {"nvidia.com/gpu": 8},
    }
    assert container["volumeMounts"][1] == {"name": "claim", "mountPath": "/mnt/my data"}
    assert pod["volumes"][1] == {"name": "claim", "persistentVolumeClaim": {"claimName": "data"}}
    environment = {item["name"]: item["value"] for item in container["env"]}
    for index in range(4):
        place = hosts.find(environment | {"JOB_COMPLETION_INDEX": str(index)})
        assert (place.address, place.count, place.number) == ("job-0.job:99", 4, index)


def test_kubernetes_leaves_out_what_is_not_asked_for(tools):
    _, job = manifest(tools, *JOB, "--", "true")
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"] == {"requests": {}, "limits": {}}
    assert [volume["name"] for volume in pod["volumes"]] == ["shm"]


def test_kubernetes_runs_the_command_word_for_word(tools):
    code = "import sys; print(sys.argv[1:])"
    _, job = manifest(tools, *JOB, "--", sys.executable, "-c", code, *AWKWARD)
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    command = [word.replace("$$(", "$(") for word in command]  # as Kubernetes does
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == str(AWKWARD)


@pytest.mark.parametrize(
    ("files", "code", "expected"),
    [
        (["checkpoints/"], "0", 75),  # saved and stopped: the pod is to start again
        (["checkpoints/", "done.json"], "0", 0),
        ([], "0", 0),  # a stage without checkpoints
        (["checkpoints/"], "2", 2),  # something given is wrong: the job is to fail
        (["checkpoints/"], "1", 1),
    ],
)
def test_a_pod_that_was_stopped_is_not_complete(tools, tmp_path, files, code, expected):
    work = tmp_path / "work dir"
    for name in files:
        (work / name).mkdir(parents=True) if name.endswith("/") else (work / name).touch()
    _, job = manifest(tools, *JOB, "--", "sh", "-c", f"exit {code}", f"--workdir={work}")
    policy = job["spec"]["podFailurePolicy"]["rules"]
    assert [rule["onExitCodes"]["values"] for rule in policy[:2]] == [[2], [75]]
    assert [rule["action"] for rule in policy] == ["FailJob", "Ignore", "Ignore"]
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert subprocess.run(command, check=False, timeout=30).returncode == expected


def test_a_pod_hands_on_sigterm_and_waits(tools, tmp_path):
    code = (
        "import signal, sys, time\n"
        "def save(*_): time.sleep(0.3); print('saved'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('ready', flush=True)\n"
        "time.sleep(30)\n"
    )
    (tmp_path / "checkpoints").mkdir()
    _, job = manifest(tools, *JOB, "--", sys.executable, "-c", code, f"--workdir={tmp_path}")
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pod:
        assert pod.stdout.readline() == "ready\n"
        pod.terminate()
        assert pod.communicate(timeout=20)[0] == "saved\n"
    assert pod.returncode == 75


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ([*JOB], "no command"),
        ([*JOB, "true"], "unknown argument true"),
        (["--name=job", "--processes=1", "--", "true"], "--image is needed"),
        (["--image=i", "--processes=1", "--", "true"], "--name= is no name"),
        ([*JOB, "--name=My_Job", "--", "true"], "--name=My_Job is no name"),
        ([*JOB, "--processes=0", "--", "true"], "--processes=0 is no number from 1"),
        ([*JOB, "--gpus=all", "--", "true"], "are numbers"),
        ([*JOB, "--claim=data", "--", "true"], "CLAIM:/PATH"),
    ],
)
def test_kubernetes_usage(tools, args, word):
    status, error, calls = run(tools, "kubernetes.sh", *args)
    assert (status, calls) == (2, [])
    assert word in error
    assert "usage: launch/kubernetes.sh" in error


@pytest.mark.parametrize("script", ["slurm.sbatch", "tpu_pod.sh", "kubernetes.sh"])
def test_shellcheck(script):
    beside = Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([program, LAUNCH / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "set -euo pipefail" in (LAUNCH / script).read_text()
