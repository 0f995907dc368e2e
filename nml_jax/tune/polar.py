"""Singular values by matrix products alone, for accelerators, where eigh and svd are slow.

Everything here is float32 at full matrix-multiply precision, on X (n, D) with n <= D. With X = U S V^T the polar
factor is U V^T: the gradient of the nuclear norm, and <U V^T, X> is the nuclear norm itself.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

RANK_TOLERANCE = 1e-5  # a singular value below this share of the largest is rounding, and counts as zero
SMALLEST = 1e-4  # the smallest share that the iteration carries all the way to 1
SQUARINGS = 16

_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def polar_factor(x: jax.Array, largest: jax.Array) -> jax.Array:
    """U V^T of x (n, D), given its largest singular value; zero on the null space.

    Newton-Schulz with the polynomials of `_steps`: each X <- (a + b X X^T + c (X X^T)^2) X maps every singular value by
    one odd quintic. The Gram matrix is taken afresh at every step: carried along as n x n products it would lose its
    small eigenvalues to rounding, and with them the directions of the small singular values.
    """

    def step(x, coefficients):
        a, b, c = coefficients
        gram = _matmul(x, x.T)
        return a * x + _matmul(b * gram + c * _matmul(gram, gram), x), None

    # `largest` comes from below; beyond 1 the polynomials grow.
    x = x / jnp.where(largest > 0, 1.001 * largest, 1.0)
    return jax.lax.scan(step, x, jnp.asarray(_steps(), jnp.float32))[0]


def leading(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The `count` largest singular values of x (n, D): U (n, count), s (count,), V^T (count, D).

    The Gram matrix to the power 2^16 projects on the leading singular direction; its longest column is u. Then u u^T X
    is taken off X and the next one follows, from a Gram matrix whose rounding is on its own scale. Values within about
    2^-17 of each other share their directions; their sum, and their part of U V^T, move by no more than that.
    """

    def square(_, gram):
        largest = jnp.diag(gram).max()
        gram = gram / jnp.where(largest > 0, largest, 1.0)
        return _matmul(gram, gram)

    def deflate(x, _):
        power = jax.lax.fori_loop(0, SQUARINGS, square, _matmul(x, x.T))
        u = _unit(power[:, jnp.argmax(jnp.diag(power))])
        y = _matmul(u, x)
        return x - u[:, None] * y, (u, y)

    _, (u, y) = jax.lax.scan(deflate, x, length=count)
    s = jnp.linalg.norm(y, axis=1)
    real = s > RANK_TOLERANCE * s[0]
    return u.T, jnp.where(real, s, 0.0), jnp.where(real[:, None], y / jnp.where(real, s, 1.0)[:, None], 0.0)


def _unit(x: jax.Array) -> jax.Array:
    norm = jnp.linalg.norm(x)
    return x / jnp.where(norm > 0, norm, 1.0)


@functools.cache
def _steps() -> tuple[tuple[float, float, float], ...]:
    """(a, b, c) of every step, after Polar Express (arXiv 2505.16932, section 4): the odd quintic p nearest to 1 on the
    interval [l, u] to which the steps before have brought the singular values, at first [SMALLEST, 1].

    The best p for a small l throws large values down to p(l), among the rounding, so l is not taken below u / 10. The
    two closing steps, (5 s^3 - 3 s^5) / 2, hold 1 to second order and flatten what is near 0, which is rounding in the
    null space: 1e-2 becomes 2.5e-6. Halfway between kept and flattened is a share of 4e-5.
    """
    steps, lower, upper = [], SMALLEST, 1.0
    while upper - lower > 1e-3:
        (a, b, c), error = minimax(max(lower, upper / 10), upper)
        steps.append((a, b, c))
        lower, upper = a * lower + b * lower**3 + c * lower**5, 1 + error
    return (*steps, (0.0, 2.5, -1.5), (0.0, 2.5, -1.5))


def minimax(lower: float, upper: float) -> tuple[tuple[float, float, float], float]:
    """The a, b, c with the smallest max |a s + b s^3 + c s^5 - 1| over lower <= s <= upper, and that maximum.

    Remez: the error is the same, with alternating signs, at both ends and at the two extrema between them.
    """
    inner = np.array([0.75 * lower + 0.25 * upper, 0.25 * lower + 0.75 * upper])
    for _ in range(30):
        s = np.array([lower, *inner, upper])
        a, b, c, error = np.linalg.solve(np.stack([s, s**3, s**5, [1, -1, 1, -1]], axis=1), np.ones(4))
        inner = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a]).real))
    return (a, b, c), error
