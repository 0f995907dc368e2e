"""Class-balanced subsets of a training set."""

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
    y = np.asarray(y)
    counts = np.bincount(y)
    order = np.lexsort((np.random.default_rng(seed).random(len(y)), y))
    first = np.cumsum(counts) - counts
    rank = np.empty(len(y), np.int64)
    rank[order] = np.arange(len(y)) - np.repeat(first, counts)
    quota = np.maximum(1, (counts * fraction).astype(np.int64))
    return rank < quota[y]


def check(fraction: float) -> None:
    """Raises a UserError unless `fraction` is in (0, 1]."""
    if not 0.0 < fraction <= 1.0:
        raise UserError(
            f"The data fraction is {fraction!r}; valid is a number in (0, 1]. Ten percent is 0.1, the papers' "
            "fractions are 0.1, 0.25, 0.5, 0.75 and 1."
        )
