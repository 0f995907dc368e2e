"""The polar factor and the leading singular values by matrix products, against float64 NumPy."""

import functools

import jax
import numpy as np
import pytest
from scipy import optimize

from nml_jax.tune import polar

polar_factor = jax.jit(polar.polar_factor)
leading = jax.jit(polar.leading, static_argnums=1)


@functools.cache
def orthogonal(n, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def with_singular_values(s, dim=128):
    """U diag(s) V^T in float32, and the float64 U and V^T."""
    u, vt = orthogonal(len(s), 0), orthogonal(dim, 1)[: len(s)]
    return ((u * s) @ vt).astype(np.float32), u, vt


def test_minimax_polynomials_beat_their_neighbours_and_touch_their_bound():
    for lower, upper in [(0.1, 1.0), (0.01, 1.0), (0.3, 1.4), (0.9, 1.1)]:
        coefficients, bound = polar.minimax(lower, upper)
        s = np.linspace(lower, upper, 20001)
        basis = np.stack([s, s**3, s**5])
        error = np.array(coefficients) @ basis - 1
        assert np.abs(error).max() == pytest.approx(bound, rel=1e-6)
        # Chebyshev: as many alternations as coefficients, and one more, make it the best there is.
        touching = error[np.abs(error) > (1 - 1e-6) * bound]
        assert (np.diff(np.sign(touching)) != 0).sum() == 3


def test_the_first_minimax_polynomial_is_that_of_linear_programming():
    """min e subject to |p(s) - 1| <= e on a grid."""
    s = np.linspace(0.1, 1, 2001)
    basis = np.stack([s, s**3, s**5, np.zeros_like(s)], axis=1)
    slack = np.array([0, 0, 0, 1])
    best = optimize.linprog(
        slack,
        A_ub=np.concatenate([basis - slack, -basis - slack]),
        b_ub=np.concatenate([np.ones_like(s), -np.ones_like(s)]),
        bounds=(None, None),
    )
    coefficients, bound = polar.minimax(0.1, 1.0)
    np.testing.assert_allclose([*coefficients, bound], best.x, rtol=1e-3)


@pytest.mark.parametrize(("condition", "tolerance"), [(1, 2e-6), (100, 5e-6), (1e3, 2e-5), (1e4, 2e-4)])
def test_polar_factor(condition, tolerance):
    s = np.geomspace(7, 7 / condition, 32)
    x, u, vt = with_singular_values(s)
    got = polar_factor(x, np.float32(7))
    assert np.linalg.norm(got - u @ vt) < tolerance * np.sqrt(32)
    assert (got * x).sum() == pytest.approx(s.sum(), rel=2e-6)


def test_the_null_space_stays_empty():
    """Rounding noise of a rank-8 matrix is far below the smallest value that counts, and must not be blown up."""
    s = np.where(np.arange(32) < 8, np.geomspace(7, 0.07, 32), 0)
    x, u, vt = with_singular_values(s)
    got = polar_factor(x, np.float32(7))
    assert np.linalg.norm(got - u[:, :8] @ vt[:8]) < 1e-5
    np.testing.assert_array_equal(polar_factor(np.zeros_like(x), np.float32(0)), 0.0)


@pytest.mark.parametrize(
    "s",
    [
        np.linspace(5, 1, 32),
        np.concatenate([[100.0], np.linspace(2, 0.5, 31)]),
        np.concatenate([[3, 3, 3, 3, 3], np.full(27, 1.0)]),
        np.concatenate([[3, 3 - 1e-5, 2, 2, 2 - 1e-6], np.full(27, 1.0)]),
    ],
    ids=["spread", "dominant", "repeated", "clustered"],
)
def test_leading(s):
    x, u, vt = with_singular_values(s)
    left, values, right = leading(x, 5)
    np.testing.assert_allclose(values, s[:5], rtol=1e-5)
    np.testing.assert_allclose(left.T @ left, np.eye(5), atol=1e-5)
    assert np.linalg.norm(left @ right - u[:, :5] @ vt[:5]) < 2e-5 * np.sqrt(5)


def test_leading_past_the_rank_is_zero():
    s = np.where(np.arange(32) < 2, 4.0, 0)
    x, u, vt = with_singular_values(s)
    left, values, right = leading(x, 5)
    np.testing.assert_allclose(values, [4, 4, 0, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(right[2:], 0.0)
    np.testing.assert_allclose(left @ right, u[:, :2] @ vt[:2], atol=1e-6)
