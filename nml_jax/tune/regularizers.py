"""The three regularisers of NMTune (ICLR 2024, eqs. 3-5), float32 at full matrix-multiply precision.

F (M, D) are the encoder's features, Z (M, D) what the head makes of them.
"""

import functools

import jax
import jax.numpy as jnp

from nml_jax.core.errors import UserError
from nml_jax.tune import polar

REDUCTIONS = ("mean", "sum")
METHODS = ("gram", "polar", "svd")

_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def consistency(features: jax.Array, transformed: jax.Array, reduction: str = "sum") -> jax.Array:
    """Squared distance between the L2-normalised rows of F, which get no gradient, and Z, both (M, D).

    Args:
      reduction: "sum" is eq. 3, || F/|F| - Z/|Z| ||^2 summed over D and averaged over the rows; "mean" averages
        over both, as the official code does, which is eq. 3 divided by D.

    Raises:
      UserError: an unknown reduction; F and Z not two-dimensional, or not of the same shape.
    """
    if reduction not in REDUCTIONS:
        raise UserError(
            f"Unknown reduction {reduction!r} of the consistency term; valid: {', '.join(REDUCTIONS)}."
        )
    f, z = _rows(features, "consistency"), _rows(transformed, "consistency")
    if f.shape != z.shape:
        raise UserError(
            f"The consistency term was given features {f.shape} and transformed {z.shape}; the shapes must be the same."
        )
    squared = jnp.square(_normalised(z) - _normalised(jax.lax.stop_gradient(f)))
    return squared.mean() if reduction == "mean" else squared.sum(axis=1).mean()


def covariance(transformed: jax.Array) -> jax.Array:
    """Eq. 4: (1/D) sum over i != j of C_ij^2, with C the covariance of the columns of Z (M, D), divisor M - 1.

    With fewer rows than columns the D x D matrix is never formed. One row has no covariance: 0, with a zero gradient.

    Raises:
      UserError: Z is not two-dimensional.
    """
    z = _rows(transformed, "covariance")
    rows, dim = z.shape
    x = z - z.mean(axis=0)
    scale = dim * max(rows - 1, 1) ** 2
    if rows >= dim:
        return _sum_of_squares(jnp.where(jnp.eye(dim, dtype=bool), 0.0, _matmul(x.T, x))) / scale
    # |X^T X|_F = |X X^T|_F, and the diagonal of X^T X has the squared norms d_j of the columns. Their difference alone
    # cancels where few columns hold most of the variance, so the n = M longest columns T are multiplied out, and only
    # the rest R goes that way. It cannot cancel badly: n centred columns lie in n - 1 dimensions, so some unit v has
    # v^T X_T^T X_T v = 0, hence |offdiag(X_T^T X_T)|_F >= d_n, the smallest d in T; and |X_R X_R^T|_F^2 is at least
    # (sum_R d)^2 / (n - 1). Now sum_R d^2 <= d_n sum_R d. So where sum_R d >= 2 (n - 1) d_n it takes away at most half
    # of |X_R X_R^T|_F^2; elsewhere it is at most 2 (n - 1) d_n^2, and its rounding small beside what T alone gives.
    longest = jax.lax.top_k(jnp.square(jax.lax.stop_gradient(x)).sum(axis=0), rows)[1]
    chosen = jnp.zeros(dim, bool).at[longest].set(True)
    products = jnp.where(jnp.arange(dim) == longest[:, None], 0.0, _matmul(x[:, longest].T, x))
    rest = jnp.where(chosen, 0.0, x)
    among_rest = _sum_of_squares(_matmul(rest, rest.T)) - _sum_of_squares(jnp.square(rest).sum(axis=0))
    across = _sum_of_squares(jnp.where(chosen, 0.0, products))
    return (_sum_of_squares(products) + across + among_rest) / scale


def dominant_singular_value(transformed: jax.Array, top_k: int = 1, method: str = "gram") -> jax.Array:
    """Eq. 5: minus the mean of the `top_k` largest singular values of Z (M, D), divided by the sum of all.

    Z is not centred. The paper has top_k = 1, the official code 5. Where Z has fewer than `top_k` singular values
    the mean goes over those there are. Values below 1e-5 of the largest ("polar": about 4e-5) are rounding and count as
    zero, without gradient; Z = 0 gives 0. Differentiable in reverse mode.

    Args:
      method: "gram" decomposes Gram matrices by eigh; "polar" uses matrix products alone, for accelerators; "svd" is
        the textbook way, for checking. Gradients are good to 1e-4 up to condition number 1e4, with "svd" 400.

    Raises:
      UserError: an unknown method, top_k below 1, or Z not two-dimensional.
    """
    if method not in METHODS:
        raise UserError(f"Unknown method {method!r} of the singular value term; valid: {', '.join(METHODS)}.")
    if top_k < 1:
        raise UserError(
            f"top_k of the singular value term is {top_k}; valid are 1 and above (1 paper, 5 code)."
        )
    x = _rows(transformed, "singular value")
    x = x if x.shape[0] <= x.shape[1] else x.T
    top_k = min(top_k, len(x))
    if method == "svd":
        s = jnp.linalg.svd(x, compute_uv=False)
        s = jnp.where(s > polar.RANK_TOLERANCE * s[0], s, 0.0)
        return _ratio(s[:top_k].mean(), s.sum())
    return _dominance(x, top_k, method)


# With X = U S V^T, the gradient of the mean of the top k is U_k V_k^T / k, that of the sum is the polar factor U V^T:
# nothing is divided by s_i - s_j, so repeated singular values do no harm. It is computed along with the value.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _dominance(x: jax.Array, top_k: int, method: str) -> jax.Array:
    return _dominance_forward(x, top_k, method)[0]


def _dominance_forward(x: jax.Array, top_k: int, method: str) -> tuple[jax.Array, jax.Array]:
    return _by_gram(x, top_k) if method == "gram" else _by_products(x, top_k)


def _dominance_backward(top_k: int, method: str, gradient: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (g * gradient,)


_dominance.defvjp(_dominance_forward, _dominance_backward)


def _ratio(mean: jax.Array, total: jax.Array) -> jax.Array:
    return jnp.where(total > 0, -mean / jnp.where(total > 0, total, 1.0), 0.0)


def _by_products(x: jax.Array, top_k: int) -> tuple[jax.Array, jax.Array]:
    """The value and the gradient for x (n, D), n <= D, by matrix products."""
    everything = top_k == len(x)
    u, s, vt = polar.leading(x, 1 if everything else top_k)
    factor = polar.polar_factor(x, s[0])
    total = (factor * x).sum()
    mean, top = (total / top_k, factor) if everything else (s.mean(), _matmul(u, vt))
    value, (by_mean, by_total) = jax.value_and_grad(_ratio, argnums=(0, 1))(mean, total)
    return value, by_mean / top_k * top + by_total * factor


def _by_gram(x: jax.Array, top_k: int) -> tuple[jax.Array, jax.Array]:
    """The value and the gradient for x (n, D), n <= D, by eigendecompositions of Gram matrices."""
    q = _rotation(x)
    y = _matmul(q, x)
    # Row i of y is s_i v_i, and b = y y^T nearly diagonal, with b_ij good to rounding of s_i s_j. The root of an
    # eigenvalue would have half the digits.
    b = _matmul(y, y.T)
    s = jnp.sqrt(jnp.diag(b))
    real = s > polar.RANK_TOLERANCE * s.max()
    s, inverse = jnp.where(real, s, 0.0), jnp.where(real, 1 / jnp.where(real, s, 1.0), 0.0)
    off = jnp.where(real[:, None] & real & ~jnp.eye(len(s), dtype=bool), b, 0.0)
    together = s[:, None] + s
    # The polar factor is b^(-1/2) y. With b = s^2 + off, to first order in off, b^(1/2) = s + e:
    e = off / jnp.where(together > 0, together, 1.0)
    root = jnp.diag(inverse) - inverse[:, None] * e * inverse
    # The leading k rows of q span U_k, but for a turn by off / (s_i^2 - s_j^2) against each row beyond k, first order
    # again, after taking out of off what comes of q q^T != 1: narrow gaps would blow it up.
    leading = jnp.arange(len(s)) < top_k
    square, apart = s[:, None] ** 2 + s**2, s[:, None] ** 2 - s**2
    across = leading[:, None] & ~leading & (apart > 1e-4 * square)
    turn = jnp.where(across, (off - 0.5 * square * _matmul(q, q.T)) / jnp.where(across, apart, 1.0), 0.0)
    top = jnp.where(leading[:, None], root, 0.0) + (turn + turn.T) * inverse
    value, (by_mean, by_total) = jax.value_and_grad(_ratio, argnums=(0, 1))(s[:top_k].mean(), s.sum())
    return value, _matmul(_matmul(q.T, by_mean / top_k * top + by_total * root), y)


def _rotation(x: jax.Array) -> jax.Array:
    """Q (n, n) for x (n, D), such that the rows of Q x are orthogonal and sorted by length, longest first.

    The eigenvectors of x x^T in float32 resolve singular values down to about 3e-4 of the largest. So directions
    below 3e-2 are taken apart a second time, by themselves, which reaches 1e-5.
    """
    q = jnp.linalg.eigh(_matmul(x, x.T))[1].T
    y = _matmul(q, x)
    b = _matmul(y, y.T)
    squared = jnp.diag(b)
    level = 1e-3 * squared.max()
    large = squared > level
    small = ~large
    # What small rows still hold of large ones goes back: 1 - mix + mix^T is a rotation, as mix is small (below 1e-3).
    mix = jnp.where(small[:, None] & large, b / jnp.where(large, squared, 1.0), 0.0)
    rest = jnp.where(small[:, None] & small, b - _matmul(mix, b), 0.0)
    # The large rows stand apart and in order with eigenvalues above all of the rest.
    n = len(q)
    rest += jnp.diag(jnp.where(large, level * (2 + jnp.arange(n) / n), 0.0))
    again = jnp.linalg.eigh(rest)[1].T
    return _matmul(again, _matmul(jnp.eye(n) - mix + mix.T, q))[::-1]


def _rows(x: jax.Array, term: str) -> jax.Array:
    """x in float32, once it is known to be two-dimensional."""
    if jnp.ndim(x) != 2:
        raise UserError(
            f"The {term} term was given an array of shape {jnp.shape(x)}; it takes (M, D), one row a sample."
        )
    return jnp.asarray(x, jnp.float32)


def _sum_of_squares(x: jax.Array) -> jax.Array:
    return jnp.square(x).sum()


def _normalised(x: jax.Array) -> jax.Array:
    """Rows divided by their L2 norm; a zero row stays zero and has a zero gradient."""
    squared = jnp.square(x).sum(axis=1, keepdims=True)
    return jnp.where(squared > 0, x * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
