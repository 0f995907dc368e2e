"""Class-balanced subsets of a training set, and what of them is held out to validate on."""

import numpy as np

from nml_jax.core.errors import UserError


def subset(y: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(N,) bool: int(n_c * fraction) random rows of each class c, at least one (protocol §4, `--num-shots`).

    Nested: for one seed a smaller fraction takes a subset of a larger one's rows.

    Args:
      y: (N,) class indices.
      fraction: in (0, 1].

    Raises:
      UserError: `fraction` is outside (0, 1].
    """
    check(fraction)
    counts = np.bincount(y)
    quota = np.maximum(1, (counts * fraction).astype(np.int64))
    return _first_of_each_class(y, quota, np.random.default_rng(seed))


def held_out(y: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(N,) bool: round(n_c * fraction) random rows of each class c, but never all of a class's rows.

    Args:
      y: (N,) class indices.
      fraction: in (0, 1).

    Raises:
      UserError: `fraction` is outside (0, 1), or no class has rows enough.
    """
    if not 0.0 < fraction < 1.0:
        raise UserError(
            f"The validation fraction is {fraction!r}; valid is a number between 0 and 1, such as 0.1."
        )
    counts = np.bincount(y)
    quota = np.minimum(np.rint(counts * fraction).astype(np.int64), np.maximum(counts - 1, 0))
    if not quota.any():
        raise UserError(
            f"A validation fraction of {fraction} of {len(y)} rows in {np.count_nonzero(counts)} classes leaves no row "
            "to validate on. Give a larger fraction, or more rows."
        )
    return _first_of_each_class(y, quota, np.random.default_rng((seed, 1)))


def _first_of_each_class(y: np.ndarray, quota: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) bool: the first quota[c] rows of each class c in a random order."""
    counts = np.bincount(y)
    order = np.lexsort((rng.random(len(y)), y))
    rank = np.empty(len(y), np.int64)
    rank[order] = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank < quota[y]


def check(fraction: float) -> None:
    """Raises a UserError unless `fraction` is in (0, 1]."""
    if not 0.0 < fraction <= 1.0:
        raise UserError(
            f"The data fraction is {fraction!r}; valid is a number in (0, 1]. Ten percent is 0.1, the papers' "
            "fractions are 0.1, 0.25, 0.5, 0.75 and 1."
        )
