"""Captions -> token ids by byte-level BPE, through the `tokenizers` library: trained on the run's captions, or CLIP's.

Both kinds are a `tokenizers.Tokenizer`, which `save` writes and `load` reads back. In both, id 0 is the padding.
"""

import functools
import gzip
import html
import importlib.util
import os
import zlib
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nml_jax.core.errors import UserError

PAD, START, END = 0, 1, 2
SPECIAL = ("<pad>", "<start>", "<end>")
CLIP_SPECIAL = ("<start_of_text>", "<end_of_text>")
CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"
CLIP_MERGES = 49_152 - 256 - 2  # the file has five times as many; CLIP's 49,408 ids are made from these
# CLIP's words. Its pattern ignores the case also after lower(): ſ is the other s, and the iota subscript, U+0345, is
# neither a letter nor none (its upper case is a letter), and is left out. Of the assigned characters, no others differ.
CLIP_WORDS = (
    r"<[sſ]tart_of_text>|<end_of_text>|'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"
)
# Encodings are large objects: so many captions are encoded at a time.
CHUNK = 20_000


def train(captions: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A lower-casing byte-level BPE with at most `vocab_size` tokens; ids 0, 1, 2 are padding, start and end.

    Raises:
      UserError: `vocab_size` leaves no room for the 256 bytes and these three.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(SPECIAL):
        raise UserError(
            f"vocab_size={vocab_size} is too small for a byte-level tokenizer: every text has a code, so it holds the "
            f"256 bytes, padding, start and end. Give {len(alphabet) + len(SPECIAL)} or more."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def clip(path: str | os.PathLike = "") -> Tokenizer:
    """CLIP's tokenizer, with the ids of OpenAI's and open_clip's: 49,408 of them, start 49406, end 49407.

    Captions are cleaned as there (ftfy, HTML entities, white space, lower case), which `encode` does and this
    tokenizer's own methods do not. Letters and digits are those of Unicode 14, the version of the `tokenizers`
    library; to what came later, open_clip gives the ids of the version that it is installed with.

    Args:
      path: bpe_simple_vocab_16e6.txt.gz, or its unpacked text; "": the one of the installed open_clip or clip.

    Raises:
      UserError: there is no such file, or it is another; or none is given and neither package is installed.
    """
    path = Path(path) if path else _installed_vocabulary()
    merges = _merges(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*alphabet, *(byte + "</w>" for byte in alphabet), *map("".join, merges), *CLIP_SPECIAL]
    ids = {token: i for i, token in enumerate(vocabulary)}
    if len(ids) < len(vocabulary) or not all(part in ids for merge in merges for part in merge):
        raise UserError(
            f"{path} is not CLIP's vocabulary: its merges contradict each other. Give {CLIP_FILE}."
        )
    tokenizer = Tokenizer(models.BPE(ids, merges, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    return tokenizer


def load(path: str | os.PathLike) -> Tokenizer:
    """A tokenizer saved with its `save` method (JSON).

    Raises:
      UserError: there is no such file, or it is not a tokenizer's.
    """
    try:
        return Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{path} is not a tokenizer saved as JSON: {error}.") from None


def check(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises a UserError where a model with `vocab_size` embeddings has none for some id of the tokenizer's."""
    if (ids := tokenizer.get_vocab_size()) > vocab_size:
        raise UserError(
            f"The tokenizer has {ids:,} ids and the text model embeddings for {vocab_size:,}: captions would hold ids "
            f"that it has not. Give --config.text.vocab_size={ids}, or the tokenizer the model was trained with."
        )


def encode(tokenizer: Tokenizer, captions: Sequence[str], length: int) -> np.ndarray:
    """(N, length) int32: start, the caption's tokens, end, padding; a long caption keeps its beginning and the end.

    With the tokenizer of `clip` these are the ids of open_clip's tokenizer, also where a caption spells out
    "<end_of_text>", which is the end's id there. To one that was trained here, "<end>" is text.

    Raises:
      UserError: a caption is not text, `length` is below 3, or ftfy is missing and a caption for `clip` needs it.
    """
    if length < 3:
        raise UserError(f"Captions of {length} tokens have no room for start, text and end; give 3 or more.")
    wrong = next((i for i, caption in enumerate(captions) if not isinstance(caption, str)), None)
    if wrong is not None:
        raise UserError(
            f"Caption {wrong} is not text but {type(captions[wrong]).__name__} ({captions[wrong]!r}); leave its record "
            'out, or give it "".'
        )
    of_clip = tokenizer.token_to_id(CLIP_SPECIAL[0]) is not None
    start, end = map(tokenizer.token_to_id, CLIP_SPECIAL if of_clip else SPECIAL[1:])
    tokenizer.encode_special_tokens = True  # as text: a caption must not end where it speaks of ends
    tokens = np.full((len(captions), length), PAD, np.int32)
    place = np.arange(length)
    for first in range(0, len(captions), CHUNK):
        chunk = map(_cleaned if of_clip else _valid, captions[first : first + CHUNK])
        ids = [row[: length - 2] for row in (_clip_ids if of_clip else _ids)(tokenizer, list(chunk))]
        counts, rows = np.array([len(row) for row in ids]), tokens[first : first + CHUNK]
        rows[:, 0] = start
        rows[(place >= 1) & (place <= counts[:, None])] = np.fromiter(chain.from_iterable(ids), np.int32)
        rows[np.arange(len(rows)), counts + 1] = end
    return tokens


def _ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]


def _clip_ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """`_ids`, with a start or an end that stands in a text for a word, as in open_clip."""
    ids = _ids(tokenizer, texts)
    for row, text in enumerate(texts):
        if any(special in text for special in CLIP_SPECIAL):
            words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
            ids[row] = list(chain.from_iterable(_word_ids(tokenizer, word) for word in words))
    return ids


def _word_ids(tokenizer: Tokenizer, word: str) -> list[int]:
    if word in CLIP_SPECIAL:
        return [tokenizer.token_to_id(word)]
    return [token.id for token in tokenizer.model.tokenize(word)]


def _cleaned(text: str) -> str:
    """A caption as CLIP sees it: mended Unicode, HTML entities as characters, single spaces, lower case."""
    # Of plain ASCII there is nothing to mend, and most captions are that.
    if not (text.isascii() and text.isprintable()) or "&" in text:
        text = html.unescape(html.unescape(_mend()(text)))
    return " ".join(text.split()).lower()


@functools.cache
def _mend():
    try:
        import ftfy
    except ModuleNotFoundError:
        raise UserError(
            "CLIP's tokenizer mends Unicode with ftfy (pip install ftfy), and a caption needs it: without it, captions "
            "with accents, typographic quotes, wide or broken characters would get other ids than in CLIP."
        ) from None
    return ftfy.fix_text


def _valid(text: str) -> str:
    """Text that has a UTF-8: halves of a surrogate pair, which JSON can hold, are joined or replaced."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _installed_vocabulary() -> Path:
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (path := Path(folder) / CLIP_FILE).is_file():
                return path
    raise UserError(
        f"CLIP's vocabulary is in no installed package (open_clip, clip); give the path of {CLIP_FILE}, which is at "
        f"https://github.com/openai/CLIP/raw/main/clip/{CLIP_FILE}."
    )


def _merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of the vocabulary's file: a line of comment, then a pair a line, the most frequent first."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = content.decode("utf-8").split("\n")[1 : CLIP_MERGES + 1]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read CLIP's vocabulary from {path}: {error}. Give {CLIP_FILE}.") from None
    merges = [tuple(line.split()) for line in lines]
    if len(merges) < CLIP_MERGES or any(len(merge) != 2 for merge in merges):
        raise UserError(
            f"{path} is not CLIP's vocabulary, or not the whole of it: that has {CLIP_MERGES:,} lines of two parts "
            f"after the first line. Give {CLIP_FILE}."
        )
    return merges
