"""Asymmetric label noise: labels flip within groups of related classes, along pairs, or after a transition matrix.

The journal's asymmetric noise flips labels among the ImageNet classes that WordNet relates to CIFAR-100; which
fraction its 2.5, 5 and 10 % refer to is not published. Here the ratio holds within each class that can flip. Such a
relation is a list of classes: write it to a file (`relations` says how) and give `file`.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from nml_jax.core.errors import UserError
from nml_jax.noise import choice, keys, relations

CORRUPTS = ("labels",)
NEEDS = ("class_names",)


def corrupt(
    labels: Any,
    *,
    num_classes: int,
    ratio: float,
    seed: int,
    ids: Any = None,
    related: Sequence[Sequence] | None = None,
    pairs: Sequence[Sequence] | None = None,
    transition: Any = None,
    file: str | os.PathLike | None = None,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Flips exactly round(ratio * n_c) labels of each class c that can flip; give one of the four relations.

    Args:
      labels: (N,) integers in [0, num_classes).
      ratio: fraction in [0, 1] of each class that can flip; a half is rounded to the even neighbour. The realised
        fraction of all samples is smaller when there are classes that never flip.
      ids: N different integers or strings; the row numbers if left out.
      related: groups of classes; a label flips to another member of its group, each as likely. A class in no group
        never flips. A class is an index, or a name if `class_names` are given.
      pairs: (source, target) or (source, target, weight); a label flips to one of its targets, as likely as their
        weights say (1 if left out). A class that is no source never flips.
      transition: (C, C), row = clean label; its entries off the diagonal, scaled to sum 1, are the distribution of
        the wrong label. A class with nothing off the diagonal never flips. The diagonal is not used: how many flip
        is the ratio's business.
      file: a JSON or CSV file of groups or pairs; see `nml_jax.noise.relations`.
      class_names: C names, what `related`, `pairs` and `file` may call the classes.

    Returns:
      (N,) int64.

    Raises:
      UserError: one of these is not as said.
    """
    labels = choice.check_labels(labels, num_classes)
    ratio = choice.check_ratio(ratio)
    ways = {"related": related, "pairs": pairs, "transition": transition, "file": file}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise UserError(
            f"Asymmetric noise was given {' and '.join(given) or 'no relation'}; valid is exactly one of related= "
            "(groups of related classes), pairs= (source, target), transition= (a matrix of num_classes x "
            "num_classes) and file= (groups or pairs in JSON or CSV)."
        )
    if related is not None:
        matrix = relations.from_groups(related, num_classes, class_names)
    elif pairs is not None:
        matrix = relations.from_pairs(pairs, num_classes, class_names)
    elif transition is not None:
        matrix = relations.from_matrix(transition, num_classes)
    else:
        matrix = relations.from_file(file, num_classes, class_names)
    return flip(labels, matrix, ratio=ratio, seed=seed, words=keys.words(ids, len(labels)))


def flip(
    labels: np.ndarray, matrix: np.ndarray, *, ratio: float | np.ndarray, seed: int, words: np.ndarray
) -> np.ndarray:
    """(N,) int64: round(ratio * n_c) labels of each class c flip to a class drawn after its row of `matrix`.

    Args:
      labels: (N,) int64.
      matrix: (C, C) weights, none negative, diagonal 0; a class with an empty row never flips.
      ratio: one for all classes, or (C,).
      words: (N,) uint64, the ids as `keys.words` gives them.
    """
    flipped = choice.per_class(labels, words, can_flip=matrix.any(axis=1), ratio=ratio, seed=seed)
    uniform = keys.uniforms(words, seed=seed, stream="target")
    noisy = labels.copy()
    rows = np.flatnonzero(flipped)
    rows = rows[np.argsort(labels[rows], kind="stable")]
    classes, starts = np.unique(labels[rows], return_index=True)
    for c, members in zip(classes, np.split(rows, starts[1:]), strict=False):
        upper = np.cumsum(matrix[c])  # the first class whose upper bound lies above the uniform number
        noisy[members] = np.searchsorted(upper / upper[-1], uniform[members], side="right")
    return noisy
