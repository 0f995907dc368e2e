"""The stage "analysis": the spectrum of one task's features."""

import os
import time
from pathlib import Path

import numpy as np
import scipy
from ml_collections import ConfigDict

import nml_jax
from nml_jax.analysis import spectrum
from nml_jax.core import artifacts, writer
from nml_jax.core.errors import UserError
from nml_jax.features import store

EVERY_PROCESS, REPEATS = False, False
SUITES = ("id", "ood", "source")


def check(config: ConfigDict) -> None:
    """Raises a UserError for an unknown suite or preprocess, or where no features are given."""
    spectrum.check_preprocess(config.preprocess)
    if config.task.suite not in SUITES:
        raise UserError(
            f"Unknown suite {config.task.suite!r}; valid: {', '.join(SUITES)}. Set --config.task.suite to one of them."
        )
    if not config.inputs.features:
        raise UserError(
            "No features given: --config.inputs.features is empty. Give the work directory of a features stage."
        )


def run(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Writes `spectrum.npz` (`singular_values`) and one line in `results.jsonl` into `workdir`.

    The features are those of `config.split` in `config.inputs.features`: the test split, view 0 (clean), as in
    the papers.

    Raises:
      UserError: the features are not there, or not finite.
    """
    workdir = Path(workdir)
    fingerprint = artifacts.fingerprint(config)
    features = store.load(config.inputs.features, config.split, config.label or None)
    rows, dim = features.clean.shape
    if config.progress:
        print(f"analysis: singular values of {config.task.name} ({config.split}), {rows} x {dim}", flush=True)
    start = time.perf_counter()
    s = spectrum.singular_values(features.clean, config.preprocess)
    wall_time = time.perf_counter() - start
    with artifacts.replacing(workdir / "spectrum.npz", "wb") as file:
        np.savez(file, singular_values=s)
    record = {
        "kind": "spectrum",
        "task": config.task.name,
        "suite": config.task.suite,
        "split": config.split,
        "rows": rows,
        "dim": dim,
        "preprocess": config.preprocess,
        "sve": spectrum.sve(s),
        "lsvr": spectrum.lsvr(s),
        "sigma_1": float(s[0]),
        "nuclear_norm": float(s.sum()),
        "file": "spectrum.npz",
        "config_hash": fingerprint,
        "versions": {"nml_jax": nml_jax.__version__, "numpy": np.__version__, "scipy": scipy.__version__},
        "wall_time_s": round(wall_time, 3),
    }
    encoder = features.manifest.get("encoder", {})
    writer.write_lines(workdir / "results.jsonl", [{**encoder, **record}])
