"""The trainer: which rows and views a step sees, reproducible, compiled once; many heads are each as if alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.core.errors import UserError
from nml_jax.core.task import Task
from nml_jax.tune import linear_probe, memory, nmtune, trainer
from nml_jax.tune.runs import Run

RNG = np.random.default_rng(0)
N, V, D = 50, 5, 8
Y = RNG.integers(3, size=N).astype(np.int32)
X = (RNG.normal(size=(N, V, D)) + np.eye(D)[Y][:, None]).astype(np.float32)
ADAMW = {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 1e-4}
PROBE = linear_probe.make(dim=D, num_classes=3)


def fit_all(task, runs, views=0, **changes):
    options = {"views": views, "batch_size": 16, "epochs": 3, "optim": ADAMW} | changes
    return trainer.fit(task, options.pop("x", X), runs, **options)


def fit(task=PROBE, views=0, *, y=Y, seed=0, train=None, validation=None, **changes):
    held_out = np.zeros(0, np.int64) if validation is None else validation
    return fit_all(task, [Run(y, seed=seed, train=train, validation=held_out)], views, **changes)[0]


SEEN = []


def report(params, frozen, stats, batch, rng):
    """A loss that learns nothing and keeps each batch."""
    keep = lambda x, y: SEEN.append((np.asarray(x)[..., 0].astype(int), np.asarray(y)))  # noqa: E731
    jax.debug.callback(keep, batch["x"], batch["y"], ordered=True)
    return 0.0 * params, (stats, {"loss": 0.0 * params})


WATCHER = Task(
    lambda rng, batch: (jnp.float32(1.0), {}, {}),
    report,
    lambda p, f, s, batch: jnp.zeros((len(batch["x"]), N)),
)
NUMBERED = (100 * np.arange(N)[:, None] + np.arange(V))[..., None].astype(np.float32)


def watch(views=0, **changes):
    """(rows, views, labels) of the batches of a fit on features whose value is 100 * row + view."""
    SEEN.clear()
    fit(WATCHER, views, **({"x": NUMBERED, "y": np.arange(N)} | changes))
    jax.effects_barrier()
    return [(x // 100, x % 100, y) for x, y in SEEN]


@pytest.mark.parametrize(("n", "batch_size", "steps"), [(50, 16, 4), (48, 16, 3), (16, 16, 1), (20, 16, 2)])
def test_an_epoch_sees_every_chosen_row_and_fills_the_last_batch_from_its_front(n, batch_size, steps):
    batches = watch(views=1, train=np.arange(n) + (N - n), batch_size=batch_size, epochs=2)
    assert len(batches) == 2 * steps
    epochs = [
        np.concatenate([rows[:, 0] for rows, _, _ in part]) for part in (batches[:steps], batches[steps:])
    ]
    for order in epochs:
        assert sorted(order[:n]) == list(range(N - n, N))
        np.testing.assert_array_equal(order, np.resize(order[:n], steps * batch_size))
    assert (epochs[0] != epochs[1]).any()


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
    assert all((drawn == 0).all() and drawn.shape == (16, 1) for _, drawn, _ in watch())


def leaves(head):
    return np.asarray(jax.flatten_util.ravel_pytree(head.params)[0])


def test_same_seed_same_result():
    base, again = fit(), fit()
    np.testing.assert_array_equal(leaves(base), leaves(again))
    assert base.history == again.history
    assert (leaves(base) != leaves(fit(seed=1))).any()


def test_same_seed_same_rows_and_views():
    base, again, other = watch(views=2), watch(views=2), watch(views=2, seed=1)
    for left, right in zip(base, again, strict=True):
        np.testing.assert_array_equal(left[0], right[0])
        np.testing.assert_array_equal(left[1], right[1])
    assert any((left[1] != right[1]).any() for left, right in zip(base, other, strict=True))


def test_streamed_batches_are_those_in_memory():
    """4 kB: the features (1 kB x 50) stay on the host, and come in blocks of one step."""
    here, there = watch(views=2, epochs=2), watch(views=2, epochs=2, memory=400)
    assert len(here) == len(there) == 8
    for left, right in zip(here, there, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a, b)


def sweep():
    """Heads of every kind: two sizes of training set, other seeds, labels, rates and weights."""
    rows = RNG.permutation(N)
    noisy = np.where(RNG.random(N) < 0.3, (Y + 1) % 3, Y)
    return [
        Run(
            y,
            seed=seed,
            train=np.sort(rows[:n]),
            validation=np.sort(rows[40:]),
            optim={"learning_rate": rate},
            frozen={"covariance_weight": weight},
        )
        for n in (40, 20)
        for y, seed, rate, weight in [(Y, 0, 1e-2, 0.04), (Y, 1, 1e-3, 0.04), (noisy, 0, 1e-2, 0.5)]
    ]


# From least to most divided: all heads in one program on one device each; in chunks; streamed, each head alone.
@pytest.mark.parametrize("budget", [None, 300_000, 10_000])
def test_many_heads_are_each_as_if_alone(budget):
    """Also over eight devices, in chunks, and on features that stay on the host. (Not the weights: those before
    BatchNorm have gradients of rounding noise, which AdamW scales to whole steps.)"""
    task = nmtune.make(dim=D, num_classes=3)
    runs = sweep()
    together = fit_all(task, runs, views=2, memory=budget)
    for run, head in zip(runs, together, strict=True):
        (alone,) = fit_all(task, [run], views=2)
        assert len(head.history) == 3
        for ours, theirs in zip(head.history, alone.history, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
        np.testing.assert_allclose(
            trainer.predict(task, head.state, X[:, 0]), trainer.predict(task, alone.state, X[:, 0]), atol=5e-3
        )
    assert len({head.history[-1]["loss"] for head in together}) == len(runs)


def test_one_device_gives_what_eight_give(monkeypatch):
    runs = sweep()
    task = nmtune.make(dim=D, num_classes=3)
    eight = fit_all(task, runs, views=2)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    for ours, theirs in zip(eight, fit_all(task, runs, views=2), strict=True):
        for a, b in zip(ours.history, theirs.history, strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


def test_weights_of_the_regularisers_are_those_of_the_run():
    """A head of a sweep over a weight is the head of a Task with that weight."""
    (swept,) = fit_all(
        nmtune.make(dim=D, num_classes=3), [Run(Y, frozen={"covariance_weight": 0.7})], views=2
    )
    (own,) = fit_all(nmtune.make(dim=D, num_classes=3, covariance_weight=0.7), [Run(Y)], views=2)
    assert swept.history[-1] == pytest.approx(own.history[-1], rel=1e-6)
    assert swept.frozen["covariance_weight"] == np.float32(0.7)


def test_chunks_are_as_large_as_the_memory_allows():
    spec = {"x": jax.ShapeDtypeStruct((16, 2, 64), jnp.float32), "y": jax.ShapeDtypeStruct((16,), jnp.int32)}
    task = nmtune.make(dim=64, num_classes=3)
    one = memory.head(task, spec, rows=1000, kept=False)
    parameters = 4 * (2 * 64 * 256 + 256 + 64 + 2 * 256 + 64 + 64 * 3 + 3)
    # AdamW needs five copies, and three are written anew. The bound on what a step computes lies above the two hidden
    # layers of 32 rows.
    assert 8 * parameters + 2 * 4 * 32 * 256 < one < 40 * parameters
    assert memory.head(task, spec, rows=1000, kept=True) == one + parameters
    assert memory.head(task, spec, rows=2000, kept=False) > one
    runs = [Run(Y, seed=s) for s in range(10)] + [Run(Y, train=np.arange(20))]
    assert list(trainer._chunks(runs, together=4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10]]
    assert 0 < memory.free(jax.devices()[0]) < 2**50


@pytest.mark.parametrize("width", [1, 3])
def test_how_many_go_side_by_side_does_not_matter(monkeypatch, width):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    runs = [Run(Y, seed=s) for s in range(6)]
    together = fit_all(PROBE, runs)
    monkeypatch.setattr(memory, "width", lambda *_: width)
    for ours, theirs in zip(fit_all(PROBE, runs), together, strict=True):
        np.testing.assert_allclose(leaves(ours), leaves(theirs), atol=1e-5)


def test_validation_is_scored_on_the_held_out_rows_only():
    rows = np.arange(N)
    head = fit(train=rows[:40], validation=rows[40:], epochs=5)
    logits = trainer.predict(PROBE, head.state, X[40:, 0]).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert head.history[-1]["validation_accuracy"] == pytest.approx((logits.argmax(axis=1) == Y[40:]).mean())
    assert head.history[-1]["validation_loss"] == pytest.approx(
        -log_p[np.arange(10), Y[40:]].mean(), rel=1e-5
    )
    assert head.epoch == 4
    assert head.validation == (head.history[-1]["validation_accuracy"], -head.history[-1]["validation_loss"])


def test_validation_in_blocks(monkeypatch):
    rows = np.arange(N)
    whole = fit(train=rows[:30], validation=rows[30:])
    monkeypatch.setattr(trainer, "VALIDATION_ROWS", 8)
    blocks = fit(train=rows[:30], validation=rows[30:])
    for a, b in zip(whole.history, blocks.history, strict=True):
        assert a == pytest.approx(b, rel=1e-6)


def test_early_stopping_returns_the_best_epoch():
    """Labels that cannot be learnt: validation soon stops getting better, at another epoch in each head."""
    y = RNG.integers(3, size=N)
    rows = np.arange(N)
    runs = [Run(y, seed=s, train=rows[:30], validation=rows[30:]) for s in range(4)]
    heads = fit_all(PROBE, runs, epochs=60, patience=5, optim=ADAMW | {"schedule": "constant"})
    assert len({head.epoch for head in heads}) > 1
    for run, head in zip(runs, heads, strict=True):
        merits = [(m["validation_accuracy"], -m["validation_loss"]) for m in head.history]
        best = 0  # by hand: five epochs without a better one end it
        for epoch, merit in enumerate(merits):
            if merit > merits[best] and epoch - best <= 5:
                best = epoch
        assert head.epoch == best
        accuracy = (trainer.predict(PROBE, head.state, X[30:, 0]).argmax(axis=1) == y[30:]).mean()
        assert accuracy == pytest.approx(head.history[best]["validation_accuracy"])
        (alone,) = fit_all(PROBE, [run], epochs=60, patience=5, optim=ADAMW | {"schedule": "constant"})
        assert alone.epoch == best
        assert len(alone.history) == min(60, best + 6)


def test_a_lost_head_does_not_take_the_others_along():
    runs = [Run(Y, optim={"learning_rate": rate}) for rate in (1e-2, float("inf"))]
    good, lost = fit_all(PROBE, runs)
    assert (good.lost, lost.lost) == (False, True)
    assert good.history == fit().history
    assert lost.validation == (-np.inf, -np.inf)


def test_fits_of_a_study_share_one_program():
    """Other seeds, fractions, learning rates, decays and lengths do not trace the loss again."""
    traces = []

    def loss(*args):
        traces.append(None)
        return PROBE.loss(*args)

    task = PROBE._replace(loss=loss)
    fit(task)
    # The bound on the memory traces the loss too, once for each fit.
    first = len(traces)
    assert first > 1
    fit(task, train=np.arange(20), seed=5)
    fit(task, epochs=7, optim={"name": "adamw", "learning_rate": 0.3, "weight_decay": 0.0})
    fit(task, train=np.arange(N)[:17])
    assert len(traces) == first + 3
    fit(task, batch_size=8)
    assert len(traces) > first + 4


def test_first_steps_equal_adamw_by_hand():
    """Full batches of softmax regression with AdamW and the cosine, in float64 NumPy."""
    x, y, epochs, lr, decay = X[:, 0].astype(np.float64), np.eye(3)[Y], 20, 0.03, 0.1
    start = fit(batch_size=N, epochs=1, optim={"name": "adamw", "learning_rate": 0.0}).params["linear"]
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
    head = fit(
        batch_size=N, epochs=epochs, optim={"name": "adamw", "learning_rate": lr, "weight_decay": decay}
    )
    np.testing.assert_allclose([means["loss"] for means in head.history], losses, rtol=1e-5)
    np.testing.assert_allclose(head.params["linear"]["kernel"], w, atol=1e-5)
    np.testing.assert_allclose(head.params["linear"]["bias"], b, atol=1e-5)


def test_on_epoch_is_called_with_the_history():
    calls = []
    heads = fit_all(PROBE, [Run(Y, seed=s) for s in (0, 1, 2)], on_epoch=lambda *call: calls.append(call))
    assert [count for count, _ in calls] == [3, 3, 3]
    for epoch, (_, means) in enumerate(calls):
        assert means["loss"].tolist() == [head.history[epoch]["loss"] for head in heads]


@pytest.mark.parametrize("chunk", [1, 7, 50, 256])
def test_predict_in_chunks(chunk):
    head = fit()
    expected = X[:, 0] @ head.params["linear"]["kernel"] + head.params["linear"]["bias"]
    np.testing.assert_allclose(trainer.predict(PROBE, head.state, X[:, 0], chunk), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"views": V}, "have 4 beside the clean one"),
        ({"train": np.zeros(0, int)}, "fewer than a batch"),
        ({"train": np.arange(15)}, "There are 15 rows to train on, fewer than a batch of 16"),
        ({"train": np.arange(N) + 1}, "row numbers"),
        ({"train": np.arange(N) - 1}, "row numbers"),
        ({"train": np.zeros(N, int)}, "different row numbers"),
        ({"train": np.ones(N, bool)}, "row numbers"),
        ({"train": np.arange(30), "validation": np.arange(29, 40)}, "both trained on and validated on"),
        ({"train": np.flatnonzero(Y == 1), "batch_size": 4}, "one class only"),
        ({"y": Y + 1}, r"from 1 to 3; the head has 3 classes"),
        ({"y": Y - 1}, r"from -1 to 1; the head has 3 classes"),
        ({"batch_size": 0}, "1 and above"),
        ({"epochs": 0}, "1 and above"),
        ({"patience": -1}, "0 and above"),
        ({"patience": 2}, "no rows are held out"),
        ({"x": X[:, 0]}, r"N, views, D"),
        ({"y": Y[:-1]}, "one label for each row"),
        ({"optim": {"name": "adam", "learning_rate": 0.1}}, "adamw, lamb, sgd"),
        ({"optim": {"name": "adamw", "lr": 0.1}}, "not valid: lr; missing: learning_rate"),
        ({"optim": {"name": "adamw", "learning_rate": 0.1, "schedule": "step"}}, "cosine, linear, constant"),
        ({"x": X * np.float32(np.nan)}, "Lower the learning rate"),
    ],
)
def test_bad_input(changes, word):
    with pytest.raises(UserError, match=word):
        fit(**changes)


def test_bad_sweeps():
    with pytest.raises(UserError, match="no value covariance_weigth"):
        fit_all(nmtune.make(dim=D, num_classes=3), [Run(Y, frozen={"covariance_weigth": 1.0})], views=2)
    with pytest.raises(UserError, match="no value covariance_weight that a sweep could change; it has none"):
        fit_all(PROBE, [Run(Y, frozen={"covariance_weight": 1.0})])
    with pytest.raises(UserError, match="no head to train"):
        fit_all(PROBE, [])
