"""scikit-learn estimators for those who have embeddings and labels: NMTune and the linear probe.

    from nml_jax import NMTuneClassifier

    classifier = NMTuneClassifier(random_state=0).fit(X, y)  # X (N, D) embeddings, y (N,) labels of any kind
    classifier.predict(X), classifier.predict_proba(X), classifier.transform(X)

The training is that of `tune.trainer`, in float32: the same arrays, options and seed give the same head. A fitted
estimator holds NumPy arrays only, so it can be pickled, copied and sent to other processes.
"""

import math
import os
from typing import Any

import numpy as np
import scipy.special
from numpy.typing import ArrayLike
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    RegressorMixin,
    TransformerMixin,
)
from sklearn.utils import Tags, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from nml_jax import estimation
from nml_jax.core.errors import UserError
from nml_jax.features import files
from nml_jax.tune import nmtune, saved


class _Classifier(ClassifierMixin):
    """What a tuned head with classes can do."""

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """The logits (N, C) of X (N, D); of two classes (N,), the second's minus the first's. float64."""
        logits = estimation.outputs(self, X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_log_proba(self, X: ArrayLike) -> np.ndarray:
        """(N, C) float64: the log-softmax of the logits of X (N, D)."""
        return scipy.special.log_softmax(estimation.outputs(self, X), axis=1)

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """(N, C) float64: the softmax of the logits of X (N, D), in the order of `classes_`."""
        return scipy.special.softmax(estimation.outputs(self, X), axis=1)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """(N,): the class of the largest logit of each row of X (N, D)."""
        logits = estimation.outputs(self, X)
        return self.classes_[logits.argmax(axis=1)]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the head as one safetensors file (see `tune.saved`), which `nml_jax.load_head` opens."""
        check_is_fitted(self, "params_")
        # Floats that are classes are whole numbers, or `fit` had refused them.
        classes = self.classes_.astype(np.int64) if self.classes_.dtype.kind == "f" else self.classes_
        trees = {"params": self.params_, "stats": self.stats_}
        saved.save(path, method=self._method, head=self.head_, classes=classes, **trees)

    def _read(self, X: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """x (N, D) float32 and class numbers (N,); sets `classes_`."""
        estimation.check(self)
        x, y = validate_data(self, X, y, dtype=np.float32, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, numbers = files.encode(y, names=["y"])
        return x, numbers


class LinearProbeClassifier(_Classifier, BaseEstimator):
    """Softmax regression on the embeddings as they are, trained with AdamW as the papers do (protocol: 30 epochs).

    Args:
      learning_rate: AdamW's, which falls to zero along a cosine.
      weight_decay: AdamW's.
      epochs: how often the training rows are gone through.
      batch_size: rows of a step; "auto" is 64, or all rows where there are fewer.
      early_stopping: hold out `validation_fraction` of each class's rows, stop after `n_iter_no_change` epochs
        without a better accuracy (then loss) on them, and keep the best epoch's head.
      random_state: None, an integer (the head is then that of `--config.seed`), or a `numpy.random.RandomState`.
      verbose: show a progress bar.

    Attributes:
      classes_: (C,) the sorted different labels.
      history_: for each epoch a dict of its mean loss and accuracy, and those on the validation rows.
      n_epochs_: how many epochs were trained; `history_` has as many entries.
      best_epoch_: the entry of `history_` that the head is of: the last, or the best with `early_stopping`.
      params_, stats_: what was learned, nested dicts of NumPy arrays.
      head_: the options of the head; none here.
      n_features_in_, feature_names_in_: as everywhere in scikit-learn.
    """

    _method = "linear_probe"

    def __init__(
        self,
        *,
        learning_rate: float = 0.01,
        weight_decay: float = 1e-4,
        epochs: int = 30,
        batch_size: int | str = "auto",
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ):
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike) -> "LinearProbeClassifier":
        """Trains on embeddings X (N, D) and labels y (N,).

        Raises:
          ValueError: a parameter, X or y is not as said, y has one class, or the loss became NaN or infinite.
        """
        x, numbers = self._read(X, y)
        self.head_ = {}
        estimation.tune(self, x[:, None], numbers, estimation.split(self, numbers), len(self.classes_))
        return self


class _NMTune(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """What NMTune's estimators have in common."""

    _method = "nmtune"

    def __init__(
        self,
        preset: str = "official",
        *,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        epochs: int = 30,
        batch_size: int | str = "auto",
        consistency_weight: float | None = None,
        covariance_weight: float | None = None,
        singular_value_weight: float | None = None,
        expansion: int | None = None,
        batch_norm: bool | None = None,
        residual: bool | None = None,
        residual_scale: float | None = None,
        consistency_reduction: str | None = None,
        singular_value_top_k: int | None = None,
        singular_value_method: str | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ):
        self.preset = preset
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.consistency_weight = consistency_weight
        self.covariance_weight = covariance_weight
        self.singular_value_weight = singular_value_weight
        self.expansion = expansion
        self.batch_norm = batch_norm
        self.residual = residual
        self.residual_scale = residual_scale
        self.consistency_reduction = consistency_reduction
        self.singular_value_top_k = singular_value_top_k
        self.singular_value_method = singular_value_method
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.verbose = verbose

    def transform(self, X: ArrayLike) -> np.ndarray:
        """(N, D) float32: Z, what the head makes of X (N, D), in evaluation mode."""
        return estimation.applied(self).transform(estimation.checked(self, X))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_

    def _settings(self, objective: str, n_views: int) -> dict[str, Any]:
        """All options of the head: the preset's, and in their place those that are not None."""
        for name in nmtune.SWEEPABLE:
            estimation.check_number(self, name, 0, optional=True)
        for name in ("expansion", "singular_value_top_k"):
            estimation.check_number(self, name, 1, whole=True, optional=True)
        estimation.check_number(self, "residual_scale", -math.inf, optional=True)
        for name in ("batch_norm", "residual"):
            if getattr(self, name) not in (None, True, False):
                raise UserError(f"{name} is {getattr(self, name)!r}; valid are True, False and None.")
        given = {name: getattr(self, name) for name in nmtune.PRESETS["official"] if hasattr(self, name)}
        # NumPy's numbers, as a grid search may give, become Python's: the options are stored as JSON.
        given = {k: v.item() if isinstance(v, np.generic) else v for k, v in given.items() if v is not None}
        values = nmtune.settings(self.preset, objective=objective, **given)
        return values | {"views": min(values["views"], n_views)}


class NMTuneClassifier(_NMTune, _Classifier, BaseEstimator):
    """NMTune: an MLP reshapes the embeddings under three regularisers, and a linear classifier is on top.

    As in the published recipe it wants augmented views of the training samples, `fit(X, y, X_views=...)`; without
    them it trains on X itself.

    Args:
      preset: "official" (the published code: BatchNorm, residual, two views) or "paper" (eqs. 3-6 of ICLR 2024).
      consistency_weight, covariance_weight, singular_value_weight: of the regularisers; 0 switches one off, and in
        these and the next ones None is the preset's value.
      expansion, batch_norm, residual, residual_scale: the MLP is Linear(D -> expansion D), BatchNorm if `batch_norm`,
        ReLU, Linear(-> D); with `residual`, Z = scale * MLP(F) + F, where the learnable scale begins there.
      consistency_reduction, singular_value_top_k, singular_value_method: see `tune.regularizers`.
      learning_rate, weight_decay, epochs, batch_size, early_stopping, validation_fraction, n_iter_no_change,
        random_state, verbose: as `LinearProbeClassifier`'s.

    Attributes: as `LinearProbeClassifier`'s; `head_` has all options of the head, with None resolved.
    """

    def fit(self, X: ArrayLike, y: ArrayLike, *, X_views: ArrayLike | None = None) -> "NMTuneClassifier":
        """Trains on embeddings X (N, D) and labels y (N,).

        Args:
          X_views: (N, views, D) embeddings of augmented views of the same rows, prepared as X is. A step draws as many
            of them as the preset says ("official" 2, "paper" 1), if there are; the early stopping looks at X.

        Raises:
          ValueError: a parameter, X, y or X_views is not as said, y has one class, or the loss became NaN or infinite.
        """
        x, numbers = self._read(X, y)
        x = estimation.with_views(self, x, X_views)
        self.head_ = self._settings("classification", x.shape[1] - 1)
        estimation.tune(self, x, numbers, estimation.split(self, numbers), len(self.classes_))
        return self


class NMTuneRegressor(_NMTune, RegressorMixin, BaseEstimator):
    """NMTune for one number a row, as in STS-B: the squared error takes the place of the cross-entropy.

    The numbers are standardised on the training rows, in float64; `predict` undoes it.

    Args: as `NMTuneClassifier`'s.

    Attributes: as `NMTuneClassifier`'s but classes_, and
      target_mean_, target_scale_: of the training rows. The losses in `history_` are of the standardised numbers.
    """

    def fit(self, X: ArrayLike, y: ArrayLike, *, X_views: ArrayLike | None = None) -> "NMTuneRegressor":
        """Trains on embeddings X (N, D) and numbers y (N,); for `X_views` see `NMTuneClassifier.fit`.

        Raises:
          ValueError: a parameter, X, y or X_views is not as said, or the loss became NaN or infinite.
        """
        estimation.check(self)
        numeric = {"y_numeric": True, "multi_output": True}
        x, y = validate_data(self, X, y, dtype=np.float32, ensure_min_samples=2, **numeric)
        if y.ndim > 1 and y.shape[1] > 1:
            raise UserError(
                f"y is {y.shape}, several numbers a row (multi-output); valid is one, ({len(y)},). Fit one regressor "
                "for each, as sklearn.multioutput.MultiOutputRegressor does."
            )
        y = column_or_1d(y, dtype=np.float64, warn=True)
        x = estimation.with_views(self, x, X_views)
        self.head_ = self._settings("regression", x.shape[1] - 1)
        split = estimation.split(self, np.zeros(len(y), np.int64))
        self.target_mean_ = float(y[split.train].mean())
        self.target_scale_ = float(y[split.train].std()) or 1.0
        estimation.tune(self, x, (y - self.target_mean_) / self.target_scale_, split, 1)
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """(N,) float64: the number of each row of X (N, D)."""
        standardised = estimation.outputs(self, X)[:, 0]
        return self.target_mean_ + self.target_scale_ * standardised

    def save(self, path: str | os.PathLike) -> None:
        """Writes the head as one safetensors file (see `tune.saved`), which `nml_jax.load_head` opens."""
        check_is_fitted(self, "params_")
        target = (self.target_mean_, self.target_scale_)
        trees = {"params": self.params_, "stats": self.stats_}
        saved.save(path, method=self._method, head=self.head_, classes=None, target=target, **trees)
