"""Human label noise: the labels that people really gave, or a matrix of how they confuse the classes.

A file of labels (CIFAR-10N, Wei et al. 2022) has a rate of errors of its own: 9.0, 17.2, 18.1, 17.6 and 40.2 % for
CIFAR-10N's five sets. `mode="exact"` takes as many of the human errors as the ratio says, so that the curve over the
ratio has human noise of every strength up to the file's own; `mode="all"` takes the labels as they are. With a
matrix (transition_file), the classes and their targets are drawn as in asymmetric noise.
"""

import os
import re
from typing import Any

import numpy as np

from nml_jax.core.errors import UserError
from nml_jax.noise import asymmetric, choice, keys, label_file, relations

CORRUPTS = ("labels",)
MODES = ("exact", "all")
ALIGNMENTS = ("row", "id_number", "id")
RATE_TOLERANCE = 0.005  # how near to the file's own rate the ratio must be with mode="all"


def corrupt(
    labels: Any,
    *,
    num_classes: int,
    ratio: float,
    seed: int,
    ids: Any = None,
    file: str | os.PathLike = "",
    transition_file: str | os.PathLike = "",
    column: str = "",
    clean_column: str = "",
    id_column: str = "",
    align: str = "row",
    mode: str = "exact",
) -> np.ndarray:
    """Labels as people gave them; give `file` or `transition_file`.

    Args:
      labels: (N,) integers in [0, num_classes).
      ratio: fraction in [0, 1]; 0 leaves the labels clean. "exact" with a file: round(ratio * N) of all labels get
        their human label, chosen among the human errors by hash whatever the class: classes that people confuse more
        are wrong more often, as in the file. The file's own rate is the largest ratio. "exact" with a matrix:
        round(ratio * n_c) labels of each class c that people confuse. "all": everything as the file or the
        matrix has it; the ratio must be that rate within half a point, so that a result never bears another ratio
        than it has.
      ids: N different integers or strings; the row numbers if left out.
      file: .npz, .npy, .csv or .parquet of labels.
      transition_file: a (C, C) matrix, row = clean label, of counts or probabilities: .npz, .npy, or a .csv of
        numbers. "all" uses its diagonal: a class flips as often as its row says.
      column: which array of `file` or `transition_file`; empty for a file that is one array.
      clean_column: the file's own clean labels, if it has them. They must equal `labels`: the check that
        the rows belong together.
      id_column: with align="id", the ids in the file.
      align: "row", row i of the file belongs to row i of the data; "id_number", row n to the sample whose id ends in
        the number n ("train_00042", as TFDS names CIFAR's images by their original order; integer ids too); "id",
        by `id_column`.
      mode: "exact" or "all".

    Returns:
      (N,) int64.

    Raises:
      UserError: one of these is not as said, the file has fewer errors than asked for, or its labels agree with the
        clean ones no better than by chance (rows in another order).
    """
    labels = choice.check_labels(labels, num_classes)
    ratio = choice.check_ratio(ratio)
    seed = keys.check_seed(seed)
    words = keys.words(ids, len(labels))
    check_options(
        num_classes=num_classes,
        file=file,
        transition_file=transition_file,
        column=column,
        clean_column=clean_column,
        id_column=id_column,
        align=align,
        mode=mode,
    )
    if transition_file:
        counts = label_file.matrix(transition_file, column)
        return _by_matrix(labels, counts, ratio, seed, words, mode)
    rows = _rows(len(labels), ids, file, column, id_column, align)
    if clean_column:
        _check_clean(labels, label_file.column(file, clean_column)[rows], clean_column, file)
    human = _labels(file, column, num_classes)[rows]
    wrong = np.flatnonzero(human != labels)
    rate = len(wrong) / max(len(labels), 1)
    _check_order(labels, human, num_classes, file)
    if mode == "all":
        _check_rate(ratio, rate, file)
        return human if ratio else labels
    count = int(np.rint(ratio * len(labels)))
    if count > len(wrong):
        raise UserError(
            f"noise.ratio={ratio} asks for {count} wrong labels of {len(labels)}, but {column or 'the column'} of "
            f"{os.fspath(file)!r} has {len(wrong)}: its own rate is {rate:.4f}. Valid are ratios up to that; for all "
            f"its labels as they are give the option mode='all' and ratio={rate:.4f}."
        )
    chosen = wrong[np.argsort(keys.hashes(words[wrong], seed=seed, stream="chosen"))[:count]]
    labels[chosen] = human[chosen]
    return labels


def check_options(
    *,
    num_classes: int,
    file: str | os.PathLike = "",
    transition_file: str | os.PathLike = "",
    column: str = "",
    clean_column: str = "",
    id_column: str = "",
    align: str = "row",
    mode: str = "exact",
) -> None:
    """Raises a UserError for an option of `corrupt` that is wrong whatever the data are; reads the file."""
    if mode not in MODES:
        raise UserError(f"Unknown mode {mode!r} of human; valid: {', '.join(MODES)}.")
    if align not in ALIGNMENTS:
        raise UserError(f"Unknown align {align!r} of human; valid: {', '.join(ALIGNMENTS)}.")
    if bool(file) == bool(transition_file):
        raise UserError(
            f"Human noise was given {'both' if file else 'neither'} of file= and transition_file=; valid is exactly "
            "one: labels of every sample, or a matrix of num_classes x num_classes."
        )
    if (align == "id") != bool(id_column):
        raise UserError("align='id' and id_column go together: give the column of the file that has the ids.")
    if transition_file:
        relations.from_matrix(label_file.matrix(transition_file, column), num_classes)
        return
    size = len(_labels(file, column, num_classes))
    for name in (clean_column, id_column):
        if name and len(label_file.column(file, name)) != size:
            raise UserError(f"In {os.fspath(file)!r}, {name!r} and {column!r} are not equally long.")


def _labels(file: str | os.PathLike, column: str, num_classes: int) -> np.ndarray:
    try:
        return choice.check_labels(label_file.column(file, column), num_classes)
    except UserError as error:
        raise UserError(f"{column or 'The column'} of {os.fspath(file)!r}: {error}") from None


def _rows(
    size: int, ids: Any, file: str | os.PathLike, column: str, id_column: str, align: str
) -> np.ndarray:
    """(N,) int64: the row of the file that belongs to each sample."""
    length = len(label_file.column(file, column))
    names = np.arange(size) if ids is None else np.asarray(ids)
    if align == "row":
        if length != size:
            raise UserError(
                f"{os.fspath(file)!r} has {length} labels for {size} samples; with align='row' row i belongs to row i. "
                "Align by align='id_number' or 'id', or give the labels of just these samples."
            )
        return np.arange(size)
    if align == "id":
        own = label_file.column(file, id_column)
        own, wanted = _texts(own), _texts(names)
        place = {name: row for row, name in enumerate(own)}
        if len(place) < len(own):
            raise UserError(f"{id_column!r} of {os.fspath(file)!r} is not unique; each sample has one label.")
        missing = [name for name in wanted if name not in place]
        if missing:
            raise UserError(
                f"{len(missing)} of {size} ids are not in {id_column!r} of {os.fspath(file)!r}, {missing[0]!r} among "
                f"them; it has {', '.join(map(repr, own[:2]))}, ..."
            )
        return np.array([place[name] for name in wanted], np.int64)
    found = [re.search(r"(\d+)\D*$", name) for name in _texts(names)]
    rows = np.array([int(match[1]) if match else -1 for match in found], np.int64)
    outside = np.flatnonzero((rows < 0) | (rows >= length))
    if len(outside) or len(np.unique(rows)) < size:
        at = (
            outside[0]
            if len(outside)
            else np.setdiff1d(np.arange(size), np.unique(rows, return_index=True)[1])[0]
        )
        raise UserError(
            f"With align='id_number' the id {names[at]!r} means row {rows[at]} of {os.fspath(file)!r}, which has "
            f"{length} rows, each for one sample; valid are ids that end in different row numbers, such as "
            "'train_00042'. Align by a column of ids with align='id'."
        )
    return rows


def _texts(ids: np.ndarray) -> list[str]:
    return [i.decode() if isinstance(i, bytes) else str(i) for i in np.asarray(ids).tolist()]


def _check_clean(labels: np.ndarray, own: np.ndarray, column: str, file: str | os.PathLike) -> None:
    differ = np.flatnonzero(np.asarray(own) != labels)
    if len(differ):
        raise UserError(
            f"{column!r} of {os.fspath(file)!r} differs from the data's clean labels in {len(differ)} of {len(labels)} "
            f"samples, first in row {differ[0]}; the file's rows belong to other samples, or its classes are numbered "
            "otherwise. Choose another align, or bring the file into the data's order."
        )


def _check_order(labels: np.ndarray, human: np.ndarray, num_classes: int, file: str | os.PathLike) -> None:
    """Cohen's kappa near 0: what two unrelated orders give. The human sets that are known are above 0.5."""
    if len(labels) < 100:
        return
    agreement = np.mean(labels == human)
    share = [np.bincount(values, minlength=num_classes) / len(labels) for values in (labels, human)]
    chance = float(share[0] @ share[1])
    if chance < 1 and (agreement - chance) / (1 - chance) < 0.05:
        raise UserError(
            f"{os.fspath(file)!r} agrees with {agreement:.1%} of the clean labels, and {chance:.1%} would by chance: "
            "its rows are in another order than the data's. Choose another align ('id_number' where ids end in the "
            "original row number), or bring the file into the data's order."
        )


def _check_rate(ratio: float, rate: float, where: str | os.PathLike) -> None:
    if ratio and abs(ratio - rate) > RATE_TOLERANCE:
        raise UserError(
            f"noise.ratio={ratio}, but with mode='all' the labels are as {os.fspath(where)!r} has them, and {rate:.4f} "
            f"of them are wrong. Set the ratio to {rate:.4f} (or to 0 for clean labels), or give mode='exact'."
        )


def _by_matrix(
    labels: np.ndarray, counts: np.ndarray, ratio: float, seed: int, words: np.ndarray, mode: str
) -> np.ndarray:
    num_classes = len(counts)
    matrix = relations.from_matrix(counts, num_classes)
    if mode == "all":
        totals = np.asarray(counts, np.float64).sum(axis=1)
        share = np.divide(matrix.sum(axis=1), totals, out=np.zeros(num_classes), where=totals > 0)
        sizes = np.bincount(labels, minlength=num_classes)
        _check_rate(ratio, np.rint(share * sizes).sum() / max(len(labels), 1), "the matrix")
        ratio = share if ratio else 0.0
    return asymmetric.flip(labels, matrix, ratio=ratio, seed=seed, words=words)
