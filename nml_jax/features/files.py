"""Embeddings and labels that somebody has already, in one file a split: .npz, .safetensors or .parquet.

.npz, .safetensors: x (N, D) or (N, views, D), view 0 the clean one; y (N,)
.parquet: a column of lists of numbers, named x or embedding or the only one; a column of labels, named y or label or
the only other one
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import safe_open

from nml_jax.core.errors import UserError
from nml_jax.features import store

BATCH_ROWS = 8192


def load(
    train: str | os.PathLike, tests: Mapping[str, str | os.PathLike]
) -> tuple[store.Features, dict[str, store.Features], np.ndarray]:
    """Reads a training set and its test sets; labels become numbers in the order of the classes.

    Args:
      train: a file, as `read` takes it.
      tests: name -> file. They may have other views than the training set.

    Returns:
      The training set, name -> test set, and the classes (C,) as they stand in the files: the sorted labels of the
      training set. The manifests hold `file` and `sha256`.

    Raises:
      UserError: a file cannot be read, holds NaN or infinity, has another D than the training set, or a label that the
        training set has not; or the training set has one class.
    """
    names = [os.fspath(path) for path in (train, *tests.values())]
    x, y = zip(*(read(name) for name in names), strict=True)
    for name, part in zip(names, x, strict=True):
        if part.shape[2] != x[0].shape[2]:
            raise UserError(
                f"{name!r} has embeddings of {part.shape[2]} numbers, {names[0]!r} of {x[0].shape[2]}. The training "
                "set and its test sets need the same D: embed them with the same model."
            )
    classes, *indices = encode(*y, names=[repr(name) for name in names])
    splits = []
    for name, part, labels in zip(names, x, indices, strict=True):
        store.check(part, labels, len(classes), where=repr(name))
        with open(name, "rb") as file:
            manifest = {"file": Path(name).name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        splits.append(store.Features(part, labels, len(classes), manifest))
    return splits[0], dict(zip(tests, splits[1:], strict=True)), classes


def encode(train: np.ndarray, *others: np.ndarray, names: Sequence[str] = ()) -> tuple[np.ndarray, ...]:
    """Labels -> class numbers.

    Args:
      train: (N,) integers, booleans or strings, as `read` gives them.
      others: (M,) labels of further splits.
      names: what the messages call the splits, `train` first; left out, "train", "split 1", "split 2", ...

    Returns:
      The classes (C,), which are the sorted different labels of `train`; then for `train` and each of the others its
      labels' places among them, int64.

    Raises:
      UserError: `train` has fewer than two classes, or another split has a label that `train` has not.
    """
    names = names or ["train", *(f"split {i}" for i in range(1, len(others) + 1))]
    classes, found = np.unique(train, return_inverse=True)
    if len(classes) < 2:
        raise UserError(
            f"All labels of {names[0]} are {_listed(classes)}; a classifier needs at least two classes. Add rows of "
            "another class, or look whether this is the column of the labels."
        )
    indices = [found.astype(np.int64)]
    for name, labels in zip(names[1:], map(np.asarray, others), strict=True):
        place = np.zeros(len(labels), np.int64)
        known = np.zeros(len(labels), bool)
        if (labels.dtype.kind == "U") == (classes.dtype.kind == "U"):  # the number 3 is not the string "3"
            place = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
            known = classes[place] == labels
        if not known.all():
            row = int(np.argmin(known))
            raise UserError(
                f"Labels out of range: row {row} of {name} has the label {labels[row].item()!r}, which no row of "
                f"{names[0]} has; its {len(classes)} classes are {_listed(classes)}. Drop such rows, spell the labels "
                "alike, or add rows of that class to the training set."
            )
        indices.append(place.astype(np.int64))
    return classes, *indices


@np.errstate(over="ignore")  # what float32 cannot hold becomes infinite, and `store.check` says so
def read(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and labels of one file; its suffix says the format.

    Returns:
      x (N, views, D) float32, views = 1 where the file has (N, D); y (N,) integers, booleans or strings as they stand
      in the file, floats that are whole numbers as int64.

    Raises:
      UserError: there is no such file, it is no whole file of its format, or what it holds is not as said above.
    """
    path = Path(path)
    name = repr(os.fspath(path))
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise UserError(f"{name} {what}; valid is one file of embeddings and labels. Correct the path.")
    try:
        match path.suffix.lower():
            case ".npz":
                x, y = _read_npz(path, name)
            case ".safetensors":
                x, y = _read_safetensors(path, name)
            case ".parquet":
                x, y = _read_parquet(path, name)
            case _:
                raise UserError(
                    f"{name} has the suffix {path.suffix!r}; valid are .npz, .safetensors and .parquet. Write the "
                    "embeddings and labels in one of these, such as with np.savez(file, x=embeddings, y=labels)."
                )
    except UserError:
        raise
    except Exception as error:  # three libraries, and what each raises on broken bytes is its own affair
        raise UserError(
            f"{name} cannot be read as {path.suffix} ({error}). It may be empty, cut off or of another format: write "
            "it again, or copy it again from where it came."
        ) from None
    x, y = _checked_x(x, name), _checked_y(y, name)
    if len(x) != len(y):
        raise UserError(
            f"{name} has {len(x)} embeddings and {len(y)} labels; each row needs both. Write it again."
        )
    return x, y


def _read_npz(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise UserError(
                f"{name} is no .npz archive; it may be empty, one array, or a pickle, which is refused because "
                "unpickling can run code. Write the embeddings and labels with np.savez(file, x=..., y=...)."
            )
    try:
        with np.load(path, allow_pickle=False) as file:
            _need_x_and_y(file.files, name)
            return np.asarray(file["x"]), np.asarray(file["y"])
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise UserError(
            f"{name} holds pickled Python objects (an object array), which are refused because unpickling can run "
            "code. Write numbers with x.astype(np.float32), and strings with y.astype(str)."
        ) from None


def _read_safetensors(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    with safe_open(path, framework="np") as file:
        _need_x_and_y(file.keys(), name)
        x, y = file.get_tensor("x"), file.get_tensor("y")
    return x.astype(np.float32) if x.dtype == ml_dtypes.bfloat16 else x, y


def _read_parquet(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    # With these two settings the file is streamed; else all of the column's bytes lie in memory beside x.
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        embedding, label = _columns(file.schema_arrow, name)
        x = _embeddings(file, embedding, name)
        y = file.read(columns=[label]).column(label).combine_chunks()
    y = y.dictionary_decode() if pa.types.is_dictionary(y.type) else y
    _refuse_null(y, f"label (column {label!r})", 0, name)
    if not _is_text(y.type):
        return x, y.to_numpy(zero_copy_only=False)
    y = y.dictionary_encode()  # few classes, many rows: only the classes become Python strings
    return x, np.asarray(y.dictionary.to_pylist(), str)[y.indices.to_numpy()]


def _embeddings(file: pq.ParquetFile, embedding: str, name: str) -> np.ndarray:
    rows, start = file.metadata.num_rows, 0
    x = np.empty((rows, 0), np.float32)
    for batch in file.iter_batches(BATCH_ROWS, columns=[embedding]):
        column = batch.column(embedding)
        _refuse_null(column, f"embedding (column {embedding!r})", start, name)
        lengths = pc.list_value_length(column).to_numpy()
        if start == 0:
            x = np.empty((rows, lengths[0]), np.float32)
        dim = x.shape[1]
        if (lengths != dim).any():
            row = int(np.argmax(lengths != dim))
            raise UserError(
                f"The embeddings in {name} differ in length: row 0 of column {embedding!r} has {dim} numbers, row "
                f"{start + row} has {lengths[row]}. Valid is one length for all: drop or embed again the others."
            )
        values = column.flatten()
        _refuse_null(values, f"number in its embedding (column {embedding!r})", start, name, each=dim)
        end = start + len(column)
        x[start:end] = values.to_numpy(zero_copy_only=False).reshape(len(column), dim)
        start = end
    return x


def _columns(schema: pa.Schema, name: str) -> tuple[str, str]:
    """The names of the columns of the embeddings and of the labels."""
    fields = [field for field in schema if not field.name.startswith("__index_level_")]  # pandas' row names
    lists = [field.name for field in fields if _is_list_of_numbers(field.type)]
    others = [field.name for field in fields if field.name not in lists]
    embedding = [n for n in lists if n in ("x", "embedding")] or lists
    label = [n for n in others if n in ("y", "label")] or others
    if len(embedding) != 1 or len(label) != 1:
        there = ", ".join(f"{field.name!r} ({field.type})" for field in fields)
        raise UserError(
            f"It is not clear which columns of {name} are meant: it has {there or 'none'}. Valid are one column of "
            "lists of numbers, named x or embedding if there are several such, and one of labels, named y or label if "
            "there are several others. Rename the embeddings to 'x' and the labels to 'y', or drop the rest."
        )
    return embedding[0], label[0]


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    return pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _refuse_null(column: pa.Array, what: str, start: int, name: str, each: int = 1) -> None:
    if column.null_count:
        row = start + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))) // each
        raise UserError(f"Row {row} of {name} has no {what}. Drop such rows, or fill them in.")


def _need_x_and_y(there: Sequence[str], name: str) -> None:
    if not {"x", "y"} <= set(there):
        raise UserError(
            f"{name} holds {', '.join(sorted(there)) or 'nothing'}; needed are the embeddings as x, (N, D) or "
            "(N, views, D), and the labels as y, (N,). Write it again with these names."
        )


def _checked_x(x: np.ndarray, name: str) -> np.ndarray:
    if x.dtype.kind not in "iuf":
        raise UserError(
            f"The embeddings x in {name} are {x.dtype}; valid are numbers. Convert them to float32."
        )
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise UserError(
            f"The embeddings x in {name} have the shape {x.shape}; valid are (N, D) and (N, views, D), none of them "
            "zero. Write at least one row, each an embedding of the same length."
        )
    x = x.astype(np.float32, copy=False)
    return x[:, None] if x.ndim == 2 else x


def _checked_y(y: np.ndarray, name: str) -> np.ndarray:
    if y.ndim != 1:
        raise UserError(f"The labels y in {name} have the shape {y.shape}; valid is (N,), one label a row.")
    if y.dtype.kind in "iubU":
        return y
    if y.dtype.kind != "f":
        raise UserError(
            f"The labels y in {name} are {y.dtype}; valid are integers, strings and booleans. Convert them to one of "
            "these."
        )
    whole = np.isfinite(y) & (y == np.rint(y)) & (np.abs(y) < 2.0**53)
    if not whole.all():
        row = int(np.argmin(whole))
        raise UserError(
            f"The labels y in {name} are {y.dtype}, and row {row} has {y[row]}, which is no whole number; valid are "
            "integers, strings and booleans. Write classes, not values to regress on."
        )
    return y.astype(np.int64)


def _listed(classes: np.ndarray) -> str:
    shown = ", ".join(repr(value) for value in classes[:6].tolist())
    return f"{shown}, ..." if len(classes) > 6 else shown
