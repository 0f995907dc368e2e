"""noise.npz: what was clean, what became noisy, and how; any framework can train on the same wrong labels.

Arrays: ids (N,), clean (N,), noisy (N,), requested_ratio, realised_ratio, seed, name. For captions `clean` is
0 ... N - 1 and `noisy` the row that each caption comes from. Nothing in it is pickled.
"""

import os
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from nml_jax.core import artifacts
from nml_jax.core.errors import UserError
from nml_jax.noise import choice, keys


@dataclass(frozen=True)
class Record:
    """The noise of one data set: ids (N,) integers or strings, clean and noisy (N,) int64."""

    name: str
    ids: np.ndarray
    clean: np.ndarray
    noisy: np.ndarray
    requested_ratio: float
    realised_ratio: float
    seed: int


def write(
    path: str | os.PathLike, *, name: str, ids: Any, clean: Any, noisy: Any, ratio: float, seed: int
) -> None:
    """Writes the record, whole or not at all; `realised_ratio` is the fraction of rows that changed.

    Args:
      ids: N different integers or strings; None numbers the rows.
      clean: (N,) integers.
      noisy: (N,) integers.

    Raises:
      UserError: these do not fit together.
    """
    clean, noisy = np.asarray(clean), np.asarray(noisy)
    integers = np.issubdtype(clean.dtype, np.integer) and np.issubdtype(noisy.dtype, np.integer)
    if clean.ndim != 1 or clean.shape != noisy.shape or not integers:
        raise UserError(
            f"clean is {clean.dtype} {clean.shape}, noisy is {noisy.dtype} {noisy.shape}; valid are integers (N,) with "
            "the same N. For captions give np.arange(N) and caption_swap.sources(...)."
        )
    words = keys.words(ids, len(clean))
    ids = words.astype(np.int64) if ids is None else np.asarray(ids)
    arrays = {
        "name": np.array(name),
        "ids": ids.astype(str) if ids.dtype == object else ids,
        "clean": clean.astype(np.int64),
        "noisy": noisy.astype(np.int64),
        "requested_ratio": np.float64(choice.check_ratio(ratio)),
        "realised_ratio": np.float64(np.mean(clean != noisy) if len(clean) else 0.0),
        "seed": np.int64(keys.check_seed(seed)),
    }
    with artifacts.replacing(path, mode="wb") as file:
        np.savez(file, **arrays)


def read(path: str | os.PathLike) -> Record:
    """Reads what `write` wrote.

    Raises:
      UserError: there is no such file, or it is not a noise record.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return Record(
                name=str(file["name"]),
                ids=file["ids"],
                clean=file["clean"],
                noisy=file["noisy"],
                requested_ratio=float(file["requested_ratio"]),
                realised_ratio=float(file["realised_ratio"]),
                seed=int(file["seed"]),
            )
    except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{os.fspath(path)!r} is not a noise record ({error}); valid is a noise.npz made by "
            "nml_jax.noise.record.write. Give its path, or write it again."
        ) from None
