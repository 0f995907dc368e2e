"""Caption noise: truly mismatched pairs, exactly so many, keyed by id."""

import numpy as np
import pytest
from scipy import stats

from nml_jax.core.errors import UserError
from nml_jax.noise import caption_swap

UNIQUE = [f"caption {i}" for i in range(2000)]
# Zipf-like: the commonest of 30 texts has about a fifth of the pairs.
REPEATED = [f"text {i}" for i in np.random.default_rng(0).zipf(1.3, 2000) % 30]


def mismatched(captions, **how):
    noisy = caption_swap.corrupt(captions, seed=0, **how)
    return np.array([a != b for a, b in zip(captions, noisy, strict=True)])


@pytest.mark.parametrize("captions", [UNIQUE, REPEATED])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.3, 1.0])
def test_exact_number_of_mismatched_pairs(captions, ratio):
    assert mismatched(captions, ratio=ratio).sum() == round(ratio * 2000)


def test_captions_are_exchanged_and_none_is_lost():
    noisy = caption_swap.corrupt(REPEATED, ratio=0.3, seed=0)
    assert sorted(noisy) == sorted(REPEATED)
    rows = caption_swap.sources(REPEATED, ratio=0.3, seed=0)
    assert sorted(rows) == list(range(2000))
    assert [REPEATED[row] for row in rows] == noisy.tolist()


def test_half_of_one_text_is_the_most_that_can_be_mismatched():
    half = ["a"] * 50 + [f"b{i}" for i in range(50)]
    assert mismatched(half, ratio=1.0).all()
    assert mismatched(["a", "b"] * 300, ratio=1.0).all()
    with pytest.raises(UserError, match=r"(?s)51 of these.*'a'.*larger ratio"):
        caption_swap.sources(half[:1] + half[:-1], ratio=1.0, seed=0)


def test_one_chosen_pair_is_refused():
    with pytest.raises(UserError, match="1 of 10 pairs"):
        caption_swap.sources(UNIQUE[:10], ratio=0.1, seed=0)


def test_chosen_sets_are_nested():
    small, large = mismatched(REPEATED, ratio=0.05), mismatched(REPEATED, ratio=0.1)
    assert large[small].all()


@pytest.mark.parametrize("mode", ["exact", "official"])
@pytest.mark.parametrize("captions", [UNIQUE, REPEATED])
def test_rows_in_another_order_give_the_same_pairs(captions, mode):
    ids = np.arange(2000) * 7 + 3
    order = np.random.default_rng(1).permutation(2000)
    straight = caption_swap.sources(captions, ratio=0.3, seed=5, ids=ids, mode=mode)
    moved = caption_swap.sources([captions[i] for i in order], ratio=0.3, seed=5, ids=ids[order], mode=mode)
    np.testing.assert_array_equal(ids[order][moved], ids[straight][order])


def test_partners_look_random():
    """A uniform derangement: every offset is as likely, and it has about ln n cycles, unlike a shift."""
    n = 5000
    rows = caption_swap.sources([str(i) for i in range(n)], ratio=1.0, seed=0)
    offsets = (rows - np.arange(n)) % n
    assert stats.kstest(offsets / n, "uniform").pvalue > 1e-3
    assert len(np.unique(offsets)) > 0.6 * n  # 1 - 1/e of all offsets by chance
    seen, cycles = np.zeros(n, bool), 0
    for start in range(n):
        cycles += not seen[start]
        while not seen[start]:
            seen[start], start = True, rows[start]
    assert 1 <= cycles <= 25


@pytest.mark.parametrize("ratio", [0.025, 0.05, 0.1, 0.3])
def test_official_swaps_mismatch_less_than_twice_the_ratio(ratio):
    captions = [str(i) for i in range(50_000)]
    fraction = (
        caption_swap.sources(captions, ratio=ratio, seed=0, mode="official") != np.arange(50_000)
    ).mean()
    assert fraction == pytest.approx(1 - np.exp(-2 * ratio), abs=0.006)


def test_official_swaps_of_two_pairs():
    assert caption_swap.sources(["a", "b"], ratio=0.5, seed=0, mode="official").tolist() == [1, 0]


def test_arrays_stay_arrays():
    captions = np.array(UNIQUE)
    noisy = caption_swap.corrupt(captions, ratio=0.5, seed=0)
    assert noisy.dtype == captions.dtype
    assert (noisy != captions).sum() == 1000


@pytest.mark.parametrize(
    ("captions", "how", "word"),
    [
        (UNIQUE, {"ratio": 1.1}, "fraction"),
        (UNIQUE, {"ratio": 0.1, "mode": "random"}, "exact, official"),
        (UNIQUE, {"ratio": 0.1, "ids": [1]}, "one id"),
        (UNIQUE[:2], {"ratio": 0.1, "ids": [1, 1]}, "not unique"),
        ([1, 2, 3], {"ratio": 0.1}, "strings"),
        (["a"], {"ratio": 1.0, "mode": "official"}, "at least 2"),
    ],
)
def test_bad_input(captions, how, word):
    with pytest.raises(UserError, match=word):
        caption_swap.sources(captions, seed=0, **how)
