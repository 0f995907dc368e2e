"""Instance-dependent noise against the published construction, written out one sample at a time in float64."""

import numpy as np
import pytest
from scipy import stats

from nml_jax.core.errors import UserError
from nml_jax.noise import instance, keys, symmetric

N, D, C = 600, 12, 4
RNG = np.random.default_rng(0)
CLEAN = RNG.integers(0, C, N)
FEATURES = RNG.standard_normal((N, D)) * 0.3


def flip(labels=CLEAN, ratio=0.3, seed=0, features=FEATURES, num_classes=C, **options):
    return instance.corrupt(
        labels, num_classes=num_classes, ratio=ratio, seed=seed, features=features, **options
    )


def published(labels, features, flip_rates, weights):
    """(N, C): the probabilities of algorithm 2, given its rates (N,) and its weights (C, D, C)."""
    rows = []
    for x, y, q in zip(features, labels, flip_rates, strict=True):
        logits = x @ weights[y]
        logits[y] = -np.inf
        p = q * np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        p[y] += 1 - q
        rows.append(p)
    return np.array(rows)


def weights(seed, size=D, num_classes=C):
    return np.stack([instance.projection(c, size, num_classes, seed) for c in range(num_classes)])


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.3, 0.9, 1.0])
def test_the_rates_are_truncated_normal(ratio):
    rates = instance.rates(keys.words(None, 20_000), ratio, 0.1, seed=0)
    truth = stats.truncnorm((0 - ratio) / 0.1, (1 - ratio) / 0.1, loc=ratio, scale=0.1)
    assert stats.kstest(rates, truth.cdf).pvalue > 1e-3
    assert 0 <= rates.min() <= rates.max() <= 1
    mean = {0.05: 0.101, 0.1: 0.129, 0.2: 0.206, 0.3: 0.300}.get(ratio, truth.mean())  # as the docstring says
    assert abs(truth.mean() - mean) < 6e-4


def test_the_weights_are_standard_normal_and_differ_between_classes_and_seeds():
    first = weights(0, 400, 10)
    assert stats.kstest(first.ravel(), "norm").pvalue > 1e-3
    flat = np.concatenate([first, weights(1, 400, 10)]).reshape(20, -1)
    off = np.corrcoef(flat)[~np.eye(20, dtype=bool)]
    assert np.abs(off).max() < 5 / np.sqrt(4000)


@pytest.mark.parametrize("mode", ["exact", "official"])
def test_targets_have_the_published_probabilities(mode):
    """Over many ids with the same features: how often each wrong label comes up."""
    copies = 4000
    rows = np.unique(CLEAN, return_index=True)[1]
    labels, features = np.repeat(CLEAN[rows], copies), np.repeat(FEATURES[rows], copies, axis=0)
    noisy = flip(labels, 0.4, seed=5, features=features, mode=mode)
    for c in range(C):
        expected = published(CLEAN[rows], FEATURES[rows], np.full(C, 0.4), weights(5))[c]
        counts = np.bincount(noisy[labels == c], minlength=C)
        assert expected[c] == pytest.approx(0.6)
        others = np.arange(C) != c
        wrong = counts[others].sum()
        assert (
            stats.chisquare(counts[others], wrong * expected[others] / expected[others].sum()).pvalue > 1e-3
        )
        if mode == "exact":
            assert counts[c] == 2400
        else:
            assert stats.binomtest(int(wrong), copies, 0.4).pvalue > 1e-3


def test_official_is_the_published_draw_sample_by_sample():
    """With the same random numbers: flipped where the uniform number lies below q, target by the cumulated softmax."""
    words = keys.words(None, N)
    rates = instance.rates(words, 0.3, 0.1, seed=2)
    chance = published(CLEAN, FEATURES, np.ones(N), weights(2))
    flips, targets = (keys.uniforms(words, seed=2, stream=stream) for stream in ("flip", "target"))
    expected = [
        np.searchsorted(np.cumsum(p), t, side="right") if f < q else y
        for p, t, f, q, y in zip(chance, targets, flips, rates, CLEAN, strict=True)
    ]
    noisy = flip(seed=2, mode="official")
    np.testing.assert_array_equal(noisy, expected)
    assert 0.2 < np.mean(noisy != CLEAN) < 0.4


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.25, 1.0])
def test_exact_number_of_flips_in_each_class_with_the_largest_rates(ratio):
    noisy = flip(ratio=ratio)
    sizes = np.bincount(CLEAN)
    assert np.bincount(CLEAN[noisy != CLEAN], minlength=C).tolist() == [
        round(ratio * n) for n in sizes.tolist()
    ]
    rates = instance.rates(keys.words(None, N), 0.25, 0.1, seed=0)
    for c in range(C):
        changed, own = (noisy != CLEAN)[c == CLEAN], rates[c == CLEAN]
        if 0 < ratio < 1:
            assert own[changed].min() > own[~changed].max()


@pytest.mark.parametrize("mode", ["exact", "official"])
def test_nested_with_the_same_wrong_label(mode):
    last = CLEAN
    for ratio in (0.05, 0.1, 0.2, 0.6):
        noisy = flip(ratio=ratio, mode=mode)
        changed = last != CLEAN
        np.testing.assert_array_equal(noisy[changed], last[changed])
        assert (noisy != CLEAN).sum() > changed.sum()
        last = noisy
    np.testing.assert_array_equal(flip(ratio=0.0, mode=mode), CLEAN)


@pytest.mark.parametrize("mode", ["exact", "official"])
def test_rows_in_another_order_give_the_same_noise_in_that_order(mode):
    ids = np.array([f"train/{i}.png" for i in range(N)])
    order = RNG.permutation(N)
    straight = flip(ids=ids, mode=mode)
    np.testing.assert_array_equal(
        flip(CLEAN[order], features=FEATURES[order], ids=ids[order], mode=mode), straight[order]
    )


def test_similar_samples_get_similar_wrong_labels_and_different_ones_others():
    """Images of one class that are nearly x, and some nearly -x: the halves of a kind agree, the kinds do not."""
    kind = RNG.standard_normal(200)
    features = np.repeat([kind, kind, -kind], 500, axis=0) + 0.02 * RNG.standard_normal((1500, 200))
    noisy = flip(np.zeros(1500, int), 1.0, features=features, num_classes=20)
    share = np.stack([np.bincount(part, minlength=20) / 500 for part in np.split(noisy, 3)])
    assert np.minimum(share[0], share[1]).sum() > 0.9
    assert np.minimum(share[0], share[2]).sum() < 0.05
    uniform = symmetric.corrupt(np.zeros(1500, int), num_classes=20, ratio=1.0, seed=0)
    assert np.bincount(uniform).max() / 1500 < 0.1 < 0.3 < share.max(axis=1).min()


def test_float32_features_do():
    np.testing.assert_array_equal(flip(features=FEATURES.astype(np.float32)), flip())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"mode": "offical"}, "valid: exact, official"),
        ({"deviation": 0.0}, "positive"),
        ({"features": FEATURES[:-1]}, "one row a sample"),
        ({"features": FEATURES[:, 0]}, "one row a sample"),
        ({"features": np.full((N, D), "x")}, "valid are numbers"),
        ({"features": np.full((N, D), np.nan)}, "non-finite"),
        ({"ratio": 1.2}, "fraction"),
        ({"ids": np.zeros(N, int)}, "not unique"),
    ],
)
def test_bad_input(options, word):
    with pytest.raises(UserError, match=word):
        flip(**options)
