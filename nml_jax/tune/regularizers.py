"""The three regularisers of NMTune (ICLR 2024, eqs. 3-5), float32 at full matrix-multiply precision.

F (M, D) are the encoder's features, Z (M, D) what the head makes of them.
"""

import functools

import jax
import jax.numpy as jnp

from nml_jax.core.errors import UserError

METHODS = ("gram", "svd")
REDUCTIONS = ("mean", "sum")

_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def consistency(features: jax.Array, transformed: jax.Array, reduction: str = "sum") -> jax.Array:
    """Squared distance between the L2-normalised rows of F, which get no gradient, and Z, both (M, D).

    Args:
      reduction: "sum" is eq. 3, || F/|F| - Z/|Z| ||^2 summed over D and averaged over the rows; "mean" averages
        over both, as the official code does, which is eq. 3 divided by D.
    """
    if reduction not in REDUCTIONS:
        raise UserError(
            f"Unknown reduction {reduction!r} of the consistency term; valid: {', '.join(REDUCTIONS)}."
        )
    difference = _normalised(transformed) - _normalised(jax.lax.stop_gradient(features))
    squared = jnp.square(difference)
    return squared.mean() if reduction == "mean" else squared.sum(axis=1).mean()


def covariance(transformed: jax.Array) -> jax.Array:
    """Eq. 4: (1/D) sum over i != j of C_ij^2, with C the covariance of the columns of Z (M, D), divisor M - 1.

    With fewer rows than columns the D x D matrix is not formed: for the centred rows X, |X^T X|_F = |X X^T|_F, and
    the diagonal of X^T X has the squared column norms. The difference of the two cancels where a few columns hold
    nearly all the variance; there the D x D matrix is formed after all. (Under vmap both are computed.)

    One row has no covariance: the result is 0, with a zero gradient.
    """
    z = transformed.astype(jnp.float32)
    rows, dim = z.shape
    x = (z - z.mean(axis=0)) / jnp.sqrt(jnp.float32(max(rows - 1, 1)))
    if rows >= dim:
        return _off_diagonal(x) / dim
    total = jnp.square(_matmul(x, x.T)).sum()
    difference = total - jnp.square(jnp.square(x).sum(axis=0)).sum()
    # The checkpoint keeps the D x D matrix out of what the gradient stores on either way.
    explicit = jax.checkpoint(_off_diagonal)
    return jax.lax.cond(difference > 0.1 * total, lambda _: difference, explicit, x) / dim


def dominant_singular_value(transformed: jax.Array, top_k: int = 1, method: str = "gram") -> jax.Array:
    """Eq. 5: minus the mean of the `top_k` largest singular values of Z (M, D), divided by the sum of all.

    Z is not centred. The paper has top_k = 1, the official code 5. Where Z has fewer than `top_k` singular values
    the mean goes over those there are. Z = 0 gives 0, with a zero gradient.
    """
    if top_k < 1:
        raise UserError(
            f"top_k of the singular value term is {top_k}; valid are 1 and above (1 paper, 5 code)."
        )
    sigma = singular_values(transformed, method)
    total = sigma.sum()
    return jnp.where(total > 0, -sigma[:top_k].mean() / jnp.where(total > 0, total, 1.0), 0.0)


def singular_values(x: jax.Array, method: str = "gram") -> jax.Array:
    """The min(M, D) singular values of x (M, D), largest first, float32; differentiable in reverse mode.

    Args:
      method: "gram" decomposes the smaller Gram matrix; "svd" is the textbook way, slow on accelerators.
    """
    x = x.astype(jnp.float32)
    if method == "gram":
        return _gram_singular_values(x if x.shape[0] <= x.shape[1] else x.T)
    if method == "svd":
        return jnp.linalg.svd(x, compute_uv=False)
    raise UserError(f"Unknown method {method!r} for singular values; valid: {', '.join(METHODS)}.")


@jax.custom_vjp
def _gram_singular_values(x: jax.Array) -> jax.Array:
    return _gram_forward(x)[0]


def _gram_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    # x = Q S V^T, so x x^T = Q S^2 Q^T and Q^T x = S V^T. The roots of the eigenvalues would lose half the digits;
    # the row norms of Q^T x do not, and the gradient needs Q^T x anyway.
    q = jnp.linalg.eigh(_matmul(x, x.T))[1][:, ::-1]
    scaled = _matmul(q.T, x)
    sigma = jnp.linalg.norm(scaled, axis=1)
    return sigma, (q, scaled, sigma)


def _gram_backward(kept: tuple[jax.Array, jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array]:
    # d sigma_i = u_i^T dx v_i, so dx = U diag(g) V^T = Q diag(g / sigma) Y with Y = Q^T x: no 1 / (s_i^2 - s_j^2), so
    # repeated values do no harm. Below LAPACK's rank tolerance v_i is rounding noise and gets nothing.
    q, scaled, sigma = kept
    real = sigma > max(scaled.shape) * jnp.finfo(jnp.float32).eps * sigma.max()
    v = jnp.where(real[:, None], scaled / jnp.where(real, sigma, 1.0)[:, None], 0.0)
    g = jnp.where(real, g, 0.0)
    # In float32 the rows v_i of small sigma_i are not quite orthogonal, F = V V^T - I. To first order in F (Daleckii
    # and Krein) the gradient is Q (diag(g) V + (W o F) diag(sigma) V), with the divided difference W:
    f = _matmul(v, v.T) * (1.0 - jnp.eye(len(g)))
    apart, together = sigma[:, None] - sigma, sigma[:, None] + sigma
    distinct = jnp.abs(apart) > 1e-3 * together
    slope = jnp.where(distinct, (g[:, None] - g) / jnp.where(distinct, apart, 1.0), 0.0)
    mean = (g[:, None] + g) / jnp.where(together > 0, together, 1.0)
    w = 0.5 * (slope - mean)
    return (_matmul(q, g[:, None] * v + _matmul(w * f, scaled)),)


_gram_singular_values.defvjp(_gram_forward, _gram_backward)


def _off_diagonal(x: jax.Array) -> jax.Array:
    gram = _matmul(x.T, x)
    return jnp.square(gram - jnp.diag(jnp.diag(gram))).sum()


def _normalised(x: jax.Array) -> jax.Array:
    """Rows divided by their L2 norm; a zero row stays zero and has a zero gradient."""
    x = x.astype(jnp.float32)
    squared = jnp.square(x).sum(axis=1, keepdims=True)
    return jnp.where(squared > 0, x * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
