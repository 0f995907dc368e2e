"""Label noise: exact counts, nested, keyed by id, the right distribution of wrong labels."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import confusion_matrix

from nml_jax.core.errors import UserError
from nml_jax.noise import asymmetric, none, symmetric

COUNTS = np.array([1, 2, 7, 40, 333, 1000])
CLEAN = np.random.default_rng(0).permutation(np.repeat(np.arange(6), COUNTS))
TRANSITION = np.array(
    [
        [0.9, 0.1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [1, 0, 5, 0, 2, 2],
        [0, 0, 0, 0, 0, 3],
        [0.1, 0.2, 0.3, 0.4, 0, 9],
    ]
)
PAIRS = [[0, 1], [2, 3], [4, 5]]


def flip(labels, ratio, kind, seed=0, ids=None):
    if kind == "symmetric":
        return symmetric.corrupt(labels, num_classes=6, ratio=ratio, seed=seed, ids=ids)
    how = {"transition": TRANSITION} if kind == "transition" else {"related": PAIRS}
    return asymmetric.corrupt(labels, num_classes=6, ratio=ratio, seed=seed, ids=ids, **how)


KINDS = pytest.mark.parametrize("kind", ["symmetric", "transition", "related"])


@KINDS
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.25, 0.3, 1.0])
def test_exact_number_of_flips_in_each_class(kind, ratio):
    noisy = flip(CLEAN, ratio, kind)
    flips = np.bincount(CLEAN[noisy != CLEAN], minlength=6)
    expected = [round(ratio * n) for n in COUNTS.tolist()]  # Python's round: a half to the even neighbour
    if kind == "transition":
        expected[1] = 0  # nothing off the diagonal
    assert flips.tolist() == expected
    assert noisy.dtype == np.int64


@KINDS
def test_nested_with_the_same_wrong_label(kind):
    small, large = flip(CLEAN, 0.05, kind), flip(CLEAN, 0.1, kind)
    chosen = small != CLEAN
    assert chosen.sum() > 0
    np.testing.assert_array_equal(small[chosen], large[chosen])


@KINDS
@pytest.mark.parametrize("named", [False, True])
def test_rows_in_another_order_give_the_same_noise_in_that_order(kind, named):
    ids = np.arange(1000, 1000 + len(CLEAN))
    ids = np.array([f"train/{i}.png" for i in ids]) if named else ids
    order = np.random.default_rng(1).permutation(len(CLEAN))
    straight = flip(CLEAN, 0.3, kind, ids=ids)
    np.testing.assert_array_equal(flip(CLEAN[order], 0.3, kind, ids=ids[order]), straight[order])


def test_seeds_and_ids_choose_different_samples():
    base = flip(CLEAN, 0.3, "symmetric") != CLEAN
    for other in (
        flip(CLEAN, 0.3, "symmetric", seed=1),
        flip(CLEAN, 0.3, "symmetric", ids=np.arange(len(CLEAN)) + 10_000),
    ):
        overlap = (base & (other != CLEAN)).sum() / base.sum()
        assert 0.2 < overlap < 0.4  # 0.3 by chance


def test_symmetric_targets_are_uniform_over_the_other_classes():
    clean = np.repeat(np.arange(10), 5000)
    noisy = symmetric.corrupt(clean, num_classes=10, ratio=0.4, seed=0)
    matrix = confusion_matrix(clean, noisy)
    assert np.diag(matrix).tolist() == [3000] * 10
    off = matrix[~np.eye(10, dtype=bool)].reshape(10, 9)
    assert min(stats.chisquare(row).pvalue for row in off) > 1e-3
    assert stats.chisquare(off.ravel()).pvalue > 1e-3


def test_which_samples_flip_is_independent_of_where_they_go():
    clean = np.zeros(40_000, int)
    targets = symmetric.corrupt(clean, num_classes=5, ratio=1.0, seed=0)
    flipped = symmetric.corrupt(clean, num_classes=5, ratio=0.5, seed=0) != clean
    table = np.stack(
        [np.bincount(targets[flipped], minlength=5), np.bincount(targets[~flipped], minlength=5)]
    )[:, 1:]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def official(labels, ratio, seed=0, ids=None, num_classes=6):
    return symmetric.corrupt(
        labels, num_classes=num_classes, ratio=ratio, seed=seed, ids=ids, mode="official"
    )


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        (50_000, 0.1, 5000),
        (50_000, 0.3, 15_000),
        (10, 0.25, 3),
        (3, 0.1, 1),
        (7, 1.0, 7),
        (7, 0.0, 0),
        (0, 0.5, 0),
    ],
)
def test_official_redraws_so_many_samples_of_the_whole_set(size, ratio, expected):
    # The new label does not depend on the old one: redrawn samples end up equal whatever they were.
    zeros, ones = np.zeros(size, np.uint8), np.ones(size, np.uint8)
    redrawn = official(zeros, ratio) == official(ones, ratio)
    assert redrawn.sum() == expected
    assert sum(i < ratio * size for i in range(size)) == expected  # the loop of the authors' script
    assert not zeros.any()  # what was given stays as it was


def test_official_draws_over_all_classes_the_own_one_too():
    clean = np.repeat(np.arange(10), 5000)
    noisy = official(clean, 0.4, num_classes=10)
    redrawn = noisy == official((clean + 1) % 10, 0.4, num_classes=10)
    assert redrawn.sum() == 20_000
    matrix = confusion_matrix(clean[redrawn], noisy[redrawn])
    assert stats.chisquare(matrix.ravel()).pvalue > 1e-3  # as many in the own class as in any other
    assert stats.binomtest(int((noisy != clean).sum()), 20_000, 0.9).pvalue > 1e-3
    drawn_of = np.bincount(clean[redrawn])  # the whole set is permuted, not each class
    assert len(set(drawn_of.tolist())) > 1
    assert stats.chisquare(drawn_of).pvalue > 1e-3


def test_official_is_nested_and_keyed_by_id():
    ids = np.array([f"train/{i}.png" for i in range(len(CLEAN))])
    small, large = official(CLEAN, 0.1, ids=ids), official(CLEAN, 0.4, ids=ids)
    chosen = small != CLEAN
    assert chosen.sum() > 0
    np.testing.assert_array_equal(small[chosen], large[chosen])
    order = np.random.default_rng(1).permutation(len(CLEAN))
    np.testing.assert_array_equal(official(CLEAN[order], 0.4, ids=ids[order]), large[order])
    assert (official(CLEAN, 0.4, seed=1, ids=ids) != large).any()


def test_an_unknown_mode():
    with pytest.raises(UserError, match="'offical' of symmetric; valid: exact, official"):
        symmetric.corrupt(CLEAN, num_classes=6, ratio=0.1, seed=0, mode="offical")


def test_asymmetric_rows_follow_the_transition():
    clean = np.repeat(np.arange(6), 20_000)
    noisy = asymmetric.corrupt(clean, num_classes=6, ratio=0.5, seed=0, transition=TRANSITION)
    matrix = confusion_matrix(clean, noisy)
    off = TRANSITION * (1 - np.eye(6))
    for c in range(6):
        to = off[c] > 0
        assert matrix[c, (~to) & (np.arange(6) != c)].sum() == 0
        if to.sum() == 1:
            assert matrix[c, to] == 10_000
        elif to.any():
            expected = 10_000 * off[c, to] / off[c].sum()
            assert stats.chisquare(matrix[c, to], expected).pvalue > 1e-3


def test_related_flips_stay_within_the_group_and_are_uniform_there():
    clean = np.repeat(np.arange(7), 9000)
    noisy = asymmetric.corrupt(clean, num_classes=7, ratio=0.5, seed=0, related=[[0, 2, 4, 6], [1, 5]])
    matrix = confusion_matrix(clean, noisy)
    assert stats.chisquare(matrix[2, [0, 4, 6]]).pvalue > 1e-3
    assert matrix[1].tolist() == [0, 4500, 0, 0, 0, 4500, 0]
    assert matrix[3].tolist() == [0, 0, 0, 9000, 0, 0, 0]
    assert matrix[[0, 2, 4, 6]][:, [1, 3, 5]].sum() == 0


def test_transition_of_pairs_equals_related_pairs():
    pairs = np.kron(np.eye(3), np.array([[0.0, 1.0], [1.0, 0.0]]))
    direct = asymmetric.corrupt(CLEAN, num_classes=6, ratio=0.3, seed=0, transition=pairs)
    np.testing.assert_array_equal(direct, flip(CLEAN, 0.3, "related"))


def test_small_integer_types_do_not_overflow():
    noisy = symmetric.corrupt(np.zeros(1000, np.uint8), num_classes=1000, ratio=1.0, seed=0)
    assert noisy.max() > 255


def test_no_samples():
    assert symmetric.corrupt(np.zeros(0, int), num_classes=3, ratio=0.5, seed=0).shape == (0,)


def test_none_leaves_everything_and_refuses_a_ratio():
    copied = none.corrupt(CLEAN, num_classes=6, ratio=0.0, seed=0)
    np.testing.assert_array_equal(copied, CLEAN)
    assert copied is not CLEAN
    assert none.corrupt(["a", "b"], ratio=0.0, seed=0).tolist() == ["a", "b"]
    assert none.sources(["a", "b"], ratio=0.0, seed=0).tolist() == [0, 1]
    with pytest.raises(UserError, match="symmetric"):
        none.corrupt(CLEAN, num_classes=6, ratio=0.1, seed=0)


@KINDS
@pytest.mark.parametrize(
    ("labels", "ratio", "ids", "word"),
    [
        (CLEAN, -0.1, None, "fraction"),
        (CLEAN, 1.5, None, "fraction"),
        (CLEAN, 10, None, "fraction"),
        (CLEAN, float("nan"), None, "fraction"),
        (CLEAN, "much", None, "fraction"),
        (CLEAN + 1, 0.1, None, r"\[0, 6\)"),
        (CLEAN - 1, 0.1, None, r"\[0, 6\)"),
        (CLEAN.astype(float), 0.1, None, "integers"),
        (CLEAN[None], 0.1, None, "shape"),
        (CLEAN, 0.1, np.arange(3), "one id"),
        (CLEAN, 0.1, np.zeros(len(CLEAN), int), "not unique"),
    ],
)
def test_bad_input(kind, labels, ratio, ids, word):
    with pytest.raises(UserError, match=word):
        flip(labels, ratio, kind, ids=ids)


def test_one_class_is_too_few():
    with pytest.raises(UserError, match="at least 2"):
        symmetric.corrupt([0, 0], num_classes=1, ratio=0.1, seed=0)


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({}, "no relation"),
        ({"related": PAIRS, "transition": TRANSITION}, "related and transition"),
        ({"related": [[0]]}, "two or more"),
        ({"related": [[0, 6]]}, "outside"),
        ({"related": [[0, 0]]}, "twice"),
        ({"related": [[0, 1], [1, 2]]}, "another group"),
        ({"related": [[0.5, 1.5]]}, "class indices"),
        ({"transition": np.eye(3)}, "shape"),
        ({"transition": -TRANSITION}, "negative"),
        ({"transition": np.full((6, 6), np.nan)}, "non-finite"),
        ({"transition": [[1, 2], [3]]}, "matrix"),
    ],
)
def test_bad_relations(how, word):
    with pytest.raises(UserError, match=word):
        asymmetric.corrupt(CLEAN, num_classes=6, ratio=0.1, seed=0, **how)
