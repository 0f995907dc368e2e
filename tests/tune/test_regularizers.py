"""The regularisers and their gradients against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nml_jax.core.errors import UserError
from nml_jax.tune import regularizers

METHODS = ["gram", "polar", "svd"]


def gaussian(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def pooled(shape):
    """As after ReLU and pooling: positive, with a strong common direction (condition number about 100)."""
    rng = np.random.default_rng(1)
    return np.abs(rng.normal(size=shape) + 4 * rng.normal(size=shape[1])).astype(np.float32)


def conditioned(shape, smallest=1 / 400):
    """Singular values from 10 down to 10 * smallest, evenly on a log scale."""
    rng, n = np.random.default_rng(2), min(shape)
    u, v = (np.linalg.qr(rng.normal(size=(size, n)))[0] for size in shape)
    return ((u * np.geomspace(10, 10 * smallest, n)) @ v.T).astype(np.float32)


def both_views_alike(shape):
    """Half of the singular values are zero; those above span a condition number of 50."""
    return np.tile(pooled((shape[0] // 2, shape[1])), (2, 1))


def low_rank(shape):
    """A product in float32: what lies beyond rank 16 is rounding."""
    return pooled((shape[0], 16)) @ np.abs(gaussian((16, shape[1])))


@functools.cache
def dominance(method, top_k):
    return jax.jit(jax.value_and_grad(lambda z: regularizers.dominant_singular_value(z, top_k, method)))


covariance = jax.jit(jax.value_and_grad(regularizers.covariance))


def singular_value_reference(x, top_k):
    """Value and gradient, restricted to the numerical range."""
    u, s, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    g = np.full(len(s), s[:top_k].mean() / s.sum() ** 2)
    g[:top_k] -= 1 / (top_k * s.sum())
    return -s[:top_k].mean() / s.sum(), (u * np.where(s > 4e-6 * s[0], g, 0)) @ vt


@functools.cache
def drawn(draw, shape, top_k):
    x = draw(shape)
    return x, singular_value_reference(x, top_k)


def covariance_reference(x):
    rows, dim = x.shape
    centred = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    c = centred.T @ centred / (rows - 1)
    off = c - np.diag(np.diag(c))
    gradient = 4 / (dim * (rows - 1)) * centred @ off
    return (off**2).sum() / dim, gradient - gradient.mean(axis=0)


def assert_close(got, reference, value_tol=1e-5, gradient_tol=1e-4):
    (value, gradient), (expected, slope) = got, reference
    assert float(value) == pytest.approx(float(expected), rel=value_tol)
    assert np.linalg.norm(gradient - slope) < gradient_tol * np.linalg.norm(slope)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("shape", "draw", "top_k"),
    [
        ((128, 2048), gaussian, 5),
        ((256, 1024), pooled, 1),
        ((256, 1024), conditioned, 1),
        ((64, 512), gaussian, 1),
        ((64, 512), pooled, 5),
        ((64, 512), conditioned, 5),
        ((64, 512), both_views_alike, 5),
        ((64, 512), low_rank, 5),
        ((512, 64), gaussian, 5),
        ((512, 64), pooled, 5),
        ((512, 64), low_rank, 5),
    ],
)
def test_dominant_singular_value(method, shape, draw, top_k):
    x, reference = drawn(draw, shape, top_k)
    assert_close(dominance(method, top_k)(x), reference)


@pytest.mark.parametrize("method", ["gram", "polar"])
def test_ill_conditioned(method):
    """Far below what the eigenvalues of one float32 Gram matrix resolve (3e-4 of the largest singular value)."""
    x = conditioned((64, 512), 1e-4)
    assert_close(dominance(method, 5)(x), singular_value_reference(x, 5), gradient_tol=3e-4)


@pytest.mark.parametrize("method", METHODS)
def test_values_that_coincide(method):
    """Multiplicities 5, 19 and 40: with top_k = 5 the gradient is unique, whatever the singular vectors."""
    rng = np.random.default_rng(3)
    u, v = np.linalg.qr(rng.normal(size=(64, 64)))[0], np.linalg.qr(rng.normal(size=(512, 64)))[0]
    for noise in (0, 1e-6):
        s = np.repeat([8.0, 4, 1], [5, 19, 40]) * (1 - noise * np.arange(64))
        x = ((u * s) @ v.T).astype(np.float32)
        assert_close(dominance(method, 5)(x), singular_value_reference(x, 5))


@pytest.mark.parametrize("method", METHODS)
def test_a_tie_at_k_gives_one_of_the_subgradients(method):
    """Of five equal values top_k = 1 counts one: the direction is arbitrary, the value and the size are not."""
    value, gradient = dominance(method, 1)(np.eye(5, 8, dtype=np.float32))
    assert value == pytest.approx(-1 / 5)
    expected = np.array([1 / 5 - 1 / 25] + 4 * [1 / 25])
    np.testing.assert_allclose(np.linalg.svd(gradient, compute_uv=False), expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "x", [np.zeros((8, 16)), np.ones((8, 16)), np.eye(8, 16), gaussian((1, 16)), np.eye(16, 8)]
)
def test_where_the_gradient_vanishes(method, x):
    """0; -s_1 / s_1 of rank one; all values counted: constants, whose gradient is 0."""
    top_k = 1 if (x == 1).all() else 99
    value, gradient = dominance(method, top_k)(x.astype(np.float32))
    s = np.linalg.svd(x, compute_uv=False)
    assert value == pytest.approx(-s[:top_k].mean() / s.sum() if s.sum() else 0.0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "draw"),
    [
        ((128, 2048), gaussian),
        ((256, 1024), pooled),
        ((64, 512), gaussian),
        ((64, 512), both_views_alike),
        ((512, 64), pooled),
    ],
)
def test_covariance(shape, draw):
    x = draw(shape)
    assert_close(covariance(x), covariance_reference(x))


@pytest.mark.parametrize("columns", [1, 5, 63, 64, 70])
@pytest.mark.parametrize("factor", [30, 1000])
def test_covariance_where_few_columns_dominate(factor, columns):
    """|X X^T|^2 minus the squared column norms would lose all digits here."""
    x = gaussian((64, 512))
    x[:, 3 : 3 + columns] *= factor
    assert_close(covariance(x), covariance_reference(x))


@pytest.mark.parametrize("factors", [[1, 1], [1, 0.1, 0.01], [1, 0.5, 0.5, 0.5], [1] * 8])
def test_covariance_of_orthogonal_frames(factors):
    """Columns in orthogonal sets of 63, all there are room for: the least off-diagonal there can be."""
    rng = np.random.default_rng(4)
    frames = []
    for factor in factors:
        basis = np.linalg.qr(np.concatenate([np.ones((64, 1)), rng.normal(size=(64, 63))], axis=1))[0]
        frames.append(factor * basis[:, 1:])
    x = np.zeros((64, 512), np.float32)
    x[:, : 63 * len(factors)] = np.concatenate(frames, axis=1)
    assert_close(covariance(x), covariance_reference(x))


def test_covariance_with_an_offset_and_constant_columns():
    x = gaussian((64, 512)) + 1000
    x[:, ::2] = 0.1
    assert_close(covariance(x), covariance_reference(x))


@pytest.mark.parametrize("x", [np.ones((1, 8)), np.full((4, 8), 0.1), np.zeros((16, 8)), np.ones((4, 1))])
def test_covariance_is_zero_without_variation(x):
    value, gradient = covariance(x.astype(np.float32))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_covariance_of_few_rows_forms_no_square_of_the_columns():
    text = jax.jit(jax.vmap(jax.grad(regularizers.covariance))).lower(jnp.zeros((3, 16, 77))).as_text()
    assert "16x77x" in text
    assert "77x77x" not in text


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
    got = jax.jit(jax.value_and_grad(lambda z: regularizers.consistency(f, z, reduction)))(z)
    assert_close(got, (value, gradient))
    np.testing.assert_array_equal(jax.grad(regularizers.consistency)(f, z, reduction), 0.0)


def test_consistency_of_a_zero_row():
    z = gaussian((3, 5))
    z[1] = 0
    value, gradient = jax.jit(jax.value_and_grad(regularizers.consistency, argnums=1))(
        gaussian((3, 5)) + 1, z
    )
    assert np.isfinite(value)
    np.testing.assert_array_equal(gradient[1], 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_vmap_of_the_singular_value_term(method):
    stack = np.stack([gaussian((16, 40)), pooled((16, 40)), both_views_alike((16, 40)), low_rank((16, 40))])
    for x, *got in zip(stack, *jax.jit(jax.vmap(dominance(method, 5)))(stack), strict=True):
        assert_close(got, singular_value_reference(x, 5))
    value, gradient = jax.vmap(dominance(method, 5))(np.zeros((4, 16, 40), np.float32))
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_array_equal(gradient, 0.0)


def test_vmap_of_the_covariance():
    stack = np.stack([gaussian((16, 40)), pooled((16, 40)), 1000 * np.eye(16, 40, dtype=np.float32)])
    for x, *got in zip(stack, *jax.jit(jax.vmap(covariance))(stack), strict=True):
        assert_close(got, covariance_reference(x))


@pytest.mark.parametrize(
    "fn",
    [covariance, *(dominance(method, 5) for method in METHODS)],
    ids=["covariance", *METHODS],
)
def test_rows_sharded_over_eight_devices(fn):
    x = pooled((16, 40))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    value, gradient = fn(x)
    assert_close(fn(sharded), (value, gradient), 1e-6, 2e-5)


def test_bfloat16_is_computed_in_float32():
    x = gaussian((16, 40)).astype(jnp.bfloat16)
    for fn, reference in (
        (covariance, covariance_reference(x)),
        *((dominance(method, 1), singular_value_reference(x, 1)) for method in METHODS),
    ):
        value, gradient = fn(x)
        assert value.dtype == jnp.float32
        # The gradient comes back in bfloat16, which has 8 bits.
        assert_close((value, np.asarray(gradient, np.float64)), reference, gradient_tol=4e-3)


def test_unusable_input_is_refused_with_what_is_valid():
    x = gaussian((4, 5))
    with pytest.raises(UserError, match="gram, polar, svd"):
        regularizers.dominant_singular_value(x, 1, "qr")
    with pytest.raises(UserError, match="mean, sum"):
        regularizers.consistency(x, x, "max")
    with pytest.raises(UserError, match="1 and above"):
        regularizers.dominant_singular_value(x, 0)
    for fn in (regularizers.covariance, regularizers.dominant_singular_value):
        with pytest.raises(UserError, match=r"\(2, 4, 5\)"):
            fn(np.stack([x, x]))
    with pytest.raises(UserError, match=r"\(5,\)"):
        regularizers.consistency(x, x[0])
    with pytest.raises(UserError, match=r"\(4, 5\) and transformed \(1, 5\)"):
        regularizers.consistency(x, x[:1])
