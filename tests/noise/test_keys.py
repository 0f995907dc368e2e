"""Hashes against what randomness should look like, ids against what they may be."""

import hashlib

import numpy as np
import pytest
from scipy import stats

from nml_jax.core.errors import UserError
from nml_jax.noise import keys

ROWS = keys.words(None, 100_000)


@pytest.mark.parametrize("shift", [0, 8, 20, 33, 56])
def test_every_byte_of_consecutive_ids_is_uniform(shift):
    bytes_ = (keys.hashes(ROWS, seed=0, stream="flip") >> np.uint64(shift)) & np.uint64(255)
    assert stats.chisquare(np.bincount(bytes_.astype(int), minlength=256)).pvalue > 1e-4


def test_uniforms_are_uniform_and_serially_uncorrelated():
    u = keys.uniforms(ROWS, seed=3, stream="x")
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert u.min() >= 0.0
    assert u.max() < 1.0
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.015


def test_one_bit_of_the_id_flips_half_of_the_hash():
    base = keys.hashes(ROWS[:2000], seed=0, stream="x")
    for bit in (0, 7, 31, 63):
        other = keys.hashes(ROWS[:2000] ^ np.uint64(1 << bit), seed=0, stream="x")
        flips = np.bitwise_count(base ^ other).mean()
        assert abs(flips - 32) < 0.5


def test_seeds_and_streams_are_unrelated():
    base = keys.uniforms(ROWS, seed=0, stream="x")
    for seed, stream in ((1, "x"), (-1, "x"), (0, "y")):
        assert abs(np.corrcoef(base, keys.uniforms(ROWS, seed=seed, stream=stream))[0, 1]) < 0.015


def test_integer_ids_never_tie():
    assert len(np.unique(keys.hashes(ROWS, seed=0, stream="x"))) == len(ROWS)


def test_widths_of_integers_and_kinds_of_strings_agree():
    np.testing.assert_array_equal(keys.words(np.array([-1, 5], np.int16), 2), keys.words([-1, 5], 2))
    np.testing.assert_array_equal(keys.words(["a", "ä"], 2), keys.words([b"a", "ä".encode()], 2))
    np.testing.assert_array_equal(
        keys.words(np.array(["a", "b"], object), 2), keys.words(np.array(["a", "b"]), 2)
    )
    assert keys.words(["5"], 1) != keys.words([5], 1)


def test_hashes_are_two_keyed_rounds_of_splitmix64():
    """In Python integers; the numbers that a published noise.npz stands on."""

    def mix(z):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    key = hashlib.blake2b(b"7/chosen", digest_size=16).digest()
    before, between = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    word = int.from_bytes(hashlib.blake2b(b"n01440764_18.JPEG", digest_size=8).digest(), "little")
    words = keys.words(["n01440764_18.JPEG"], 1)
    assert int(words[0]) == word
    assert int(keys.hashes(words, seed=7, stream="chosen")[0]) == mix((mix(word ^ before) + between) % 2**64)


@pytest.mark.parametrize(
    ("ids", "word"),
    [
        ([1, 2], "one id for each"),
        ([1, 2, 2], "rows 1 and 2"),
        (["a", "b", "a"], "rows 0 and 2"),
        ([0.5, 1.5, 2.5], "integers or strings"),
        ([[1], [2], [3]], "shape"),
        ([True, False, True], "integers or strings"),
    ],
)
def test_bad_ids(ids, word):
    with pytest.raises(UserError, match=word):
        keys.words(ids, 3)


def test_bad_seed():
    with pytest.raises(UserError, match="integer"):
        keys.hashes(ROWS[:2], seed=0.5, stream="x")
