"""Caption noise: image-text pairs exchange their texts.

The papers "swap the text description between two randomly sampled image-text pairs until the noise ratio is
achieved" (ICLR 2024, appendix). Their script draws the two pairs anew for every swap, so that ratio r leaves about
1 - exp(-2r) of the pairs mismatched: 9.5 % for r = 0.05. `mode="official"` does that; `mode="exact"` mismatches the
fraction that was asked for.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nml_jax.core.errors import UserError
from nml_jax.noise import choice, keys

CORRUPTS = ("captions",)
MODES = ("exact", "official")


def corrupt(
    captions: Sequence[str], *, ratio: float, seed: int, ids: Any = None, mode: str = "exact"
) -> np.ndarray:
    """The captions after the exchange, (N,): `captions[sources(captions, ...)]`; see `sources`."""
    rows = sources(captions, ratio=ratio, seed=seed, ids=ids, mode=mode)
    return np.asarray(captions, dtype=None if isinstance(captions, np.ndarray) else object)[rows]


def sources(
    captions: Sequence[str], *, ratio: float, seed: int, ids: Any = None, mode: str = "exact"
) -> np.ndarray:
    """The row that each caption comes from.

    Args:
      captions: N strings; they may repeat.
      ratio: fraction in [0, 1]. "exact": round(ratio * N) pairs get a caption with another text than their own, a
        half rounded to the even neighbour; all others keep theirs. "official": int(ratio * N) swaps of two
        different pairs, drawn with replacement across swaps.
      ids: N different integers or strings; the row numbers if left out.
      mode: "exact" or "official".

    Returns:
      (N,) int64, a permutation of the rows.

    Raises:
      UserError: one of these is not as said, or the texts repeat so much that no exact exchange exists.
    """
    ratio = choice.check_ratio(ratio)
    if not all(isinstance(caption, str | bytes) for caption in captions):
        raise UserError("captions are not all strings; valid is one string for each image.")
    if mode not in MODES:
        raise UserError(f"Unknown mode {mode!r} of caption_swap; valid: {', '.join(MODES)}.")
    words = keys.words(ids, len(captions))
    order = np.argsort(keys.hashes(words, seed=seed, stream="chosen"))
    rows = np.arange(len(captions))
    if mode == "official":
        rows[order] = order[_swaps(len(captions), int(len(captions) * ratio), seed)]
        return rows
    chosen = order[: int(np.rint(ratio * len(captions)))]
    rows[chosen] = chosen[_derangement(_text_numbers(captions, chosen), words[chosen], seed)]
    return rows


def _swaps(size: int, swaps: int, seed: int) -> np.ndarray:
    """(size,): where each item comes from after `swaps` exchanges of two random different items."""
    if swaps and size < 2:
        raise UserError(
            "There is one caption; a swap needs at least 2. Give more pairs, or set the ratio to 0."
        )
    draws = np.arange(2 * swaps, dtype=np.uint64)
    bits = keys.hashes(draws, seed=seed, stream="swaps").reshape(swaps, 2)
    left = (bits[:, 0] % np.uint64(max(size, 1))).astype(np.int64)
    right = (bits[:, 1] % np.uint64(max(size - 1, 1))).astype(np.int64)
    right += right >= left
    place = list(range(size))
    for i, j in zip(left.tolist(), right.tolist(), strict=True):
        place[i], place[j] = place[j], place[i]
    return np.array(place, np.int64)


def _text_numbers(captions: Sequence[str], chosen: np.ndarray) -> np.ndarray:
    """(n,): equal numbers for equal texts, counted in the order of `chosen`."""
    numbers: dict[str, int] = {}
    found = np.array([numbers.setdefault(captions[row], len(numbers)) for row in chosen.tolist()], np.int64)
    counts = np.bincount(found, minlength=1)
    if 2 * counts.max() > len(found):
        common = captions[chosen[np.argmax(found == np.argmax(counts))]]
        raise UserError(
            f"{len(found)} of {len(captions)} pairs were chosen to be mismatched, but {counts.max()} of these have the "
            f"same caption, {common[:60]!r}, so they cannot all get another text from each other; valid is at most "
            "half. Choose a larger ratio or 0, drop repeated captions, or use mode='official'."
        )
    return found


def _derangement(texts: np.ndarray, words: np.ndarray, seed: int) -> np.ndarray:
    """(n,): a random permutation `place` with texts[place[i]] != texts[i] for every i.

    It starts as a random permutation. Items that got their own text first try to change places with a random item
    each. What is left goes text by text: say k items of text a got an a again. Each changes places with an item that
    neither is nor got an a; afterwards both are right, and none is worse. If c items have text a, then at most
    2c - k items are or got an a, so with c <= n/2 at least k others remain: it always succeeds.
    """
    place = np.argsort(keys.hashes(words, seed=seed, stream="partner"))
    rank = keys.hashes(words, seed=seed, stream="repair")
    own = texts[place] == texts
    wrong, free = np.flatnonzero(own), np.flatnonzero(~own)
    others = free[np.argsort(rank[free])[: len(wrong)]]
    wrong = wrong[: len(others)]
    helps = (texts[others] != texts[wrong]) & (texts[place[others]] != texts[wrong])
    _exchange(place, wrong[helps], others[helps])
    for text in np.unique(texts[texts[place] == texts]):
        wrong = np.flatnonzero((texts == text) & (texts[place] == text))
        free = np.flatnonzero((texts != text) & (texts[place] != text))
        _exchange(place, wrong, free[np.argsort(rank[free])[: len(wrong)]])
    return place


def _exchange(place: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    place[left], place[right] = place[right], place[left]
