"""slurm.sbatch, with stand-ins for Slurm's programs: processes as srun starts them, and when the job queues again."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do echo "$1" >> "$CALLS"; shift; done
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_STEP_NODELIST=127.0.0.1 SLURM_STEP_NUM_NODES=1 SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
  pids+=($!)
  echo $! >> "$CALLS.pids"
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit $status
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >> "$CALLS"
xargs kill -TERM < "$CALLS.pids"
"""
OTHERS = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
"""


@pytest.fixture
def slurm(tmp_path):
    """The environment of a batch script whose job has two processes."""
    programs = {"srun": SRUN, "scancel": SCANCEL, "scontrol": OTHERS, "sbatch": OTHERS}
    for name, text in programs.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "SLURM_"))}
    return clean | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": str(3000 + os.getpid() % 1000),
        "SLURM_NTASKS": "2",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }


def start(environment: dict[str, str], *args: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", "launch/slurm.sbatch", *args],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def calls(environment: dict[str, str]) -> list[str]:
    path = Path(environment["CALLS"])
    return [line for line in path.read_text().splitlines() if line[0] != "-"] if path.exists() else []


def test_a_dry_run_prints_the_command_and_starts_nothing(slurm):
    job = start(slurm, "--dry_run", "--", "python", "-m", "nml_jax.main", "--workdir=a b")
    assert job.communicate(timeout=20) == (
        "srun --label --kill-on-bad-exit=1 python -m nml_jax.main '--workdir=a b'\n",
        "",
    )
    assert not Path(slurm["CALLS"]).exists()


@pytest.mark.parametrize("args", [[], ["--"], ["--dry_run"], ["--dryrun", "--", "true"], ["true"]])
def test_usage(slurm, args):
    job = start(slurm, *args)
    assert "usage: sbatch [OPTIONS OF SBATCH] launch/slurm.sbatch" in job.communicate(timeout=20)[1]
    assert job.returncode == 2
    assert not Path(slurm["CALLS"]).exists()


def test_outside_of_a_job(slurm):
    job = start({k: v for k, v in slurm.items() if k != "SLURM_JOB_ID"}, "--", "true")
    assert "submit this file with sbatch" in job.communicate(timeout=20)[1]
    assert job.returncode == 2


@pytest.mark.parametrize(
    ("files", "code", "requeued"),
    [
        (["checkpoints/"], 0, True),  # preempted: Slurm's SIGTERM goes to the processes only
        (["checkpoints/", "done.json"], 0, False),
        ([], 0, False),  # a stage without checkpoints
        (["checkpoints/"], 2, False),
        (["checkpoints/"], 1, False),
    ],
)
def test_a_job_that_was_stopped_before_its_end_queues_again(slurm, tmp_path, files, code, requeued):
    work = tmp_path / "work dir"
    for name in files:
        (work / name).mkdir(parents=True) if name.endswith("/") else (work / name).touch()
    job = start(slurm, "--", "bash", "-c", f"exit {code}", f"--workdir={work}")
    job.communicate(timeout=20)
    assert job.returncode == code
    assert calls(slurm) == [f"scontrol requeue {slurm['SLURM_JOB_ID']}"] * requeued


def test_sigterm_reaches_the_processes_and_the_job_queues_again(slurm, tmp_path):
    code = (
        "import os, signal, sys, time\n"
        f"log = open({str(tmp_path / 'log')!r}, 'a')\n"
        "def save(*_): time.sleep(0.5); print('saved', os.environ['SLURM_PROCID'], file=log); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('ready', file=log, flush=True)\n"
        "time.sleep(30)\n"
    )
    job = start(slurm, "--", sys.executable, "-c", code)
    log = tmp_path / "log"
    deadline = time.monotonic() + 20
    while not (log.exists() and log.read_text().count("ready") == 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    job.terminate()
    job.communicate(timeout=20)
    assert job.returncode == 0
    assert sorted(log.read_text().splitlines()) == ["ready", "ready", "saved 0", "saved 1"]
    number = slurm["SLURM_JOB_ID"]
    assert calls(slurm) == [f"scancel --signal=TERM {number}", f"scontrol requeue {number}"]


@pytest.mark.slow
def test_two_processes_pretrain(slurm, tmp_path, data_dir):
    """A smoke config through the batch script, with what srun sets: one result of two processes, and no requeue."""
    code = "import sys, jax; from nml_jax.main import main; main(['', *sys.argv[1:]]); print('of', jax.process_count())"
    job = start(
        slurm,
        "--",
        sys.executable,
        "-c",
        code,
        "--config=configs/pretrain/glyphs_supervised.py:smoke",
        f"--workdir={tmp_path / 'work'}",
        f"--config.data_dir={data_dir}",
        "--config.progress=False",
        "--config.data.train=train[:128]",
        "--config.data.test=test[:64]",
        "--config.batch_size=64",
        "--config.epochs=1",
        "--config.model.options.stages=(1,)",
    )
    output, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors[-3000:]
    assert output.count("of 2") == 2, errors[-3000:]
    assert (tmp_path / "work" / "done.json").exists()
    assert calls(slurm) == []
