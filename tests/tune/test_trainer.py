"""The trainer: which rows and views a step sees, reproducible, compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.core.errors import UserError
from nml_jax.core.task import Task
from nml_jax.tune import linear_probe, trainer

RNG = np.random.default_rng(0)
N, V, D = 50, 5, 8
Y = RNG.integers(3, size=N).astype(np.int32)
X = (RNG.normal(size=(N, V, D)) + np.eye(D)[Y][:, None]).astype(np.float32)
ADAMW = {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 1e-4}


def fit(task, views, **changes):
    arguments = {"x": X, "y": Y, "views": views, "batch_size": 16, "epochs": 3, "seed": 0} | changes
    return trainer.fit(task, arguments.pop("tx", ADAMW), **arguments)


SEEN = []


def report(params, frozen, stats, batch, rng):
    """A loss that learns nothing and keeps each batch."""
    keep = lambda x, y: SEEN.append((np.asarray(x)[..., 0].astype(int), np.asarray(y)))  # noqa: E731
    jax.debug.callback(keep, batch["x"], batch["y"], ordered=True)
    return 0.0 * params, (stats, {"loss": 0.0 * params})


WATCHER = Task(lambda rng, batch: (jnp.float32(1.0), {}, {}), report, lambda *_: None)


def watch(**changes):
    """(rows, views, labels) of the batches of a fit on features whose value is 100 * row + view."""
    SEEN.clear()
    x = (100 * np.arange(N)[:, None] + np.arange(V))[..., None].astype(np.float32)
    fit(WATCHER, **({"x": x, "y": np.arange(N)} | changes))
    jax.effects_barrier()
    return [(x // 100, x % 100, y) for x, y in SEEN]


@pytest.mark.parametrize(("n", "batch_size", "steps"), [(50, 16, 4), (48, 16, 3), (7, 16, 1), (3, 16, 1)])
def test_an_epoch_sees_every_chosen_row_and_fills_the_last_batch_from_its_front(n, batch_size, steps):
    batches = watch(views=1, subset=np.arange(n) + (N - n), batch_size=batch_size, epochs=2)
    assert len(batches) == 2 * steps
    epochs = [
        np.concatenate([rows[:, 0] for rows, _, _ in part]) for part in (batches[:steps], batches[steps:])
    ]
    for order in epochs:
        assert sorted(order[:n]) == list(range(N - n, N))
        np.testing.assert_array_equal(order, np.resize(order[:n], steps * batch_size))
    assert n < 10 or (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("views", [2, 4])
def test_views_are_different_augmented_ones_of_the_same_row(views):
    batches = watch(views=views, epochs=20)
    for rows, drawn, y in batches:
        assert rows.shape == (16, views)
        np.testing.assert_array_equal(rows, np.repeat(y[:, None], views, axis=1))
        assert all(len(set(row)) == views for row in drawn.tolist())
    counts = np.bincount(np.concatenate([drawn[:, 0] for _, drawn, _ in batches]), minlength=V)
    assert counts[0] == 0  # never the clean one
    assert counts[1:].min() > 0.8 * counts.sum() / (V - 1)


def test_without_views_it_is_the_clean_one():
    assert all((drawn == 0).all() and drawn.shape == (16, 1) for _, drawn, _ in watch(views=0))


def leaves(result):
    return np.asarray(jax.flatten_util.ravel_pytree(result[0])[0])


def test_same_seed_same_result():
    task = linear_probe.make(dim=D, num_classes=3)
    base = fit(task, 0)
    again = fit(task, 0)
    np.testing.assert_array_equal(leaves(base), leaves(again))
    assert base[3] == again[3]
    assert (leaves(base) != leaves(fit(task, 0, seed=1))).any()


def test_same_seed_same_rows_and_views():
    base, again, other = watch(views=2), watch(views=2), watch(views=2, seed=1)
    for left, right in zip(base, again, strict=True):
        np.testing.assert_array_equal(left[0], right[0])
        np.testing.assert_array_equal(left[1], right[1])
    assert any((left[1] != right[1]).any() for left, right in zip(base, other, strict=True))


def test_mask_and_row_numbers_are_the_same_subset():
    task = linear_probe.make(dim=D, num_classes=3)
    mask = RNG.random(N) < 0.5
    np.testing.assert_array_equal(
        leaves(fit(task, 0, subset=mask)), leaves(fit(task, 0, subset=np.flatnonzero(mask)))
    )


def test_fits_of_a_study_share_one_program():
    """Other seeds, fractions, learning rates, decays and lengths do not trace the loss again."""
    traces = []
    plain = linear_probe.make(dim=D, num_classes=3)

    def loss(*args):
        traces.append(None)
        return plain.loss(*args)

    task = plain._replace(loss=loss)
    fit(task, 0)
    first = len(traces)
    assert first > 0
    fit(task, 0, subset=np.arange(20), seed=5)
    fit(task, 0, epochs=7, tx={"name": "adamw", "learning_rate": 0.3, "weight_decay": 0.0})
    fit(task, 0, subset=np.arange(N) < 3)
    assert len(traces) == first
    fit(task, 0, batch_size=8)
    assert len(traces) > first


def test_first_steps_equal_adamw_by_hand():
    """Full batches of softmax regression with AdamW and the cosine, in float64 NumPy."""
    task = linear_probe.make(dim=D, num_classes=3)
    x, y, epochs, lr, decay = X[:, 0].astype(np.float64), np.eye(3)[Y], 20, 0.03, 0.1
    start = fit(task, 0, batch_size=N, epochs=1, tx={"name": "adamw", "learning_rate": 0.0})[0]["linear"]
    w, b = np.asarray(start["kernel"], np.float64), np.asarray(start["bias"], np.float64)
    m = v = mb = vb = 0.0
    losses = []
    for t in range(epochs):
        p = np.exp(x @ w + b)
        p /= p.sum(axis=1, keepdims=True)
        losses.append(-np.log((p * y).sum(axis=1)).mean())
        g, gb = x.T @ (p - y) / N, (p - y).mean(axis=0)
        rate = 0.5 * lr * (1 + np.cos(np.pi * t / epochs))
        m, v, mb, vb = (
            0.9 * m + 0.1 * g,
            0.999 * v + 0.001 * g**2,
            0.9 * mb + 0.1 * gb,
            0.999 * vb + 0.001 * gb**2,
        )
        c1, c2 = 1 - 0.9 ** (t + 1), 1 - 0.999 ** (t + 1)
        w = w - rate * (m / c1 / (np.sqrt(v / c2) + 1e-8) + decay * w)
        b = b - rate * (mb / c1 / (np.sqrt(vb / c2) + 1e-8) + decay * b)
    tx = {"name": "adamw", "learning_rate": lr, "weight_decay": decay}
    params, _, _, history = fit(task, 0, batch_size=N, epochs=epochs, tx=tx)
    np.testing.assert_allclose([h["loss"] for h in history], losses, rtol=1e-5)
    np.testing.assert_allclose(params["linear"]["kernel"], w, atol=1e-5)
    np.testing.assert_allclose(params["linear"]["bias"], b, atol=1e-5)


def test_on_epoch_is_called_with_the_history():
    calls = []
    history = fit(linear_probe.make(dim=D, num_classes=3), 0, on_epoch=lambda *call: calls.append(call))[3]
    assert [epoch for epoch, _ in calls] == [0, 1, 2]
    assert [float(means["loss"]) for _, means in calls] == [h["loss"] for h in history]


@pytest.mark.parametrize("chunk", [1, 7, 50, 4096])
def test_predict_in_chunks(chunk):
    task = linear_probe.make(dim=D, num_classes=3)
    params, _, _ = state = fit(task, 0)[:3]
    expected = X[:, 0] @ params["linear"]["kernel"] + params["linear"]["bias"]
    np.testing.assert_allclose(trainer.predict(task, state, X[:, 0], chunk), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"views": V}, "have 4 beside the clean one"),
        ({"subset": np.zeros(N, bool)}, "empty"),
        ({"subset": np.array([N])}, "row numbers"),
        ({"subset": np.array([-1])}, "row numbers"),
        ({"subset": np.ones(3, bool)}, "mask"),
        ({"batch_size": 0}, "1 and above"),
        ({"epochs": 0}, "1 and above"),
        ({"x": X[:, 0]}, r"N, views, D"),
        ({"y": Y[:-1]}, "same N"),
        ({"tx": {"name": "adam", "learning_rate": 0.1}}, "adamw, lamb, sgd"),
        ({"tx": {"name": "adamw", "lr": 0.1}}, "not valid: lr; missing: learning_rate"),
        ({"tx": {"name": "adamw", "learning_rate": 0.1, "schedule": "step"}}, "cosine, linear, constant"),
        ({"x": X * np.float32(np.nan)}, "Lower the learning rate"),
    ],
)
def test_bad_input(changes, word):
    with pytest.raises(UserError, match=word):
        fit(linear_probe.make(dim=D, num_classes=3), **({"views": 0} | changes))
