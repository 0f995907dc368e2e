"""Records whose images could not be decoded, and that others took the place of: counted, named, limited."""

import os
import sys

import numpy as np

from nml_jax.core import runtime
from nml_jax.core.errors import UserError

FILE = "undecodable.txt"


class Undecodables:
    """The ids of replaced records in `<workdir>/undecodable.txt`, one a line, each once, over all runs in `workdir`.

    A silent skip would shift the noise: so which records are missing is on file, and more than `limit` of all N is an
    error.
    """

    def __init__(self, workdir: str | os.PathLike, ids: np.ndarray, limit: float):
        self._path = os.path.join(workdir, FILE)
        self._ids, self._limit = ids, limit
        self._new: set[int] = set()
        self._known: set[str] = set()
        if os.path.exists(self._path):
            with open(self._path, encoding="utf-8") as file:
                self._known = set(file.read().split("\n")) - {""}

    def add(self, index: np.ndarray, replaced: np.ndarray) -> None:
        """Notes a batch of this process: rows of `ids`, and which of them were replaced."""
        if replaced.any():
            self._new.update(index[replaced].tolist())

    def check(self) -> None:
        """Writes down what is new. All processes must call it at the same step.

        Raises:
          UserError: there are too many.
        """
        if not runtime.any_process(bool(self._new)):
            return
        rows = runtime.gather_rows(np.array(sorted(self._new), np.int64))
        self._new.clear()
        new = sorted({str(self._ids[row]) for row in rows} - self._known)
        self._known.update(new)
        if new and runtime.is_lead():
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("".join(f"{name}\n" for name in new))
            some = ", ".join(new[:3]) + (", ..." if len(new) > 3 else "")
            print(
                f"warning: {len(new)} images cannot be decoded ({some}); "
                f"other records took their places. So far {len(self._known)} of {len(self._ids)}: {self._path}",
                file=sys.stderr,
                flush=True,
            )
        if len(self._known) > self._limit * len(self._ids):
            raise UserError(
                f"{len(self._known)} of {len(self._ids)} images cannot be decoded, more than data.max_undecodable="
                f"{self._limit} allows; their ids are in {self._path!r}. Prepare the data set again, or allow more."
            )
