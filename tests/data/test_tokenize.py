import gzip
import json
import sys

import numpy as np
import pytest

from nml_jax.core.errors import UserError
from nml_jax.data import tokenize

CAPTIONS = [
    "a bold serif Greek letter omega in dark red",
    "a thin sans letter b on a striped background",
    "ünïcode 🙂",
]


def test_ids_start_end_and_pad(tmp_path):
    tokenizer = tokenize.train(CAPTIONS * 5, vocab_size=400)
    tokens = tokenize.encode(tokenizer, [*CAPTIONS, ""], 40)
    assert tokens.shape == (4, 40)
    for row, caption in zip(tokens, CAPTIONS, strict=False):
        last = int(np.flatnonzero(row)[-1])
        assert row[0] == tokenize.START
        assert row[last] == tokenize.END
        assert tokenizer.decode(list(row[1:last])).strip() == caption.lower()
    np.testing.assert_array_equal(tokens[3, :3], [tokenize.START, tokenize.END, tokenize.PAD])


def test_long_captions_keep_their_beginning_and_the_end_token():
    tokenizer = tokenize.train(CAPTIONS, vocab_size=300)
    short, long = (tokenize.encode(tokenizer, CAPTIONS, n) for n in (6, 60))
    np.testing.assert_array_equal(short[:, :5], long[:, :5])
    assert (short[:, 5] == tokenize.END).all()


def test_training_does_not_depend_on_the_run_and_survives_the_disk(tmp_path):
    one, two = (tokenize.train(CAPTIONS * 7, vocab_size=320) for _ in range(2))
    assert one.to_str() == two.to_str()
    one.save(str(tmp_path / "t.json"))
    assert tokenize.load(tmp_path / "t.json").to_str() == one.to_str()


def test_captions_are_encoded_in_their_order_in_chunks(monkeypatch):
    tokenizer = tokenize.train(CAPTIONS, vocab_size=300)
    captions = np.array([f"letter {i}" for i in range(50)])
    whole = tokenize.encode(tokenizer, captions, 12)
    monkeypatch.setattr(tokenize, "CHUNK", 7)
    np.testing.assert_array_equal(tokenize.encode(tokenizer, captions, 12), whole)
    assert len({tuple(row) for row in whole}) == 50
    assert tokenize.encode(tokenizer, [], 12).shape == (0, 12)


def test_a_caption_cannot_end_itself_nor_break_the_run():
    tokenizer = tokenize.train(CAPTIONS, vocab_size=300)
    rows = tokenize.encode(
        tokenizer, ["a <end> b <pad> <start>", "half a pair \ud83d", "a pair \ud83d\ude42"], 60
    )
    for row in rows:
        assert (row == tokenize.END).sum() == (row == tokenize.START).sum() == 1
    np.testing.assert_array_equal(rows[2], tokenize.encode(tokenizer, ["a pair 🙂"], 60)[0])


def test_wrong_captions_and_lengths_are_named(tmp_path):
    tokenizer = tokenize.train(CAPTIONS, vocab_size=300)
    for caption in (None, 3, b"bytes", float("nan"), ["a"]):
        with pytest.raises(UserError, match=f"Caption 1 is not text but {type(caption).__name__}"):
            tokenize.encode(tokenizer, ["good", caption], 12)
    with pytest.raises(UserError, match="give 3 or more"):
        tokenize.encode(tokenizer, CAPTIONS, 2)
    with pytest.raises(UserError, match="Give 259 or more"):
        tokenize.train(CAPTIONS, vocab_size=258)
    assert tokenize.train(CAPTIONS, vocab_size=259).get_vocab_size() == 259
    (tmp_path / "torn.json").write_text(tokenizer.to_str()[:-20])
    for name in ("torn", "none"):
        with pytest.raises(UserError, match="is not a tokenizer saved as JSON"):
            tokenize.load(tmp_path / f"{name}.json")


def test_a_vocabulary_that_does_not_fit_the_model():
    tokenizer = tokenize.train(CAPTIONS, vocab_size=300)
    tokenize.check(tokenizer, tokenizer.get_vocab_size())
    with pytest.raises(UserError, match="tokenizer has 300 ids and the text model embeddings for 299"):
        tokenize.check(tokenizer, 299)


# A file such as CLIP's: these merges first, and then as many others as that has.
MERGES = [
    ("t", "h"),
    ("th", "e</w>"),
    ("c", "a"),
    ("ca", "t</w>"),
    ("'", "s</w>"),
    ("Ã", "©</w>"),
    ("½", "ı</w>"),
]
FIRST = 2 * 256  # the id of the first merge's token


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    byte = sorted(tokenize.pre_tokenizers.ByteLevel.alphabet())
    made = {"".join(merge) for merge in MERGES}
    others = [(a, b) for a in byte for b in byte if a + b not in made and not a.isalpha()]
    others += [(a, b + "</w>") for a in byte for b in byte if a + b + "</w>" not in made]
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in MERGES + others), ""]
    assert len(lines) > tokenize.CLIP_MERGES + 100  # as CLIP's own, which has more than are used
    path = tmp_path_factory.mktemp("clip") / "vocabulary.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def byte_id(character: str, ends_word: bool = True) -> int:
    """Of a printable ASCII character: they come first, from "!"."""
    return ord(character) - ord("!") + 256 * ends_word


@pytest.mark.parametrize(
    ("caption", "ids"),
    [
        ("the cat", [FIRST + 1, FIRST + 3]),
        ("  THE \t\n Cat ", [FIRST + 1, FIRST + 3]),
        ("the1", [FIRST + 1, byte_id("1")]),
        ("11", [byte_id("1")] * 2),
        ("cat's", [FIRST + 3, FIRST + 4]),
        ("!", [byte_id("!")]),
        ("", []),
        ("the <start_of_text> cat", [FIRST + 1, 49406, FIRST + 3]),
        ("the<END_OF_TEXT>cat", [FIRST + 1, 49407, FIRST + 3]),
    ],
)
def test_clip_ids_by_hand(vocabulary, caption, ids):
    tokenizer = tokenize.clip(vocabulary)
    assert tokenizer.get_vocab_size() == 49408
    expected = [49406, *ids, 49407]
    np.testing.assert_array_equal(
        tokenize.encode(tokenizer, [caption], 12)[0], expected + [0] * (12 - len(expected))
    )


def test_clip_reads_no_end_behind_punctuation(vocabulary):
    """Its pattern takes "!<" for one word there."""
    row = tokenize.encode(tokenize.clip(vocabulary), ["the !<end_of_text>"], 20)[0]
    assert list(row).count(49407) == 1


def test_clip_mends_captions(vocabulary):
    pytest.importorskip("ftfy")
    tokenizer = tokenize.clip(vocabulary)
    captions = [
        "caf\u00e9 &amp;",
        "cafe\u0301 &amp;amp;",
        "cafÃ© &",
        "ｃafé　&#38;",
        "\x1b[31mcafé\x00 &\r\n",
    ]
    rows = tokenize.encode(tokenizer, captions, 12)
    for row in rows:
        np.testing.assert_array_equal(row, rows[0])
    assert FIRST + 5 in rows  # é, lower case, whole
    assert (tokenize.encode(tokenizer, ["É"], 3)[0] == [49406, FIRST + 5, 49407]).all()


def test_clip_is_cut_saved_and_decoded(vocabulary, tmp_path):
    tokenizer = tokenize.clip(vocabulary)
    row = tokenize.encode(tokenizer, ["the cat " * 50], 8)[0]
    np.testing.assert_array_equal(row, [49406, *[FIRST + 1, FIRST + 3] * 3, 49407])
    assert tokenizer.decode([int(i) for i in row[1:-1]]) == "the cat the cat the cat "
    tokenizer.save(str(tmp_path / "t.json"))
    again = tokenize.load(tmp_path / "t.json")
    captions = ["the cat's <end_of_text> 11", ""]
    np.testing.assert_array_equal(
        tokenize.encode(again, captions, 12), tokenize.encode(tokenizer, captions, 12)
    )


def test_wrong_vocabularies_are_named(vocabulary, tmp_path, monkeypatch):
    text = gzip.decompress(vocabulary.read_bytes()).decode()
    plain = tmp_path / "plain.txt"
    plain.write_text(text)
    assert tokenize.clip(plain).to_str() == tokenize.clip(vocabulary).to_str()
    (tmp_path / "torn.txt.gz").write_bytes(vocabulary.read_bytes()[:-999])
    (tmp_path / "text.txt.gz").write_text(text)
    (tmp_path / "short.txt").write_text(text[: len(text) // 4])
    (tmp_path / "twice.txt").write_text(text.replace("c a\n", "t h\n", 1))
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 1}))
    for name, message in [
        ("none.txt", "Cannot read"),
        ("torn.txt.gz", "Cannot read"),
        ("text.txt.gz", "Cannot read"),
        ("short.txt", "not the whole of it"),
        ("vocab.json", "not the whole of it"),
        ("twice.txt", "contradict"),
    ]:
        with pytest.raises(UserError, match=message):
            tokenize.clip(tmp_path / name)


def test_the_vocabulary_is_found_where_a_package_has_it(vocabulary, tmp_path, monkeypatch):
    """Without importing the package, which would import torch."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for package in ("open_clip", "clip"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(UserError, match="in no installed package"):
        tokenize.clip()
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/__init__.py").write_text("raise ImportError('was imported')")
    (tmp_path / f"clip/{tokenize.CLIP_FILE}").write_bytes(vocabulary.read_bytes())
    sys.path_importer_cache.pop(str(tmp_path), None)
    assert tokenize.clip().get_vocab_size() == 49408


def test_without_ftfy_only_captions_that_need_none_are_encoded(vocabulary, monkeypatch):
    tokenize._mend.cache_clear()
    monkeypatch.setitem(sys.modules, "ftfy", None)
    tokenizer = tokenize.clip(vocabulary)
    tokenize.encode(tokenizer, ["plain ascii, <b>and</b> more"], 12)
    with pytest.raises(UserError, match="pip install ftfy"):
        tokenize.encode(tokenizer, ["café"], 12)
