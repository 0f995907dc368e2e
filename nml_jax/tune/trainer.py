"""Training heads on stored features: many at once, in chunks that fit the devices, resident or streamed.

The result of a head depends on its `Run` and on the features, not on which heads are trained beside it, on how many
devices, or on whether the features fit into their memory (up to float32 rounding, as matrix products are batched
differently).
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl

from nml_jax.core.errors import UserError
from nml_jax.core.task import PyTree, Task, TrainState
from nml_jax.tune import feed as feeds
from nml_jax.tune import memory as memories
from nml_jax.tune import program as programs
from nml_jax.tune import runs as training
from nml_jax.tune.runs import Run

# Rows of a validation set that go through a head at once.
VALIDATION_ROWS = 1024


class Fitted(NamedTuple):
    """A trained head, in NumPy."""

    params: PyTree
    frozen: PyTree
    stats: PyTree
    history: list[dict[str, float]]
    """For each epoch the means of the Task's metrics, and validation_loss and validation_accuracy."""
    epoch: int
    """The epoch these parameters are of, counted from 0: the last, or the best where training may stop early."""

    @property
    def state(self) -> tuple[PyTree, PyTree, PyTree]:
        """(params, frozen, stats), for `predict`."""
        return self.params, self.frozen, self.stats

    @property
    def lost(self) -> bool:
        """Whether the loss became NaN or infinite."""
        return not math.isfinite(self.history[-1]["loss"])

    @property
    def validation(self) -> tuple[float, float]:
        """(accuracy, -loss) on the validation rows at `epoch`; the larger is the better. A lost head is the worst."""
        return _merit(self.history[self.epoch])


def fit(
    task: Task,
    x: np.ndarray,
    runs: list[Run],
    *,
    views: int,
    batch_size: int,
    epochs: int,
    optim: dict[str, Any],
    patience: int = 0,
    memory: int | None = None,
    on_epoch: Callable[[int, dict[str, np.ndarray]], None] | None = None,
) -> list[Fitted]:
    """Trains one head for each of `runs` on features x (N, V, D).

    An epoch goes once over a run's n training rows in random order, in ceil(n / batch_size) batches of equal size.
    The last one is filled up from the front of the epoch's order (PyTorch's loader makes it smaller instead), so that
    BatchNorm and the regularisers always see whole batches.

    Runs with equally many rows are trained together, as many as fit, by one compiled program.

    Args:
      x: float32; view 0 is the clean one. It may be memory-mapped; where it does not fit into half of a device's
        memory, the batches are read from it as they are needed.
      views: how many different augmented views (1 ... V - 1) of each row a step draws; 0 takes view 0.
      optim: arguments of `core.optim.make` but `total_steps`, which follows from the rest.
      patience: stop a head after so many epochs without a better validation, and return its best epoch; 0 trains to
        the end.
      memory: bytes to use on each device; None uses what is free.
      on_epoch: called after each epoch with the number of heads and their mean metrics, each (heads,).

    Raises:
      UserError: one of these is not as said, or the loss of every head became NaN or infinite.
    """
    training.check(task, x, runs, views=views, batch_size=batch_size, epochs=epochs, patience=patience)
    kind, _ = training.split_optim(optim, 1)
    devices = tuple(jax.local_devices())
    budget = min(memories.free(device) for device in devices) if memory is None else memory
    used = x if views else x[:, :1]
    size = 4 * used.size
    resident = size <= budget // 2
    spec = training.batch_spec(x, runs, views, batch_size)
    per_head = memories.head(task, spec, rows=len(x), kept=patience > 0)
    width = memories.width(task, spec, devices[0])
    room = budget - size if resident else budget // 2
    together = len(devices) * max(1, room // per_head)

    results: dict[int, Fitted] = {}
    feed = None
    for chunk in _chunks(runs, together):
        on = devices[: min(len(devices), len(chunk))]
        program = programs.build(task, views, used.shape[1], batch_size, x.shape[2], kind, on, width)
        if feed is None or feed.program is not program:
            feed = None  # frees the features on the devices, before they are placed anew
            if resident:
                feed = feeds.Resident(program, program.place(np.asarray(used, np.float32), False))
            else:
                feed = feeds.Streamed(program, used, block_bytes=budget // 8)
        with blas_limits():
            fitted = _train(feed, [runs[i] for i in chunk], batch_size, epochs, optim, patience, on_epoch)
        results |= dict(zip(chunk, fitted, strict=True))
    fitted = [results[i] for i in range(len(runs))]
    if all(f.lost for f in fitted):
        losses = [means["loss"] for means in fitted[0].history]
        first = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
        raise UserError(
            f"The loss became {losses[-1]}, first in epoch {first + 1} of {epochs}. Lower the learning rate "
            f"({(optim | runs[0].optim)['learning_rate']}) or lengthen the warm-up, or look at the scale of the "
            "features."
        )
    return fitted


def blas_limits() -> threadpoolctl.threadpool_limits:
    """A context in which LAPACK has one thread.

    OpenBLAS's threads spin for some 25 ms after each call, on the cores that XLA's matrix products need. On two cores
    the decompositions of the singular value term would then cost a fifth of a step at D = 2048, and not 3 %.
    """
    return threadpoolctl.threadpool_limits(limits=1, user_api="blas")


def predict(task: Task, state: tuple[PyTree, PyTree, PyTree], x: np.ndarray, chunk: int = 256) -> np.ndarray:
    """Logits (N, C) of features x (N, D) in evaluation mode, `chunk` rows at a time.

    Args:
      state: (params, frozen, stats), as `Fitted.state` gives them.
    """
    return in_chunks(lambda part: _predictor(task)(*state, {"x": part}), x, chunk)


def in_chunks(function: Callable[[np.ndarray], jax.Array], x: np.ndarray, chunk: int = 256) -> np.ndarray:
    """`function` of x (N, D), always `chunk` rows at a time: compiled once, and a row's result depends on it alone."""
    parts = []
    for start in range(0, len(x), chunk):
        part = np.asarray(x[start : start + chunk], np.float32)
        filled = np.concatenate([part, np.zeros((chunk - len(part), x.shape[1]), np.float32)])
        parts.append(np.asarray(function(filled))[: len(part)])
    return np.concatenate(parts)


@functools.cache
def _predictor(task: Task) -> Callable[..., jax.Array]:
    return jax.jit(task.predict)


def _chunks(runs: list[Run], together: int) -> Iterator[list[int]]:
    """Numbers of runs that are trained together: equally many rows, at most `together`, in chunks of like size."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, run in enumerate(runs):
        groups.setdefault((training.rows(run), len(run.validation)), []).append(i)
    for group in groups.values():
        size = math.ceil(len(group) / math.ceil(len(group) / together))
        yield from (group[first : first + size] for first in range(0, len(group), size))


def _train(
    feed: feeds.Resident | feeds.Streamed,
    runs: list[Run],
    batch_size: int,
    epochs: int,
    optim: dict[str, Any],
    patience: int,
    on_epoch: Callable[[int, dict[str, np.ndarray]], None] | None,
) -> list[Fitted]:
    """Trains the heads of one chunk."""
    program, rows, heads = feed.program, training.rows(runs[0]), len(runs)
    steps = math.ceil(rows / batch_size)
    runs = runs + [runs[-1]] * (-heads % len(program.devices))  # so that the devices get equally many
    lane = program.place(training.lanes(runs, optim, epochs * steps), True)
    validation = np.stack([run.validation for run in runs]).astype(np.int32)
    labels = lane["y"][np.arange(len(runs))[:, None], validation]
    state = program.start(lane)
    best = _Best(len(runs), patience)
    kept = jax.tree.map(jnp.copy, (state.params, state.stats)) if patience else None
    histories: list[list[dict[str, float]]] = [[] for _ in runs]
    for number in range(epochs):
        state, sums = feed.epoch(state, lane, rows, steps, number)
        means = {name: np.asarray(total) / steps for name, total in sums.items()}
        if validation.size:
            means |= _validate(feed, state, validation, labels)
        for i, history in enumerate(histories):
            history.append({name: float(values[i]) for name, values in means.items()})
        if on_epoch is not None:
            on_epoch(heads, {name: values[:heads] for name, values in means.items()})
        better = best.update([_merit(history[-1]) for history in histories], number)
        if patience:
            kept = program.keep(kept, (state.params, state.stats), better)
        if best.all_stopped or not np.isfinite(means["loss"]).any():
            break
    params, stats = jax.device_get(kept if patience else (state.params, state.stats))
    frozen = jax.device_get(state.frozen)
    fitted = []
    for i in range(heads):
        trees = (jax.tree.map(lambda leaf, i=i: leaf[i], tree) for tree in (params, frozen, stats))
        fitted.append(Fitted(*trees, histories[i], best.epoch[i] if patience else number))
    return fitted


class _Best:
    """For each head its best epoch so far, and whether it has gone `patience` epochs without a better one."""

    def __init__(self, heads: int, patience: int):
        self._merit = [(-math.inf, -math.inf)] * heads
        self.epoch = [0] * heads
        self._stopped = np.zeros(heads, bool)
        self._patience = patience

    def update(self, merits: list[tuple[float, float]], number: int) -> np.ndarray:
        """(heads,) bool: which heads are better than ever at epoch `number`, and have not stopped."""
        better = np.array([m > b for m, b in zip(merits, self._merit, strict=True)]) & ~self._stopped
        for i in np.flatnonzero(better):
            self._merit[i], self.epoch[i] = merits[i], number
        if self._patience:
            self._stopped |= number - np.array(self.epoch) >= self._patience
        return better

    @property
    def all_stopped(self) -> bool:
        return bool(self._stopped.all())


def _validate(
    feed: feeds.Resident | feeds.Streamed, state: TrainState, validation: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """validation_loss and validation_accuracy of each head, on its rows (heads, M)."""
    total = validation.shape[1]
    size = min(VALIDATION_ROWS, total)
    sums: dict[str, np.ndarray] = {}
    for first in range(0, total, size):
        # The last block is shifted back to be as long as the others; what was counted is masked.
        start = min(first, total - size)
        block = slice(start, start + size)
        mask = np.broadcast_to(np.arange(start, start + size) >= first, (len(labels), size))
        scores = feed.program.score(state, labels[:, block], feed.clean(validation[:, block]), mask)
        for name, value in scores.items():
            sums[name] = sums.get(name, 0.0) + np.asarray(value, np.float64)
    return {f"validation_{name}": value / total for name, value in sums.items()}


def _merit(means: dict[str, float]) -> tuple[float, float]:
    """What is compared between epochs and between heads; larger is better, and a lost head is the worst."""
    if "validation_loss" not in means or not math.isfinite(means["validation_loss"]):
        return -math.inf, -math.inf
    return means.get("validation_accuracy", 0.0), -means["validation_loss"]
