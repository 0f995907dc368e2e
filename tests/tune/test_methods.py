"""Losses and gradients of the methods against a float64 NumPy derivation, and initial values against PyTorch's."""

import functools

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from nml_jax.core.errors import UserError
from nml_jax.tune import linear_probe, mlp, nmtune, trainer
from nml_jax.tune.head import features
from nml_jax.tune.runs import Run

B, D, C = 5, 6, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, 2, D)).astype(np.float32)
Y = RNG.integers(C, size=B).astype(np.int32)


@functools.cache
def initial(task):
    return jax.jit(task.init)(jax.random.key(0), {"x": X, "y": Y})


def reference_loss(params, x, y, *, preset, weights):
    """The loss in float64; `preset` says which of protocol §5.1 and §5.2."""
    f = np.concatenate([x[:, v] for v in range(x.shape[1])]).astype(np.float64)  # as torch.cat of the views
    labels = np.concatenate([y] * x.shape[1])
    h = f @ params["mlp"]["expand"]["kernel"] + params["mlp"]["expand"]["bias"]
    if preset == "official":
        norm = params["mlp"]["norm"]
        h = (h - h.mean(axis=0)) / np.sqrt(h.var(axis=0) + 1e-5) * norm["scale"] + norm["bias"]
    z = np.maximum(h, 0) @ params["mlp"]["project"]["kernel"] + params["mlp"]["project"]["bias"]
    if preset == "official":
        z = params["scale"]["scale"] * z + f
    logits = z @ params["classifier"]["linear"]["kernel"] + params["classifier"]["linear"]["bias"]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    cross_entropy = -log_p[np.arange(len(labels)), labels].mean()

    unit = lambda a: a / np.sqrt((a**2).sum(axis=1, keepdims=True))  # noqa: E731
    distance = (unit(f[: len(y)]) - unit(z[-len(y) :])) ** 2
    consistency = distance.mean() if preset == "official" else distance.sum(axis=1).mean()
    c = np.cov(z.T)
    covariance = (c**2).sum() / D - (np.diag(c) ** 2).sum() / D
    s = np.linalg.svd(z, compute_uv=False)
    singular_value = -(s[:5].mean() if preset == "official" else s[0]) / s.sum()
    return cross_entropy + weights @ np.array([consistency, covariance, singular_value])


def numerical_gradient(fn, params, step=1e-5):
    flat, build = jax.flatten_util.ravel_pytree(params)
    tree = lambda v: jax.tree.map(lambda s, p: v[s].reshape(p.shape), slices, params)  # noqa: E731
    numbers = build(np.arange(len(flat)).astype(np.float32))
    slices = jax.tree.map(lambda n: np.asarray(n).astype(int).ravel(), numbers)
    base = np.asarray(flat, np.float64)
    gradient = np.empty(len(base))
    for i in range(len(base)):
        up, down = base.copy(), base.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (fn(tree(up)) - fn(tree(down))) / (2 * step)
    return gradient


CASES = [
    (nmtune, {}, "official", [1.0, 0.04, 0.001]),
    (nmtune, {"preset": "paper"}, "paper", [0.01, 0.01, 0.01]),
    (mlp, {"preset": "paper"}, "paper", [0, 0, 0]),
]


@pytest.mark.parametrize(("method", "head", "preset", "weights"), CASES)
def test_loss_and_gradient(method, head, preset, weights):
    x = X[:, : method.views(**head)]
    task = method.make(dim=D, num_classes=C, **head)
    params, frozen, stats = initial(task)
    params = jax.tree.map(lambda p: p + 0.1 * RNG.normal(size=p.shape).astype(np.float32), params)
    grad_fn = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    (loss, (_, metrics)), gradient = grad_fn(params, frozen, stats, {"x": x, "y": Y}, jax.random.key(0))
    fn = lambda p: reference_loss(p, x, Y, preset=preset, weights=np.array(weights))  # noqa: E731
    assert loss == pytest.approx(fn(jax.tree.map(lambda p: np.asarray(p, np.float64), params)), rel=1e-5)
    assert metrics["loss"] == loss
    penalties = [metrics[name] for name in ("consistency", "covariance", "singular_value") if any(weights)]
    assert metrics["cross_entropy"] + np.dot(weights[: len(penalties)], penalties) == pytest.approx(
        float(loss), rel=1e-5
    )
    expected = numerical_gradient(fn, params)
    got = jax.flatten_util.ravel_pytree(gradient)[0]
    assert np.linalg.norm(got - expected) < 1e-4 * np.linalg.norm(expected)


def test_a_keyword_overrides_the_preset():
    assert nmtune.settings("paper", covariance_weight=0.7) == nmtune.PRESETS["paper"] | {
        "covariance_weight": 0.7
    }
    assert nmtune.make_head(num_classes=C, expansion=2).expansion == 2


def test_batch_norm_keeps_the_statistics_of_torch():
    """running = 0.9 running + 0.1 batch, the variance with divisor n - 1, over the rows of both views."""
    task = mlp.make(dim=D, num_classes=C)
    params, frozen, stats = initial(task)
    _, (stats, _) = jax.jit(task.loss)(params, frozen, stats, {"x": X, "y": Y}, jax.random.key(0))
    h = X.reshape(-1, D) @ params["mlp"]["expand"]["kernel"] + params["mlp"]["expand"]["bias"]
    norm = stats["batch_stats"]["mlp"]["norm"]
    np.testing.assert_allclose(norm["mean"], 0.1 * h.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm["var"], 0.9 + 0.1 * np.var(h, axis=0, ddof=1), rtol=1e-5)
    # In evaluation mode these are used, and one row's logits do not depend on the others.
    logits = jax.jit(task.predict)(params, frozen, stats, {"x": X[:, 0]})
    np.testing.assert_allclose(logits[:2], task.predict(params, frozen, stats, {"x": X[:2, 0]}), rtol=1e-5)


def test_features_are_what_the_classifier_sees():
    task = nmtune.make(dim=D, num_classes=C)
    params, frozen, stats = initial(task)
    z = features(nmtune.make_head(num_classes=C), params, stats, X[:, 0])
    assert z.shape == (B, D)
    linear = params["classifier"]["linear"]
    np.testing.assert_allclose(
        z @ linear["kernel"] + linear["bias"], task.predict(params, frozen, stats, {"x": X[:, 0]}), atol=1e-5
    )


def test_initial_values_have_the_ranges_of_torch():
    """nn.Linear: U(-1/sqrt(fan_in), 1/sqrt(fan_in)); classifier: kaiming_uniform(a=0), U(-sqrt(6/D), sqrt(6/D))."""
    dim = 64
    params, _, _ = jax.jit(nmtune.make(dim=dim, num_classes=50).init)(jax.random.key(0), {})
    probe, _, _ = jax.jit(linear_probe.make(dim=dim, num_classes=50).init)(jax.random.key(0), {})
    inner = params["mlp"]
    for values, bound in (
        (inner["expand"]["kernel"], dim**-0.5),
        (inner["expand"]["bias"], dim**-0.5),
        (inner["project"]["kernel"], (4 * dim) ** -0.5),
        (inner["project"]["bias"], (4 * dim) ** -0.5),
        (params["classifier"]["linear"]["kernel"], (6 / dim) ** 0.5),
        (probe["linear"]["kernel"], (6 / dim) ** 0.5),
    ):
        assert 0.9 * bound < np.abs(values).max() <= bound
        assert np.std(values) == pytest.approx(bound / 3**0.5, rel=0.15)
    assert inner["expand"]["kernel"].shape == (dim, 4 * dim)
    for zeros in (params["classifier"]["linear"]["bias"], probe["linear"]["bias"], inner["norm"]["bias"]):
        np.testing.assert_array_equal(zeros, 0)
    for ones in (params["scale"]["scale"], inner["norm"]["scale"]):
        np.testing.assert_array_equal(ones, 1)


def test_linear_probe_converges_to_logistic_regression():
    rng = np.random.default_rng(1)
    y = rng.integers(4, size=400)
    x = (rng.normal(size=(400, 10)) + 0.8 * np.eye(10)[y]).astype(np.float32)
    exact = LogisticRegression(C=np.inf, tol=1e-10, max_iter=2000).fit(x, y)
    minimum = -np.log(exact.predict_proba(x)[np.arange(400), y]).mean()
    task = linear_probe.make(dim=10, num_classes=4)
    adamw = {"name": "adamw", "learning_rate": 0.05}
    (head,) = trainer.fit(task, x[:, None], [Run(y)], views=0, batch_size=400, epochs=600, optim=adamw)
    logits = trainer.predict(task, head.state, x).astype(np.float64)
    loss = -(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[np.arange(400), y].mean()
    assert loss == pytest.approx(minimum, abs=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(logits), exact.predict_proba(x), atol=2e-3)


@pytest.mark.parametrize("preset", ["official", "paper"])
def test_mlp_learns_no_more_than_logistic_regression_where_that_is_all_there_is(preset):
    """Gaussian classes with one covariance: the best classifier is linear, and softmax regression, convex, finds it."""
    rng = np.random.default_rng(2)

    def draw(rows):
        y = rng.integers(3, size=rows)
        return (rng.normal(size=(rows, 3)) + 1.2 * np.eye(3)[y]).astype(np.float32), y

    (x, y), (fresh, truth) = draw(20_000), draw(20_000)
    exact = LogisticRegression(C=np.inf).fit(x, y)
    task = mlp.make(dim=3, num_classes=3, preset=preset, views=0)
    adamw = {"name": "adamw", "learning_rate": 3e-3, "weight_decay": 1e-4}
    (head,) = trainer.fit(task, x[:, None], [Run(y)], views=0, batch_size=500, epochs=20, optim=adamw)
    logits = trainer.predict(task, head.state, fresh)
    assert np.abs(jax.nn.softmax(logits) - exact.predict_proba(fresh)).mean() < 0.02
    assert np.mean(logits.argmax(1) == truth) == pytest.approx(exact.score(fresh, truth), abs=0.01)
    assert exact.score(fresh, truth) < 0.8


@pytest.mark.parametrize("method", [linear_probe, mlp, nmtune])
def test_the_same_arguments_give_the_same_task(method):
    assert method.make(dim=4, num_classes=3) is method.make(dim=4, num_classes=3)
    assert method.make(dim=4, num_classes=3) is not method.make(dim=5, num_classes=3)


def test_views():
    assert linear_probe.views() == 0
    assert (mlp.views(), mlp.views(preset="paper"), mlp.views(views=0)) == (2, 1, 0)
    assert (nmtune.views(), nmtune.views(preset="paper"), nmtune.views(preset="paper", views=2)) == (2, 1, 2)


@pytest.mark.parametrize(
    ("method", "head", "word"),
    [
        (linear_probe, {"expansion": 4}, "expansion; it has none"),
        (mlp, {"covariance_weight": 0.1}, "valid: preset, objective, views, expansion"),
        (nmtune, {"covariance_wieght": 0.1}, "covariance_weight"),
        (nmtune, {"preset": "journal"}, "official, paper"),
        (nmtune, {"views": 3}, "views=3"),
    ],
)
def test_unknown_options_name_the_valid_ones(method, head, word):
    with pytest.raises(UserError, match=word):
        method.make(dim=D, num_classes=C, **head)
    with pytest.raises(UserError, match=word):
        method.views(**head)
