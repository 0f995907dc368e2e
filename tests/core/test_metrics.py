"""Classification metrics on a case worked by hand."""

import numpy as np
import pytest

from nml_jax.core import metrics


def test_classes_that_are_not_in_y_do_not_count():
    y = [0, 0, 0, 2]
    logits = np.eye(4)[[0, 0, 3, 2]]  # one of the three zeros is taken for class 3, which y does not have
    scores = metrics.classification(y, logits)
    assert scores["accuracy"] == 0.75
    assert scores["mean_per_class"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["macro_f1"] == pytest.approx((0.8 + 1) / 2)


def test_a_class_that_is_never_predicted_has_zero():
    scores = metrics.classification(np.array([0, 1]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert scores == {"accuracy": 0.5, "mean_per_class": 0.5, "macro_f1": pytest.approx(1 / 3)}
