"""Singular values of features, and the two numbers the papers draw from them.

With σ_i the singular values and p_i = σ_i / Σσ (arXiv 2309.17002v2, Definitions 3.1 and 3.2; natural logarithm):

    SVE  = −Σ p_i log p_i      singular value entropy: how evenly the spectrum is spread
    LSVR = −log(σ_1 / Σσ)      largest singular value ratio: large when σ_1 does *not* dominate
"""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
from ml_collections import ConfigDict

from nml_jax.core import artifacts
from nml_jax.core.errors import UserError
from nml_jax.features import store

PREPROCESSES = ("official", "centred", "none")
SUITES = ("id", "ood", "source")


def check(config: ConfigDict) -> None:
    """Raises a UserError for an unknown suite or preprocess, or where no features are given."""
    check_preprocess(config.preprocess)
    if config.task.suite not in SUITES:
        raise UserError(
            f"Unknown suite {config.task.suite!r}; valid: {', '.join(SUITES)}. Set --config.task.suite to one of them."
        )
    if not config.inputs.features:
        raise UserError(
            "No features given: --config.inputs.features is empty. Give the work directory of a features stage."
        )


def analyse(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """The line, of kind "spectrum"; `spectrum.npz` gets `singular_values`.

    The features are those of `config.split` in `config.inputs.features`: the test split, view 0 (clean), as in
    the papers.
    """
    features = store.load(config.inputs.features, config.split, config.label or None)
    rows, dim = features.clean.shape
    if config.progress:
        print(f"analysis: singular values of {config.task.name} ({config.split}), {rows} x {dim}", flush=True)
    s = singular_values(features.clean, config.preprocess)
    with artifacts.replacing(workdir / "spectrum.npz", "wb") as file:
        np.savez(file, singular_values=s)
    return features.manifest.get("encoder", {}) | {
        "kind": "spectrum",
        "task": config.task.name,
        "suite": config.task.suite,
        "split": config.split,
        "rows": rows,
        "dim": dim,
        "preprocess": config.preprocess,
        "sve": sve(s),
        "lsvr": lsvr(s),
        "sigma_1": float(s[0]),
        "nuclear_norm": float(s.sum()),
        "file": "spectrum.npz",
    }


def check_preprocess(name: str) -> None:
    """Raises a UserError unless `name` is one of `PREPROCESSES`."""
    if name not in PREPROCESSES:
        raise UserError(
            f"Unknown preprocess {name!r}; valid: {', '.join(PREPROCESSES)}. The papers' spectra are of 'official'."
        )


def preprocess_features(features: np.ndarray, preprocess: str = "official") -> np.ndarray:
    """Features (N, D) as a new float64 array, ready for the decomposition.

    Args:
      preprocess: "official" scales each row to unit length and then subtracts from each row its *own* mean over
        the D dimensions, as the official code does (`src/models/svd.py`); a zero row stays zero. It is not the
        centring of statistics, which is "centred": each column less its mean over the N rows. "none" changes nothing.

    Raises:
      UserError: unknown `preprocess`; not (N, D) with N and D at least one; NaN or infinity.
    """
    check_preprocess(preprocess)
    x = np.array(features, np.float64)
    if x.ndim != 2 or x.size == 0:
        raise UserError(
            f"Features of shape {x.shape} have no spectrum; valid is (N, D) with at least one row and one dimension. "
            "Take one view of (N, views, D) features, x[:, 0]."
        )
    if not np.isfinite(x).all():
        row = int(np.argmin(np.isfinite(x).all(axis=1)))
        raise UserError(
            f"The features hold NaN or infinity, first in row {row}. Drop such rows, or extract again."
        )
    if preprocess == "official":
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        x /= np.where(norms > 0, norms, 1.0)
        # A constant less its mean is zero exactly; left to rounding, it would have a spectrum of noise.
        x = np.where(np.ptp(x, axis=1, keepdims=True) > 0, x - x.mean(axis=1, keepdims=True), 0.0)
    elif preprocess == "centred":
        x = np.where(np.ptp(x, axis=0, keepdims=True) > 0, x - x.mean(axis=0, keepdims=True), 0.0)
    return x


def singular_values(features: np.ndarray, preprocess: str = "official") -> np.ndarray:
    """Singular values of features (N, D): (min(N, D),) float64, descending.

    An exact decomposition in float64 on the host: the square roots of a Gram matrix's eigenvalues are off in
    the tail, where the entropy has a good part of its mass, and so is float32.

    Raises:
      UserError: as `preprocess_features`.
    """
    x = preprocess_features(features, preprocess)
    # The transpose has the same singular values and the memory order LAPACK wants, so it can work in place.
    return scipy.linalg.svdvals(x.T, overwrite_a=True, check_finite=False)


def sve(s: np.ndarray) -> float:
    """Singular value entropy −Σ p log p of singular values (K,), in nats: 0 to log K; a zero σ contributes 0.

    Raises:
      UserError: `s` is not a spectrum (see `shares`).
    """
    p = shares(s)
    p = p[p > 0]
    # Adding 0.0 turns the −0.0 of a single singular value into 0.0.
    return float(-np.sum(p * np.log(p)) + 0.0)


def lsvr(s: np.ndarray) -> float:
    """Largest singular value ratio −log(σ₁ / Σσ) of singular values (K,): 0 if σ₁ is alone, log K if all are equal.

    Raises:
      UserError: `s` is not a spectrum (see `shares`).
    """
    return float(-np.log(shares(s).max()) + 0.0)


def shares(s: np.ndarray) -> np.ndarray:
    """p = σ / Σσ of singular values (K,).

    Raises:
      UserError: not one-dimensional, empty, negative or not finite, or all zero.
    """
    s = np.asarray(s, np.float64)
    if s.ndim != 1 or s.size == 0:
        raise UserError(
            f"Singular values of shape {s.shape} are no spectrum; valid is (K,) with K at least one."
        )
    if not np.isfinite(s).all() or s.min() < 0:
        raise UserError(
            f"The singular values lie between {s.min()} and {s.max()}; valid are finite numbers that are not negative."
        )
    # Scaled by the largest first: the sum of very large or very small values neither overflows nor vanishes.
    if s.max() == 0:
        raise UserError(
            "All singular values are zero, so they have no entropy and no largest ratio: after preprocessing the "
            "features are all zero (constant rows under 'official', equal rows under 'centred'). Check the encoder."
        )
    scaled = s / s.max()
    return scaled / scaled.sum()
