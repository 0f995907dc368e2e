"""Which samples are corrupted: exactly so many in each class, nested over the ratio."""

from typing import Any

import numpy as np

from nml_jax.core.errors import UserError
from nml_jax.noise import keys


def check_ratio(ratio: Any) -> float:
    """The ratio as a float.

    Raises:
      UserError: it is no number in [0, 1].
    """
    try:
        value = float(ratio)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0.0 <= value <= 1.0:
        raise UserError(
            f"The noise ratio is {ratio!r}; valid is a fraction in [0, 1]. Ten percent is 0.1, the papers' ratios "
            "are 0, 0.05, 0.1, 0.2 and 0.3."
        )
    return value


def check_labels(labels: Any, num_classes: int) -> np.ndarray:
    """The labels as (N,) int64.

    Raises:
      UserError: they are not (N,) integers in [0, num_classes), or there are fewer than two classes.
    """
    labels = np.asarray(labels)
    if num_classes < 2:
        raise UserError(f"num_classes is {num_classes}; a label can only be wrong among at least 2 classes.")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels are {labels.dtype} of shape {labels.shape}; valid are integers of shape (N,), one class index "
            "a sample. Convert them with labels.astype(np.int64) if they are whole numbers."
        )
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise UserError(
            f"labels go from {labels.min()} to {labels.max()}; valid are [0, {num_classes}) for num_classes="
            f"{num_classes}. Renumber the classes, or give the right num_classes."
        )
    return labels.astype(np.int64)


def per_class(
    labels: np.ndarray, words: np.ndarray, *, can_flip: np.ndarray, ratio: float | np.ndarray, seed: int
) -> np.ndarray:
    """(N,) bool: round(ratio * n_c) samples of each class c, those whose ids hash lowest in their class.

    Because the order within a class does not depend on the ratio, a smaller ratio takes a subset.

    Args:
      labels: (N,) int64.
      words: (N,) uint64, the ids as `keys.words` gives them.
      can_flip: (C,) bool; no sample of the other classes is chosen.
      ratio: one for all classes, or (C,).
    """
    order = np.lexsort((keys.hashes(words, seed=seed, stream="chosen"), labels))
    counts = np.bincount(labels, minlength=len(can_flip))
    quota = np.where(can_flip, np.rint(ratio * counts).astype(np.int64), 0)
    first = np.cumsum(counts) - counts
    rank = np.arange(len(labels)) - np.repeat(first, counts)
    chosen = np.empty(len(labels), bool)
    chosen[order] = rank < np.repeat(quota, counts)
    return chosen
