"""Labels or a matrix out of a file that others made: .npz, .npy, .csv or .parquet."""

import csv
import os
import zipfile

import numpy as np
from pyarrow import ArrowException, parquet

from nml_jax.core.errors import UserError

SUFFIXES = (".npz", ".npy", ".csv", ".parquet")
_UNREADABLE = (OSError, EOFError, ValueError, csv.Error, zipfile.BadZipFile, ArrowException)


def column(path: str | os.PathLike, name: str) -> np.ndarray:
    """The column `name` of a table, or the array `name` of an archive; (N,) integers or strings.

    A .npy file is one array and has no names; a CSV's first row has the names.

    Raises:
      UserError: there is no such file, it cannot be read, or it has no such column.
    """
    path = os.fspath(path)
    try:
        values, names = _read(path, name)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    if values is None:
        raise UserError(
            f"{path!r} has no column {name!r}; it has {', '.join(names) or 'one without a name'}."
        )
    if values.dtype.kind in "UO" and len(values) and all(str(v).lstrip("-").isdecimal() for v in values):
        values = values.astype(np.int64)  # a CSV's cells are text
    return values


def matrix(path: str | os.PathLike, name: str) -> np.ndarray:
    """The array `name` of an archive, a .npy file, or a CSV of numbers without a header; (C, C).

    Raises:
      UserError: as for `column`.
    """
    path = os.fspath(path)
    if not path.lower().endswith(".csv"):
        return column(path, name)
    try:
        return np.loadtxt(path, delimiter=",", ndmin=2)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None


def _read(path: str, name: str) -> tuple[np.ndarray | None, list[str]]:
    """(the column, or None if it is not there; the names there are)."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return (file[name] if name in file.files else None), file.files
    if suffix == ".npy":
        values = np.load(path, allow_pickle=False)
        names = list(values.dtype.names or ())
        if names:
            return (values[name] if name in names else None), names
        return (None if name else values), []
    if suffix == ".csv":
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, skipinitialspace=True, strict=True)
            names = next(rows, [])
            at = names.index(name) if name in names else None
            cells = None if at is None else [row[at].strip() for row in rows if row]
        return (None if cells is None else np.array(cells)), names
    if suffix == ".parquet":
        names = parquet.read_schema(path).names
        found = parquet.read_table(path, columns=[name]) if name in names else None
        return (None if found is None else found[name].to_numpy()), names
    raise ValueError(f"{suffix or 'no'} is not a suffix that is known here")


def _unreadable(path: str, error: Exception) -> UserError:
    return UserError(
        f"{path!r} cannot be read ({error}); valid are {', '.join(SUFFIXES)} without pickled objects. A .pt file, or "
        "a .npy that holds a dictionary, may run code when it is opened: open it where you trust it, and save its "
        "arrays with numpy.savez(path, **arrays)."
    )
