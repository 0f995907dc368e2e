"""Columns of text for millions of records: strings of variable width in memory, their bytes and ends on disk.

A fixed width is four bytes for every character of the longest text, for every text: one caption of 10 kB among 15
million would take 600 GB. NumPy's StringDType takes 16 bytes and the UTF-8 bytes of each (those of up to 15 bytes lie
within the 16); such an array is indexed, sorted and compared as any other, and its elements are `str`.
"""

import os
from collections.abc import Sequence
from typing import IO, NamedTuple

import numpy as np

STRINGS = np.dtypes.StringDType()

# Texts that are Python strings at a time.
_AT_ONCE = 65_536


class Packed(NamedTuple):
    """N texts end to end: their UTF-8 bytes (B,) uint8, and where each ends (N,) int64."""

    text: np.ndarray
    ends: np.ndarray


def column(values: Sequence[bytes | str]) -> np.ndarray:
    """(N,) StringDType.

    Raises:
      UnicodeDecodeError: bytes that are not UTF-8.
    """
    return np.array([v.decode() if isinstance(v, bytes) else v for v in values], STRINGS)


def fixed_width(strings: np.ndarray) -> np.ndarray:
    """(N,) str of one width, which files and frameworks know that do not know StringDType."""
    width = max((int(np.strings.str_len(part).max()) for part in _parts(strings)), default=0)
    return strings.astype(f"U{max(1, width)}")


def is_blank(strings: np.ndarray) -> np.ndarray:
    """(N,) bool: nothing but white space."""
    lengths = [np.strings.str_len(np.strings.strip(part)) for part in _parts(strings)]
    return np.concatenate([np.zeros(0, int), *lengths]) == 0


def pack(strings: Sequence[str]) -> Packed:
    """The texts end to end."""
    coded = [text.encode() for text in strings]
    ends = np.cumsum([len(text) for text in coded], dtype=np.int64)
    return Packed(np.frombuffer(b"".join(coded), np.uint8), ends)


def pack_column(strings: np.ndarray) -> Packed:
    """`pack` for an array of any size."""
    return concatenate([pack(part.tolist()) for part in _parts(strings)])


def unpack(packed: Packed, start: int = 0, stop: int | None = None) -> np.ndarray:
    """(stop - start,) StringDType: the texts from row `start` on."""
    ends = packed.ends[start:stop]
    begins = np.concatenate([packed.ends[start - 1 : start] if start else np.zeros(1, np.int64), ends[:-1]])
    strings = np.empty(len(ends), STRINGS)
    for row in range(0, len(ends), _AT_ONCE):
        rows = slice(row, row + _AT_ONCE)
        first = begins[row]
        coded = packed.text[first : ends[rows][-1]].tobytes()
        bounds = zip((begins[rows] - first).tolist(), (ends[rows] - first).tolist(), strict=True)
        strings[rows] = np.array([coded[begin:end].decode() for begin, end in bounds], STRINGS)
    return strings


def concatenate(several: Sequence[Packed]) -> Packed:
    """All texts of `several`, in order."""
    shifts = np.cumsum([0, *(len(p.text) for p in several)])
    text = np.concatenate([np.zeros(0, np.uint8), *(p.text for p in several)])
    ends = [p.ends + shift for p, shift in zip(several, shifts, strict=False)]
    return Packed(text, np.concatenate([np.zeros(0, np.int64), *ends]))


def save(file: IO[bytes], packed: Packed) -> None:
    """Writes an .npz file of the two arrays."""
    np.savez(file, text=packed.text, ends=packed.ends)


def load(path: str | os.PathLike | IO[bytes]) -> Packed:
    """What `save` wrote.

    Raises:
      OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile: it is not there, or damaged.
    """
    with np.load(path) as file:
        packed = Packed(file["text"], file["ends"])
    if len(packed.ends) and packed.ends[-1] != len(packed.text):
        raise ValueError(f"{path!r} is damaged.")
    return packed


def _parts(strings: np.ndarray) -> list[np.ndarray]:
    return [strings[row : row + _AT_ONCE] for row in range(0, len(strings), _AT_ONCE)]
