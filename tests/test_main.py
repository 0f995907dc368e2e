"""Flags: every mistake is one paragraph on stderr, status 2, and no directory."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUPERVISED = "--config=configs/pretrain/glyphs_supervised.py"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([SUPERVISED], "--workdir is missing"),
        (["--workdir=W"], "--config is missing"),
        (
            ["--config=configs/pretrain/glyphs_superviced.py", "--workdir=W"],
            "Did you mean configs/pretrain/glyphs_supervised.py",
        ),
        ([f"{SUPERVISED}:smoky", "--workdir=W"], "Unknown config argument 'smoky'; valid: smoke"),
        (
            [SUPERVISED, "--workdir=W", "--config.noise.ration=0.1"],
            "valid: name, options, ratio, seed. Did you mean 'ratio'",
        ),
        ([SUPERVISED, "--workdir=W", "--config.noise.ratio=lots"], "could not convert"),
        ([SUPERVISED, "--workdir=W", "--wrokdir=V"], "There is no flag --wrokdir"),
        ([SUPERVISED, "--workdir=W", "stray"], "Unknown arguments: stray"),
        ([SUPERVISED, "--workdir=W", "--config.noise.ratio=1.5"], "valid are numbers from 0 to 1"),
    ],
)
def test_a_mistake_is_one_paragraph(flags, message, tmp_path):
    """None of them gets as far as building data, so the data folder is not needed."""
    flags = [f.replace("=W", f"={tmp_path / 'w'}") for f in flags]
    done = subprocess.run(
        [sys.executable, "-m", "nml_jax.main", *flags], cwd=ROOT, capture_output=True, text=True, check=False
    )
    said = " ".join(done.stderr.split())
    assert done.returncode == 2
    assert said.startswith("error: ")
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "w").exists()


def test_help():
    done = subprocess.run(
        [sys.executable, "-m", "nml_jax.main", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "--config.a.b=value" in done.stdout
