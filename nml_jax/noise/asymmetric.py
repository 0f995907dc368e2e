"""Asymmetric label noise: labels flip within groups of related classes, or after a transition matrix.

The journal's asymmetric noise flips labels among the ImageNet classes that WordNet relates to CIFAR-100; which
fraction its 2.5, 5 and 10 % refer to is not published. Here the ratio holds within each class that can flip.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nml_jax.core.errors import UserError
from nml_jax.noise import choice, keys

CORRUPTS = ("labels",)


def corrupt(
    labels: Any,
    *,
    num_classes: int,
    ratio: float,
    seed: int,
    ids: Any = None,
    related: Sequence[Sequence[int]] | None = None,
    transition: Any = None,
) -> np.ndarray:
    """Flips exactly round(ratio * n_c) labels of each class c that can flip; give `related` or `transition`.

    Args:
      labels: (N,) integers in [0, num_classes).
      ratio: fraction in [0, 1] of each class that can flip; a half is rounded to the even neighbour. The realised
        fraction of all samples is smaller when there are classes that never flip.
      ids: N different integers or strings; the row numbers if left out.
      related: groups of class indices; a label flips to another member of its group, each as likely. A class in
        no group never flips.
      transition: (C, C), row = clean label; its entries off the diagonal, scaled to sum 1, are the distribution of
        the wrong label. A class with nothing off the diagonal never flips. The diagonal is not used: how many flip
        is the ratio's business.

    Returns:
      (N,) int64.

    Raises:
      UserError: one of these is not as said.
    """
    labels = choice.check_labels(labels, num_classes)
    ratio = choice.check_ratio(ratio)
    if (related is None) == (transition is None):
        raise UserError(
            "Asymmetric noise was given "
            + ("neither" if related is None else "both")
            + " of related= and transition="
            "; valid is exactly one: groups of related classes, or a matrix of num_classes x num_classes."
        )
    matrix = _from_groups(related, num_classes) if transition is None else _checked(transition, num_classes)
    words = keys.words(ids, len(labels))
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


def _from_groups(related: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    matrix = np.zeros((num_classes, num_classes))
    seen: set[int] = set()
    for group in related:
        members = np.asarray(group)
        if members.ndim != 1 or len(members) < 2 or not np.issubdtype(members.dtype, np.integer):
            raise UserError(
                f"The related group {group!r} is not valid; a group has two or more class indices."
            )
        if members.min() < 0 or members.max() >= num_classes:
            raise UserError(f"The related group {group!r} names classes outside [0, {num_classes}).")
        if len(set(members.tolist())) < len(members) or seen & set(members.tolist()):
            raise UserError(
                f"The related group {group!r} names a class twice, or one that another group has; valid are groups "
                "without common classes. For overlapping relations give a transition matrix."
            )
        seen |= set(members.tolist())
        matrix[np.ix_(members, members)] = 1.0
    np.fill_diagonal(matrix, 0.0)
    return matrix


def _checked(transition: Any, num_classes: int) -> np.ndarray:
    try:
        matrix = np.array(transition, np.float64)
    except (TypeError, ValueError):
        raise UserError(
            "transition is not a matrix of numbers; valid is (num_classes, num_classes)."
        ) from None
    if matrix.shape != (num_classes, num_classes):
        raise UserError(f"transition has the shape {matrix.shape}; valid is ({num_classes}, {num_classes}).")
    if not np.isfinite(matrix).all() or (matrix < 0).any():
        raise UserError("transition has negative or non-finite entries; valid are probabilities or counts.")
    np.fill_diagonal(matrix, 0.0)
    return matrix
