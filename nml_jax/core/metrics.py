"""Classification metrics."""

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, recall_score


def classification(y: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Accuracy, mean per-class accuracy and macro F1 of the largest logit, each in [0, 1].

    The per-class means go over the classes that are present in `y`.

    Args:
      y: (N,) class indices.
      logits: (N, C).
    """
    y, predicted = np.asarray(y), np.asarray(logits).argmax(axis=1)
    over = {"labels": np.unique(y), "average": "macro", "zero_division": 0}
    return {
        "accuracy": float(accuracy_score(y, predicted)),
        "mean_per_class": float(recall_score(y, predicted, **over)),
        "macro_f1": float(f1_score(y, predicted, **over)),
    }
