"""Which class is mistaken for which: groups, pairs or a matrix -> (C, C) weights, row = clean label, diagonal 0.

A class is given by its index or by its name in the data set. The relations may stand in a file:

    JSON   {"groups": [["cat", "dog"], [4, 7, 9]]}               each class for any other of its group
           {"pairs": [["truck", "automobile"], [3, 5, 0.5]]}     the first for the second, with a weight if it is there
    CSV    group,class                                           one class a row; the same group, the same word
           source,target  or  source,target,weight               one pair a row
"""

import csv
import difflib
import json
import numbers
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from nml_jax.core.errors import UserError

FORMATS = (
    '{"groups": [[class, class, ...], ...]} or {"pairs": [[source, target] or [source, target, weight], ...]} in JSON, '
    "or a CSV with the columns group,class or source,target[,weight]"
)


def from_groups(
    groups: Sequence[Sequence], num_classes: int, class_names: Sequence[str] | None
) -> np.ndarray:
    """Each class of a group is mistaken for each other one of it, all as likely.

    Raises:
      UserError: a group has fewer than two classes, an unknown one, or one that stands twice.
    """
    matrix = np.zeros((num_classes, num_classes))
    seen: set[int] = set()
    for group in groups:
        if isinstance(group, str) or not isinstance(group, Sequence | np.ndarray) or len(group) < 2:
            raise UserError(
                f"The related group {group!r} is not valid; a group has two or more class indices or names."
            )
        place = f"The related group {group!r}"
        members = [_index(value, num_classes, class_names, place) for value in group]
        if len(set(members)) < len(members) or seen & set(members):
            raise UserError(
                f"{place} names a class twice, or one that another group has; valid are groups without common "
                "classes. For overlapping relations give pairs or a transition matrix."
            )
        seen |= set(members)
        matrix[np.ix_(members, members)] = 1.0
    np.fill_diagonal(matrix, 0.0)
    return matrix


def from_pairs(pairs: Sequence[Sequence], num_classes: int, class_names: Sequence[str] | None) -> np.ndarray:
    """(source, target) or (source, target, weight): a source is mistaken for its targets after their weights.

    Raises:
      UserError: a pair is none, has an unknown class, stands twice, or its weight is not positive.
    """
    matrix = np.zeros((num_classes, num_classes))
    for pair in pairs:
        if isinstance(pair, str) or not isinstance(pair, Sequence | np.ndarray) or len(pair) not in (2, 3):
            raise UserError(
                f"The pair {pair!r} is not valid; a pair is (source, target) or (source, target, weight), classes by "
                "index or name."
            )
        place = f"The pair {tuple(pair)!r}"
        source, target = (_index(value, num_classes, class_names, place) for value in pair[:2])
        try:
            weight = float(pair[2]) if len(pair) == 3 else 1.0
        except (TypeError, ValueError):
            weight = float("nan")
        if not 0.0 < weight < float("inf"):
            raise UserError(f"{place} has the weight {pair[2]!r}; valid are positive numbers.")
        if source == target or matrix[source, target]:
            raise UserError(f"{place} leads from a class to itself, or stands twice. Leave it out.")
        matrix[source, target] = weight
    return matrix


def from_matrix(transition: Any, num_classes: int) -> np.ndarray:
    """The matrix of probabilities or counts without its diagonal.

    Raises:
      UserError: it is not (num_classes, num_classes) of finite numbers, none negative.
    """
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


def from_file(
    path: str | os.PathLike, num_classes: int, class_names: Sequence[str] | None = None
) -> np.ndarray:
    """The relations of a JSON or CSV file (see the head of this module).

    Raises:
      UserError: there is no such file, or what is in it is no relation.
    """
    path = os.fspath(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            kind, rows = _csv_rows(file) if path.lower().endswith(".csv") else _json_rows(file)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path!r} is no file of class relations ({error or type(error).__name__}); valid is {FORMATS}."
        ) from None
    try:
        read = from_groups if kind == "groups" else from_pairs
        return read(rows, num_classes, class_names)
    except UserError as error:
        raise UserError(f"In {path!r}: {error}") from None


def _json_rows(file: Any) -> tuple[str, list]:
    values = json.load(file)
    if not isinstance(values, dict) or len(values) != 1 or not {"groups", "pairs"} & values.keys():
        raise ValueError("its top is not one object with the one key groups or pairs")
    kind, rows = next(iter(values.items()))
    if not isinstance(rows, list):
        raise ValueError(f"{kind} is not a list")
    return kind, rows


def _csv_rows(file: Any) -> tuple[str, list]:
    reader = csv.DictReader(file, skipinitialspace=True, strict=True)
    columns, rows = tuple(reader.fieldnames or ()), list(reader)
    if any(None in row or None in row.values() for row in rows):
        raise ValueError("a row has more or fewer cells than the header")
    if columns in (("source", "target"), ("source", "target", "weight")):
        return "pairs", [[row[name].strip() for name in columns] for row in rows]
    if columns != ("group", "class"):
        raise ValueError(f"its columns are {', '.join(columns) or 'none'}")
    groups: dict[str, list] = {}
    for row in rows:
        groups.setdefault(row["group"].strip(), []).append(row["class"].strip())
    return "groups", list(groups.values())


def _index(value: Any, num_classes: int, class_names: Sequence[str] | None, place: str) -> int:
    """The class that an index, a name, or an index written in a CSV cell means."""
    names = list(class_names or ())
    if isinstance(value, str) and value in names:
        if names.count(value) > 1:
            raise UserError(f"{place}: {names.count(value)} classes are named {value!r}; give its index.")
        return names.index(value)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        if 0 <= value < num_classes:
            return int(value)
        raise UserError(f"{place} names classes outside [0, {num_classes}).")
    if isinstance(value, str) and names:
        near = difflib.get_close_matches(value, names, n=3) or names[:3]
        raise UserError(f"{place}: no class is named {value!r}; near are {', '.join(near)}, or give indices.")
    raise UserError(
        f"{place}: {value!r} is no class; valid are class indices, or names where the data set has class names."
    )
