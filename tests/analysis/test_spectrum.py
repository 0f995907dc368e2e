"""Spectra against NumPy's SVD, hand-worked cases and scipy.stats.entropy."""

import math

import numpy as np
import pytest
from scipy.stats import entropy, special_ortho_group

from nml_jax.analysis import spectrum
from nml_jax.core.errors import UserError


def official(x):
    """The official code, line by line, in plain NumPy: unit rows, then each row less its own mean."""
    rows = []
    for row in np.asarray(x, np.float64):
        length = math.sqrt(sum(v * v for v in row))
        row = row / length if length else row
        rows.append(row - row.mean())
    return np.linalg.svd(np.array(rows), compute_uv=False)


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (12, 12), (400, 30)])
def test_official_spectrum_equals_a_plain_svd_of_the_official_steps(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32) + 0.7
    s = spectrum.singular_values(x)
    assert s.dtype == np.float64
    assert s.shape == (min(shape),)
    assert np.all(np.diff(s) <= 0)
    np.testing.assert_allclose(s, official(x), rtol=0, atol=1e-12 * s[0])


def test_hand_worked_rows():
    # Rows (3, 4) and (5, 12) have lengths 5 and 13; less their means they are ±(1/10, ...) and ±(7/26, ...):
    # one direction, so a single singular value sqrt(2 (1/10)² + 2 (7/26)²).
    s = spectrum.singular_values([[3.0, 4.0], [5.0, 12.0]])
    np.testing.assert_allclose(s, [math.sqrt(2 * 0.1**2 + 2 * (7 / 26) ** 2), 0.0], atol=1e-15)
    assert spectrum.sve(s) == pytest.approx(0.0, abs=1e-12)


def test_the_mean_is_of_the_row_and_not_of_the_column():
    x = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    # Unit rows already. Row mean 1/3: I − J/3, with singular values 1, 1, 0. The column mean is the same here ...
    np.testing.assert_allclose(spectrum.singular_values(x), [1, 1, 0], atol=1e-15)
    # ... but not once a row repeats: the projection I − J/3 then acts on rows e1, e1, e2, e3 from the right,
    # (A P)ᵀ(A P) = P diag(2, 1, 1) P, whose eigenvalues are 5/3, 1, 0; column centring would give others.
    repeated = x[[0, 0, 1, 2]]
    s = spectrum.singular_values(repeated)
    np.testing.assert_allclose(s, [math.sqrt(5 / 3), 1, 0], atol=1e-15)
    columns = spectrum.singular_values(repeated, "centred")
    np.testing.assert_allclose(
        columns, np.linalg.svd(repeated - repeated.mean(axis=0), compute_uv=False), atol=1e-14
    )
    assert abs(spectrum.sve(s) - spectrum.sve(columns)) > 1e-3


def test_none_is_the_plain_svd():
    x = np.random.default_rng(1).standard_normal((20, 6))
    np.testing.assert_allclose(
        spectrum.singular_values(x, "none"), np.linalg.svd(x, compute_uv=False), rtol=1e-12
    )


def test_small_singular_values_are_exact_where_a_gram_matrix_loses_them():
    rng = np.random.default_rng(2)
    truth = 10.0 ** -np.arange(0, 12)
    left = np.linalg.qr(rng.standard_normal((300, 12)))[0]
    x = left * truth @ special_ortho_group.rvs(12, random_state=0)
    np.testing.assert_allclose(spectrum.singular_values(x, "none"), truth, rtol=1e-3, atol=1e-15)


def test_scaling_rows_and_reordering_them_change_nothing():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 10)) + 0.5
    s = spectrum.singular_values(x)
    np.testing.assert_allclose(
        spectrum.singular_values(x * rng.uniform(0.1, 9, (40, 1))), s, rtol=1e-9, atol=1e-13
    )
    np.testing.assert_allclose(spectrum.singular_values(rng.permutation(x)), s, rtol=1e-9, atol=1e-13)
    rotated = x @ special_ortho_group.rvs(10, random_state=1)
    assert (
        np.abs(spectrum.singular_values(rotated) - s).max() > 1e-2
    )  # the row mean is not rotation invariant


def test_input_is_left_as_it_was():
    x = np.random.default_rng(4).standard_normal((5, 4))
    before = x.copy()
    spectrum.singular_values(x)
    np.testing.assert_array_equal(x, before)


def test_zero_rows_stay_zero():
    x = np.random.default_rng(5).standard_normal((6, 4))
    padded = np.concatenate([x, np.zeros((3, 4))])
    np.testing.assert_allclose(spectrum.singular_values(padded), spectrum.singular_values(x), atol=1e-14)


def test_sve_is_the_entropy_and_lsvr_the_first_share():
    s = np.array([5.0, 2.0, 1.0, 0.5, 0.0])
    assert spectrum.sve(s) == pytest.approx(entropy(s), rel=1e-14)
    assert spectrum.lsvr(s) == pytest.approx(-math.log(5 / 8.5), rel=1e-14)
    assert spectrum.sve(np.ones(7)) == pytest.approx(math.log(7), rel=1e-14)
    assert spectrum.lsvr(np.ones(7)) == pytest.approx(math.log(7), rel=1e-14)
    assert spectrum.sve(1e-200 * s) == pytest.approx(entropy(s), rel=1e-12)
    assert spectrum.sve(1e307 * np.ones(100)) == pytest.approx(math.log(100), rel=1e-12)


def test_one_direction_has_zero_entropy_and_no_minus():
    for value in (spectrum.sve(np.array([3.0])), spectrum.lsvr(np.array([3.0, 0.0]))):
        assert value == 0
        assert math.copysign(1, value) == 1


def test_one_row_has_one_singular_value():
    s = spectrum.singular_values([[3.0, 4.0, 0.0]])
    np.testing.assert_allclose(s, [math.sqrt(1 - 3 * (7 / 15) ** 2)], rtol=1e-14)


@pytest.mark.parametrize(
    ("features", "preprocess", "said"),
    [
        (np.ones((3, 2, 4)), "official", "one view"),
        (np.ones(4), "official", r"\(N, D\)"),
        (np.ones((0, 4)), "official", "at least one row"),
        ([[1.0, 2.0], [math.nan, 1.0]], "official", "row 1"),
        ([[math.inf, 2.0], [1.0, 1.0]], "none", "row 0"),
        (np.ones((3, 4)), "centered", "official, centred, none"),
    ],
)
def test_bad_features_are_named(features, preprocess, said):
    with pytest.raises(UserError, match=said):
        spectrum.singular_values(features, preprocess)


@pytest.mark.parametrize(
    ("s", "said"),
    [
        (np.zeros(3), "All singular values are zero"),
        (np.array([]), "no spectrum"),
        (np.ones((2, 2)), "no spectrum"),
        (np.array([1.0, -0.1]), "not negative"),
        (np.array([1.0, math.nan]), "finite"),
    ],
)
def test_bad_spectra_are_named(s, said):
    for measure in (spectrum.sve, spectrum.lsvr):
        with pytest.raises(UserError, match=said):
            measure(s)


@pytest.mark.parametrize("preprocess", ["official", "centred"])
def test_constant_features_have_no_entropy(preprocess):
    s = spectrum.singular_values(np.full((5, 7), 0.1), preprocess)  # 0.1 has no exact mean in binary
    with pytest.raises(UserError, match="constant rows"):
        spectrum.sve(s)
