"""CLIP's tokenizer, id for id beside open_clip's."""

import unicodedata

import numpy as np
import pytest

from nml_jax.data import tokenize
from tests import torch_peers

pytestmark = pytest.mark.peers

BY_HAND = [
    "",
    " ",
    "\n\t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029\u3000",
    "a photo of a cat",
    "A PHOTO OF A CAT!!!",
    "it's, they're, we've, I'm, he'll, she'd, don't, 'tis, rock'n'roll, o'clock, IT'S",
    "'s 't 're 've 'm 'll 'd 'x '' ' '’s ’s",
    "'ſ <ſtart_of_text> ſ",
    "10kB 3.14159 1,000,000 ½ Ⅷ ٣ १२३ ①② x²",
    "AT&amp;T &lt;b&gt;bold&lt;/b&gt; &amp;amp;amp; &eacute; &EACUTE; &#233; &#xE9; &#x110000; &#0; &nosuch; &amp",
    "&lt;start_of_text&gt; &#60;end_of_text&#62;",
    "<b>&amp;</b> &eacute;\n&eacute; <i>",
    "<start_of_text>",
    "a<end_of_text>b",
    "a <END_OF_TEXT> b <Start_Of_Text>",
    "!<end_of_text> ><end_of_text> 1<end_of_text> <end_of_text><start_of_text>! _<start_of_text>",
    "<|endoftext|> <|startoftext|> </w> <pad> [PAD] the</w> ca</w>t",
    "<start_of_text <end_of_text>> <end_of text> <endoftext>",
    "cafe\u0301 café CAFÉ naïve Straße STRASSE ẞ ŒUVRE ﬁne ﬂag oﬃce ﬅ ﬆ",
    "sÃ³ cafÃ© â€œquotedâ€\x9d âœ” donâ€™t ðŸ˜€ Ã¼ber Â£5 l’humanitÃ©",
    "“curly” ‘quotes’ „low“ «guillemets» ‹x› —dash– …",
    "ＦＵＬＬ　ｗｉｄｔｈ １２３ ｶﾀｶﾅ",
    "İstanbul ISPARTA ıslak i̇ ΣΊΣΥΦΟΣ ΑΣ Σ ΣΑΣ. Ά",
    "日本語のキャプション 中文字幕 한국어 ภาษาไทย العربية עברית हिन्दी தமிழ் ქართული",
    "👍 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 👋🏽 ☺️ #️⃣ 🙂🙂🙂🙂 a🙂b🙂",
    "α\u0345 a\u0345b \u0345 !\u0345! ᾳ ᾼ",
    "z\u0300\u0301\u0302\u0303\u0304a̸l̷g̴o̵",
    "\x00\x01\x02\x07\x08\x1b[31mred\x1b[0m\x7f\x80\x9f\xa0\xad\u200b\u200d\u200e\u202e\ufeff\ufffe\uffff",
    "half \ud83d pair \ude42 and \ud83d\ude42",
    "https://example.com/a_b?c=d&e=f#g user@example.com C:\\path\\file.JPG __init__ snake_case-kebab.dot",
    "!!! ??? ... !?!? --- ___ *** ~~~ ``` ^^^ $$$ %%% (((())))",
    "!",
    "!!",
    "a" * 10_000,
    "ab" * 5_000,
    "word " * 2_500,
    "é" * 5_000,
    "🙂" * 2_500,
    "!" * 10_000,
    "1" * 10_000,
    " " * 10_000 + "x",
    "&amp;" * 2_000,
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
]
PARTS = [
    *["the", "a", "of", "photo", "image", "CAT", "dog", "In", "ON", "3d", "4K", "t-shirt", "it's", "O'Neill"],
    *["café", "Ünïcode", "Ωmega", "ПРИВЕТ", "写真", "사진", "صورة", "שלום", "ภาพ", "छवि", "ſ", "ß", "İ", "ǅ"],
    *["&amp;", "&lt;", "&gt;", "&quot;", "&#39;", "&nbsp;", "&hellip;", "&#128512;", "&amp;lt;", "&", ";"],
    *[
        "<br>",
        "<p>",
        "</p>",
        "Ã©",
        "â€™",
        "â€œ",
        "Â·",
        "ï»¿",
        "Ð¿",
        "🙂",
        "🎉",
        "👍🏽",
        "❤️",
        "™",
        "©",
        "®",
        "°",
    ],
    *["€", "£", "¥", "“", "”", "‘", "’", "–", "—", "…", "•", "½", "²", "Ⅳ", "٣", "#", "@", "_", "/", "\\"],
    *["<start_of_text>", "<end_of_text>", "'s", "'S", "'ll", "'RE", "n't", "'ve'd", "!!", "?!", "..."],
    *[" ", "  ", "\n", "\t", "\r\n", "\xa0", "\u3000", "\u200b", "\x00", "\x1b[0m", "\x85", "\ufeff"],
    "\u0301",
]


def random_strings(count: int) -> list[str]:
    """Mixtures of what captions are made of, of any assigned characters, and of plain words."""
    rng = np.random.default_rng(0)
    assigned = [chr(i) for i in range(0x110000) if unicodedata.category(chr(i)) not in ("Cn", "Cs", "Co")]
    latin, low = [c for c in assigned if ord(c) < 0x250], [c for c in assigned if ord(c) < 0x3000]
    strings = []
    for index in range(count):
        pool = (PARTS, assigned, latin, low, PARTS + latin)[index % 5]
        glue = ("", " ")[rng.integers(2)]
        strings.append(glue.join(pool[i] for i in rng.integers(len(pool), size=rng.integers(1, 60))))
    return strings


@pytest.fixture(scope="module")
def strings():
    return BY_HAND + random_strings(3_000)


@pytest.fixture(scope="module")
def tokenizer():
    torch_peers.open_clip()
    return tokenize.clip()


@pytest.mark.parametrize("length", [77, 16, 400])
def test_ids_are_open_clips(tokenizer, strings, length):
    expected = torch_peers.open_clip().tokenize(strings, length).numpy()
    ours = tokenize.encode(tokenizer, strings, length)
    wrong = [strings[i] for i in np.flatnonzero((ours != expected).any(axis=1))]
    assert not wrong, f"{len(wrong)} of {len(strings)}: {wrong[:5]!r}"
    assert len(np.unique(ours)) > 800


def test_strings_are_many_and_differ(strings):
    assert len(set(strings)) > 2_500
    assert sum(len(s) >= 10_000 for s in strings) >= 5


def test_the_saved_tokenizer_gives_the_same(tokenizer, strings, tmp_path):
    tokenizer.save(str(tmp_path / "t.json"))
    again = tokenize.load(tmp_path / "t.json")
    np.testing.assert_array_equal(
        tokenize.encode(again, strings[:500], 77), tokenize.encode(tokenizer, strings[:500], 77)
    )


def test_decoding_is_open_clips(tokenizer):
    captions = ["a photo of a cat!", "café 🙂 it's 10 €", "日本語"]
    for row in tokenize.encode(tokenizer, captions, 77):
        ids = [int(i) for i in row[1 : int(row.argmax())]]
        assert tokenizer.decode(ids) == torch_peers.open_clip().tokenizer._tokenizer.decode(ids)


def test_no_character_is_of_another_class(tokenizer):
    """Every fifth assigned character, between letters, digits and signs: both say alike what it is."""
    characters = [c for i in range(0x110000) if unicodedata.category(c := chr(i)) not in ("Cn", "Cs", "Co")]
    characters = [c for c in characters if not "\u4e01" <= c <= "\u9fff" and not "\uac01" <= c <= "\ud7a3"]
    strings = [f"a{c}1{c}!{c}" for c in characters[::5]]
    expected = torch_peers.open_clip().tokenize(strings, 40).numpy()
    ours = tokenize.encode(tokenizer, strings, 40)
    wrong = [ascii(strings[i]) for i in np.flatnonzero((ours != expected).any(axis=1))]
    assert not wrong, f"{len(wrong)}: {wrong[:20]}"
