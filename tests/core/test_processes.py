"""Several real processes on loopback train as one does, and runs that are killed go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nml_jax.core import writer

ROOT = Path(__file__).parents[2]
TRAIN = [sys.executable, "-m", "tests.core.train_toy"]


def start(workdir, steps, *, processes=1, pause=0.0):
    """Four simulated devices in all, shared by so many processes."""
    workdir.mkdir(exist_ok=True)
    launcher = [sys.executable, "launch/local.py", f"--processes={processes}", "--devices=4", "--"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    return subprocess.Popen(
        [*launcher, *TRAIN, str(workdir), str(steps), str(pause)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def lines(workdir):
    return {r["step"]: r["loss"] for r in writer.read_lines(workdir / "metrics.jsonl")}


def wait_for(condition):
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    finish(start(workdir, 8))
    return lines(workdir)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch_and_reach_the_same_losses(processes, one_process, tmp_path):
    finish(start(tmp_path / "w", 8, processes=processes))
    found = lines(tmp_path / "w")
    assert found.keys() == one_process.keys()
    np.testing.assert_allclose(list(found.values()), list(one_process.values()), rtol=2e-5)


def test_sigterm_to_one_of_two_processes_saves_in_both_and_the_run_goes_on(tmp_path):
    """The losses after the interruption are those of a run of two processes that was never interrupted."""
    finish(start(tmp_path / "whole", 30, processes=2))
    process = start(tmp_path / "w", 30, processes=2, pause=0.3)
    wait_for(lambda: (tmp_path / "w" / "metrics.jsonl").exists() and len(lines(tmp_path / "w")) >= 3)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(children[1]), signal.SIGTERM)
    output = finish(process)
    stopped = [line for line in output.splitlines() if "which is saved" in line]
    assert len(stopped) == 2
    saved = max(int(p.name) for p in (tmp_path / "w" / "checkpoints").glob("[0-9]*"))
    assert saved < 30
    assert all(f"at step {saved} of 30" in line for line in stopped)
    finish(start(tmp_path / "w", 30, processes=2))
    assert lines(tmp_path / "w") == lines(tmp_path / "whole")


def test_sigkill_loses_no_more_than_what_came_after_the_last_checkpoint(tmp_path):
    finish(start(tmp_path / "whole", 20))
    for round_ in range(3):
        process = start(tmp_path / "w", 20, pause=0.2)
        known = len(lines(tmp_path / "w")) if (tmp_path / "w" / "metrics.jsonl").exists() else 0
        wait_for(
            lambda known=known: (
                (tmp_path / "w" / "metrics.jsonl").exists() and len(lines(tmp_path / "w")) >= known + 3
            )
        )
        time.sleep(0.07 * round_)
        for child in subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split():
            os.kill(int(child), signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode != 0
    finish(start(tmp_path / "w", 20))
    assert lines(tmp_path / "w") == lines(tmp_path / "whole")
