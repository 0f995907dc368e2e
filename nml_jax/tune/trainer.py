"""Training on features that live in device memory: an epoch is one compiled program.

Programs are cached by (task, views, batch size, kind of optimiser), and JAX caches them by shape. All that differs
between the fits of a study goes in as an argument: seed, subset, learning rate, weight decay, number of steps.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nml_jax.core import optim, runtime
from nml_jax.core.errors import UserError
from nml_jax.core.task import PyTree, Task, TrainState

History = list[dict[str, float]]


def fit(
    task: Task,
    tx_config: dict[str, Any],
    x: jax.Array,
    y: jax.Array,
    *,
    views: int,
    batch_size: int,
    epochs: int,
    seed: int,
    subset: np.ndarray | None = None,
    on_epoch: Callable[[int, dict[str, jax.Array]], None] | None = None,
) -> tuple[PyTree, PyTree, PyTree, History]:
    """Trains `task` for `epochs` on features x (N, V, D) with labels y (N,).

    An epoch goes once over the n chosen rows in random order, in ceil(n / batch_size) batches of equal size. The
    last one is filled up from the front of the epoch's order (PyTorch's loader makes it smaller instead), so that
    BatchNorm and the regularisers always see whole batches; with n < batch_size rows repeat within the batch.

    Everything random depends on (seed, epoch, step) and on N, not on what ran before.

    Args:
      tx_config: arguments of `core.optim.make` but `total_steps`, which follows from the rest.
      x: view 0 is the clean one.
      views: how many different augmented views (1 ... V - 1) of each row a step draws; 0 takes view 0.
      subset: (N,) bool or row numbers, which rows to train on; None is all. It does not lead to recompilation.
      on_epoch: called after each epoch with (epoch, mean metrics still on the device).

    Returns:
      params, frozen, stats, and for each epoch the means of the metrics over its batches.

    Raises:
      UserError: one of these is not as said, or the loss became NaN or infinite.
    """
    member = _membership(subset, len(x))
    _check(x, y, member, views, batch_size, epochs)
    rows = int(member.sum())
    steps = math.ceil(rows / batch_size)
    kind, values = _split_config({**tx_config, "total_steps": epochs * steps})
    program = _program(task, views, batch_size, kind)
    state = program.start(runtime.key(seed, "tune.init"), x, y, values)
    rng, member = runtime.key(seed, "tune.epoch"), jnp.asarray(member)
    history = []
    for epoch in range(epochs):
        state, means = program.epoch(state, x, y, member, rows, steps, jax.random.fold_in(rng, epoch), values)
        history.append(means)
        if on_epoch is not None:
            on_epoch(epoch, means)
    history = [{name: float(value) for name, value in means.items()} for means in jax.device_get(history)]
    if not math.isfinite(history[-1]["loss"]):
        first = next(i for i, means in enumerate(history) if not math.isfinite(means["loss"]))
        raise UserError(
            f"The loss became {history[-1]['loss']}, first in epoch {first + 1} of {epochs}. Lower the learning rate "
            f"({tx_config['learning_rate']}) or lengthen the warm-up, or look at the scale of the features."
        )
    return state.params, state.frozen, state.stats, history


def predict(task: Task, state: tuple[PyTree, PyTree, PyTree], x: np.ndarray, chunk: int = 4096) -> np.ndarray:
    """Logits (N, C) of features x (N, D) in evaluation mode, `chunk` rows at a time.

    Args:
      state: (params, frozen, stats), as `fit` returns them.
    """
    size = min(chunk, len(x))
    logits = []
    for start in range(0, len(x), size):
        part = np.asarray(x[start : start + size])
        filled = np.concatenate([part, np.zeros((size - len(part), x.shape[1]), part.dtype)])
        logits.append(np.asarray(_predictor(task)(*state, {"x": filled}))[: len(part)])
    return np.concatenate(logits)


class _Program(NamedTuple):
    start: Callable[..., TrainState]
    epoch: Callable[..., tuple[TrainState, dict[str, jax.Array]]]


@functools.cache
def _program(task: Task, views: int, batch_size: int, kind: tuple[tuple[str, Any], ...]) -> _Program:
    def optimizer(values: dict[str, jax.Array]) -> optax.GradientTransformation:
        return optim.make(**dict(kind), **values)

    @jax.jit
    def start(rng: jax.Array, x: jax.Array, y: jax.Array, values: dict[str, jax.Array]) -> TrainState:
        shape = (batch_size, max(1, views), x.shape[2])
        batch = {"x": jax.ShapeDtypeStruct(shape, x.dtype), "y": jax.ShapeDtypeStruct(shape[:1], y.dtype)}
        params, frozen, stats = task.init(rng, batch)
        opt_state = optimizer(values).init(params)
        return TrainState(step=jnp.int32(0), params=params, frozen=frozen, stats=stats, opt_state=opt_state)

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(
        state: TrainState,
        x: jax.Array,
        y: jax.Array,
        member: jax.Array,
        rows: jax.Array,
        steps: jax.Array,
        rng: jax.Array,
        values: dict[str, jax.Array],
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        tx = optimizer(values)
        order_rng, steps_rng = jax.random.split(rng)
        # Rows outside the subset sort last; the first `rows` of `order` are the subset in random order.
        order = jnp.argsort(jnp.where(member, jax.random.uniform(order_rng, member.shape), 2.0))

        def step(i: jax.Array, state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
            views_rng, loss_rng = jax.random.split(jax.random.fold_in(steps_rng, i))
            chosen = order[(i * batch_size + jnp.arange(batch_size)) % rows]
            drawn = _draw_views(views_rng, batch_size, x.shape[1], views)
            batch = {"x": x[chosen[:, None], drawn], "y": y[chosen]}
            grad_fn = jax.grad(task.loss, has_aux=True)
            grads, (stats, metrics) = grad_fn(state.params, state.frozen, state.stats, batch, loss_rng)
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return state.replace(
                step=state.step + 1, params=params, stats=stats, opt_state=opt_state
            ), metrics

        def body(i: jax.Array, carry: tuple[TrainState, dict]) -> tuple[TrainState, dict]:
            state, sums = carry
            state, metrics = step(i, state)
            return state, jax.tree.map(jnp.add, sums, metrics)

        shapes = jax.eval_shape(step, jnp.int32(0), state)[1]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        state, sums = jax.lax.fori_loop(0, steps, body, (state, zeros))
        return state, jax.tree.map(lambda total: total / steps, sums)

    return _Program(start, epoch)


@functools.cache
def _predictor(task: Task) -> Callable[..., jax.Array]:
    return jax.jit(task.predict)


def _draw_views(rng: jax.Array, rows: int, there: int, views: int) -> jax.Array:
    """(rows, views) different view numbers in 1 ... there - 1, at random; or view 0 for all, if `views` is 0."""
    if views == 0:
        return jnp.zeros((rows, 1), jnp.int32)
    return 1 + jnp.argsort(jax.random.uniform(rng, (rows, there - 1)), axis=1)[:, :views]


def _split_config(config: dict[str, Any]) -> tuple[tuple[tuple[str, Any], ...], dict[str, jax.Array]]:
    """What the program is compiled for, hashable; and what it takes as arguments."""
    valid = inspect.signature(optim.make).parameters
    unknown = sorted(config.keys() - valid.keys())
    missing = sorted({"name", "learning_rate"} - config.keys())
    if unknown or missing:
        raise UserError(
            f"The optimiser was given {', '.join(config)}; not valid: {', '.join(unknown) or 'none'}; missing: "
            f"{', '.join(missing) or 'none'}. Its options are {', '.join(valid)}."
        )
    full = {option.name: option.default for option in valid.values()} | config
    kind = tuple((k, v) for k, v in full.items() if k not in optim.TRACEABLE)
    return kind, {k: jnp.float32(full[k]) for k in optim.TRACEABLE}


def _membership(subset: np.ndarray | None, size: int) -> np.ndarray:
    if subset is None:
        return np.ones(size, bool)
    subset = np.asarray(subset)
    if subset.dtype == bool and subset.shape == (size,):
        return subset
    inside = (
        np.issubdtype(subset.dtype, np.integer) and subset.size and subset.min() >= 0 and subset.max() < size
    )
    if subset.ndim != 1 or not inside:
        raise UserError(
            f"subset is {subset.dtype} of shape {subset.shape}; valid are a mask of ({size},) booleans or row numbers "
            f"in [0, {size}), at least one."
        )
    member = np.zeros(size, bool)
    member[subset] = True
    return member


def _check(x: jax.Array, y: jax.Array, member: np.ndarray, views: int, batch_size: int, epochs: int) -> None:
    if x.ndim != 3 or y.shape != x.shape[:1]:
        raise UserError(
            f"x is {x.shape}, y is {y.shape}; valid are x (N, views, D) and y (N,) with the same N."
        )
    if not member.any():
        raise UserError("The subset to train on is empty. Choose at least one row.")
    if batch_size < 1 or epochs < 1:
        raise UserError(f"batch_size is {batch_size} and epochs is {epochs}; valid are 1 and above.")
    if views > x.shape[1] - 1:
        raise UserError(
            f"The method draws {views} different augmented views a step, but the features have {x.shape[1] - 1} beside "
            "the clean one. Extract the features with more views, or tune with config.head.views=0, on the clean one."
        )
