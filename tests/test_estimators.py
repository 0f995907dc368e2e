"""scikit-learn's own checks of the three estimators, their numbers against others', and how they are used."""

import functools
import pickle
import subprocess
import sys

import jax
import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import nml_jax
from nml_jax import LinearProbeClassifier, NMTuneClassifier, NMTuneRegressor, estimators
from nml_jax.tune import fraction, linear_probe, nmtune, saved, trainer
from nml_jax.tune import program as programs
from nml_jax.tune.runs import Run

N, D, C = 60, 6, 3
RNG = np.random.default_rng(0)
Y = RNG.integers(C, size=N)
X = (RNG.normal(size=(N, D)) + 2.0 * np.eye(D)[Y]).astype(np.float32)
VIEWS = (X[:, None] + 0.3 * RNG.normal(size=(N, 3, D))).astype(np.float32)
NAMES = np.array(["cat", "dog", "zebra"])
TARGET = 3.0 + X @ RNG.normal(size=D)
ADAMW = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4}
# The recipes are made for thousands of steps; on the few rows of these tests they need larger ones.
FAST = {"epochs": 20, "learning_rate": 0.05, "batch_size": 20, "random_state": 0}
ALL = pytest.mark.parametrize("kind", [LinearProbeClassifier, NMTuneClassifier, NMTuneRegressor])


def target(kind):
    return TARGET if kind is NMTuneRegressor else NAMES[Y]


@functools.cache
def fitted(kind):
    return kind(**FAST).fit(X, target(kind))


@parametrize_with_checks(
    [
        LinearProbeClassifier(epochs=20, learning_rate=0.1),
        NMTuneClassifier(epochs=20, learning_rate=0.03),
        NMTuneRegressor("paper", epochs=10, learning_rate=0.01, singular_value_weight=0),
    ]
)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


# The same numbers as elsewhere


@pytest.mark.parametrize(
    ("preset", "n_views", "drawn"),
    [("official", 0, 0), ("official", 1, 1), ("official", 3, 2), ("paper", 3, 1)],
)
def test_nmtune_is_the_head_of_the_trainer(preset, n_views, drawn):
    """As the stage "tune" would train it with this seed."""
    views = VIEWS[:, :n_views]
    task = nmtune.make(dim=D, num_classes=C, preset=preset, views=drawn)
    options = {"views": drawn, "batch_size": 20, "epochs": 30, "optim": ADAMW}
    (head,) = trainer.fit(task, np.concatenate([X[:, None], views], axis=1), [Run(Y, seed=7)], **options)
    classifier = NMTuneClassifier(preset, batch_size=20, random_state=7)
    classifier.fit(X, NAMES[Y], X_views=views if n_views else None)
    np.testing.assert_array_equal(classifier.decision_function(X), trainer.predict(task, head.state, X))
    jax.tree.map(
        np.testing.assert_array_equal, (classifier.params_, classifier.stats_), (head.params, head.stats)
    )
    assert classifier.history_ == head.history
    assert (classifier.n_epochs_, classifier.best_epoch_, len(classifier.history_)) == (30, 29, 30)


def test_the_linear_probe_is_the_head_of_the_trainer():
    task = linear_probe.make(dim=D, num_classes=C)
    adamw = ADAMW | {"learning_rate": 0.01}
    (head,) = trainer.fit(task, X[:, None], [Run(Y, seed=7)], views=0, batch_size=N, epochs=30, optim=adamw)
    probe = LinearProbeClassifier(random_state=np.int64(7)).fit(X, Y)
    np.testing.assert_array_equal(probe.decision_function(X), trainer.predict(task, head.state, X))


def test_a_linear_probe_trained_long_is_logistic_regression():
    y = np.random.default_rng(1).permutation(NAMES[Y])  # no line separates these, so there is a minimum
    exact = LogisticRegression(C=np.inf, tol=1e-10, max_iter=2000).fit(X, y)
    probe = LinearProbeClassifier(
        learning_rate=0.05, weight_decay=0, epochs=600, batch_size=N, random_state=0
    )
    np.testing.assert_allclose(probe.fit(X, y).predict_proba(X), exact.predict_proba(X), atol=2e-3)
    np.testing.assert_array_equal(probe.predict(X), exact.predict(X))


def test_scores_fit_together():
    classifier = fitted(NMTuneClassifier)
    logits, proba = classifier.decision_function(X), classifier.predict_proba(X)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(proba, expected, rtol=1e-12)
    np.testing.assert_allclose(classifier.predict_log_proba(X), np.log(expected), rtol=1e-9)
    np.testing.assert_array_equal(classifier.predict(X), NAMES[logits.argmax(axis=1)])
    assert classifier.score(X, NAMES[Y]) == np.mean(classifier.predict(X) == NAMES[Y]) > 0.8


def test_transform_is_what_the_classifier_sees():
    classifier = fitted(NMTuneClassifier)
    z, linear = classifier.transform(X), classifier.params_["classifier"]["linear"]
    assert (z.shape, z.dtype) == ((N, D), np.float32)
    np.testing.assert_allclose(
        z @ linear["kernel"] + linear["bias"], classifier.decision_function(X), atol=1e-4
    )


def test_a_row_does_not_depend_on_those_beside_it():
    x = np.concatenate([X] * 9)
    together, alone = (
        fitted(NMTuneClassifier).decision_function(x),
        fitted(NMTuneClassifier).decision_function(x[500:501]),
    )
    np.testing.assert_array_equal(together[500:501], alone)


# Regression


def test_the_regressor_finds_a_linear_law():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, D))
    y = 50.0 + 20.0 * x @ rng.normal(size=D) + 5.0 * rng.normal(size=400)
    exact = LinearRegression().fit(x[:300], y[:300]).score(x[300:], y[300:])
    regressor = NMTuneRegressor(epochs=60, learning_rate=3e-3, random_state=0).fit(x[:300], y[:300])
    assert regressor.score(x[300:], y[300:]) == pytest.approx(exact, abs=0.02)
    assert regressor.predict(x).dtype == np.float64


@pytest.mark.parametrize("preset", ["official", "paper"])
def test_the_regressor_finds_a_law_that_is_not_linear(preset):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(600, D))
    y = np.abs(x[:, 0]) + np.sin(2 * x[:, 1])
    regressor = NMTuneRegressor(preset, epochs=100, learning_rate=1e-2, random_state=0).fit(x[:500], y[:500])
    linear = LinearRegression().fit(x[:500], y[:500])
    assert stats.pearsonr(regressor.predict(x[500:]), y[500:]).statistic > 0.9
    assert stats.pearsonr(linear.predict(x[500:]), y[500:]).statistic < 0.8


def test_the_unit_of_the_target_does_not_matter():
    y = 1e6 + 1e-3 * TARGET  # of which float32 would keep nothing
    regressor = NMTuneRegressor(**FAST).fit(X, y)
    assert regressor.score(X, y) == pytest.approx(fitted(NMTuneRegressor).score(X, TARGET), abs=0.02)
    assert regressor.score(X, y) > 0.9
    np.testing.assert_allclose(
        (regressor.target_mean_, regressor.target_scale_), (y.mean(), y.std()), rtol=1e-12
    )
    assert NMTuneRegressor(**FAST).fit(X, np.full(N, 0.1)).predict(X) == pytest.approx(0.1)


def test_one_target_only():
    with pytest.raises(ValueError, match=r"y is \(60, 2\), several numbers .*MultiOutputRegressor"):
        NMTuneRegressor().fit(X, np.stack([TARGET, TARGET], axis=1))
    with pytest.warns(DataConversionWarning):
        regressor = NMTuneRegressor(**FAST).fit(X, TARGET[:, None])
    np.testing.assert_array_equal(regressor.predict(X), fitted(NMTuneRegressor).predict(X))


# Early stopping


def by_hand(estimator, x, y):
    """(accuracy, loss) of a classifier; (0, loss) of a regressor, whose loss is of the standardised numbers."""
    if isinstance(estimator, NMTuneRegressor):
        return 0.0, np.mean(((estimator.predict(x) - y) / estimator.target_scale_) ** 2)
    return accuracy_score(y, estimator.predict(x)), log_loss(y, estimator.predict_proba(x))


@ALL
def test_early_stopping_keeps_the_best_epoch(kind):
    y = np.random.default_rng(3).permutation(target(kind))  # nothing to learn: validation soon gets worse
    options = {"validation_fraction": 0.3, "n_iter_no_change": 6, "early_stopping": True}
    estimator = kind(epochs=60, learning_rate=0.1, batch_size=20, random_state=5, **options).fit(X, y)
    history, best = estimator.history_, estimator.best_epoch_
    merits = [(entry.get("validation_accuracy", 0.0), -entry["validation_loss"]) for entry in history]
    assert best == merits.index(max(merits))
    assert estimator.n_epochs_ == len(history) == best + 7 < 60
    strata = np.zeros(N, int) if kind is NMTuneRegressor else np.unique(y, return_inverse=True)[1]
    held_out = fraction.held_out(strata, 0.3, 5)
    np.testing.assert_array_equal(np.bincount(strata[held_out]), np.rint(0.3 * np.bincount(strata)))
    accuracy, loss = by_hand(estimator, X[held_out], y[held_out])
    assert accuracy == pytest.approx(history[best].get("validation_accuracy", 0.0))
    assert loss == pytest.approx(history[best]["validation_loss"], rel=1e-5)
    assert loss != pytest.approx(history[-1]["validation_loss"], rel=1e-2)
    if kind is NMTuneRegressor:
        assert estimator.target_mean_ == pytest.approx(y[~held_out].mean())


def test_rows_held_out_are_not_trained_on():
    held_out = fraction.held_out(Y, 0.1, 0)
    other = np.where(held_out[:, None], 1e3, X)
    fit = lambda x: LinearProbeClassifier(**FAST | {"epochs": 1}, early_stopping=True).fit(x, Y)  # noqa: E731
    np.testing.assert_array_equal(fit(other).decision_function(X), fit(X).decision_function(X))


def test_without_early_stopping_the_last_epoch_is_kept():
    probe = fitted(LinearProbeClassifier)
    assert (probe.n_epochs_, probe.best_epoch_) == (20, 19)
    assert "validation_loss" not in probe.history_[0]


def test_too_few_rows_to_hold_any_out():
    with pytest.raises(ValueError, match="leaves no row to validate on"):
        LinearProbeClassifier(early_stopping=True).fit(X[:6], [0, 0, 1, 1, 2, 2])


# Augmented views


def test_views_are_what_is_trained_on():
    """Views that say nothing of the classes teach nothing about them."""
    noise = np.random.default_rng(4).normal(size=VIEWS.shape)
    told, misled = (NMTuneClassifier(**FAST).fit(X, Y, X_views=views) for views in (VIEWS, noise))
    assert told.score(X, Y) > 0.8 > misled.score(X, Y) + 0.2


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (VIEWS[1:], r"X_views is \(59, 3, 6\) and X is \(60, 6\); valid is \(60, views, 6\)"),
        (VIEWS[:, :, 1:], r"X_views is \(60, 3, 5\) and X is \(60, 6\)"),
        (X, r"X_views is \(60, 6\)"),
        (VIEWS[:, :0], r"X_views is \(60, 0, 6\)"),
        (np.where(VIEWS > 2, np.nan, VIEWS), "Input X_views contains NaN"),
        (VIEWS.astype(np.complex64), "Complex data not supported"),
    ],
)
@pytest.mark.parametrize("kind", [NMTuneClassifier, NMTuneRegressor])
def test_views_that_do_not_fit(kind, views, message):
    with pytest.raises(ValueError, match=message):
        kind().fit(X, target(kind), X_views=views)


def test_views_go_through_cross_validation():
    scores = cross_validate(NMTuneClassifier(**FAST), X, Y, cv=2, params={"X_views": VIEWS})["test_score"]
    assert scores.mean() > 0.55  # chance is a third


# Labels, seeds, parameters


@pytest.mark.parametrize(
    "classes",
    [
        np.array([-3, 0, 2**40]),
        np.array(["a", "b", "é"]),
        np.array(["a", "b", "é"], object),
        np.array([0.0, 1.0, 5.0]),
        np.array([False, True]),
    ],
)
def test_labels_of_any_kind_come_back(classes, tmp_path):
    y = classes[Y % len(classes)]
    probe = LinearProbeClassifier(**FAST).fit(X, y)
    assert probe.predict(X).dtype == probe.classes_.dtype == y.dtype
    np.testing.assert_array_equal(probe.classes_, np.unique(y))
    assert probe.score(X, y) > 0.7
    probe.save(tmp_path / "head")
    np.testing.assert_array_equal(nml_jax.load_head(tmp_path / "head").predict(X), probe.predict(X))


@pytest.mark.parametrize("kind", [LinearProbeClassifier, NMTuneClassifier])
def test_a_saved_head_predicts_the_same(kind, tmp_path):
    weights = (
        {}
        if kind is LinearProbeClassifier
        else {"covariance_weight": np.float32(0.5), "expansion": np.int64(2)}
    )
    classifier = kind(**FAST, **weights).fit(X, NAMES[Y])
    classifier.set_params(learning_rate=9.0)  # parameters that are changed now are for the next fit
    classifier.save(tmp_path / "head.safetensors")
    head = nml_jax.load_head(tmp_path / "head.safetensors")
    assert (head.dim, head.classes.tolist(), head.head) == (D, NAMES.tolist(), classifier.head_)
    np.testing.assert_array_equal(head.predict(X), classifier.predict(X))
    np.testing.assert_array_equal(head.logits(X), classifier.decision_function(X))
    np.testing.assert_allclose(head.predict_proba(X), classifier.predict_proba(X), atol=1e-6)
    if kind is NMTuneClassifier:
        np.testing.assert_array_equal(head.transform(X), classifier.transform(X))
        assert head.head["covariance_weight"] == 0.5


@pytest.mark.parametrize("preset", ["official", "paper"])
def test_a_saved_regressor_predicts_the_same(preset, tmp_path):
    y = 1e6 + 1e-3 * TARGET  # of which float32 would keep nothing
    options = {"consistency_weight": np.float32(0.5), "early_stopping": True}
    regressor = NMTuneRegressor(preset, **FAST, **options).fit(X, y)
    predicted = regressor.predict(X)
    regressor.set_params(learning_rate=9.0)  # parameters that are changed now are for the next fit
    regressor.save(tmp_path / "head.safetensors")
    head = nml_jax.load_head(tmp_path / "head.safetensors")
    assert (head.dim, head.classes, head.head) == (D, None, regressor.head_)
    assert head.target == (regressor.target_mean_, regressor.target_scale_)
    assert head.predict(X).dtype == np.float64
    np.testing.assert_array_equal(head.predict(X), predicted)
    np.testing.assert_array_equal(head.transform(X), regressor.transform(X))
    assert np.corrcoef(head.predict(X), y)[0, 1] > 0.9
    with pytest.raises(ValueError, match="Use predict"):
        head.predict_proba(X)


@ALL
def test_what_was_not_fitted_cannot_be_saved(kind, tmp_path):
    with pytest.raises(NotFittedError):
        kind().save(tmp_path / "head")
    assert not list(tmp_path.iterdir())


def test_seeds():
    fit = lambda seed: LinearProbeClassifier(epochs=1, random_state=seed).fit(X, Y).decision_function(X)  # noqa: E731
    np.testing.assert_array_equal(fit(3), fit(3))
    assert np.abs(fit(3) - fit(2**32 - 1)).max() > 0.1
    np.testing.assert_array_equal(fit(np.random.RandomState(3)), fit(np.random.RandomState(3)))
    generator = np.random.RandomState(3)
    assert np.abs(fit(generator) - fit(generator)).max() > 0.1
    np.random.seed(0)
    unseeded = fit(None)
    assert np.abs(unseeded - fit(None)).max() > 0.1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"preset": "journal"}, "journal.* official, paper"),
        ({"learning_rate": 0}, "learning_rate is 0; valid are finite numbers above 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"learning_rate": 1e20}, "Lower the learning rate"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; valid are finite numbers from 0"),
        ({"epochs": 0}, "epochs is 0; valid are integers from 1"),
        ({"epochs": 2.5}, "epochs is 2.5"),
        ({"epochs": True}, "epochs is True"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": N + 1}, "60 rows to train on, fewer than a batch of 61"),
        ({"batch_size": "all"}, "batch_size is 'all'; valid are 'auto' and integers"),
        ({"n_iter_no_change": 0}, "n_iter_no_change is 0"),
        ({"early_stopping": True, "validation_fraction": 1.5}, "validation fraction is 1.5"),
        ({"random_state": -1}, "Seed must be between"),
        ({"random_state": "a"}, "cannot be used to seed"),
        ({"consistency_weight": -1}, "consistency_weight is -1; valid are finite numbers from 0 and None"),
        ({"covariance_weight": np.nan}, "covariance_weight is nan"),
        ({"expansion": 0}, "expansion is 0; valid are integers from 1 and None"),
        ({"batch_norm": "yes"}, "batch_norm is 'yes'; valid are True, False and None"),
        ({"residual_scale": np.inf}, "residual_scale is inf; valid are finite numbers and None"),
        ({"consistency_reduction": "max"}, "max.* mean, sum"),
        ({"singular_value_top_k": 0}, "singular_value_top_k is 0"),
        ({"singular_value_method": "guess"}, "guess.* gram, .*svd"),
    ],
)
def test_wrong_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        NMTuneClassifier(**parameters).fit(X, Y)


@pytest.mark.parametrize("kind", [LinearProbeClassifier, NMTuneClassifier])
def test_one_class_only(kind):
    with pytest.raises(
        ValueError, match="All labels of y are 'cat'; a classifier needs at least two classes"
    ):
        kind().fit(X, ["cat"] * N)


@ALL
def test_other_features_than_those_of_the_fit(kind):
    with pytest.raises(ValueError, match="X has 5 features, but .* is expecting 6 features"):
        fitted(kind).predict(X[:, :5])
    with pytest.raises(ValueError, match="too large for dtype"), np.errstate(over="ignore"):
        fitted(kind).predict(np.full((1, D), 1e39))


def test_options_reach_the_head():
    options = {"expansion": 2, "batch_norm": False, "residual": False, "singular_value_weight": 0}
    classifier = NMTuneClassifier(**FAST, **options).fit(X, Y)
    assert classifier.params_["mlp"]["expand"]["kernel"].shape == (D, 2 * D)
    assert "scale" not in classifier.params_
    assert not classifier.stats_
    assert "singular_value" not in classifier.history_[0]
    assert classifier.head_ == nmtune.PRESETS["official"] | options | {"views": 0}


def test_other_weights_are_the_same_program():
    before = fitted(NMTuneClassifier)
    built = programs.build.cache_info().misses
    heavier = NMTuneClassifier(**FAST, consistency_weight=50.0).fit(X, NAMES[Y])
    assert programs.build.cache_info().misses == built
    assert heavier.history_[-1]["consistency"] < 0.5 * before.history_[-1]["consistency"]


def test_progress(capsys):
    LinearProbeClassifier(**FAST, verbose=True, early_stopping=True).fit(X, Y)
    shown = capsys.readouterr().err
    assert "LinearProbeClassifier" in shown
    LinearProbeClassifier(**FAST).fit(X, Y)
    assert not capsys.readouterr().err


# As they are used


def test_importing_the_package_does_not_import_jax():
    program = (
        "import sys, nml_jax\n"
        "assert {'NMTuneClassifier', 'NMTuneRegressor', 'LinearProbeClassifier', 'load_head'} <= set(dir(nml_jax))\n"
        "assert not hasattr(nml_jax, 'NMTuneClasifier')\n"
        "assert 'jax' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
    assert nml_jax.NMTuneClassifier is estimators.NMTuneClassifier
    assert nml_jax.load_head is saved.load


@ALL
def test_copies_predict_the_same(kind, tmp_path):
    estimator = fitted(kind)
    joblib.dump(estimator, tmp_path / "estimator")
    for copy in (joblib.load(tmp_path / "estimator"), pickle.loads(pickle.dumps(estimator))):
        np.testing.assert_array_equal(copy.predict(X), estimator.predict(X))
    leaves = jax.tree.leaves((estimator.params_, estimator.stats_))
    assert all(type(leaf) is np.ndarray and leaf.flags.owndata and leaf.flags.writeable for leaf in leaves)
    assert not any(isinstance(leaf, jax.Array) or callable(leaf) for leaf in jax.tree.leaves(vars(estimator)))
    assert not hasattr(clone(estimator), "params_")
    assert clone(estimator).get_params() == estimator.get_params()


def test_other_processes_give_the_same_scores():
    probe = LinearProbeClassifier(**FAST)
    alone, shared = (cross_val_score(probe, X, NAMES[Y], cv=2, n_jobs=jobs) for jobs in (None, 2))
    np.testing.assert_array_equal(shared, alone)


def test_grid_search_in_a_pipeline():
    grid = {
        "nmtuneclassifier__learning_rate": [1e-6, 0.03],
        "nmtuneclassifier__consistency_weight": np.array([1.0, 5.0]),
    }
    search = GridSearchCV(make_pipeline(StandardScaler(), NMTuneClassifier(**FAST)), grid, cv=2)
    search.fit(100 * X + 7, NAMES[Y])
    assert search.best_params_["nmtuneclassifier__learning_rate"] == 0.03
    assert search.best_score_ > 0.55  # chance is a third
    assert search.predict(100 * X + 7).dtype == NAMES.dtype
    assert search.best_estimator_.transform(100 * X + 7).shape == (N, D)


@pytest.mark.parametrize("library", [pd, pl])
def test_data_frames(library):
    columns = [f"f{i}" for i in range(D)]
    frame = library.DataFrame({name: X[:, i] for i, name in enumerate(columns)})
    classifier = NMTuneClassifier(**FAST).fit(frame, library.Series(NAMES[Y].tolist()))
    assert classifier.feature_names_in_.tolist() == columns
    assert classifier.n_features_in_ == D
    np.testing.assert_array_equal(classifier.predict(frame), fitted(NMTuneClassifier).predict(X))
    z = classifier.set_output(transform=library.__name__).transform(frame)
    assert isinstance(z, library.DataFrame)
    assert list(z.columns) == [f"nmtuneclassifier{i}" for i in range(D)]
    np.testing.assert_array_equal(z.to_numpy(), fitted(NMTuneClassifier).transform(X))
    with pytest.raises(ValueError, match="feature names should match"):
        classifier.predict(frame[columns[::-1]])
