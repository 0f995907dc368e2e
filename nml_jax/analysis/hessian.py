"""How sharp the minimum is that a head was tuned to: top eigenvalues and trace of the Hessian of its training loss.

The Hessian H is never formed; all that is asked of it are products Hv (Pearlmutter, Neural Computation 1994):

    top eigenvalues  Lanczos with full reorthogonalisation (Parlett, The Symmetric Eigenvalue Problem, ch. 13)
    trace            Hutchinson: E[vᵀHv] = tr H for v of independent random signs

The official code asks PyHessian for both, of the linear classifier on the training split. PyHessian's power
iteration with deflation gives the eigenvalues of largest *magnitude*, with their sign, and so does this.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
from jax.flatten_util import ravel_pytree

from nml_jax.core import runtime, writer
from nml_jax.core.errors import UserError
from nml_jax.core.task import PyTree, Task

Product = Callable[[np.ndarray], jax.Array | np.ndarray]
OF = ("all", "classifier")

# Steps between two looks at the Ritz values. The first look must not come sooner: of an eigenvector that it is to
# see, a random start in many dimensions holds very little.
_BLOCK = 10
# A coupling this small, relative to the largest number in the tridiagonal matrix, is float32 rounding.
_BREAKDOWN = 10 * np.finfo(np.float32).eps


def hessian_vector_product(loss: Callable[[PyTree], jax.Array], params: PyTree, vector: PyTree) -> PyTree:
    """Hv of the scalar `loss` at `params`, forward over reverse; `vector` and the result are like `params`."""
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


def top_eigenvalues(
    hvp: Product, dim: int, k: int, *, key: jax.Array, steps: int | None = None, tolerance: float = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
    """The k eigenvalues of largest magnitude of a symmetric operator, signed, by descending magnitude.

    One Lanczos sequence sees one copy of a repeated eigenvalue. So, once k values have converged, another sequence
    starts at random in the complement of their eigenvectors, until one finds nothing there that is larger by more
    than the tolerance.

    The basis is in host memory, float32, and grows with the steps: 200 of them are 0.04 GB for a linear probe of
    512 features and 100 classes, and 27 GB for a head of 33 million parameters. For k = 50 it takes 130 or so.

    Args:
      hvp: (dim,) float32 -> (dim,) float32, the product with the operator.
      key: of the random starts.
      steps: the largest basis of a sequence; None is min(dim, max(10 k, 100)).
      tolerance: a value has converged when its residual is at most tolerance · |largest value|.

    Returns:
      values (k,) and their residuals ‖Hq − λq‖ (k,), both float64; (dim,) each if dim < k. The residuals are the
      bound |β s| of Lanczos: an eigenvalue lies that near, and float32 rounding (about 1e-6 of the largest) on top.
      Where `steps` did not suffice, they are above the tolerance, and copies may be missing.

    Raises:
      UserError: k or steps out of range; a product that is not finite.
    """
    if k < 1:
        raise UserError(f"{k} eigenvalues were asked for; valid are 1 and above.")
    k = min(k, dim)
    steps = min(dim, max(10 * k, 100) if steps is None else steps)
    if steps < k:
        raise UserError(f"{steps} Lanczos steps cannot give {k} eigenvalues; valid are {k} and above.")
    values, residuals, vectors = found = [np.zeros(0), np.zeros(0), np.zeros((0, dim), np.float32)]
    for sequence in itertools.count():
        start = jax.random.fold_in(key, sequence)
        *new, complete = _lanczos(hvp, k, values, vectors, start, steps, tolerance)
        merged = [np.concatenate(both) for both in zip(found, new, strict=True)]
        best = np.argsort(-np.abs(merged[0]), kind="stable")[:k]
        values, residuals, vectors = found = [part[best] for part in merged]
        if complete or not len(new[0]):
            return values, residuals


def trace(hvp: Product, dim: int, *, samples: int, key: jax.Array) -> tuple[float, float]:
    """Hutchinson's estimate of the trace of a symmetric operator: mean and standard error over `samples` vectors.

    The variance of one sample is 2 Σ_{i≠j} H_ij²: none for a diagonal H.

    Args:
      hvp: (dim,) float32 -> (dim,) float32, the product with the operator.

    Raises:
      UserError: fewer than two samples; a product that is not finite.
    """
    if samples < 2:
        raise UserError(f"samples is {samples}; valid are 2 and above, since one has no standard error.")
    forms = np.zeros(samples)
    for i in range(samples):
        signs = np.asarray(jax.random.rademacher(jax.random.fold_in(key, i), (dim,), np.float32))
        forms[i] = signs.astype(np.float64) @ _product(hvp, signs)
    return float(forms.mean()), float(forms.std(ddof=1) / math.sqrt(samples))


def of_head(
    task: Task,
    params: PyTree,
    frozen: PyTree,
    stats: PyTree,
    x: np.ndarray | jax.Array,
    y: np.ndarray | jax.Array,
    *,
    top_k: int,
    samples: int,
    seed: int,
    of: str = "all",
    batch_size: int = 4096,
    progress: bool = False,
) -> dict[str, Any]:
    """Curvature of the mean cross-entropy of `task.predict` on features x (N, D) with labels y (N,).

    That is the loss of evaluation: BatchNorm takes its running statistics, and there are no regularisers. It is
    smooth but for the kinks of a ReLU, which almost all parameters are away from; the Hessian is that of the
    smooth piece they are on.

    Args:
      x: may be a memory-mapped file larger than device memory: `batch_size` rows at a time go there, for every
        product. As a `jax.Array`, it stays there.
      top_k: how many eigenvalues (official: 50).
      samples: how many random vectors for the trace.
      of: "all" parameters, or those of the linear "classifier" alone, as in the official code.

    Returns:
      "hessian_top" and "hessian_top_residuals": lists of min(top_k, hessian_dim) numbers (see `top_eigenvalues`);
      "hessian_trace" and "hessian_trace_stderr"; "hessian_dim"; "lanczos_steps": products the eigenvalues took.

    Raises:
      UserError: one of these is not as said; the loss is not finite.
    """
    moved, still = _split(params, of)
    _check(task, (params, frozen, stats), x, y, top_k, batch_size)
    dim = ravel_pytree(moved)[0].size
    product = _summed_product(task, jax.device_put((moved, still, frozen, stats)), x, y, batch_size)
    products = 0

    def hvp(vector: np.ndarray) -> jax.Array:
        nonlocal products
        products += 1
        bar.update()
        return product(vector)

    with writer.progress_bar(3 * top_k + samples, "curvature", unit="product", show=progress) as bar:
        mean, stderr = trace(hvp, dim, samples=samples, key=runtime.key(seed, "curvature.trace"))
        values, residuals = top_eigenvalues(hvp, dim, top_k, key=runtime.key(seed, "curvature.top"))
    return {
        "hessian_top": values.tolist(),
        "hessian_top_residuals": residuals.tolist(),
        "hessian_trace": mean,
        "hessian_trace_stderr": stderr,
        "hessian_dim": dim,
        "lanczos_steps": products - samples,
    }


def _lanczos(
    hvp: Product, k: int, known: np.ndarray, locked: np.ndarray, key: jax.Array, steps: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """One sequence in the complement of `locked` (r, dim), the eigenvectors of the values `known` (r,): k or none.

    It ends when its leading Ritz values have converged: k of them, or those above the least of `known` and the
    next. Returns those above it, residuals and vectors; and whether another sequence is of no use, since this one
    exhausted the space or its steps.
    """
    largest = abs(known[0]) if len(known) else 0.0
    # Higher by the tolerance: the same value found again is no news.
    floor = abs(known[-1]) + tolerance * largest if len(known) else -1.0
    dim, room = locked.shape[1], locked.shape[1] - len(locked)
    steps = min(steps, room)
    basis = []
    diagonal, coupling, loose = np.zeros((3, steps))  # loose: what H times the basis has outside of it
    vector, scale = None, 0.0
    for m in range(steps):
        if m % _BLOCK == 0:
            basis.append(np.zeros((_BLOCK, dim), np.float32))
        if vector is None:
            vector = np.array(jax.random.normal(jax.random.fold_in(key, m), (dim,), np.float32))
            vector = _orthogonalise(vector, locked, *basis)
        latest = basis[-1][m % _BLOCK]
        latest[:] = vector / _norm(vector)
        vector = _product(hvp, latest)
        diagonal[m] = latest.astype(np.float64) @ vector
        vector = _orthogonalise(vector, locked, *basis)
        loose[m] = _norm(vector)
        scale = max(scale, abs(diagonal[m]), loose[m])
        if (m + 1) % _BLOCK == 0 or m + 1 == steps:
            theta, s = scipy.linalg.eigh_tridiagonal(diagonal[: m + 1], coupling[:m])
            lead = np.argsort(-np.abs(theta), kind="stable")[:k]
            lead = lead[: 1 + np.count_nonzero(np.abs(theta[lead]) > floor)]
            residuals = loose[: m + 1] @ np.abs(s[:, lead])
            enough = len(lead) == min(k, room) or abs(theta[lead[-1]]) <= floor
            converged = enough and residuals.max() <= tolerance * max(largest, abs(theta[lead[0]]))
            if converged:
                break
        if loose[m] <= _BREAKDOWN * scale:
            vector = None  # an invariant subspace: go on from elsewhere
        elif m + 1 < steps:
            coupling[m], loose[m] = loose[m], 0.0
    news = np.abs(theta[lead]) > floor
    theta, residuals, s = theta[lead[news]], residuals[news], s[:, lead[news]].astype(np.float32)
    rows = [s[first : first + _BLOCK] for first in range(0, m + 1, _BLOCK)]
    vectors = sum(part.T @ block[: len(part)] for part, block in zip(rows, basis, strict=True))
    return theta, residuals, vectors, not converged or m + 1 == room


def _orthogonalise(vector: np.ndarray, *bases: np.ndarray) -> np.ndarray:
    """`vector`, in place, less what the rows of `bases` span. Twice is enough (Parlett, §6.9)."""
    for basis in bases + bases:
        vector -= (basis @ vector) @ basis
    return vector


def _norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector.astype(np.float64)))  # a float32 sum over a million is off by 1e-5


def _product(hvp: Product, vector: np.ndarray) -> np.ndarray:
    product = np.array(hvp(vector), np.float32)
    if not np.isfinite(product).all():
        raise UserError("A Hessian-vector product holds NaN or infinity. Check the loss and its parameters.")
    return product


def _split(params: PyTree, of: str) -> tuple[PyTree, PyTree]:
    """The parameters that move and those that stand still; a linear probe is nothing but its classifier."""
    if of not in OF:
        raise UserError(f"The curvature was asked for of={of!r}; valid: {', '.join(OF)}.")
    if of == "all" or params.keys() == {"linear"}:
        return params, {}
    if "classifier" not in params:
        raise UserError(f"The head has no classifier, only {', '.join(params)}. Ask for of='all'.")
    return {"classifier": params["classifier"]}, {k: v for k, v in params.items() if k != "classifier"}


def _summed_product(task: Task, state: tuple[PyTree, ...], x: Any, y: Any, batch_size: int) -> Product:
    """The product with the Hessian with respect to the first of `state` (moved, still, frozen, stats)."""
    mean_loss, add_product = _programs(task)
    loss = sum(float(mean_loss(*state, *chunk)) for chunk in _chunks(x, y, batch_size))
    if not math.isfinite(loss):
        raise UserError(f"The loss is {loss}: there is NaN or infinity in the features or in the parameters.")

    def product(vector: np.ndarray) -> jax.Array:
        vector, total = jnp.asarray(vector), jnp.zeros_like(vector)
        for chunk in _chunks(x, y, batch_size):
            before, total = total, add_product(total, vector, *state, *chunk)
            before.block_until_ready()  # or all chunks would queue up in device memory
        return total

    return product


@functools.cache
def _programs(task: Task) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    def mean_loss(moved, still, frozen, stats, x, y, weight):
        with jax.default_matmul_precision("highest"):  # TF32 and bfloat16 are too coarse for 1e-4
            logits = task.predict({**moved, **still}, frozen, stats, {"x": x.astype(jnp.float32)})
            return weight @ optax.softmax_cross_entropy_with_integer_labels(logits, y)

    def add_product(total, vector, moved, *rest):
        flat, unravel = ravel_pytree(moved)
        return total + hessian_vector_product(lambda flat: mean_loss(unravel(flat), *rest), flat, vector)

    return jax.jit(mean_loss), jax.jit(add_product)


def _chunks(x: Any, y: Any, batch_size: int) -> Iterator[tuple[Any, Any, np.ndarray]]:
    """x, y and weight of equal chunks; the weights are 1/N, or 0 for rows that the chunk before had already."""
    rows = len(x)
    size = math.ceil(rows / math.ceil(rows / batch_size))
    for first in range(0, rows, size):
        start = min(first, rows - size)
        weight = np.where(np.arange(start, start + size) >= first, 1 / rows, 0.0).astype(np.float32)
        yield x[start : start + size], y[start : start + size], weight


def _check(task: Task, state: tuple[PyTree, ...], x: Any, y: Any, top_k: int, batch_size: int) -> None:
    if min(top_k, batch_size) < 1:
        raise UserError(f"top_k is {top_k} and batch_size is {batch_size}; valid are 1 and above.")
    if x.ndim != 2 or len(x) == 0 or y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise UserError(
            f"x is {x.shape}, y is {y.dtype} of {y.shape}; valid are x (N, D) and integers y (N,) with the same N, "
            "at least 1. Take one view of (N, views, D) features, x[:, 0]."
        )
    row = {"x": jax.ShapeDtypeStruct((1, x.shape[1]), jnp.float32)}
    classes = jax.eval_shape(task.predict, *state, row).shape[1]
    if y.min() < 0 or y.max() >= classes:
        raise UserError(f"The labels are {y.min()} to {y.max()}; valid for this head are 0 to {classes - 1}.")
