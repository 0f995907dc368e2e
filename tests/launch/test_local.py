"""The launcher: what it starts, and what becomes of the others when one fails."""

import subprocess
import sys
import time
from pathlib import Path

LAUNCHER = Path(__file__).parents[2] / "launch" / "local.py"


def launch(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, LAUNCHER, *args], capture_output=True, text=True, check=False, timeout=60
    )


def test_a_dry_run_prints_each_process_and_divides_the_devices():
    done = launch(
        "--processes=2", "--devices=8", "--dry_run", "--", "python", "-m", "nml_jax.main", "--workdir=a b"
    )
    first, second = done.stdout.splitlines()
    for index, line in enumerate((first, second)):
        assert f"JAX_PROCESS_ID={index} " in line
        assert "JAX_NUM_PROCESSES=2" in line
        assert "--xla_force_host_platform_device_count=4" in line
        assert line.endswith("python -m nml_jax.main '--workdir=a b'")
    assert (
        first.split("JAX_COORDINATOR_ADDRESS=")[1].split()[0]
        == second.split("JAX_COORDINATOR_ADDRESS=")[1].split()[0]
    )
    gpus = launch("--processes=2", "--gpus=0,1,2,3", "--dry_run", "--", "true").stdout.splitlines()
    assert ["CUDA_VISIBLE_DEVICES=0,1" in gpus[0], "CUDA_VISIBLE_DEVICES=2,3" in gpus[1]] == [True, True]


def test_output_carries_the_process_number():
    code = "import os; print('I am', os.environ['JAX_PROCESS_ID'])"
    done = launch("--processes=3", "--", sys.executable, "-c", code)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == ["[0] I am 0", "[1] I am 1", "[2] I am 2"]


def test_one_failure_stops_the_others():
    code = "import os, sys, time; sys.exit(3) if os.environ['JAX_PROCESS_ID'] == '1' else time.sleep(50)"
    started = time.monotonic()
    assert launch("--processes=2", "--", sys.executable, "-c", code).returncode == 3
    assert time.monotonic() - started < 20


def test_wrong_use_is_said():
    for args in (["--processes=2"], ["--processes=3", "--devices=8", "--", "true"]):
        done = launch(*args)
        assert done.returncode == 2
        assert "no command" in done.stderr or "cannot be divided" in done.stderr
