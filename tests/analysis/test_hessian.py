"""Curvature against known spectra, dense Hessians in float64 and the closed form of softmax regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import special_ortho_group

from nml_jax.analysis import hessian
from nml_jax.core.errors import UserError
from nml_jax.tune import linear_probe, nmtune

KEY = jax.random.key(0)
N, D, C = 40, 6, 3
RNG = np.random.default_rng(0)
Y = RNG.integers(C, size=N)
X = (RNG.standard_normal((N, D)) + 2 * np.eye(D)[Y]).astype(np.float32)


def symmetric(spectrum, seed=0):
    """A float64 matrix of this spectrum, its axes turned at random."""
    turn = special_ortho_group.rvs(len(spectrum), random_state=seed) if len(spectrum) > 1 else np.eye(1)
    return (turn * np.asarray(spectrum, np.float64)) @ turn.T


def product_of(matrix):
    """The float32 product with `matrix`, and a list that grows by one with each."""
    matrix, calls = np.asarray(matrix, np.float32), []

    def product(vector):
        calls.append(1)
        return matrix @ vector

    return product, calls


def largest(spectrum, k):
    """The k of largest magnitude, by descending magnitude."""
    return np.asarray(spectrum)[np.argsort(-np.abs(spectrum), kind="stable")][:k]


# The spectrum, how many values to ask for, and the products that may take.
SPECTRA = {
    "repeated, negative and zero": ([7.0, 5, 5, 5, -4, -4, 2, 1, 0, 0, 0], 8, 11),
    "repeated above a continuum": ([5.0, 5, 5, -4, -4, 3.5, *np.linspace(2, 0, 150)], 8, 150),
    "repeated, and the others converge first": ([5.0, 5, 4, *np.linspace(1, 0, 150)], 2, 80),
    "thrice each": (np.repeat([5.0, 4, 3, 2, 1], 3), 5, 30),
    "tiny": (1e-8 * np.linspace(1, -0.9, 150), 8, 250),
    "low rank": ([5.0, 5, 5, -4, -4, *np.zeros(150)], 8, 30),
    "decaying, of both signs": ([(-1) ** i / (1 + i) for i in range(150)], 8, 60),
    "all equal": (np.ones(150), 8, 30),
    "zero": (np.zeros(150), 8, 20),
    "one": ([-3.0], 8, 1),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_top_eigenvalues_of_a_known_spectrum(name):
    spectrum, k, products = SPECTRA[name]
    product, calls = product_of(symmetric(spectrum))
    values, residuals = hessian.top_eigenvalues(product, len(spectrum), k, key=KEY)
    truth = largest(spectrum, k)
    scale = abs(truth[0])
    assert values.shape == residuals.shape == truth.shape
    assert values.dtype == residuals.dtype == np.float64
    np.testing.assert_allclose(values, truth, rtol=0, atol=2e-6 * scale)
    assert residuals.max() <= 1e-4 * scale
    assert len(calls) <= products


def test_fewer_dimensions_than_values_asked_for():
    values, residuals = hessian.top_eigenvalues(product_of(symmetric([3.0, -2, 1]))[0], 3, 50, key=KEY)
    np.testing.assert_allclose(values, [3, -2, 1], atol=1e-6)
    assert residuals.shape == (3,)


def test_a_basis_of_unit_vectors_still_starts_at_random():
    # A start at (1, 0, ...) or (1, 1, ...) would miss eigenvectors of this matrix altogether.
    matrix = np.diag(np.r_[0.0, 0, 9, 4, np.zeros(60)])
    matrix[:2, :2] = [[5, -5], [-5, 5]]
    values, _ = hessian.top_eigenvalues(product_of(matrix)[0], 64, 3, key=KEY)
    np.testing.assert_allclose(values, [10, 9, 4], rtol=1e-6)


def test_too_few_steps_are_told_by_the_residuals():
    spectrum = np.linspace(1, -0.5, 150)
    product, calls = product_of(symmetric(spectrum))
    values, residuals = hessian.top_eigenvalues(product, 150, 5, key=KEY, steps=12)
    assert len(calls) == 12
    assert residuals.max() > 1e-2
    distance = np.abs(values[:, None] - spectrum).min(axis=1)
    assert (distance <= residuals + 1e-6).all()


def test_a_finer_tolerance_takes_more_steps_and_gives_smaller_residuals():
    matrix = symmetric(np.linspace(1, 0, 150) ** 3)
    (coarse, many), (fine, more) = product_of(matrix), product_of(matrix)
    _, loose = hessian.top_eigenvalues(coarse, 150, 4, key=KEY, tolerance=1e-2)
    _, tight = hessian.top_eigenvalues(fine, 150, 4, key=KEY, tolerance=1e-5)
    assert tight.max() <= 1e-5 < loose.max() <= 1e-2
    assert len(many) < len(more)


def test_trace_of_a_diagonal_is_exact():
    diagonal = np.arange(-3.0, 9.0)
    mean, stderr = hessian.trace(product_of(np.diag(diagonal))[0], 12, samples=3, key=KEY)
    assert (mean, stderr) == (diagonal.sum(), 0)


def test_trace_lies_within_its_standard_error_which_is_that_of_the_theory():
    matrix = symmetric(np.linspace(3, -1, 40))
    mean, stderr = hessian.trace(product_of(matrix)[0], 40, samples=400, key=KEY)
    assert abs(mean - np.trace(matrix)) < 4 * stderr
    off_diagonal = matrix - np.diag(np.diag(matrix))
    assert stderr == pytest.approx(np.sqrt(2 * (off_diagonal**2).sum() / 400), rel=0.15)


def test_hessian_vector_product_of_a_tree():
    # Σ w³ + b Σ w: H_ww = 6 diag(w), H_wb = 1, H_bb = 0.
    params = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.float32(0.5)}
    vector = {"w": jnp.array([1.0, 1.0, -1.0]), "b": jnp.float32(2.0)}
    product = hessian.hessian_vector_product(
        lambda p: (p["w"] ** 3).sum() + p["b"] * p["w"].sum(), params, vector
    )
    np.testing.assert_allclose(product["w"], [6 + 2, -12 + 2, -18 + 2])
    np.testing.assert_allclose(product["b"], 1)


def start(task):
    """Parameters away from the initial ones, and running statistics that are not 0 and 1."""
    params, frozen, stats = task.init(KEY, None)
    rng = np.random.default_rng(1)
    move = lambda leaf: jnp.asarray(leaf + 0.2 * rng.standard_normal(leaf.shape), jnp.float32)  # noqa: E731
    stats = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32), stats)
    return jax.tree.map(move, params), frozen, stats


PROBE = linear_probe.make(dim=D, num_classes=C)
HEAD = nmtune.make(dim=D, num_classes=C, preset="official", expansion=2)
PROBE_STATE, HEAD_STATE = start(PROBE), start(HEAD)


def of_head(task, state, x=X, y=Y, **changes):
    arguments = {"top_k": 8, "samples": 40, "seed": 0, "batch_size": 16} | changes
    return hessian.of_head(task, *state, x, y, **arguments)


def check(result, hessian, top_k=8):
    truth = largest(np.linalg.eigvalsh(hessian), top_k)
    np.testing.assert_allclose(result["hessian_top"], truth, rtol=0, atol=1e-5 * abs(truth[0]))
    assert max(result["hessian_top_residuals"]) <= 1e-4 * abs(truth[0])
    assert abs(result["hessian_trace"] - np.trace(hessian)) < 4 * result["hessian_trace_stderr"]
    assert result["hessian_dim"] == len(hessian)


def softmax_hessian(params, z):
    """(1/N) Σ (diag(p) − ppᵀ) ⊗ (z, 1)(z, 1)ᵀ of a linear classifier on z (N, D), in float64."""
    kernel, bias = (np.asarray(params["linear"][name], np.float64) for name in ("kernel", "bias"))
    logits = z @ kernel + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    inner = p[:, :, None] * np.eye(C) - p[:, :, None] * p[:, None, :]
    rows = np.concatenate([z, np.ones((len(z), 1))], axis=1)
    size = C * rows.shape[1]
    return np.einsum("ncd,ni,nj->cidj", inner, rows, rows).reshape(size, size) / len(z)


def reshaped(p, mean, var, x):
    """Z of the official head, written out."""
    hidden = x @ p["mlp"]["expand"]["kernel"] + p["mlp"]["expand"]["bias"]
    norm = p["mlp"]["norm"]
    hidden = (hidden - mean) / (var + 1e-5) ** 0.5 * norm["scale"] + norm["bias"]
    hidden = hidden * (hidden > 0)
    return p["scale"]["scale"] * (hidden @ p["mlp"]["project"]["kernel"] + p["mlp"]["project"]["bias"]) + x


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize("of", ["all", "classifier"])
def test_linear_probe_has_the_closed_form_of_softmax_regression(of):
    result = of_head(PROBE, PROBE_STATE, of=of)
    check(result, softmax_hessian(PROBE_STATE[0], X.astype(np.float64)))
    # Adding a constant to all logits changes nothing: D + 1 of the C (D + 1) eigenvalues are zero.
    everything = of_head(PROBE, PROBE_STATE, of=of, top_k=99)
    assert len(everything["hessian_top"]) == len(everything["hessian_top_residuals"]) == C * (D + 1)
    np.testing.assert_allclose(everything["hessian_top"][-(D + 1) :], 0, atol=1e-6)
    assert everything["lanczos_steps"] == C * (D + 1)


def test_head_against_its_dense_hessian_in_float64():
    with jax.enable_x64(True):
        params, norm = float64(HEAD_STATE[0]), float64(HEAD_STATE[2])["batch_stats"]["mlp"]["norm"]
        flat, unravel = ravel_pytree(params)

        def loss(flat):
            p = unravel(flat)
            z = reshaped(p, norm["mean"], norm["var"], X.astype(np.float64))
            logits = z @ p["classifier"]["linear"]["kernel"] + p["classifier"]["linear"]["bias"]
            return -jax.nn.log_softmax(logits)[np.arange(N), Y].mean()

        hessian = np.asarray(jax.jit(jax.hessian(loss))(flat))
    assert hessian.dtype == np.float64
    spectrum = np.linalg.eigvalsh(hessian)
    assert spectrum.min() < -1e-3  # not convex
    assert (largest(spectrum, 30) < 0).any()
    check(of_head(HEAD, HEAD_STATE, top_k=30), hessian, top_k=30)


def test_classifier_of_a_head_is_softmax_regression_on_its_reshaped_features():
    params, norm = float64(HEAD_STATE[0]), float64(HEAD_STATE[2])["batch_stats"]["mlp"]["norm"]
    z = reshaped(params, norm["mean"], norm["var"], X.astype(np.float64))
    result = of_head(HEAD, HEAD_STATE, of="classifier")
    check(result, softmax_hessian(HEAD_STATE[0]["classifier"], z))


@pytest.mark.parametrize("batch_size", [7, 39, 1000])
def test_chunks_change_nothing(batch_size, tmp_path):
    np.save(tmp_path / "x.npy", X)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    one, many = of_head(PROBE, PROBE_STATE), of_head(PROBE, PROBE_STATE, x=x, batch_size=batch_size)
    for name in ("hessian_top", "hessian_trace", "hessian_trace_stderr"):
        np.testing.assert_allclose(many[name], one[name], rtol=1e-4, atol=1e-6)


def test_features_and_labels_may_be_on_the_device():
    there = of_head(PROBE, PROBE_STATE, x=jnp.asarray(X), y=jnp.asarray(Y))
    assert there == of_head(PROBE, PROBE_STATE)


def test_a_seed_fixes_the_result_and_another_gives_other_vectors():
    first = of_head(PROBE, PROBE_STATE)
    assert of_head(PROBE, PROBE_STATE) == first
    other = of_head(PROBE, PROBE_STATE, seed=1)
    assert other["hessian_trace"] != first["hessian_trace"]
    assert other["hessian_top"] != first["hessian_top"]
    np.testing.assert_allclose(other["hessian_top"], first["hessian_top"], rtol=1e-4)


def test_parameters_that_are_not_finite_are_told():
    broken = (jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), PROBE_STATE[0]), *PROBE_STATE[1:])
    with pytest.raises(UserError, match="loss is nan"):
        of_head(PROBE, broken)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"samples": 1}, "samples is 1; valid are 2"),
        ({"of": "head"}, "all, classifier"),
        ({"y": Y[:-1]}, "same N"),
        ({"y": Y.astype(np.float32)}, "integers"),
        ({"y": Y + 1}, "valid for this head are 0 to 2"),
        ({"y": Y - 1}, "valid for this head are 0 to 2"),
        ({"x": X[:, None]}, "one view"),
        ({"x": X[:0], "y": Y[:0]}, "at least 1"),
        ({"x": np.where(np.arange(N)[:, None] == 3, np.inf, X)}, "NaN or infinity in the features"),
    ],
)
def test_bad_input_is_named(change, said):
    with pytest.raises(UserError, match=said):
        of_head(PROBE, PROBE_STATE, **change)


def test_a_head_without_a_classifier_is_told():
    with pytest.raises(UserError, match="no classifier, only classifiers, mlp"):
        of_head(PROBE, ({"classifiers": {}, "mlp": {}}, {}, {}), of="classifier")


@pytest.mark.parametrize(
    ("product", "arguments", "said"),
    [
        (lambda v: v, {"k": 0}, "0 eigenvalues"),
        (lambda v: v, {"k": 5, "steps": 4}, "valid are 5"),
        (lambda v: np.nan * v, {"k": 1}, "product holds NaN"),
    ],
)
def test_bad_lanczos_is_named(product, arguments, said):
    with pytest.raises(UserError, match=said):
        hessian.top_eigenvalues(product, 9, key=KEY, **arguments)
