"""What one head is trained on, and with what."""

import dataclasses
import inspect
from typing import Any

import jax
import numpy as np

from nml_jax.core import optim as optimizers
from nml_jax.core import runtime
from nml_jax.core.errors import UserError
from nml_jax.core.task import Task
from nml_jax.tune import program as programs


@dataclasses.dataclass(frozen=True)
class Run:
    """One head: what it is trained on, and with what.

    Attributes:
      y: (N,) the labels it is told: class indices, or floats for a regression.
      train: row numbers to train on; None is all.
      validation: row numbers that are scored after each epoch, and not trained on.
      optim: values of `core.optim.TRACEABLE` in place of the fit's.
      frozen: values in place of those in the Task's `frozen`, such as {"covariance_weight": 0.1} for nmtune.
    """

    y: np.ndarray
    seed: int = 0
    train: np.ndarray | None = None
    validation: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    optim: dict[str, float] = dataclasses.field(default_factory=dict)
    frozen: dict[str, float] = dataclasses.field(default_factory=dict)


def check(
    task: Task,
    x: np.ndarray,
    runs: list[Run],
    *,
    views: int,
    batch_size: int,
    epochs: int,
    patience: int,
) -> None:
    """Raises a UserError for whatever `tune.trainer.fit` cannot be given, before anything is compiled."""
    if x.ndim != 3:
        raise UserError(
            f"x is {x.shape}; valid is (N, views, D). An (N, D) array becomes one with x[:, None]."
        )
    if not runs:
        raise UserError("There is no head to train. Give at least one run.")
    if batch_size < 1 or epochs < 1 or patience < 0:
        raise UserError(
            f"batch_size is {batch_size}, epochs is {epochs} and patience is {patience}; valid are 1 and above, and 0 "
            "and above for the patience."
        )
    if views > x.shape[1] - 1:
        raise UserError(
            f"The method draws {views} different augmented views a step, but the features have {x.shape[1] - 1} beside "
            "the clean one. Extract the features with more views, or tune on the clean one with config.head.views=0."
        )
    spec = batch_spec(x, runs, views, batch_size)
    params, frozen, stats = jax.eval_shape(lambda key: task.init(key, spec), jax.random.key(0))
    clean = {"x": jax.ShapeDtypeStruct((1, x.shape[2]), np.float32)}
    num_classes = jax.eval_shape(task.predict, params, frozen, stats, clean).shape[1]
    for run in runs:
        _check_run(run, len(x), num_classes, batch_size)
        unknown = sorted(run.frozen.keys() - frozen.keys())
        if unknown:
            raise UserError(
                f"The method has no value {', '.join(unknown)} that a sweep could change; it has "
                f"{', '.join(frozen) or 'none'} (those regularisers whose weight is not 0)."
            )
        if run.validation.size == 0 and patience:
            raise UserError(
                f"patience is {patience}, but no rows are held out to validate on. Hold some out (a validation "
                "fraction such as 0.1), or set the patience to 0."
            )


def _check_run(run: Run, size: int, num_classes: int, batch_size: int) -> None:
    if run.y.shape != (size,):
        raise UserError(
            f"x has {size} rows and y is {run.y.shape}; valid is one label for each row, ({size},)."
        )
    train = np.arange(size) if run.train is None else run.train
    for name, rows_ in (("train", train), ("validation", run.validation)):
        inside = np.issubdtype(rows_.dtype, np.integer) and ((rows_ >= 0) & (rows_ < size)).all()
        if rows_.ndim != 1 or not inside or len(np.unique(rows_)) != len(rows_):
            raise UserError(
                f"{name} is {rows_.dtype} of shape {rows_.shape}; valid are different row numbers in [0, {size})."
            )
    if np.isin(run.validation, train).any():
        raise UserError("Rows are both trained on and validated on; hold out rows that are not trained on.")
    if len(train) < batch_size:
        raise UserError(
            f"There are {len(train)} rows to train on, fewer than a batch of {batch_size}. Give a batch_size of at "
            f"most {len(train)}, or more rows (a larger fraction)."
        )
    if not np.issubdtype(run.y.dtype, np.integer):
        return
    if run.y.min() < 0 or run.y.max() >= num_classes:
        raise UserError(
            f"The labels go from {run.y.min()} to {run.y.max()}; the head has {num_classes} classes, so valid are [0, "
            f"{num_classes}). Renumber the classes, or make the head with the right num_classes."
        )
    if len(np.unique(run.y[train])) < 2:
        raise UserError(
            f"All {len(train)} rows to train on have the label {run.y[train[0]]}: one class only. At least two classes "
            "are needed; look at the labels, or take a larger fraction."
        )


def batch_spec(
    x: np.ndarray, runs: list[Run], views: int, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a step's batch."""
    shape = (batch_size, max(1, views), x.shape[2])
    y = jax.ShapeDtypeStruct(shape[:1], _label_dtype(runs[0].y))
    return {"x": jax.ShapeDtypeStruct(shape, np.float32), "y": y}


def lanes(runs: list[Run], optim: dict[str, Any], total_steps: int) -> programs.Lane:
    """What the heads are given, stacked (see `tune.program`)."""
    stacked = []
    for run in runs:
        train = np.zeros(len(run.y), bool)
        train[... if run.train is None else run.train] = True
        stacked.append(
            {
                "init": programs.key_data(runtime.key(run.seed, "tune.init")),
                "epoch": programs.key_data(runtime.key(run.seed, "tune.epoch")),
                "y": run.y.astype(_label_dtype(run.y)),
                "train": train,
                "optim": split_optim({**optim, **run.optim}, total_steps)[1],
                "frozen": {name: np.float32(value) for name, value in run.frozen.items()},
            }
        )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *stacked)


def _label_dtype(y: np.ndarray) -> type:
    return np.int32 if np.issubdtype(y.dtype, np.integer) else np.float32


def split_optim(
    optim: dict[str, Any], total_steps: int
) -> tuple[tuple[tuple[str, Any], ...], dict[str, Any]]:
    """What a program is compiled for, hashable; and what it takes as arguments."""
    valid = inspect.signature(optimizers.make).parameters
    given = {**optim, "total_steps": total_steps}
    unknown = sorted(given.keys() - valid.keys())
    missing = sorted({"name", "learning_rate"} - given.keys())
    if unknown or missing:
        raise UserError(
            f"The optimiser was given {', '.join(optim)}; not valid: {', '.join(unknown) or 'none'}; missing: "
            f"{', '.join(missing) or 'none'}. Its options are {', '.join(valid)}."
        )
    full = {option.name: option.default for option in valid.values()} | given
    kind = tuple((k, v) for k, v in full.items() if k not in optimizers.TRACEABLE)
    return kind, {k: np.float32(full[k]) for k in optimizers.TRACEABLE}


def rows(run: Run) -> int:
    return len(run.y) if run.train is None else len(run.train)
