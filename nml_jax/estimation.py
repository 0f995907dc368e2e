"""What the estimators of `nml_jax.estimators` do alike: check parameters, hold rows out, train a head and apply it."""

import math
from numbers import Integral, Real
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from nml_jax.core import plugin
from nml_jax.core.errors import UserError
from nml_jax.core.writer import progress_bar
from nml_jax.tune import fraction, saved, trainer
from nml_jax.tune.runs import Run

SHOWN = ("loss", "validation_loss", "validation_accuracy")


class Split(NamedTuple):
    """The seed of a fit, and the row numbers that it trains and validates on."""

    seed: int
    train: np.ndarray
    validation: np.ndarray


def split(estimator: BaseEstimator, strata: np.ndarray) -> Split:
    """Rows are held out from each of the `strata` (N,)."""
    random = check_random_state(estimator.random_state)
    given = isinstance(estimator.random_state, Integral)
    seed = int(estimator.random_state) if given else int(random.randint(2**31 - 1))
    held_out = np.zeros(len(strata), bool)
    if estimator.early_stopping:
        held_out = fraction.held_out(strata, estimator.validation_fraction, seed)
    return Split(seed, np.flatnonzero(~held_out), np.flatnonzero(held_out))


def tune(estimator: BaseEstimator, x: np.ndarray, y: np.ndarray, split: Split, num_classes: int) -> None:
    """Trains on x (N, V, D) with the options in `head_`, and sets the fitted attributes."""
    method = plugin.find("tune", estimator._method, "make")
    weights = {name: estimator.head_[name] for name in method.SWEEPABLE}
    # The weights go in beside the Task, as a sweep's do, so that a grid search over them compiles once.
    estimator._options = estimator.head_ | {name: float(weight > 0) for name, weight in weights.items()}
    batch_size = min(64, len(split.train)) if estimator.batch_size == "auto" else int(estimator.batch_size)
    run = Run(
        y,
        seed=split.seed,
        train=split.train,
        validation=split.validation,
        frozen={name: weight for name, weight in weights.items() if weight > 0},
    )
    title, epochs = type(estimator).__name__, int(estimator.epochs)
    with progress_bar(epochs, title, unit="epoch", show=bool(estimator.verbose)) as bar:

        def on_epoch(heads: int, means: dict[str, np.ndarray]) -> None:
            bar.set_postfix({name: f"{means[name][0]:.4f}" for name in SHOWN if name in means}, refresh=False)
            bar.update()

        (fitted,) = trainer.fit(
            method.make(dim=x.shape[2], num_classes=num_classes, **estimator._options),
            x,
            [run],
            views=method.views(**estimator.head_),
            batch_size=batch_size,
            epochs=epochs,
            optim={
                "name": "adamw",
                "learning_rate": float(estimator.learning_rate),
                "weight_decay": float(estimator.weight_decay),
            },
            patience=int(estimator.n_iter_no_change) if estimator.early_stopping else 0,
            on_epoch=on_epoch,
        )
    estimator.params_, estimator.stats_ = jax.tree.map(np.array, (fitted.params, fitted.stats))
    estimator.history_, estimator.best_epoch_ = fitted.history, fitted.epoch
    estimator.n_epochs_ = len(fitted.history)


def applied(estimator: BaseEstimator) -> saved.SavedHead:
    """The head, as one that is loaded from a file."""
    check_is_fitted(estimator, "params_")
    classes = getattr(estimator, "classes_", None)
    target = None if classes is not None else (estimator.target_mean_, estimator.target_scale_)
    dim, trees = estimator.n_features_in_, (estimator.params_, estimator.stats_)
    return saved.SavedHead(estimator._method, estimator._options, classes, dim, {}, *trees, target)


def outputs(estimator: BaseEstimator, X: ArrayLike) -> np.ndarray:
    """(N, C) float64."""
    return applied(estimator).logits(checked(estimator, X)).astype(np.float64)


def checked(estimator: BaseEstimator, X: ArrayLike) -> np.ndarray:
    """x (N, D) float32, with the features that the estimator was fitted on."""
    check_is_fitted(estimator, "params_")
    return validate_data(estimator, X, dtype=np.float32, reset=False)


def with_views(estimator: BaseEstimator, x: np.ndarray, X_views: ArrayLike | None) -> np.ndarray:
    """x (N, 1 + views, D): view 0 is x (N, D)."""
    if X_views is None:
        return x[:, None]
    options = {"ensure_2d": False, "allow_nd": True, "input_name": "X_views", "estimator": estimator}
    views = check_array(X_views, dtype=np.float32, **options)
    rows, dim = x.shape
    if views.ndim != 3 or views.shape[::2] != (rows, dim) or not views.shape[1]:
        raise UserError(
            f"X_views is {views.shape} and X is {x.shape}; valid is ({rows}, views, {dim}), one view or more of each "
            "row of X from the same encoder."
        )
    return np.concatenate([x[:, None], views], axis=1)


def check(estimator: BaseEstimator) -> None:
    """Raises a UserError for parameters that say how to train, and are not as said."""
    check_number(estimator, "learning_rate", 0, above=True)
    check_number(estimator, "weight_decay", 0)
    check_number(estimator, "epochs", 1, whole=True)
    check_number(estimator, "n_iter_no_change", 1, whole=True)
    if not isinstance(estimator.batch_size, str):
        check_number(estimator, "batch_size", 1, whole=True)
    elif estimator.batch_size != "auto":
        raise UserError(f"batch_size is {estimator.batch_size!r}; valid are 'auto' and integers from 1.")


def check_number(
    estimator: BaseEstimator,
    name: str,
    least: float,
    *,
    above: bool = False,
    whole: bool = False,
    optional: bool = False,
) -> None:
    value = getattr(estimator, name)
    if optional and value is None:
        return
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < least or (above and value == least):
        kind = "integers" if whole else "finite numbers"
        bound = "" if least == -math.inf else f" above {least}" if above else f" from {least}"
        raise UserError(f"{name} is {value!r}; valid are {kind}{bound}{' and None' if optional else ''}.")
