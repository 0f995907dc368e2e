"""Columns of a data set, kept beside it in `.columns`: its records are read for them once, or never.

A file is named by split and field: numbers as .npy, text as .npz (see `texts`). A slice of a split finds its rows in
the column of the whole split.
"""

import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from nml_jax.data import texts

FOLDER = ".columns"


class Rows(NamedTuple):
    """Rows start ... stop - 1 of a split of `count` records."""

    split: str
    start: int
    stop: int
    count: int


def path(folder: Path, split: str, field: str, *, text: bool) -> Path:
    """The file of a column."""
    return folder / f"{quote(split, safe='')}-{quote(field, safe='')}{'.npz' if text else '.npy'}"


def load(folder: Path, rows: Sequence[Rows], field: str, *, text: bool) -> np.ndarray | None:
    """The rows of the column, one range after the other; None where a file is missing, damaged or of another length."""
    found = []
    for part in rows:
        try:
            file = path(folder, part.split, field, text=text)
            column = texts.load(file) if text else np.load(file)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None
        if len(column.ends if text else column) != part.count:
            return None
        found.append(texts.unpack(column, part.start, part.stop) if text else column[part.start : part.stop])
    return found[0] if len(found) == 1 else np.concatenate(found)


def keep(folder: Path, split: str, field: str, column: np.ndarray) -> None:
    """Writes the column of a split, whole or not at all, where that is allowed; objects are not kept."""
    text = column.dtype == texts.STRINGS
    if column.dtype == object:
        return
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".aside", delete=False) as file:
            if text:
                texts.save(file, texts.pack_column(column))
            else:
                np.save(file, column)
        os.chmod(file.name, 0o644)  # data sets are shared
        os.replace(file.name, path(folder, split, field, text=text))
    except OSError:
        pass
