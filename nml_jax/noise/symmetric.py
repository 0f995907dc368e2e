"""Symmetric label noise: "uniformly flip the ground truth class label into the other classes" (ICLR 2024, §2.1)."""

from typing import Any

import numpy as np

from nml_jax.noise import choice, keys

CORRUPTS = ("labels",)


def corrupt(labels: Any, *, num_classes: int, ratio: float, seed: int, ids: Any = None) -> np.ndarray:
    """Flips exactly round(ratio * n_c) labels of each class c to one of the other classes, each as likely.

    Args:
      labels: (N,) integers in [0, num_classes).
      ratio: fraction in [0, 1] of each class; a half is rounded to the even neighbour.
      ids: N different integers or strings; the row numbers if left out.

    Returns:
      (N,) int64.

    Raises:
      UserError: one of these is not as said.
    """
    labels = choice.check_labels(labels, num_classes)
    ratio = choice.check_ratio(ratio)
    words = keys.words(ids, len(labels))
    flipped = choice.per_class(labels, words, can_flip=np.ones(num_classes, bool), ratio=ratio, seed=seed)
    # One of C - 1 classes, counted without the own one. The remainder of 64 bits is uniform to C / 2^64.
    other = (keys.hashes(words, seed=seed, stream="target") % np.uint64(num_classes - 1)).astype(np.int64)
    other += other >= labels
    return np.where(flipped, other, labels)
