"""The regularisers and their gradients against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.core.errors import UserError
from nml_jax.tune import regularizers


def gaussian(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def pooled(shape):
    """As after ReLU and pooling: positive, with a strong common direction (condition number about 100)."""
    rng = np.random.default_rng(1)
    return np.abs(rng.normal(size=shape) + 4 * rng.normal(size=shape[1])).astype(np.float32)


SHAPES = pytest.mark.parametrize(
    ("shape", "draw"),
    [
        ((128, 2048), gaussian),
        ((256, 1024), pooled),
        ((64, 512), pooled),
        ((512, 64), gaussian),
        ((512, 64), pooled),
    ],
)


def singular_value_reference(x, top_k):
    u, s, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    real = s > 1e-6 * s[0]
    g = s[:top_k].mean() / s.sum() ** 2 * np.ones(len(s))
    g[:top_k] -= 1 / (min(top_k, len(s)) * s.sum())
    return -s[:top_k].mean() / s.sum(), (u * np.where(real, g, 0)) @ vt


def covariance_reference(x):
    rows, dim = x.shape
    centred = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    c = centred.T @ centred / (rows - 1)
    off = c - np.diag(np.diag(c))
    gradient = 4 / (dim * (rows - 1)) * centred @ off
    return (off**2).sum() / dim, gradient - gradient.mean(axis=0)


def assert_value_and_gradient(fn, x, value, gradient, *, value_tol=1e-5, gradient_tol=1e-4):
    got, slope = jax.jit(jax.value_and_grad(fn))(x)
    assert got == pytest.approx(value, rel=value_tol)
    assert np.linalg.norm(slope - gradient) < gradient_tol * np.linalg.norm(gradient)


@SHAPES
def test_dominant_singular_value(shape, draw):
    x = draw(shape)
    top_k = 1 if draw is pooled else 5
    fn = lambda z: regularizers.dominant_singular_value(z, top_k)  # noqa: E731
    assert_value_and_gradient(fn, x, *singular_value_reference(x, top_k))


@pytest.mark.parametrize("method", ["gram", "svd"])
def test_both_methods_of_the_first_singular_value(method):
    x = gaussian((32, 100))
    fn = lambda z: regularizers.dominant_singular_value(z, 1, method)  # noqa: E731
    assert_value_and_gradient(fn, x, *singular_value_reference(x, 1))


def test_duplicate_rows_halve_the_rank():
    """Both views alike: half of the singular values are zero and must not disturb the rest."""
    x = gaussian((64, 512))
    x[32:] = x[:32]
    fn = lambda z: regularizers.dominant_singular_value(z, 5)  # noqa: E731
    assert_value_and_gradient(fn, x, *singular_value_reference(x, 5))


def test_repeated_singular_values():
    """An orthogonal matrix: for the nuclear norm the gradient is the matrix itself."""
    q = np.linalg.qr(gaussian((32, 32)))[0].astype(np.float32)
    nuclear = lambda z: regularizers.singular_values(z).sum()  # noqa: E731
    assert_value_and_gradient(nuclear, q, 32.0, q)


def test_singular_values_are_those_of_numpy_largest_first():
    x = pooled((40, 100))
    np.testing.assert_allclose(
        regularizers.singular_values(x), np.linalg.svd(x.astype(np.float64), compute_uv=False), rtol=1e-5
    )


@pytest.mark.parametrize(
    "x", [np.zeros((8, 16)), np.ones((8, 16)), np.eye(8, 16), np.ones((1, 16)), np.eye(16, 8)]
)
def test_degenerate_matrices_give_no_nan(x):
    top_k = 5 if len(x) == 8 else 99
    fn = jax.jit(jax.value_and_grad(regularizers.dominant_singular_value), static_argnums=1)
    value, gradient = fn(x.astype(np.float32), top_k)
    s = np.linalg.svd(x, compute_uv=False)
    assert value == pytest.approx(-s[:top_k].mean() / s.sum() if s.sum() else 0.0, abs=1e-6)
    assert np.isfinite(gradient).all()


@SHAPES
def test_covariance(shape, draw):
    x = draw(shape)
    assert_value_and_gradient(regularizers.covariance, x, *covariance_reference(x))


@pytest.mark.parametrize("factor", [30, 1000])
def test_covariance_where_one_column_dominates(factor):
    """|X X^T|^2 minus the squared column norms would lose all digits here."""
    x = gaussian((64, 256))
    x[:, 3] *= factor
    assert_value_and_gradient(regularizers.covariance, x, *covariance_reference(x))


@pytest.mark.parametrize("x", [np.ones((1, 8)), np.ones((4, 8)), np.zeros((16, 8)), np.ones((4, 1))])
def test_covariance_is_zero_without_variation(x):
    value, gradient = jax.jit(jax.value_and_grad(regularizers.covariance))(x.astype(np.float32))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_consistency(reduction):
    f, z = gaussian((32, 100)), pooled((32, 100))
    f64, z64 = f.astype(np.float64), z.astype(np.float64)
    unit_f = f64 / np.linalg.norm(f64, axis=1, keepdims=True)
    norm = np.linalg.norm(z64, axis=1, keepdims=True)
    unit_z = z64 / norm
    scale = 32 if reduction == "sum" else 3200
    value = ((unit_f - unit_z) ** 2).sum() / scale
    cosine = (unit_f * unit_z).sum(axis=1, keepdims=True)
    gradient = -2 * (unit_f - cosine * unit_z) / norm / scale
    assert_value_and_gradient(lambda z: regularizers.consistency(f, z, reduction), z, value, gradient)
    np.testing.assert_array_equal(jax.grad(regularizers.consistency)(f, z, reduction), 0.0)


def test_consistency_of_a_zero_row():
    z = gaussian((3, 5))
    z[1] = 0
    value, gradient = jax.jit(jax.value_and_grad(regularizers.consistency, argnums=1))(
        gaussian((3, 5)) + 1, z
    )
    assert np.isfinite(value)
    np.testing.assert_array_equal(gradient[1], 0.0)


@pytest.mark.parametrize("fn", [regularizers.covariance, regularizers.dominant_singular_value])
def test_vmap_is_a_loop(fn):
    stack = np.stack([gaussian((16, 40)), pooled((16, 40)), np.zeros((16, 40), np.float32)])
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(fn)))(stack)
    single = jax.jit(jax.value_and_grad(fn))
    for x, value, gradient in zip(stack, values, gradients, strict=True):
        one, slope = single(x)
        np.testing.assert_allclose(value, one, rtol=1e-5)
        np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-5 * np.abs(slope).max())


def test_bfloat16_is_computed_in_float32():
    x = gaussian((16, 40)).astype(jnp.bfloat16)
    for fn, reference in (
        (regularizers.covariance, covariance_reference(x)),
        (regularizers.dominant_singular_value, singular_value_reference(x, 1)),
    ):
        value = jax.jit(fn)(x)
        assert value.dtype == jnp.float32
        assert value == pytest.approx(reference[0], rel=1e-5)


def test_unknown_choices_name_the_valid_ones():
    x = gaussian((4, 5))
    with pytest.raises(UserError, match="gram, svd"):
        regularizers.singular_values(x, "qr")
    with pytest.raises(UserError, match="mean, sum"):
        regularizers.consistency(x, x, "max")
    with pytest.raises(UserError, match="1 and above"):
        regularizers.dominant_singular_value(x, 0)
