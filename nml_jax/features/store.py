"""Features on disk: `<dir>/<split>/{x,y}.npy`, one `y_<key>.npy` for each further label, `manifest.json`.

x is (N, views, D) float32 and memory-mapped. View 0 is the clean one (the evaluation transform); the others
are augmented copies. y is (N,) int64.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from nml_jax.core import artifacts
from nml_jax.core.errors import UserError


@dataclass(frozen=True)
class Features:
    """One split: x (N, views, D) float32, y (N,) int64 in [0, num_classes), and what made them."""

    x: np.ndarray
    y: np.ndarray
    num_classes: int
    manifest: dict[str, Any]

    @property
    def clean(self) -> np.ndarray:
        """(N, D): the features of the un-augmented images."""
        return self.x[:, 0]


def save(
    directory: str | os.PathLike,
    split: str,
    x: np.ndarray,
    labels: dict[str, np.ndarray],
    num_classes: dict[str, int],
    **facts: Any,
) -> None:
    """Writes one split; the folder is there complete or not at all.

    Args:
      labels: label key -> (N,) integers; the first is `y.npy`, the others `y_<key>.npy`.
      num_classes: label key -> number of classes.
      facts: go into the manifest as they are (encoder, transform, ...).
    """
    final = split_dir(directory, split)
    aside = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    np.save(aside / "x.npy", np.asarray(x, np.float32))
    files = {key: "y.npy" if i == 0 else f"y_{key}.npy" for i, key in enumerate(labels)}
    for key, file in files.items():
        np.save(aside / file, np.asarray(labels[key], np.int64))
    labels_facts = {k: {"file": files[k], "num_classes": int(num_classes[k])} for k in labels}
    shape = {"rows": x.shape[0], "views": x.shape[1], "dim": x.shape[2], "dtype": "float32"}
    said = {"split": split, **shape, "label": next(iter(labels)), "labels": labels_facts}
    artifacts.write_json(aside / "manifest.json", {**said, **facts})
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)


def split_dir(directory: str | os.PathLike, split: str) -> Path:
    """The folder of one split; slices such as `train[:10%]` are percent-encoded."""
    return Path(directory) / quote(split, safe="")


def load(directory: str | os.PathLike, split: str, label: str | None = None) -> Features:
    """Opens one split, checked.

    Args:
      label: which label of the images is y; None takes the first.

    Raises:
      UserError: the split or the label is not there, the files disagree in their rows, a feature is not finite,
        or a label lies outside the classes.
    """
    folder = split_dir(directory, split)
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        labels = manifest["labels"]
        facts = labels.get(label or manifest["label"])
        x = np.load(folder / "x.npy", mmap_mode="r", allow_pickle=False)
        y = np.load(folder / facts["file"], allow_pickle=False) if facts else None
    except FileNotFoundError as error:
        there = sorted(p.parent.name for p in Path(directory).glob("*/manifest.json"))
        raise UserError(
            f"No features of split {split!r} in {os.fspath(directory)!r} ({error.filename} is missing); it has "
            f"{', '.join(there) or 'none'}. Extract them with the features stage, or name one of those."
        ) from None
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"The features in {os.fspath(folder)!r} cannot be read ({error}); extract them again."
        ) from None
    if y is None:
        raise UserError(
            f"The features in {os.fspath(folder)!r} have no label {label!r}; they have "
            f"{', '.join(labels)}. Name one of these as the task's label."
        )
    check(x, y, facts["num_classes"], where=os.fspath(folder))
    return Features(x, y, facts["num_classes"], manifest)


def check(x: np.ndarray, y: np.ndarray, num_classes: int, *, where: str) -> None:
    """Raises a UserError unless x is (N, views, D) and finite, and y is (N,) integers in [0, num_classes)."""
    if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
        raise UserError(
            f"The features in {where} do not fit together: x is {x.shape}, y is {y.shape}; valid are "
            "x (N, views, D) and y (N,) with the same N. Write or extract them again."
        )
    if len(x) == 0 or x.shape[2] == 0:
        raise UserError(f"The features in {where} are empty: x is {x.shape}. At least one row is needed.")
    step = max(1, (1 << 24) // x[0].size)  # rows of 64 MiB at a time: x may be larger than the memory
    for start in range(0, len(x), step):
        finite = np.isfinite(x[start : start + step]).all(axis=(1, 2))
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise UserError(
                f"The features in {where} hold NaN or infinity, first in row {row} (label {y[row]}). Drop such rows, "
                "or find out why the encoder gave them, and write the features again."
            )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= num_classes:
        raise UserError(
            f"The labels in {where} are {y.dtype} from {y.min()} to {y.max()}; valid are integers in "
            f"[0, {num_classes}). Renumber the classes, or give the right number of classes."
        )
