"""Captions -> token ids: a byte-level BPE trained on the run's own captions, through the `tokenizers` library."""

import os
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PAD, START, END = 0, 1, 2


def train(captions: Sequence[str], *, vocab_size: int) -> Tokenizer:
    """A lower-casing byte-level BPE with at most `vocab_size` tokens; ids 0, 1, 2 are padding, start and end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<start>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def load(path: str | os.PathLike) -> Tokenizer:
    """A tokenizer saved with its `save` method (JSON)."""
    return Tokenizer.from_file(os.fspath(path))


def encode(tokenizer: Tokenizer, captions: Sequence[str], length: int) -> np.ndarray:
    """(N, length) int32: start, the caption's tokens, end, padding; a long caption keeps its beginning and the end."""
    tokens = np.full((len(captions), length), PAD, np.int32)
    for row, encoding in zip(tokens, tokenizer.encode_batch(list(captions)), strict=True):
        ids = [START, *encoding.ids[: length - 2], END]
        row[: len(ids)] = ids
    return tokens
