"""No noise: labels or captions as they are."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nml_jax.core.errors import UserError
from nml_jax.noise import choice, keys

CORRUPTS = ("labels", "captions")


def corrupt(
    supervision: Any, *, num_classes: int | None = None, ratio: float = 0.0, seed: int = 0, ids: Any = None
) -> np.ndarray:
    """A copy of (N,) labels, or of N captions if `num_classes` is left out.

    Raises:
      UserError: `ratio` is not 0, or labels or ids are not what the other noise models take.
    """
    _check(len(supervision), ratio, seed, ids)
    if num_classes is not None:
        return choice.check_labels(supervision, num_classes)
    return np.array(supervision, dtype=None if isinstance(supervision, np.ndarray) else object)


def sources(captions: Sequence[str], *, ratio: float = 0.0, seed: int = 0, ids: Any = None) -> np.ndarray:
    """(N,) int64: each caption comes from its own row."""
    _check(len(captions), ratio, seed, ids)
    return np.arange(len(captions))


def _check(size: int, ratio: float, seed: int, ids: Any) -> None:
    keys.check_seed(seed)
    keys.words(ids, size)
    if choice.check_ratio(ratio) != 0.0:
        raise UserError(
            f"The noise 'none' was asked for a ratio of {ratio}; it only has 0. Set the ratio to 0, or name a noise "
            "model that corrupts, such as 'symmetric' for labels or 'caption_swap' for captions."
        )
