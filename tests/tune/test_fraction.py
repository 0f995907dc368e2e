"""Class-balanced subsets: exact counts, nested."""

import numpy as np
import pytest

from nml_jax.core.errors import UserError
from nml_jax.tune import fraction

COUNTS = [1, 9, 10, 57, 200]
Y = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 4, 5], COUNTS))  # class 3 has no rows


@pytest.mark.parametrize("r", [0.05, 0.1, 0.25, 0.5, 0.75, 1.0])
def test_exact_counts_per_class(r):
    chosen = fraction.subset(Y, r, seed=0)
    assert chosen.dtype == bool
    assert [int(chosen[c == Y].sum()) for c in (0, 1, 2, 4, 5)] == [max(1, int(n * r)) for n in COUNTS]


def test_nested_and_seeded():
    small, large = fraction.subset(Y, 0.25, seed=0), fraction.subset(Y, 0.5, seed=0)
    assert large[small].all()
    assert (fraction.subset(Y, 0.25, seed=1) != small).any()


@pytest.mark.parametrize("r", [0.0, -0.1, 1.01, float("nan")])
def test_bad_fraction(r):
    with pytest.raises(UserError, match="Ten percent"):
        fraction.subset(Y, r, seed=0)
