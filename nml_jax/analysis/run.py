"""The stage "analysis": what one of the analyses says of stored features, or of a head tuned on them."""

import os
import time
from pathlib import Path

import numpy as np
import scipy
from ml_collections import ConfigDict

import nml_jax
from nml_jax.core import artifacts, plugin, writer

EVERY_PROCESS, REPEATS = False, False


def check(config: ConfigDict) -> None:
    """Raises a UserError for an unknown analysis, or for what the analysis cannot be given."""
    plugin.find("analysis", config.method, "analyse").check(config)


def run(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Writes one line in `results.jsonl`, and the files of the analysis, into `workdir`.

    Raises:
      UserError: the features or the head are not there, or do not fit.
    """
    workdir, start = Path(workdir), time.perf_counter()
    record = plugin.find("analysis", config.method, "analyse").analyse(config, workdir)
    common = {
        "config_hash": artifacts.fingerprint(config),
        "versions": {"nml_jax": nml_jax.__version__, "numpy": np.__version__, "scipy": scipy.__version__},
        "wall_time_s": round(time.perf_counter() - start, 3),
    }
    writer.write_lines(workdir / "results.jsonl", [record | common])
