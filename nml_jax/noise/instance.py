"""Instance-dependent label noise: what a sample looks like decides which wrong label it gets.

The construction of Xia et al. 2020 ("Part-dependent label noise", algorithm 2 of its appendix), for a sample with
features x (d,) and label y, in the numbers of its published code:

    q ~ the normal distribution (ratio, 0.1^2) truncated to [0, 1]        the sample's flip rate
    W_y ~ N(0, 1), one (d, C) matrix for each class                       a random view of the features
    p = q * softmax(x W_y over the classes other than y),  p_y = 1 - q    the label is drawn from p

The rates q are drawn without looking at x; the target depends on it. Below 0.2 their mean is not the ratio, because
what is cut off at 0 lies above it: 0.101 for 0.05, 0.129 for 0.1, 0.206 for 0.2 and 0.300 for 0.3. That many labels
are wrong with `mode="official"`; `mode="exact"` flips the fraction that was asked for: in each class the samples with
the largest rates. A larger ratio raises all rates and keeps their order, so both modes are nested.
"""

from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from nml_jax.core.errors import UserError
from nml_jax.noise import choice, keys

CORRUPTS = ("labels",)
NEEDS = ("features",)
MODES = ("exact", "official")


def corrupt(
    labels: Any,
    *,
    num_classes: int,
    ratio: float,
    seed: int,
    features: Any,
    ids: Any = None,
    mode: str = "exact",
    deviation: float = 0.1,
) -> np.ndarray:
    """Gives a fraction of the labels another class, which depends on the sample's features.

    Args:
      labels: (N,) integers in [0, num_classes).
      ratio: fraction in [0, 1]; 0 leaves the labels clean. "exact": round(ratio * n_c) labels of each class c change, a
        half rounded to the even neighbour. "official": each label changes with its own rate.
      features: (N, d) finite numbers, such as normalised pixels. The logits x W_y have the standard deviation |x|: the
        more features, and the larger, the more the target is one class and the less it is chance.
      ids: N different integers or strings; the row numbers if left out.
      mode: "exact" or "official".
      deviation: standard deviation of the flip rates before they are truncated.

    Returns:
      (N,) int64.

    Raises:
      UserError: one of these is not as said.
    """
    labels = choice.check_labels(labels, num_classes)
    ratio = choice.check_ratio(ratio)
    if mode not in MODES:
        raise UserError(f"Unknown mode {mode!r} of instance; valid: {', '.join(MODES)}.")
    if not deviation > 0:
        raise UserError(f"deviation={deviation!r}; valid is a positive number, the paper's is 0.1.")
    features = np.asarray(features)
    if features.ndim != 2 or len(features) != len(labels) or not np.issubdtype(features.dtype, np.number):
        raise UserError(
            f"features are {features.dtype} of shape {features.shape} for {len(labels)} labels; valid are numbers "
            "(N, d), one row a sample."
        )
    words = keys.words(ids, len(labels))
    if mode == "official" and ratio:
        flipped = keys.uniforms(words, seed=seed, stream="flip") < rates(words, ratio, deviation, seed)
    else:
        can_flip = np.ones(num_classes, bool)
        flipped = choice.per_class(labels, words, can_flip=can_flip, ratio=ratio, seed=seed)
    uniform = keys.uniforms(words, seed=seed, stream="target")
    noisy = labels.copy()
    for c in np.unique(labels[flipped]).tolist():
        rows = np.flatnonzero(flipped & (labels == c))
        noisy[rows] = _targets(features[rows], c, num_classes, uniform[rows], seed)
    return noisy


def rates(words: np.ndarray, ratio: float, deviation: float, seed: int) -> np.ndarray:
    """(N,) flip rates: the truncated normal distribution at a uniform number of each id.

    The numbers are those that `choice.per_class` orders by, from the other end: it takes the largest rates.
    """
    uniform = 1.0 - keys.uniforms(words, seed=seed, stream="chosen")
    low, high = ndtr(-ratio / deviation), ndtr((1.0 - ratio) / deviation)
    return np.clip(ratio + deviation * ndtri(low + uniform * (high - low)), 0.0, 1.0)


def projection(label: int, size: int, num_classes: int, seed: int) -> np.ndarray:
    """W of a class, (size, num_classes) standard normal numbers, by Box and Muller's method."""
    words = np.arange(size * num_classes, dtype=np.uint64)
    radius = np.sqrt(-2.0 * np.log1p(-keys.uniforms(words, seed=seed, stream=f"radius/{label}")))
    angle = 2.0 * np.pi * keys.uniforms(words, seed=seed, stream=f"angle/{label}")
    return (radius * np.cos(angle)).reshape(size, num_classes)


def _targets(
    features: np.ndarray, label: int, num_classes: int, uniform: np.ndarray, seed: int
) -> np.ndarray:
    """(n,) int64: a class other than `label` for each of `features` (n, d), drawn from the softmax."""
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        raise UserError(
            "features have non-finite entries; valid are finite numbers, such as normalised pixels."
        )
    logits = features @ projection(label, features.shape[1], num_classes, seed)
    logits[:, label] = -np.inf
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    upper = np.cumsum(weights, axis=1)  # the first class whose upper bound lies above the uniform number
    return np.sum(upper <= uniform[:, None] * upper[:, -1:], axis=1)
