"""Symmetric label noise: "uniformly flip the ground truth class label into the other classes" (ICLR 2024, §2.1).

For noise in the downstream labels the authors' code (`sample_noise_data` in src/datasets/common.py) does otherwise:
it permutes the whole training set, and the first ratio * N samples get a label drawn from all C classes, their own
among them, so that about ratio * (1 - 1/C) of the labels are wrong in the end: 45 % of CIFAR-10's for ratio 0.5.
`mode="official"` does that; `mode="exact"` makes the fraction wrong that was asked for.
"""

from typing import Any

import numpy as np

from nml_jax.core.errors import UserError
from nml_jax.noise import choice, keys

CORRUPTS = ("labels",)
MODES = ("exact", "official")


def corrupt(
    labels: Any, *, num_classes: int, ratio: float, seed: int, ids: Any = None, mode: str = "exact"
) -> np.ndarray:
    """Gives a fraction of the labels another class, each as likely.

    Args:
      labels: (N,) integers in [0, num_classes).
      ratio: fraction in [0, 1]. "exact": round(ratio * n_c) labels of each class c change, a half rounded to the even
        neighbour, each to one of the other C - 1 classes. "official": the labels of ratio * N samples of the whole
        set, a part of a sample rounded up, are drawn anew from all C classes.
      ids: N different integers or strings; the row numbers if left out.
      mode: "exact" or "official".

    Returns:
      (N,) int64.

    Raises:
      UserError: one of these is not as said.
    """
    labels = choice.check_labels(labels, num_classes)
    ratio = choice.check_ratio(ratio)
    if mode not in MODES:
        raise UserError(f"Unknown mode {mode!r} of symmetric; valid: {', '.join(MODES)}.")
    words = keys.words(ids, len(labels))
    target = keys.hashes(words, seed=seed, stream="target")  # its remainder of C is uniform to C / 2^64
    if mode == "official":
        order = np.argsort(keys.hashes(words, seed=seed, stream="chosen"))
        redrawn = order[np.arange(len(labels)) < ratio * len(labels)]  # the script's comparison
        labels[redrawn] = (target[redrawn] % np.uint64(num_classes)).astype(np.int64)
        return labels
    flipped = choice.per_class(labels, words, can_flip=np.ones(num_classes, bool), ratio=ratio, seed=seed)
    other = (target % np.uint64(num_classes - 1)).astype(np.int64)
    other += other >= labels  # one of C - 1 classes, counted without the own one
    return np.where(flipped, other, labels)
