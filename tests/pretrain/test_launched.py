"""Pre-training as users start it: one and two processes, with and without workers, interrupted and gone on with."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nml_jax.core import artifacts, writer
from nml_jax.data import source

ROOT = Path(__file__).parents[2]


def start(data_dir, workdir, *, processes=1, **values):
    """Two simulated devices in all."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    flags = {"data_dir": data_dir, "noise.ratio": 0.25, "progress": False, "log_every": 1, **values}
    return subprocess.Popen(
        [
            *(sys.executable, "launch/local.py", f"--processes={processes}", "--devices=2", "--"),
            *(sys.executable, "-m", "nml_jax.main", "--config=configs/pretrain/glyphs_supervised.py:smoke"),
            f"--workdir={workdir}",
            *(f"--config.{name}={value}" for name, value in flags.items()),
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def losses(workdir):
    path = workdir / "metrics.jsonl"
    return [r["loss"] for r in writer.read_lines(path) if "loss" in r] if path.exists() else []


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """A run of one process without workers."""
    source.open("glyphs/pretrain", "train", data_dir=data_dir)  # builds the data before the clock runs
    workdir = tmp_path_factory.mktemp("whole") / "w"
    finish(start(data_dir, workdir))
    return workdir


@pytest.mark.slow
def test_two_processes_with_workers_train_as_one_without(whole, data_dir, tmp_path):
    finish(start(data_dir, tmp_path / "w", processes=2, **{"data.num_workers": 2}))
    np.testing.assert_allclose(losses(tmp_path / "w"), losses(whole), rtol=1e-4)
    assert artifacts.is_finished(tmp_path / "w")
    (one,), (two,) = (writer.read_lines(w / "results.jsonl") for w in (whole, tmp_path / "w"))
    np.testing.assert_allclose(two["metrics"]["test_loss"], one["metrics"]["test_loss"], rtol=1e-3)
    assert (tmp_path / "w" / "noise.npz").read_bytes() == (whole / "noise.npz").read_bytes()


@pytest.mark.slow
def test_sigterm_ends_a_run_with_status_0_and_the_same_command_finishes_it(whole, data_dir, tmp_path):
    process = start(data_dir, tmp_path / "w")
    deadline = time.monotonic() + 240
    while len(losses(tmp_path / "w")) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    (child,) = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(child), signal.SIGTERM)
    output = finish(process)
    assert "The same command goes on from here" in output
    assert not artifacts.is_finished(tmp_path / "w")
    finish(start(data_dir, tmp_path / "w"))
    assert losses(tmp_path / "w") == losses(whole)
    assert artifacts.is_finished(tmp_path / "w")
