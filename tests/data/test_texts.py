import io

import numpy as np
import pytest

from nml_jax.data import texts

NASTY = ["", "a", "x" * 10_000, "café", "日本語 🎉", "two\nlines", "nul\0inside\0", " "]


def test_texts_come_back_whole_and_in_part():
    packed = texts.pack(NASTY)
    assert bytes(packed.text) == "".join(NASTY).encode()
    assert texts.unpack(packed).tolist() == NASTY
    for start in range(len(NASTY) + 1):
        for stop in range(start, len(NASTY) + 1):
            assert texts.unpack(packed, start, stop).tolist() == NASTY[start:stop]
    file = io.BytesIO()
    texts.save(file, texts.concatenate([packed, texts.pack([]), texts.pack(["end"])]))
    file.seek(0)
    assert texts.unpack(texts.load(file)).tolist() == [*NASTY, "end"]
    assert texts.unpack(texts.concatenate([])).tolist() == []


def test_more_than_one_chunk(monkeypatch):
    monkeypatch.setattr(texts, "_AT_ONCE", 3)
    column = texts.column([text.encode() for text in NASTY])
    assert column.dtype == texts.STRINGS
    assert texts.unpack(texts.pack_column(column)).tolist() == NASTY
    assert texts.is_blank(column).tolist() == [not text.strip() for text in NASTY]
    assert texts.fixed_width(column[:2]).dtype == "<U1"
    assert texts.fixed_width(column[3:]).tolist() == ["café", "日本語 🎉", "two\nlines", "nul\0inside", " "]
    assert texts.fixed_width(column[:0]).tolist() == []


def test_columns_of_text_are_arrays_like_others():
    column = texts.column(NASTY)
    assert np.sort(column).tolist() == sorted(NASTY)
    rows = np.array([3, 0, 3])
    assert column[rows].tolist() == ["café", "", "café"]
    assert (column[rows] == column[0]).tolist() == [False, True, False]
    assert all(isinstance(text, str) for text in column)


def test_damage_is_noticed():
    with pytest.raises(UnicodeDecodeError):
        texts.column([b"\xff"])
    file = io.BytesIO()
    packed = texts.pack(["one", "two"])
    texts.save(file, texts.Packed(packed.text[:-1], packed.ends))
    file.seek(0)
    with pytest.raises(ValueError, match="damaged"):
        texts.load(file)
