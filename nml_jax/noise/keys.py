"""Random numbers keyed by sample id: (seed, stream, id) -> 64 bits, for all samples at once.

An id becomes a 64-bit word (an integer is its own word, a string goes through BLAKE2b). The word is mixed twice
by the finaliser of SplitMix64 (Steele, Lea & Flood 2014; variant 13 of Stafford), keyed before each round with
half of BLAKE2b(seed, stream). The map from word to hash is one-to-one, so integer ids never tie, and an order by
hash is a random permutation. Flipping one bit of an id flips each bit of the hash with probability one half;
streams and seeds are unrelated to each other, also neighbouring ones. Not for cryptography.
"""

import hashlib
import operator
from typing import Any

import numpy as np

from nml_jax.core.errors import UserError


def words(ids: Any, size: int) -> np.ndarray:
    """(N,) uint64, one for each id, all different; without `ids`, the row numbers 0 ... size - 1.

    Integers are taken modulo 2^64, whatever their width; a string and its UTF-8 bytes are the same id.

    Raises:
      UserError: `ids` are not `size` different integers or strings.
    """
    if ids is None:
        return np.arange(size, dtype=np.uint64)
    ids = np.asarray(ids)
    if ids.shape != (size,):
        raise UserError(
            f"ids have the shape {ids.shape} but there are {size} samples; valid is one id for each sample, ({size},)."
        )
    found = _integer_words(ids) if np.issubdtype(ids.dtype, np.integer) else _string_words(ids)
    order = np.sort(found)
    if (order[1:] == order[:-1]).any():
        value = order[:-1][order[1:] == order[:-1]][0]
        rows = np.flatnonzero(found == value)[:2]
        raise UserError(
            f"ids are not unique: rows {rows[0]} and {rows[1]} both have {ids[rows[0]]!r}. The noise of a sample "
            "depends on its id, so each sample needs its own; leave ids out to number the rows."
        )
    return found


def _integer_words(ids: np.ndarray) -> np.ndarray:
    return ids.astype(np.uint64)


def _string_words(ids: np.ndarray) -> np.ndarray:
    values = ids.tolist()
    if not all(isinstance(value, str | bytes) for value in values):
        raise UserError(
            f"ids are {ids.dtype} ({values[0]!r}, ...); valid are integers or strings. Convert them, "
            "for example with ids.astype(np.int64) or [str(i) for i in ids]."
        )
    coded = (value if isinstance(value, bytes) else value.encode() for value in values)
    digests = b"".join(hashlib.blake2b(value, digest_size=8).digest() for value in coded)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def hashes(words: np.ndarray, *, seed: int, stream: str) -> np.ndarray:
    """(N,) uint64 uniform on [0, 2^64), independent for each (seed, stream).

    Args:
      words: (N,) uint64, as `words` gives them.
      seed: any integer.
      stream: what the numbers are for.
    """
    key = hashlib.blake2b(f"{check_seed(seed)}/{stream}".encode(), digest_size=16).digest()
    before, between = np.frombuffer(key, dtype="<u8").astype(np.uint64)
    return _mix(_mix(words ^ before) + between)


def uniforms(words: np.ndarray, *, seed: int, stream: str) -> np.ndarray:
    """(N,) float64 uniform on [0, 1): the upper 53 bits of `hashes`."""
    return (hashes(words, seed=seed, stream=stream) >> np.uint64(11)) * 2.0**-53


def check_seed(seed: Any) -> int:
    """The seed as a Python integer.

    Raises:
      UserError: it is no integer.
    """
    try:
        return operator.index(seed)
    except TypeError:
        raise UserError(f"seed is {seed!r}; valid is an integer, such as 0.") from None


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
